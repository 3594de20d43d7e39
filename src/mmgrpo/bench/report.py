"""The benchmarks' table and figures, in the style of the study's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter

from mmgrpo.bench.record import Comparison
from mmgrpo.report import figures, names, writers
from mmgrpo.report.figures.style import NARROWEST, STYLE

MET, MISSED, FREE = 2, 3, 7  # places in seaborn's "colorblind" palette
INCHES = (6.0, 0.5)  # width, and height of a bar with its line of text
PANEL = (2.4, 2.4)


def write(comparisons: Sequence[Comparison], folder: Path) -> list[Path]:
    """Table (.md, .tex, .csv) and figures (.pdf, .png) of all that was measured."""
    files = writers.write(table(comparisons), folder)
    files += figures.save(ratios(comparisons), folder, "bench")
    curves = growth(comparisons)
    return files if curves is None else files + figures.save(curves, folder, "bench_growth")


def table(comparisons: Sequence[Comparison]) -> writers.Table:
    shown = pd.DataFrame(
        {
            "What": [one.what for one in comparisons],
            "Ours": [f"{_short(one.ours)} {one.unit}" for one in comparisons],
            "Peer": [f"{_short(one.peer)} {one.unit} ({one.peer_name})" for one in comparisons],
            "Ratio": [f"{_short(one.ratio)}×" for one in comparisons],
            "Target": [one.target or names.MISSING for one in comparisons],
            "Met": [{True: "yes", False: "no", None: names.MISSING}[one.met] for one in comparisons],
            "Gradient error": [_gradient_error(one) for one in comparisons],
            "Runs": [str(one.runs) for one in comparisons],
        }
    )
    numbers = pd.DataFrame(
        {
            "benchmark": one.benchmark, "what": one.what, "ours": one.ours, "peer": one.peer, "peer_name": one.peer_name,
            "unit": one.unit, "ratio": one.ratio, "target": one.target, "met": one.met, "runs": one.runs,
            "machine": one.machine, **one.details,
        }
        for one in comparisons
    )  # fmt: skip
    caption = (
        "Medians of runs taken in turns, in fp32. Ratio: how many times faster; of growth, memory and throughput: ours "
        "over the peer's. Gradient error: relative difference of our LoRA gradient and TRL's on the same rows, and of each "
        "from ours at weights and products in fp64. "
        f"Machine: {'; '.join(dict.fromkeys(one.machine for one in comparisons))}."
    )
    return writers.Table("bench", "Speed and memory", caption, shown, numbers, smoke=False)


def ratios(comparisons: Sequence[Comparison]) -> Figure:
    """A bar for each comparison with a peer or a target, and a line where its target is."""
    chosen = [one for one in comparisons if one.growth is None or one.target is not None]
    with matplotlib.rc_context({**sns.axes_style("ticks"), **STYLE}):
        figure, axis = plt.subplots(figsize=(INCHES[0], INCHES[1] * len(chosen) + 1.2), layout="constrained")
        plt.close(figure)
        for place, one in enumerate(chosen):
            axis.barh(place, one.ratio, height=0.4, color=_colour(one))
            label = f"{one.what} · {one.peer_name}"
            axis.text(0.005, place - 0.26, label, transform=axis.get_yaxis_transform(), va="bottom", fontsize=7.5)
            bound = None if one.target is None else float(one.target.rsplit(" ", 1)[1])
            end = max(one.ratio, bound or 0), place
            axis.annotate(f"{_short(one.ratio)}×", end, (5, 0), textcoords="offset points", va="center")
            if bound is not None:
                axis.plot([bound, bound], [place - 0.25, place + 0.25], color="0.15", linewidth=1.6)
        axis.set_yticks([])
        axis.set_ylim(len(chosen) - 0.6, -0.8)
        axis.set_xscale("log")
        axis.axvline(1, color="0.6", linewidth=0.8, zorder=0)
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlim(right=2 * max([1.0, *(one.ratio for one in chosen)]))
        axis.set_xlabel("Ratio")
        handles = [
            Patch(color=_palette(place), label=label)
            for place, label in ((MET, "target met"), (MISSED, "target missed"), (FREE, "no target"))
            if any(_colour(one) == _palette(place) for one in chosen)
        ]
        figure.legend(
            handles=[*handles, Line2D([], [], color="0.15", linewidth=1.6, label="target")],
            loc="outside lower center", ncols=4,
        )  # fmt: skip
        figure.draw_without_rendering()
    return figure


def growth(comparisons: Sequence[Comparison]) -> Figure | None:
    """Seconds of our training step against what grows, a panel each; None where no growth was measured."""
    curves: dict[str, list[Comparison]] = {}
    for one in comparisons:
        if one.growth is not None:
            curves.setdefault(one.growth[0], []).append(one)
    if not curves:
        return None
    with matplotlib.rc_context({**sns.axes_style("ticks"), **STYLE}):
        size = (max(PANEL[0] * len(curves), NARROWEST), PANEL[1])
        figure, axes = plt.subplots(1, len(curves), figsize=size, layout="constrained", squeeze=False)
        plt.close(figure)
        for axis, (growing, members) in zip(axes[0], curves.items(), strict=True):
            _curve(axis, growing, sorted(members, key=lambda one: one.growth[1]))
        axes[0, 0].set_ylabel("Seconds of a training step")
        figure.draw_without_rendering()
    return figure


def _curve(axis: Axes, growing: str, members: list[Comparison]) -> None:
    places = [one.growth[1] for one in members]
    axis.plot(places, [one.ours for one in members], marker="o", markersize=4, color=_palette(0))
    axis.set_xlabel(growing.capitalize())
    axis.set_xticks(places)
    axis.set_xlim(left=0)
    axis.set_ylim(0, 1.1 * max(one.ours for one in members))
    axis.grid(axis="y", color="0.9")


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _gradient_error(one: Comparison) -> str:
    if "gradient_error" not in one.details:
        return names.MISSING
    error = f"{one.details['gradient_error']:.1e}"
    if "rounding" not in one.details:
        return error
    return f"{error} (off fp64: ours {one.details['rounding']:.1e}, theirs {one.details['peer_rounding']:.1e})"


def _colour(one: Comparison) -> tuple[float, float, float]:
    return _palette({True: MET, False: MISSED, None: FREE}[one.met])


def _palette(place: int) -> tuple[float, float, float]:
    return sns.color_palette("colorblind")[place]
