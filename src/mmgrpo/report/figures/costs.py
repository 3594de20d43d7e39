"""What a score costs: hours and generated tokens of each run."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from mmgrpo.records import Record
from mmgrpo.report import frames, names
from mmgrpo.report.figures.style import MARKERS, colour, legend, new, nth, strategy_handles

LABELS = {"hours": "Hours of one run", "tokens_completion": "Tokens generated in one run, thousands"}
UNITS = {"hours": 1, "tokens_completion": 1000}


def cost(records: Sequence[Record]) -> Figure:
    """Test score of each run against its hours and against the tokens that it generated, one column a task.

    A composition pays for the prompt optimization that it starts from, too.
    """
    runs = frames.runs(records)
    tasks, strategies = names.ordered(runs["task"], names.TASKS), names.ordered(runs["strategy"], names.STRATEGIES)
    models = names.ordered(runs["model"], names.MODELS)
    measures = [name for name in LABELS if name in runs]
    with new(len(measures), len(tasks), smoke=frames.is_smoke(records)) as (figure, axes):
        for row, measure in zip(axes, measures, strict=True):
            paid = runs.assign(paid=runs[measure] / UNITS[measure])
            for axis, task in zip(row, tasks, strict=True):
                _points(axis, paid[paid["task"] == task], models)
                _paid_axis(axis, LABELS[measure], paid["paid"])
            row[0].set_ylabel("Test score, points of 100")
        for axis, task in zip(axes[0], tasks, strict=True):
            axis.set_title(names.task(task))
        legend(figure, strategy_handles(strategies, models, marker="o"))
    return figure


def _points(axis: Axes, runs: pd.DataFrame, models: list[str]) -> None:
    for (strategy, model), members in runs.groupby(["strategy", "model"]):
        style = {"color": colour(strategy), "edgecolor": "white", "linewidth": 0.5}
        axis.scatter(members["paid"], members["score"], s=38, marker=nth(MARKERS, models.index(model)), **style)


def _paid_axis(axis: Axes, label: str, paid: pd.Series) -> None:
    """On a logarithmic axis where runs differ by more than a factor of ten."""
    axis.set_xlabel(label)
    if paid.min() > 0 and paid.max() > 10 * paid.min():
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.margins(x=0.12, y=0.15)
