"""Parts of a metric: quality against leakage (PAPILLON), and whatever is measured hop by hop (HoVer)."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from mmgrpo.records import Record
from mmgrpo.report import frames, names
from mmgrpo.report.figures.style import LINES, MARKERS, colour, dot, legend, new, nth, strategy_handles

HOP = re.compile(r"(?P<what>.+)_hop_(?P<hop>\d+)")  # details such as recall_hop_2
SEEDS = [
    Line2D([], [], color="0.25", linestyle="", marker="o", markersize=size, label=label, alpha=alpha)
    for size, label, alpha in ((3.7, "one seed", 0.5), (7.2, "mean of seeds", 1.0))
]


def quality_leakage(records: Sequence[Record]) -> Figure | None:
    """Quality against leakage, large for the mean of seeds and small for each; None where no run has both parts.

    Means over the test examples whose reply could be judged: one that did not parse has neither part.
    """
    parts = frames.details(records)
    if not {"quality", "leakage"} <= set(parts):
        return None
    parts = parts.dropna(subset=["quality", "leakage"])
    tasks, strategies = names.ordered(parts["task"], names.TASKS), names.ordered(parts["strategy"], names.STRATEGIES)
    models = names.ordered(parts["model"], names.MODELS)
    with new(1, len(tasks), smoke=frames.is_smoke(records)) as (figure, axes):
        for axis, task in zip(axes[0], tasks, strict=True):
            for (strategy, model), runs in parts[parts["task"] == task].groupby(["strategy", "model"]):
                marker, seeds = nth(MARKERS, models.index(model)), runs[["leakage", "quality"]]
                if len(seeds) > 1:
                    axis.scatter(seeds["leakage"], seeds["quality"], alpha=0.5, marker=marker, **dot(strategy, 14))
                axis.scatter(*seeds.mean(), marker=marker, **dot(strategy, 52))
            axis.set_title(names.task(task))
            axis.set_xlabel("Leakage, share of private units (less is better)")
            axis.margins(0.15)
        axes[0, 0].set_ylabel("Quality, from 0 to 1")
        sizes = SEEDS if parts["seed"].nunique() > 1 else []
        legend(figure, strategy_handles(strategies, models, marker="o") + sizes)
    return figure


def by_hop(records: Sequence[Record]) -> Figure | None:
    """What the metric measures at each hop, a row a measure and a column a task; None where nothing is by hop.

    Means over seeds and over the test examples whose run came to its end: an interrupted one was not judged. The first
    search is the input itself, so that strategies differ there by their interrupted runs alone.
    """
    hops = _by_hop(frames.details(records))
    if hops.empty:
        return None
    tasks, strategies = names.ordered(hops["task"], names.TASKS), names.ordered(hops["strategy"], names.STRATEGIES)
    models, measures = names.ordered(hops["model"], names.MODELS), sorted(set(hops["what"]))
    with new(len(measures), len(tasks), smoke=frames.is_smoke(records), sharex="col", sharey="row") as (figure, axes):
        for row, measure in zip(axes, measures, strict=True):
            for axis, task in zip(row, tasks, strict=True):
                shown = hops[(hops["what"] == measure) & (hops["task"] == task)]
                for (strategy, model), line in shown.groupby(["strategy", "model"]):
                    means = line.groupby("hop")["value"].mean()
                    style = {"color": colour(strategy), "linestyle": nth(LINES, models.index(model))}
                    axis.plot(means.index, means, marker="o", markersize=3.5, linewidth=1.6, **style)
                axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            row[0].set_ylabel(names.measure(measure))
            # From zero: a scale that began where the lines do would make little look like much.
            row[0].set_ylim(0, 1.05 * row[0].get_ylim()[1])
        for axis, last, task in zip(axes[0], axes[-1], tasks, strict=True):
            axis.set_title(names.task(task))
            last.set_xlabel("Hop")
        legend(figure, strategy_handles(strategies, models))
    return figure


def _by_hop(parts: pd.DataFrame) -> pd.DataFrame:
    """One row a run, measure and hop, of details named `<measure>_hop_<number>`."""
    found = {name: HOP.fullmatch(name) for name in parts}
    long = parts.melt(frames.RUN, [name for name, match in found.items() if match], "detail").dropna(subset="value")
    of = long["detail"].map(found)
    return long.assign(what=[match["what"] for match in of], hop=[int(match["hop"]) for match in of])
