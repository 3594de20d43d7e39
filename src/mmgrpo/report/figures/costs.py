"""What a score costs: time and generated tokens of each run."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mmgrpo.records import Record
from mmgrpo.report import frames, names
from mmgrpo.report.figures.style import MARKERS, dot, legend, new, nth, strategy_handles


def cost(records: Sequence[Record]) -> Figure | None:
    """Test score of each run against its time and against the tokens that it generated, one column a task.

    A composition pays for the prompt optimization that it starts from, too. None where the cost of no run is known.
    """
    runs = frames.runs(records)
    unit, per_hour = frames.unit_of_time(runs["hours"])
    paid = {f"Time of one run, {unit}": per_hour * runs["hours"]}
    if "tokens_completion" in runs:
        paid["Tokens generated in one run, thousands"] = runs["tokens_completion"] / 1000
    paid = {label: amounts for label, amounts in paid.items() if amounts.notna().any()}
    if not paid:
        return None
    tasks, strategies = names.ordered(runs["task"], names.TASKS), names.ordered(runs["strategy"], names.STRATEGIES)
    models = names.ordered(runs["model"], names.MODELS)
    with new(len(paid), len(tasks), smoke=frames.is_smoke(records)) as (figure, axes):
        for row, (label, amounts) in zip(axes, paid.items(), strict=True):
            for axis, task in zip(row, tasks, strict=True):
                _points(axis, runs.assign(paid=amounts)[runs["task"] == task], models)
                _paid_axis(axis, label, amounts)
            row[0].set_ylabel("Test score, points of 100")
        for axis, task in zip(axes[0], tasks, strict=True):
            axis.set_title(names.task(task))
        legend(figure, strategy_handles(strategies, models, marker="o"))
    return figure


def _points(axis: Axes, runs: pd.DataFrame, models: list[str]) -> None:
    for (strategy, model), members in runs.groupby(["strategy", "model"]):
        axis.scatter(members["paid"], members["score"], marker=nth(MARKERS, models.index(model)), **dot(strategy, 38))


def _paid_axis(axis: Axes, label: str, paid: pd.Series) -> None:
    """On a logarithmic axis where runs differ by more than a factor of ten."""
    axis.set_xlabel(label)
    if paid.min() > 0 and paid.max() > 10 * paid.min():
        axis.set_xscale("log")
        subs = (1, 2, 5) if paid.max() < 100 * paid.min() else (1, 3)  # more labels of several digits would collide
        axis.xaxis.set_major_locator(LogLocator(subs=subs))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.margins(x=0.12, y=0.15)
