"""Reproduced and published scores in one tidy frame: the numbers of the score table and of its bar chart."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from mmgrpo.records import Record
from mmgrpo.report import frames, names, published, statistics

COLUMNS = [*frames.CELL, "published_mean", "published_sd", "mean", "sd", "low", "high", "seeds", "examples"]


def scores(records: Sequence[Record], *, seed: int = 0) -> pd.DataFrame:
    """One row for each task, model and strategy that was run, or published for a task that was run.

    Points of 100; NaN where a cell wasn't run (`seeds` is 0) or isn't published. `low` and `high` bound
    the 95% bootstrap interval, drawn from `seed`.
    """
    reproduced = _reproduced(records, seed)
    paper = published.results().drop(columns="source").rename(columns={"mean": "published_mean", "sd": "published_sd"})
    paper = paper[paper["task"].isin(reproduced["task"])]
    both = reproduced.merge(paper, on=frames.CELL, how="outer")
    both[["seeds", "examples"]] = both[["seeds", "examples"]].fillna(0).astype(int)
    order = {
        "task": names.ordered(both["task"], names.TASKS),
        "model": names.ordered(both["model"], names.MODELS),
        "strategy": names.ordered(both["strategy"], names.STRATEGIES),
    }
    return both.sort_values(frames.CELL, key=lambda column: column.map(order[column.name].index), ignore_index=True)[
        COLUMNS
    ]


def _reproduced(records: Sequence[Record], seed: int) -> pd.DataFrame:
    rows = []
    for (task, model, strategy), cell in frames.cells(records).items():
        interval = statistics.mean_interval(cell.scores, task=task, model=model, seed=seed)
        mean, sd = statistics.mean_and_sd(cell.scores)
        shape = {"seeds": len(cell.seeds), "examples": len(cell.examples)}
        rows.append(
            {"task": task, "model": model, "strategy": strategy, "mean": mean, "sd": sd}
            | {"low": interval.low, "high": interval.high}
            | shape
        )
    return pd.DataFrame(rows)
