"""How rollouts become groups, as one training step really did it, and how much reward variance groups have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from mmgrpo.records import Record
from mmgrpo.report import frames, names
from mmgrpo.report.figures.style import LINES, colour, legend, new, nth, shade, strategy_handles
from mmgrpo.report.writers import number

PANEL = (5.4, 3.4)  # inches of each half of the rollout figure
HIGH = 0.74  # of a row, the part that a call fills
UNREAD, REPEATED = "////", "...."  # hatches of calls that did not parse, and of copies that fill a group


def rollout_groups(records: Sequence[Record]) -> Figure | None:
    """The rollouts of one input and the groups they became (the paper's Figure 2, from data); None where none is kept.

    Left: a row a run, a block a call, as wide as its tokens. Right: the same runs, a column a group, each
    member with its advantage. Of several records the one with the most groups is shown, module level first.
    """
    kept = [record for record in records if record.notes.get("rollouts")]
    if not kept:
        return None
    record = max(
        kept, key=lambda record: (record.strategy != "trajectory_grpo", len(record.notes["rollouts"]["groups"]))
    )
    drawn = record.notes["rollouts"]
    modules = list(dict.fromkeys(call["module"] for run in drawn["runs"] for call in run["calls"]))
    colours = dict(zip(modules, sns.color_palette("cividis", len(modules)), strict=True))
    with new(1, 2, smoke=frames.is_smoke(records), width=PANEL[0], height=PANEL[1]) as (figure, axes):
        left, right = axes[0]
        rows = {run["rollout"]: row for row, run in enumerate(drawn["runs"])}
        _runs(left, drawn["runs"], colours)
        _groups(right, drawn, rows)
        left.set_title(f"Rollouts of one input: {names.strategy(record.strategy)}, {names.task(record.task)}")
        scale = record.settings.get("grpo", {}).get("scale")  # of the group's own deviation where it says nothing
        over = {"batch": ", in deviations of the whole batch", "none": ", undivided"}.get(scale, "")
        right.set_title(f"Groups with their advantages{over}, step {drawn['step'] + 1}")
        legend(figure, _handles(drawn, colours))
    return figure


def reward_variance(records: Sequence[Record]) -> Figure | None:
    """Reward deviation within groups by update, of the K-diverse members and of all; None where no group was cut.

    Means over models and seeds.
    """
    curve = frames.curve(records)
    needed = {"group_std", "group_std_all", "groups/kept", "members/dropped_k_diverse"}
    if not needed <= set(curve):
        return None
    cut = curve.groupby(frames.RUN)["members/dropped_k_diverse"].transform("max") > 0
    curve = curve[cut & (curve["groups/kept"] > 0)]  # an update without a group has no deviation
    if curve.empty:
        return None
    tasks, strategies = names.ordered(curve["task"], names.TASKS), names.ordered(curve["strategy"], names.STRATEGIES)
    with new(1, len(tasks), smoke=frames.is_smoke(records), sharey=True) as (figure, axes):
        for axis, task in zip(axes[0], tasks, strict=True):
            for strategy, members in curve[curve["task"] == task].groupby("strategy"):
                by_update = members.groupby("step")[["group_std", "group_std_all"]].mean()
                for line, name in zip(LINES, by_update, strict=False):
                    axis.plot(by_update.index, by_update[name], line, color=colour(strategy), linewidth=1.6)
            axis.set_title(names.task(task))
            axis.set_xlabel("Update")
            axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes[0, 0].set_ylabel("Reward deviation\nwithin a group")
        axes[0, 0].set_ylim(bottom=0)
        handles = strategy_handles(strategies, [])
        for place, label in enumerate(("K-diverse members", "all members")):
            handles.append(Line2D([], [], color="0.25", linestyle=nth(LINES, place), label=label))
        legend(figure, handles)
    return figure


def _runs(axis: Axes, runs: list[dict[str, Any]], colours: dict[str, Any]) -> None:
    """A row a run, first run on top, with its reward at the end."""
    longest = max(sum(call["tokens"] for call in run["calls"]) for run in runs)
    for row, run in enumerate(runs):
        start = 0
        for call in run["calls"]:
            hatch = None if call["status"] == "ok" else UNREAD
            axis.add_patch(_block(start, row, call["tokens"], facecolor=colours[call["module"]], hatch=hatch))
            start += call["tokens"]
        reward = number(run["reward"] if run["reward"] is not None else float("nan"), 2)
        axis.annotate(reward, (start, row), (4, 0), textcoords="offset points", va="center")
    axis.set_xlim(0, 1.12 * longest)
    axis.set_xlabel("Tokens generated (number: the run's reward)")
    axis.set_ylabel("Run")
    _rows_axis(axis, [str(run["rollout"]) for run in runs])


def _groups(axis: Axes, drawn: dict[str, Any], rows: dict[int, int]) -> None:
    """A column a group; the member of each run as a box in the colour of its advantage."""
    for column, group in enumerate(drawn["groups"]):
        for member in group["members"]:
            hatch = REPEATED if _is_copy(group, member, drawn["runs"][rows[member["rollout"]]]) else None
            row, advantage = rows[member["rollout"]], member["advantage"]
            axis.add_patch(_block(column - HIGH / 2, row, HIGH, facecolor=shade(advantage), hatch=hatch))
            halo = [withStroke(linewidth=3, foreground=shade(advantage))] if hatch else None  # or the hatch hides it
            text = number(advantage, 1, sign=True)
            axis.text(column, row, text, ha="center", va="center", color="black", path_effects=halo)
    axis.set_xlim(-0.6, len(drawn["groups"]) - 0.4)
    keys = [group["key"] for group in drawn["groups"]]
    labels = [f"{key[0]}\ncall {key[1]}" if key else "whole runs" for key in keys]
    slanted = {"rotation": 30, "ha": "right"} if len(labels) > 3 else {}
    axis.set_xticks(range(len(labels)), labels, **slanted)
    axis.set_xlabel("Group: module and how-many-th call, from 0" if any(keys) else "Group")
    _rows_axis(axis, [str(rollout) for rollout in rows])


def _block(left: float, row: int, width: float, *, facecolor: Any, hatch: str | None) -> Rectangle:
    edge = {"edgecolor": "0.35", "linewidth": 0.6}
    return Rectangle((left, row - HIGH / 2), width, HIGH, facecolor=facecolor, hatch=hatch, **edge)


def _is_copy(group: dict[str, Any], member: dict[str, Any], run: dict[str, Any]) -> bool:
    """Whether `fill` put an earlier call of the run in this place."""
    return bool(group["key"]) and run["calls"][member["places"][0]]["invocation"] != group["key"][1]


def _rows_axis(axis: Axes, labels: list[str]) -> None:
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.set_yticks(range(len(labels)), labels)
    axis.tick_params(length=0)
    axis.grid(visible=False)


def _handles(drawn: dict[str, Any], colours: dict[str, Any]) -> list[Patch]:
    handles = [Patch(facecolor=each, edgecolor="0.35", label=module) for module, each in colours.items()]
    if any(call["status"] != "ok" for run in drawn["runs"] for call in run["calls"]):
        handles.append(Patch(facecolor="white", edgecolor="0.35", hatch=UNREAD, label="did not parse"))
    by_rollout = {run["rollout"]: run for run in drawn["runs"]}
    members = [(group, member) for group in drawn["groups"] for member in group["members"]]
    if any(_is_copy(group, member, by_rollout[member["rollout"]]) for group, member in members):
        handles.append(Patch(facecolor="white", edgecolor="0.35", hatch=REPEATED, label="repeated to fill the group"))
    return handles
