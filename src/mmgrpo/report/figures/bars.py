"""Scores as bars, published ones beside."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mmgrpo.records import Record
from mmgrpo.report import frames, names, summary
from mmgrpo.report.figures.style import INCHES, colour, legend, new

SLOT = 0.3  # inches of one strategy's slot
INTERVAL, PUBLISHED = "95% bootstrap interval", "published, mean ± sd"
INK = "0.15"
BEAM = [(-0.4, -1), (0.4, -1), (0, -1), (0, 1), (-0.4, 1), (0.4, 1)]  # an interval's marker in the legend


def scores(records: Sequence[Record]) -> Figure:
    """Bars by task and strategy with 95% bootstrap intervals; published mean and deviation as hollow markers beside."""
    numbers = summary.scores(records)
    tasks, strategies = list(dict.fromkeys(numbers["task"])), names.ordered(numbers["strategy"], names.STRATEGIES)
    width = max(INCHES[0], SLOT * len(strategies) * numbers.groupby("task")["model"].nunique().max())
    rows, columns = (1, len(tasks)) if width == INCHES[0] else (len(tasks), 1)  # wide panels go below each other
    with new(rows, columns, smoke=frames.is_smoke(records), width=width, sharey=True) as (figure, axes):
        for axis, task in zip(axes.flat, tasks, strict=True):
            _bars(axis, numbers[numbers["task"] == task], strategies)
            seeds = numbers.loc[(numbers["task"] == task) & (numbers["seeds"] > 0), "seeds"]
            axis.set_title(names.task(task) + (f", {names.seeds(seeds.min(), seeds.max())}" if len(seeds) else ""))
        for axis in axes[:, 0]:
            axis.set_ylabel("Test score, points of 100")
        axes[0, 0].set_ylim(bottom=0)  # after all panels are drawn: it ends the automatic choice of the shared scale
        handles = [Patch(color=colour(name), label=names.strategy(name)) for name in strategies]
        handles += [
            Line2D([], [], color=INK, marker=BEAM, markersize=9, fillstyle="none", linestyle="", label=INTERVAL),
            Line2D([], [], color="0.25", marker="o", markerfacecolor="white", linewidth=1, label=PUBLISHED),
        ]
        legend(figure, handles)
    return figure


def _bars(axis: Axes, numbers: pd.DataFrame, strategies: list[str]) -> None:
    """One group of bars a model; each strategy has a slot with its bar left and its published marker right."""
    run_models = set(numbers.loc[numbers["mean"].notna(), "model"])
    models = sorted(dict.fromkeys(numbers["model"]), key=lambda model: model not in run_models)  # ours first
    slot = 0.84 / len(strategies)
    for group, model in enumerate(models):
        rows = numbers[numbers["model"] == model].set_index("strategy").reindex(strategies)
        for place, row in enumerate(rows.itertuples()):
            left = group - 0.42 + place * slot
            if model in run_models:
                _bar(axis, left + 0.36 * slot, 0.62 * slot, row.mean, row.low, row.high, colour(row.Index))
            if not np.isnan(row.published_mean):
                sd = None if np.isnan(row.published_sd) else row.published_sd
                axis.errorbar(
                    left + 0.8 * slot, row.published_mean, yerr=sd, fmt="o", color=colour(row.Index), ecolor="0.25",
                    markersize=4.5, markerfacecolor="white", markeredgewidth=1.3, elinewidth=0.8,
                )  # fmt: skip
    labels = [names.model(model) + ("" if model in run_models else "\n(published only)") for model in models]
    axis.set_xticks(range(len(models)), labels)
    axis.tick_params(axis="x", length=0)
    axis.set_xlim(-0.5, len(models) - 0.5)


def _bar(axis: Axes, middle: float, width: float, mean: float, low: float, high: float, colour: str) -> None:
    """A bar with its interval; a word where the cell wasn't run, and the number where the bar has no height to see."""
    if np.isnan(mean):
        axis.annotate(
            "not run",
            (middle, 0),
            (0, 3),
            textcoords="offset points",
            ha="center",
            rotation=90,
            fontsize=7.5,
            color="0.4",
        )
        return
    axis.bar(middle, mean, width, color=colour)
    if not np.isnan(low):
        axis.errorbar(
            middle, mean, yerr=[[max(mean - low, 0)], [max(high - mean, 0)]], color=INK, elinewidth=1, capsize=2
        )
    if mean == 0:
        axis.annotate("0", (middle, 0), (0, 2), textcoords="offset points", ha="center", color=INK)
