"""Published, committed and reproduced scores in one tidy frame: the numbers of the score table and of its bar chart."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from mmgrpo.records import Record
from mmgrpo.report import frames, names, published, statistics

MEASURED = ["mean", "sd", "low", "high", "seeds", "examples"]  # of a cell, this machine's or (`committed_`) committed
COMMITTED = {name: f"committed_{name}" for name in MEASURED}
PUBLISHED_PASSAGES = 100  # HoVer's published metric is the recall among so many
COLUMNS = [*frames.KIND, "published_mean", "published_sd", *COMMITTED.values(), *MEASURED]


def scores(records: Sequence[Record], committed: Sequence[Record] = ()) -> pd.DataFrame:
    """One row for each task, model and strategy that was run or is committed, or published for a task of those.

    Points of 100; NaN where a cell wasn't run (`seeds` is 0), isn't committed (`committed_seeds` is 0) or isn't
    published. `low` and `high` bound the 95% bootstrap interval.
    """
    both = _measured(records).merge(_measured(committed).rename(columns=COMMITTED), on=frames.KIND, how="outer")
    paper = published.results().drop(columns="source").rename(columns={"mean": "published_mean", "sd": "published_sd"})
    both = both.merge(paper[paper["task"].isin(both["task"])], on=frames.KIND, how="outer")
    counts = [name for name in COLUMNS if name.endswith(("seeds", "examples"))]
    both[counts] = both[counts].fillna(0).astype(int)
    return in_order(both)[COLUMNS]


def in_order(numbers: pd.DataFrame) -> pd.DataFrame:
    """Rows with a task, model and strategy each, in the order in which reports show these."""
    known = {"task": names.TASKS, "model": names.MODELS, "strategy": names.STRATEGIES}
    order = {column: names.ordered(numbers[column], listed) for column, listed in known.items()}
    return numbers.sort_values(frames.KIND, key=lambda column: column.map(order[column.name].index), ignore_index=True)


def caveats(records: Sequence[Record], committed: Sequence[Record], numbers: pd.DataFrame) -> str:
    """What a reader of `numbers`, the scores of these records, may stumble over: sentences, each where it applies."""
    said = []
    if numbers[["seeds", "committed_seeds"]].eq(1).any(axis=None):
        said.append("One seed has no deviation, and its interval covers the choice of test examples only.")
    if _one_run(records) or _one_run(committed):
        said.append(f"Greedy replies on a fixed test split: all seeds of {names.strategy('vanilla')} are one run.")
    judges = {record.task: record.settings.get("task", {}).get("judge") for record in (*records, *committed)}
    lexical = [task for task, judge in judges.items() if judge == "lexical"]
    if tasks := ", ".join(map(names.task, names.ordered(lexical, names.TASKS))):
        said.append(
            f"Our metric of {tasks} is another one than the published: a lexical judge, not a language model that "
            "compares answers."
        )
    for task, passages in sorted(_passages((*records, *committed)).items()):
        if passages < PUBLISHED_PASSAGES:
            said.append(
                f"Our metric of {names.task(task)} is the recall among at most {passages} passages, where the published "
                f"one is that among {PUBLISHED_PASSAGES}."
            )
    return "".join(f" {sentence}" for sentence in said)


def _passages(records: Sequence[Record]) -> dict[str, int]:
    """Task -> the most passages that a run of it finds, where it searches; of records that differ, the fewest."""
    found: dict[str, int] = {}
    for record in records:
        options = record.settings.get("task", {})
        if {"hops", "passages"} <= set(options):
            most = options["hops"] * options["passages"]
            found[record.task] = min(most, found.get(record.task, most))
    return found


def _one_run(records: Sequence[Record]) -> bool:
    """Whether all seeds of vanilla are equal on every example, in a cell that has several."""
    cells = [cell.scores for (_, _, strategy), cell in frames.by_kind(records).items() if strategy == "vanilla"]
    return any(len(scores) > 1 and all(statistics.equal(scores[0], other) for other in scores) for scores in cells)


def _measured(records: Sequence[Record]) -> pd.DataFrame:
    rows = []
    for (task, model, strategy), cell in frames.by_kind(records).items():
        interval = statistics.mean_interval(cell.scores, task=task, model=model)
        mean, sd = statistics.mean_and_sd(cell.scores)
        rows.append((task, model, strategy, mean, sd, interval.low, interval.high, len(cell.seeds), len(cell.examples)))
    return pd.DataFrame(rows, columns=[*frames.KIND, *MEASURED]).astype(dict.fromkeys(MEASURED, float))
