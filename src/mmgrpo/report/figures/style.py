"""The one style of all figures: colours that colour-blind readers can tell apart, text that survives print.

Colours belong to strategies, so that a strategy looks the same in every figure, whatever else is in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mmgrpo.report import names

PALETTE = {  # places in seaborn's "colorblind" palette
    "vanilla": 7, "prompt_optimization": 1, "trajectory_grpo": 9, "module_grpo": 0, "composition": 2,
    "gepa": 4, "fast_slow": 5,
}  # fmt: skip
OTHER_COLOUR = "0.3"
HOLLOW = "trajectory_grpo"  # its points are rings: on one module called once they lie on those of module level
RING = 1.4  # points, of its line
STYLE = {
    "font.size": 9, "axes.titlesize": 10, "axes.labelsize": 9,
    "xtick.labelsize": 8.5, "ytick.labelsize": 8.5, "legend.fontsize": 8.5,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8, "grid.linewidth": 0.5,
    "legend.frameon": False, "figure.dpi": 110, "savefig.dpi": 200, "pdf.fonttype": 42,
}  # fmt: skip
LINES = ("-", "--", ":", "-.")  # one for each model
MARKERS = ("o", "s", "^", "D")  # one for each model
INCHES = (3.4, 2.7)  # of one panel
BLUE, ORANGE = (0, 114, 178), (230, 159, 0)  # Okabe and Ito: advantages above and below zero
FULL = 2.0  # advantage, in deviations, from which on the colour is as strong as it gets
STRENGTH = 0.6  # of the strongest colour; black text stays readable on it
NARROWEST = 5.7  # inches; a narrower figure would be less wide than its legend
LEGEND = (0.5, 0.065)  # inches of a legend's handle with its margins, and of a character of its text


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write `figure` as PDF and PNG; without dates and versions, so that equal figures are equal files."""
    folder.mkdir(parents=True, exist_ok=True)
    without = {"pdf": {"CreationDate": None, "Creator": None, "Producer": None}, "png": {"Software": None}}
    files = []
    with matplotlib.rc_context(STYLE):
        for suffix, metadata in without.items():
            files.append(folder / f"{name}.{suffix}")
            figure.savefig(files[-1], metadata=metadata)
    return files


@contextmanager
def new(
    rows: int,
    columns: int,
    *,
    smoke: bool,
    width: float = INCHES[0],
    height: float = INCHES[1],
    sharex: bool | str = False,
    sharey: bool | str = False,
) -> Iterator[tuple[Figure, np.ndarray]]:
    """A figure with [rows, columns] axes in our style; stamped where it shows a smoke run, laid out after."""
    with matplotlib.rc_context({**sns.axes_style("ticks"), **STYLE}):
        size = (max(width * columns, NARROWEST), height * rows + 0.5)
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
        figure.get_layout_engine().execute(figure)  # here, as ticks take their style when first laid out,
        figure.set_layout_engine(None)  # and once: with any engine, even "none", each file is drawn twice


def legend(figure: Figure, handles: list) -> None:
    """A legend below all panels, in as many columns as fit, at most three."""
    handle, character = LEGEND
    widths = [handle + character * len(each.get_label()) for each in handles]
    splits = [np.array_split(widths, columns) for columns in range(1, min(len(handles), 3) + 1)]  # as matplotlib does
    fitting = [len(split) for split in splits if sum(map(max, split)) <= figure.get_figwidth()]
    figure.legend(handles=handles, loc="outside lower center", ncols=max(fitting, default=1))


def strategy_handles(strategies: Sequence[str], models: Sequence[str], *, marker: str | None = None) -> list[Line2D]:
    """What a legend says of strategies (by colour) and of models, where there are several (by line, or by marker)."""
    style = {"linewidth": 1.8} if marker is None else {"marker": marker, "linestyle": ""}
    ring = {"markerfacecolor": "none", "markeredgewidth": RING}
    handles = [
        Line2D([], [], color=colour(name), label=names.strategy(name), **style, **(ring if name == HOLLOW else {}))
        for name in strategies
    ]
    for place, name in enumerate(models if len(models) > 1 else ()):
        own = {"linestyle": nth(LINES, place)} if marker is None else {"marker": nth(MARKERS, place), "linestyle": ""}
        handles.append(Line2D([], [], color="0.25", label=names.model(name), **own))
    return handles


def colour(strategy: str) -> str | tuple[float, float, float]:
    return sns.color_palette("colorblind")[PALETTE[strategy]] if strategy in PALETTE else OTHER_COLOUR


def dot(strategy: str, size: float) -> dict[str, Any]:
    """How a scatter draws a strategy's points of `size` (in points squared): filled, or as a larger ring."""
    if strategy == HOLLOW:
        return {"s": 2 * size, "facecolor": "none", "edgecolor": colour(strategy), "linewidth": RING}
    return {"s": size, "facecolor": colour(strategy), "edgecolor": "white", "linewidth": 0.5}


def nth(options: tuple[str, ...], place: int) -> str:
    return options[place % len(options)]


def shade(advantage: float | None) -> str:
    """The background of an advantage, as #rrggbb; white at zero and where it is missing."""
    if advantage is None or math.isnan(advantage):
        return "#ffffff"
    target = BLUE if advantage > 0 else ORANGE
    strength = STRENGTH * min(abs(advantage) / FULL, 1.0)
    red, green, blue = (round(255 + strength * (part - 255)) for part in target)
    return f"#{red:02x}{green:02x}{blue:02x}"
