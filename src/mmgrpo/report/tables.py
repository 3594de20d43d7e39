"""Scores, agreement, cost, groups, parts and outcomes as tables. Claims and settings have files of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from mmgrpo.records import Record
from mmgrpo.report import evidence, frames, names, published, statistics, summary
from mmgrpo.report.frames import SeedScores
from mmgrpo.report.statistics import Interval
from mmgrpo.report.writers import Table, bounds, count, estimate, number, spread

STAGES = {
    "hours_before": "Prompts before",
    "hours_optimize": "Optimize",
    "hours_evaluate": "Evaluate",
    "hours": "In all",
}
TOKENS = {"tokens_prompt": "Prompt, k tokens", "tokens_completion": "Completion, k tokens"}
BUDGET = {"rollouts": "Rollouts", "tokens_calls": "Policy calls"}
APIS = {"api_calls": "API calls", "api_dollars": "API, $"}


def scores(records: Sequence[Record], committed: Sequence[Record] = ()) -> Table:
    """Table 1: strategies by task and model, published beside committed beside reproduced, each where there is one."""
    numbers = summary.scores(records, committed)
    strategies = names.ordered({*names.PAPER_STRATEGIES, *numbers["strategy"]}, names.STRATEGIES)
    shown = pd.DataFrame({("", "", "Strategy"): [names.strategy(name) for name in strategies]})
    for (task, model), cell in numbers.groupby(["task", "model"], sort=False):
        rows = cell.set_index("strategy").reindex(strategies)
        head = names.task(task), names.model(model)
        if rows["published_mean"].notna().any():
            shown[*head, "published"] = [spread(row.published_mean, row.published_sd) for row in rows.itertuples()]
        for name, prefix in (("committed", "committed_"), ("reproduced", "")):
            if rows[f"{prefix}mean"].notna().any():
                shown[*head, name] = measured_scores(rows, prefix)
                shown[*head, f"{prefix}seeds".replace("_", " ")] = [count(n) for n in rows[f"{prefix}seeds"]]
    caption = (
        "Mean test score in points of 100 ± standard deviation over seeds, "
        "[95% bootstrap interval over seeds and test examples]. "
        f"{names.MISSING}: not run, or not published. Published: {published.source()}"
    )
    if committed:
        caption += " Committed: our own runs, whose records lie in data/evidence."
    if committed and records:
        caption += " Reproduced: the runs of this machine." + evidence.differences(records, committed)
    caption += summary.caveats(records, committed, numbers)
    return Table(
        "table_scores", "Scores by strategy, task and model", caption, shown, numbers, frames.is_smoke(records)
    )


def agreement(records: Sequence[Record], committed: Sequence[Record]) -> Table | None:
    """Each cell of `records` that is committed too: do the two agree? None where there is no such cell."""
    theirs = frames.by_kind(committed)
    both = [(key, ours, theirs[key]) for key, ours in frames.by_kind(records).items() if key in theirs]
    if not both:
        return None
    numbers = summary.in_order(pd.DataFrame([_agreement(*each) for each in both]))
    shown = _heads(numbers)
    shown["This machine"] = [number(mean) for mean in numbers["mean"]]
    shown["Seeds"] = [str(n) for n in numbers["seeds"]]
    shown["Committed"] = [
        estimate(row.committed_mean, row.committed_low, row.committed_high) for row in numbers.itertuples()
    ]
    shown["Committed seeds"] = [str(n) for n in numbers["committed_seeds"]]
    shown["Within"] = [within or names.MISSING for within in numbers["within"]]
    shown["Difference"] = [
        estimate(row.difference, row.difference_low, row.difference_high, sign=True) for row in numbers.itertuples()
    ]
    caption = (
        "Mean test scores of this machine's runs and of the committed ones (records in data/evidence), in points of "
        "100. In brackets 95% bootstrap intervals over seeds and test examples. Within: this machine's mean lies in "
        "the interval of the committed one. Difference: this machine's mean less the committed one; test examples are "
        "resampled together where both were scored on the same, the seeds of each side apart. "
        "A side with one seed shows no spread over seeds, so that a faithful run can lie outside."
    )
    return Table(
        "table_agreement", "Agreement with the committed runs", caption + evidence.differences(records, committed),
        shown, numbers, frames.is_smoke(records),
    )  # fmt: skip


def cost(records: Sequence[Record]) -> Table:
    """What a run takes: time, tokens, paid APIs and memory, means over seeds."""
    runs = frames.runs(records)
    columns = [name for name in (*STAGES, *BUDGET, *TOKENS) if name in runs and runs[name].notna().any()]
    numbers = runs.groupby(frames.KIND)[[*columns, *APIS, "peak_memory_gb"]].mean().reset_index()
    numbers = numbers.merge(runs.groupby(frames.KIND).size().rename("seeds").reset_index(), on=frames.KIND)
    paper = published.cost().rename(columns={"hours": "published_hours", "hardware": "published_hardware"})
    numbers = summary.in_order(numbers.merge(paper, on="strategy", how="left"))
    shown, (unit, per_hour) = _heads(numbers), frames.unit_of_time(runs["hours"])
    times = {name: f"{head}, {unit}" for name, head in STAGES.items()}
    for heads, one, digits in ((times, 1 / per_hour, 1 if unit == "min" else 2), (BUDGET, 1, 0), (TOKENS, 1000, 1)):
        for name, head in heads.items():
            if name in numbers:
                shown[head] = [number(value / one, digits) for value in numbers[name]]
    for name, head in APIS.items():
        shown[head] = [number(value, 4 if name == "api_dollars" else 1) for value in numbers[name]]
    shown["Peak memory, GB"] = [number(value) for value in numbers["peak_memory_gb"]]
    paper_cost = zip(numbers["published_hours"], numbers["published_hardware"], strict=True)
    shown["Published, h"] = [
        names.MISSING if pd.isna(hours) else f"{hours} on {hardware}" for hours, hardware in paper_cost
    ]
    shown["Seeds"] = [str(n) for n in numbers["seeds"]]
    return Table("table_cost", "Cost", _cost_caption(records, runs), shown, numbers, frames.is_smoke(records))


def groups(records: Sequence[Record]) -> Table | None:
    """What became of rollouts and groups in training, means over updates and seeds; None where no run logged any."""
    curve = frames.curve(records)
    keys = names.ordered(
        (key for key in curve if key.startswith(("groups/", "calls/", "members/")) or key in names.STATISTICS),
        names.STATISTICS,
    )
    if not keys:
        return None
    counts = [key for key in keys if "/" in key]
    counted = curve[counts].notna().any(axis=1)  # an update logs only the counts that are not zero
    curve.loc[counted, counts] = curve.loc[counted, counts].fillna(0.0)
    by_run = curve.groupby(frames.RUN)[keys].mean().reset_index()
    numbers = summary.in_order(by_run.groupby(frames.KIND)[keys].mean().reset_index())
    shown = _heads(numbers)
    for key in keys:
        percent, digits = (100 if key == "format_failures" else 1), (2 if key.startswith("group_std") else 1)
        shown[names.statistic(key).capitalize()] = [number(percent * value, digits) for value in numbers[key]]
    caption = f"Means of one update over updates and seeds. {names.MISSING}: not logged by that strategy."
    return Table("table_groups", "Groups in training", caption, shown, numbers, frames.is_smoke(records))


def parts(records: Sequence[Record]) -> Table | None:
    """What the metric is made of, means over examples and seeds; None where no metric has parts."""
    by_run = frames.details(records)
    names_of_parts = [column for column in by_run if column not in frames.RUN]
    if not names_of_parts:
        return None
    numbers = summary.in_order(by_run.groupby(frames.KIND)[names_of_parts].mean().reset_index())
    shown = _heads(numbers)
    for name in names_of_parts:
        shown[name.replace("_", " ").capitalize()] = [number(value, 2) for value in numbers[name]]
    caption = (
        "Means over seeds and over the test examples that have the part; a run that broke off may have none. "
        f"{names.MISSING}: the task has no such part."
    )
    return Table("table_parts", "Parts of the metric", caption, shown, numbers, frames.is_smoke(records))


def outcomes(records: Sequence[Record]) -> Table:
    """How the test runs of the program ended, over all seeds."""
    counts = ["examples", *frames.OUTCOMES]
    numbers = summary.in_order(frames.runs(records).groupby(frames.KIND)[counts].sum().reset_index())
    shown = _heads(numbers)
    for name in counts:
        shown["Test runs" if name == "examples" else name.capitalize()] = [str(n) for n in numbers[name]]
    caption = (
        "How the program's runs on test examples ended, summed over seeds. Interrupted: an output didn't parse, or a "
        "prompt outgrew the context. Unscorable runs count neither as right nor as wrong; all others count in the score."
    )
    return Table("table_outcomes", "Outcomes of test runs", caption, shown, numbers, frames.is_smoke(records))


def measured_scores(rows: pd.DataFrame, prefix: str = "") -> list[str]:
    """`mean ± sd [low, high]` of each of `rows` of `summary.scores`; "–" where nothing was measured.

    `prefix` is "committed_" for the committed runs.
    """
    measured = rows[[f"{prefix}{part}" for part in ("mean", "sd", "low", "high")]]
    return [
        names.MISSING if math.isnan(mean) else f"{spread(mean, sd)} {bounds(low, high)}"
        for mean, sd, low, high in measured.itertuples(index=False)
    ]


def _cost_caption(records: Sequence[Record], runs: pd.DataFrame) -> str:
    resumed = (
        f" Runs that were interrupted and went on in another process, or start from such a run ({runs['resumed'].sum()} of "
        f"{len(runs)}), don't count in these means, except in rollouts."
    )
    return (
        "Wall-clock time, thousands of tokens, paid APIs and peak memory of one run, means over seeds; "
        f"machine: {_machines(records)}. A run that starts from optimized prompts pays for them too: its time in all "
        "includes that earlier run's optimization and nothing else of it; its tokens, calls and dollars include that "
        "run's own test evaluation, too. "
        "Rollouts: program runs that training sampled. Policy calls: all that were made of the policy, those of validation "
        "and test included. "
        f"API calls answered from the cache cost nothing and don't count; {names.MISSING}: the task asks no API, or the "
        "number or its price isn't known. "
        "The published hours are the paper's means over its tasks and 8B models."
    ) + (resumed if runs["resumed"].any() else "")


def _agreement(key: tuple[str, str, str], ours: SeedScores, theirs: SeedScores) -> dict[str, Any]:
    """One row: both means, whether ours lies in the committed interval, and the difference."""
    task, model, strategy = key
    same = ours.examples == theirs.examples
    mean, _ = statistics.mean_and_sd(ours.scores)
    wanted = statistics.mean_interval(theirs.scores, task=task, model=model)
    apart = statistics.difference(ours.scores, theirs.scores, paired=same, task=task, model=model)
    return {
        "task": task, "model": model, "strategy": strategy, "mean": mean, "seeds": len(ours.seeds),
        "committed_mean": wanted.estimate, "committed_low": wanted.low, "committed_high": wanted.high,
        "committed_seeds": len(theirs.seeds), "within": _within(mean, wanted),
        "difference": apart.estimate, "difference_low": apart.low, "difference_high": apart.high,
        "same_examples": same,
    }  # fmt: skip


def _within(mean: float, wanted: Interval) -> str:
    """Yes or no; empty where either side has no mean."""
    if math.isnan(mean) or math.isnan(wanted.low):
        return ""
    return "yes" if statistics.within(mean, wanted) else "no"


def _heads(numbers: pd.DataFrame) -> pd.DataFrame:
    """The first columns of a table with one row a cell: task, model, strategy as displayed."""
    display = {"task": names.task, "model": names.model, "strategy": names.strategy}
    return pd.DataFrame({name.capitalize(): [show(value) for value in numbers[name]] for name, show in display.items()})


def _machines(records: Sequence[Record]) -> str:
    """Each machine of the records once: its GPU where it has one, otherwise its processor and cores."""
    found = {
        str(
            record.machine.get("gpu")
            or f"{record.machine.get('cpu') or record.machine.get('system')}, {record.machine.get('cores', '?')} cores"
        )
        for record in records
    }
    return "; ".join(sorted(found))
