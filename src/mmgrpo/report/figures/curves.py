"""Learning curves: training reward and validation score by update."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from mmgrpo.records import Record
from mmgrpo.report import frames, names
from mmgrpo.report.figures.style import LINES, colour, legend, new, nth, strategy_handles

SMOOTHING = (3, 25)  # shortest and longest rolling mean of a training curve, in updates; an eighth of the curve between
THIN = {"linewidth": 0.7, "alpha": 0.45}  # lines of one seed
SEEDS = [
    Line2D([], [], color="black", label="one seed", **THIN),
    Line2D([], [], color="0.25", label="mean of seeds", linewidth=2.7),
]


def learning_curves(records: Sequence[Record]) -> Figure | None:
    """Training reward and validation score by update, one column a task; None where no run was trained."""
    curve, validation = frames.curve(records), frames.validation(records)
    if curve.empty:
        return None
    validation = validation[validation["strategy"].isin(curve["strategy"])]  # a prompt optimization has trials instead
    validation = validation.assign(score=100 * validation["score"])
    tasks, strategies = names.ordered(curve["task"], names.TASKS), names.ordered(curve["strategy"], names.STRATEGIES)
    models = names.ordered(curve["model"], names.MODELS)
    window = _window(curve["step"].nunique())
    with new(2, len(tasks), smoke=frames.is_smoke(records), sharex="col") as (figure, axes):
        for (reward_axis, score_axis), task in zip(axes.T, tasks, strict=True):
            _lines(reward_axis, curve[curve["task"] == task], "reward", models, window)
            _lines(score_axis, validation[validation["task"] == task], "score", models, 1)
            seeds = curve[curve["task"] == task].groupby(["strategy", "model"])["seed"].nunique()
            reward_axis.set_title(f"{names.task(task)}, {names.seeds(seeds.min(), seeds.max())}")
            score_axis.set_xlabel("Update")
            score_axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes[0, 0].set_ylabel(f"Training reward,\nmean of {window} updates" if window > 1 else "Training reward")
        axes[1, 0].set_ylabel("Validation score,\npoints of 100")
        legend(figure, strategy_handles(strategies, models) + (SEEDS if curve["seed"].nunique() > 1 else []))
    return figure


def _lines(axis: Axes, frame: pd.DataFrame, value: str, models: list[str], window: int) -> None:
    """Means over seeds, smoothed over `window` updates, with a thin line a seed where there is more than one."""
    groups = list(frame.groupby(["strategy", "model"]))
    for above, ((strategy, model), members) in zip(reversed(range(len(groups))), groups, strict=True):
        style = {"color": colour(strategy), "linestyle": nth(LINES, models.index(model))}
        wide = members.groupby(["step", "seed"])[value].mean().unstack()
        smooth = wide.rolling(window, center=True, min_periods=1).mean()
        single, marker = smooth.shape[1] == 1, "o" if window == 1 else None
        if not single:
            axis.plot(smooth.index, smooth, **THIN, **style)
        width = 1.8 + 0.9 * above  # lines that coincide, as both levels do on one module, are all seen
        axis.plot(smooth.index, smooth.mean(axis=1), linewidth=width, marker=marker, markersize=width + 1.7, **style)


def _window(updates: int) -> int:
    shortest, longest = SMOOTHING
    return 1 if updates < 2 * shortest else int(np.clip(updates // 8, shortest, longest))
