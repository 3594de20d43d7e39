"""How tasks, models and strategies are called and ordered in every table and figure.

A name that isn't listed here is shown as it is, after the listed ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

TASKS = {"banking77": "Banking77", "papillon": "PAPILLON", "hover": "HoVer"}
MODELS = {
    "meta-llama/Llama-3.1-8B-Instruct": "Llama 3.1 8B",
    "Qwen/Qwen3-8B": "Qwen3 8B",
    "Qwen/Qwen3-0.6B": "Qwen3 0.6B",
    "smollm2-135m": "SmolLM2 135M",
}
PAPER_STRATEGIES = {
    "vanilla": "Vanilla CoT",
    "prompt_optimization": "MIPROv2",
    "trajectory_grpo": "GRPO (trajectory)",
    "module_grpo": "mmGRPO (module)",
    "composition": "BetterTogether(PO, mmGRPO)",
}
STRATEGIES = PAPER_STRATEGIES | {"gepa": "GEPA", "fast_slow": "Fast-Slow"}

STATISTICS = {  # of one update, by their key in a record's curve
    "groups/kept": "groups kept",
    "groups/dropped_no_variance": "groups dropped, equal rewards",
    "groups/dropped_single": "groups dropped, one member",
    "group_std": "reward deviation, chosen members",
    "group_std_all": "reward deviation, all members",
    "members/dropped_k_diverse": "members not chosen",
    "calls/grouped": "calls grouped",
    "calls/repeated": "calls repeated",
    "calls/dropped_unscored": "calls dropped, no reward",
    "calls/dropped_truncate": "calls dropped, truncated",
    "format_failures": "format failures, % of runs",
}

MEASURES = {  # by hop
    "recall": "Recall",
    "query_names": "Share of names\nin the search",
    "query_words": "Words in the search",
}

SMOKE_STAMP = "SMOKE RUN: not a result"
MISSING = "–"  # never a zero: a cell that wasn't run has no score


def task(name: str) -> str:
    return TASKS.get(name, name)


def model(name: str) -> str:
    return MODELS.get(name, name.rsplit("/", 1)[-1])


def strategy(name: str) -> str:
    return STRATEGIES.get(name, name)


def either(name: str) -> str:
    """The name of a task, a strategy or a model."""
    return TASKS.get(name) or STRATEGIES.get(name) or model(name)


def statistic(key: str) -> str:
    return STATISTICS.get(key, key.replace("/", " ").replace("_", " "))


def measure(name: str) -> str:
    return MEASURES.get(name, name.replace("_", " ").capitalize())


def seeds(fewest: int, most: int) -> str:
    """How many seeds some cells have: "1 seed", "1 to 3 seeds"."""
    return f"{span(fewest, most)} seed{'s' if most > 1 else ''}"


def span(fewest: int, most: int) -> str:
    return str(most) if fewest == most else f"{fewest} to {most}"


def ordered(names: Iterable[str], known: Mapping[str, str]) -> list[str]:
    """Each of `names` once: the known ones in their order, then the others by alphabet."""
    given = set(names)
    return [name for name in known if name in given] + sorted(given - set(known))


def file_stem(name: str, smoke: bool) -> str:
    """File name without suffix; a smoke run can be told from its files' names."""
    return f"{name}_smoke" if smoke else name
