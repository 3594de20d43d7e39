"""The paper's claims, each as one strategy against another, with the published gain beside ours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd

from mmgrpo.records import Record
from mmgrpo.report import frames, names, published, statistics
from mmgrpo.report.frames import SeedScores
from mmgrpo.report.statistics import Interval, Pair
from mmgrpo.report.writers import Table, estimate, number

NOT_RUN = "not run"
NOT_A_RESULT = "not a result (smoke)"
UNKNOWN = Interval(float("nan"), float("nan"), float("nan"))


@dataclass(frozen=True)
class Claim:
    """`new` scores higher than `base`."""

    new: str
    base: str


CLAIMS = (
    Claim("module_grpo", "vanilla"),
    Claim("prompt_optimization", "vanilla"),
    Claim("composition", "vanilla"),
    Claim("composition", "prompt_optimization"),
    Claim("composition", "module_grpo"),
    Claim("module_grpo", "prompt_optimization"),  # neither dominates, in the paper
    Claim("trajectory_grpo", "module_grpo"),  # the way round of Section 5.4: 75.3 against 71.0
)

CAPTION = (
    "Each claim: the first strategy scores higher than the second. Gains are in points of 100 and relative to the "
    "second strategy; averages weigh tasks and models equally. In brackets the 95% bootstrap interval over seeds and "
    "test examples, both strategies resampled together. A claim holds where the whole interval of the gain in points "
    "is above zero, doesn't hold where it is below, and is undecided otherwise; the verdict is on the sign, not on the "
    "size. With two or three seeds the interval understates the spread between seeds. Pairs whose scores are equal on every example, as where a program's one module is called once and both levels "
    "are the same training, don't enter an average. Where a published gain and ours are of different models, tasks or "
    "data, the first is context, no target. The published trajectory-level run used the CISPO loss and more tuning. Of "
    "mmGRPO and MIPROv2 neither dominates in the paper: of its six pairs mmGRPO wins three and MIPROv2 two."
)


def build(records: Sequence[Record]) -> Table:
    """The claims table."""
    cells, smoke = frames.by_kind(records), frames.is_smoke(records)
    numbers = pd.DataFrame([row for claim in CLAIMS for row in _rows(claim, cells, smoke)])
    single = " A pair with one seed adds the choice of test examples only." if (numbers["seeds"] == 1).any() else ""
    return Table("table_claims", "Claims", CAPTION + single, _shown(numbers), numbers, smoke)


def pairs(claim: Claim, cells: dict[tuple[str, str, str], SeedScores]) -> dict[tuple[str, str], Pair]:
    """(task, model) -> both strategies on the seeds that they share; pairs without such seeds are left out."""
    found = {}
    for (task, model, strategy), new in cells.items():
        base = cells.get((task, model, claim.base))
        if strategy != claim.new or base is None:
            continue
        frames.require_same_examples(task, new.examples, base.examples)
        shared = sorted(set(new.seeds) & set(base.seeds))
        if shared:
            found[task, model] = Pair(task, model, _of_seeds(new, shared), _of_seeds(base, shared))
    return found


def published_gain(claim: Claim, task: str | None = None, model: str | None = None) -> tuple[float, int]:
    """The paper's relative gain in percent, and over how many task and model pairs; NaN and 0 where it has none."""
    means = _published_means()
    if task is not None:
        means = means[means.index == (task, model)]
    wide = means.reindex(columns=[claim.new, claim.base]).dropna()
    if wide.empty:
        return float("nan"), 0
    return 100 * (wide[claim.new].mean() / wide[claim.base].mean() - 1), len(wide)


@cache
def _published_means() -> pd.DataFrame:
    """[task and model, strategy], in points; NaN where the paper has no number."""
    return published.results().pivot(index=["task", "model"], columns="strategy", values="mean")


def _rows(claim: Claim, cells: dict[tuple[str, str, str], SeedScores], smoke: bool) -> Iterable[dict]:
    """The average over the pairs that aren't equal, then each pair, unless the average is its own.

    Where all pairs are equal, so is their average. A pair with a published gain of its own has its row in any case.
    """
    found = pairs(claim, cells)
    averaged = [pair for pair in found.values() if not pair.equal] or list(found.values())
    yield _row(claim, None, averaged, smoke)
    order = (
        names.ordered({task for task, _ in found}, names.TASKS),
        names.ordered({model for _, model in found}, names.MODELS),
    )
    for task, model in sorted(found, key=lambda pair: (order[0].index(pair[0]), order[1].index(pair[1]))):
        pair = found[task, model]
        if averaged != [pair] or published_gain(claim, task, model)[1]:
            yield _row(claim, (task, model), [pair], smoke)


def _row(claim: Claim, where: tuple[str, str] | None, members: list[Pair], smoke: bool) -> dict:
    paper, paper_pairs = published_gain(claim, *(where or (None, None)))
    points, relative, verdict = UNKNOWN, UNKNOWN, NOT_RUN
    if members:
        result = statistics.gain(members)
        points, relative = result.points, result.relative
        verdict = NOT_A_RESULT if smoke else result.verdict
    only = members[0] if len(members) == 1 else None
    seeds = [len(pair.new) for pair in members] or [0]
    return {
        "new": claim.new, "base": claim.base,
        "task": only.task if only else "average", "model": only.model if only else "average",
        "average": where is None, "pairs": len(members), "seeds": min(seeds), "most_seeds": max(seeds),
        "published_relative": paper, "published_pairs": paper_pairs,
        "points": points.estimate, "points_low": points.low, "points_high": points.high,
        "relative": relative.estimate, "relative_low": relative.low, "relative_high": relative.high,
        "verdict": verdict,
    }  # fmt: skip


def _shown(numbers: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for row in numbers.to_dict("records"):
        rows.append({
            "Claim": f"{names.strategy(row['new'])} over {names.strategy(row['base'])}",
            "Ours on": _place(row),
            "Published, %": _published(row),
            "Ours, points": _with_bounds(row, "points"),
            "Ours, %": _with_bounds(row, "relative"),
            "Seeds": _seeds(row),
            "Verdict": row["verdict"],
        })  # fmt: skip
    return pd.DataFrame(rows)


def _place(row: dict) -> str:
    if not row["pairs"]:
        return names.MISSING
    if row["pairs"] > 1:
        return f"average of {row['pairs']} task and model pairs"
    return f"{names.task(row['task'])}, {names.model(row['model'])}"


def _seeds(row: dict) -> str:
    """The seeds of a pair; of an average over several, from the fewest to the most."""
    return names.span(row["seeds"], row["most_seeds"]) if row["most_seeds"] else names.MISSING


def _published(row: dict) -> str:
    """The published gain; that of an average says over how many pairs."""
    text, count = number(row["published_relative"], sign=True), row["published_pairs"]
    return f"{text} ({count} pair{'s' if count > 1 else ''})" if row["average"] and count else text


def _with_bounds(row: dict, name: str) -> str:
    return estimate(row[name], row[f"{name}_low"], row[f"{name}_high"], sign=True)


def _of_seeds(cell: SeedScores, seeds: list[int]) -> np.ndarray:
    return cell.scores[[cell.seeds.index(seed) for seed in seeds]]
