"""The figures, in one style: colours of strategies that colour-blind readers can tell apart, text that survives print.

Each function takes records and returns a closed matplotlib Figure; `save` writes it. Colours belong
to strategies, so that a strategy looks the same in every figure, whatever else is in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mmgrpo.records import Record
from mmgrpo.report import frames, names, summary

PALETTE = {  # places in seaborn's "colorblind" palette
    "vanilla": 7, "prompt_optimization": 1, "trajectory_grpo": 9, "module_grpo": 0, "composition": 2,
    "gepa": 4, "fast_slow": 5,
}  # fmt: skip
OTHER_COLOUR = "0.3"
STYLE = {
    "font.size": 9, "axes.titlesize": 10, "axes.labelsize": 9,
    "xtick.labelsize": 8.5, "ytick.labelsize": 8.5, "legend.fontsize": 8.5,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8, "grid.linewidth": 0.5,
    "legend.frameon": False, "figure.dpi": 110, "savefig.dpi": 200, "pdf.fonttype": 42,
}  # fmt: skip
LINES = ("-", "--", ":", "-.")  # one for each model
MARKERS = ("o", "s", "^", "D")  # one for each model
INCHES = (3.4, 2.7)  # of one panel
NARROWEST = 5.0  # inches; a narrower figure would be less wide than its legend
SLOT = 0.3  # inches of one strategy's slot in the bar chart
SMOOTHING = (3, 25)  # shortest and longest rolling mean of a training curve, in steps; an eighth of the curve between


def scores(records: Sequence[Record], *, seed: int = 0) -> Figure:
    """Bars by task and strategy with 95% bootstrap intervals; published mean and deviation as hollow markers beside."""
    numbers = summary.scores(records, seed=seed)
    tasks, strategies = list(dict.fromkeys(numbers["task"])), names.ordered(numbers["strategy"], names.STRATEGIES)
    width = max(INCHES[0], SLOT * len(strategies) * numbers.groupby("task")["model"].nunique().max())
    rows, columns = (1, len(tasks)) if width == INCHES[0] else (len(tasks), 1)  # wide panels go below each other
    with _figure(rows, columns, smoke=frames.is_smoke(records), width=width, sharey=True) as (figure, axes):
        for axis, task in zip(axes.flat, tasks, strict=True):
            _bars(axis, numbers[numbers["task"] == task], strategies)
            axis.set_title(names.task(task))
        for axis in axes[:, 0]:
            axis.set_ylabel("Test score, points of 100")
        axes[0, 0].set_ylim(bottom=0)  # after all panels are drawn: it ends the automatic choice of the shared scale
        handles = [Patch(color=_colour(name), label=names.strategy(name)) for name in strategies]
        handles.append(
            Line2D([], [], color="0.25", marker="o", markerfacecolor="white", linewidth=1, label="published, mean ± sd")
        )
        _legend(figure, handles)
    return figure


def learning_curves(records: Sequence[Record]) -> Figure | None:
    """Training reward and validation score by step, one column a task; None where no run was trained."""
    curve, validation = frames.curve(records), frames.validation(records).dropna(subset=["step", "score"])
    if curve.empty:
        return None
    validation = validation.assign(score=100 * validation["score"])
    tasks, strategies = names.ordered(curve["task"], names.TASKS), names.ordered(curve["strategy"], names.STRATEGIES)
    models = names.ordered(curve["model"], names.MODELS)
    window = _window(curve["step"].nunique())
    with _figure(2, len(tasks), smoke=frames.is_smoke(records), sharex="col") as (figure, axes):
        for (reward_axis, score_axis), task in zip(axes.T, tasks, strict=True):
            _lines(reward_axis, curve[curve["task"] == task], "reward", models, window)
            _lines(score_axis, validation[validation["task"] == task], "score", models, 1)
            reward_axis.set_title(names.task(task))
            score_axis.set_xlabel("GRPO step")
            score_axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes[0, 0].set_ylabel(f"Training reward,\nmean of {window} steps" if window > 1 else "Training reward")
        axes[1, 0].set_ylabel("Validation score,\npoints of 100")
        handles = [
            Line2D([], [], color=_colour(name), linewidth=1.8, label=names.strategy(name)) for name in strategies
        ]
        if len(models) > 1:
            handles += [
                Line2D([], [], color="0.25", linestyle=_nth(LINES, i), label=names.model(name))
                for i, name in enumerate(models)
            ]
        _legend(figure, handles)
    return figure


def cost(records: Sequence[Record]) -> Figure:
    """Test score of each run against the hours that it took."""
    runs = frames.runs(records)
    tasks, strategies = names.ordered(runs["task"], names.TASKS), names.ordered(runs["strategy"], names.STRATEGIES)
    models = names.ordered(runs["model"], names.MODELS)
    with _figure(1, len(tasks), smoke=frames.is_smoke(records)) as (figure, axes):
        for axis, task in zip(axes[0], tasks, strict=True):
            for (strategy, model), members in runs[runs["task"] == task].groupby(["strategy", "model"]):
                marker = _nth(MARKERS, models.index(model))
                style = {"color": _colour(strategy), "edgecolor": "white", "linewidth": 0.5}
                axis.scatter(members["hours"], members["score"], s=38, marker=marker, **style)
            _hours_axis(axis, runs["hours"])
            axis.set_title(names.task(task))
        axes[0, 0].set_ylabel("Test score, points of 100")
        handles = [
            Line2D([], [], color=_colour(name), marker="o", linestyle="", label=names.strategy(name))
            for name in strategies
        ]
        if len(models) > 1:
            grey = {"color": "0.25", "linestyle": ""}
            handles += [
                Line2D([], [], marker=_nth(MARKERS, i), label=names.model(name), **grey)
                for i, name in enumerate(models)
            ]
        _legend(figure, handles)
    return figure


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write `figure` as PDF and PNG; without dates and versions, so that equal figures are equal files."""
    folder.mkdir(parents=True, exist_ok=True)
    without = {"pdf": {"CreationDate": None, "Creator": None, "Producer": None}, "png": {"Software": None}}
    files = []
    with matplotlib.rc_context(STYLE):
        for suffix, metadata in without.items():
            files.append(folder / f"{name}.{suffix}")
            figure.savefig(files[-1], metadata=metadata, bbox_inches="tight", pad_inches=0.05)
    return files


@contextmanager
def _figure(
    rows: int,
    columns: int,
    *,
    smoke: bool,
    width: float = INCHES[0],
    sharex: bool | str = False,
    sharey: bool | str = False,
) -> Iterator[tuple[Figure, np.ndarray]]:
    """A figure with [rows, columns] axes in our style; stamped where it shows a smoke run, laid out after."""
    with matplotlib.rc_context({**sns.axes_style("ticks"), **STYLE}):
        size = (max(width * columns, NARROWEST), INCHES[1] * rows + 0.5)
        figure, axes = plt.subplots(
            rows, columns, figsize=size, layout="constrained", squeeze=False, sharex=sharex, sharey=sharey
        )
        plt.close(figure)  # pyplot forgets it; it can still be shown and saved
        for axis in axes.flat:
            axis.grid(axis="y", color="0.9")
            axis.set_axisbelow(True)
        if smoke:
            figure.suptitle(names.SMOKE_STAMP, color="firebrick", fontweight="bold", fontsize=11)
        yield figure, axes
        figure.draw_without_rendering()  # ticks take their style when first drawn


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
                _bar(axis, left + 0.36 * slot, 0.62 * slot, row.mean, row.low, row.high, _colour(row.Index))
            if not np.isnan(row.published_mean):
                sd = None if np.isnan(row.published_sd) else row.published_sd
                axis.errorbar(
                    left + 0.8 * slot, row.published_mean, yerr=sd, fmt="o", color=_colour(row.Index), ecolor="0.25",
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
            middle, mean, yerr=[[max(mean - low, 0)], [max(high - mean, 0)]], color="0.15", elinewidth=1, capsize=2
        )
    if mean == 0:
        axis.annotate("0", (middle, 0), (0, 2), textcoords="offset points", ha="center", color="0.15")


def _lines(axis: Axes, frame: pd.DataFrame, value: str, models: list[str], window: int) -> None:
    """Means over seeds, smoothed over `window` steps, with a thin line a seed where there is more than one."""
    for (strategy, model), members in frame.groupby(["strategy", "model"]):
        style = {"color": _colour(strategy), "linestyle": _nth(LINES, models.index(model))}
        wide = members.pivot_table(index="step", columns="seed", values=value)
        smooth = wide.rolling(window, center=True, min_periods=1).mean()
        single, marker = smooth.shape[1] == 1, "o" if window == 1 else None
        if not single:
            axis.plot(smooth.index, smooth, linewidth=0.7, alpha=0.45, **style)
        axis.plot(smooth.index, smooth.mean(axis=1), linewidth=1.8, marker=marker, markersize=3.5, **style)


def _window(steps: int) -> int:
    shortest, longest = SMOOTHING
    return 1 if steps < 2 * shortest else int(np.clip(steps // 8, shortest, longest))


def _hours_axis(axis: Axes, hours: pd.Series) -> None:
    """Hours, on a logarithmic axis where runs differ by more than a factor of ten."""
    axis.set_xlabel("Hours of one run")
    if hours.min() > 0 and hours.max() > 10 * hours.min():
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.margins(x=0.12, y=0.15)


def _legend(figure: Figure, handles: list) -> None:
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 3))


def _colour(strategy: str) -> str | tuple[float, float, float]:
    return sns.color_palette("colorblind")[PALETTE[strategy]] if strategy in PALETTE else OTHER_COLOUR


def _nth(options: tuple[str, ...], place: int) -> str:
    return options[place % len(options)]
