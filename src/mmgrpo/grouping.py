"""From trajectories to groups with advantages: which sampled calls are compared with which.

Module-level groups (Alg. 2): over the runs of one example, the calls with the same key (module, how-many-th call)
form a group; each call inherits its run's reward. Trajectory-level groups (Eq. 9): a run is one member,
and its advantage covers all tokens of all its calls.
Departures from the paper: `truncate` looks at the runs that call a module at all, so that one run which broke
off early doesn't empty the groups of later modules; groups smaller than K stay as they are instead of being
filled up with copies, which would bias mean and deviation; a group whose rewards are all equal teaches
nothing and is left out of the update, of the count that normalises it, and of the batch's deviation
(`scale="batch"`; TRL's is that of all rewards, so that its advantages are smaller or larger by one factor a step).
Legend: G members of a group, K the wanted size.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np

from mmgrpo.errors import UserError
from mmgrpo.trajectory import Call, Trajectory

Padding = Literal["fill", "truncate", "ragged"]
Scale = Literal["group", "batch", "none"]

DEVIATION_EPS = 1e-4  # added to the deviation, as TRL does; the paper's formula has none
MIN_DEVIATION = 1e-8  # rewards closer than this are equal


@dataclass(frozen=True)
class Member:
    """One element of a group: a call (module level) or all calls of a run (trajectory level)."""

    trajectory: Trajectory
    calls: tuple[Call, ...]
    advantage: float = 0.0

    @property
    def tokens(self) -> int:
        """Length that normalises the member: |o| at module level, |ρ| at trajectory level."""
        return sum(len(call.completion_ids) for call in self.calls)


@dataclass(frozen=True)
class Group:
    """Members that are compared with each other."""

    key: tuple[str, ...] | tuple[str, str, int]  # (example, module, invocation) or (example,)
    members: tuple[Member, ...]

    @property
    def rewards(self) -> np.ndarray:
        return np.array([member.trajectory.reward for member in self.members], np.float64)


@dataclass(frozen=True)
class Grouping:
    """The groups of one step, and what became of every call that was sampled.

    `calls/grouped` and `calls/dropped_<reason>` add up to the calls of all runs, `calls/repeated` are copies; then
    `groups/kept` and `groups/dropped_<reason>` say which groups teach, and `members/dropped_k_diverse` what was cut.
    """

    groups: tuple[Group, ...]
    counts: dict[str, int]
    pools: tuple[Group, ...]  # the same groups before they were cut to their size, without advantages


def module_groups(
    trajectories: Sequence[Trajectory], *, padding: Padding, size: int, scale: Scale, rng: random.Random
) -> Grouping:
    """Groups of Alg. 2, cut to `size` members of the largest reward variance, with advantages."""
    if padding not in ("fill", "truncate", "ragged"):
        raise UserError(f"Unknown padding {padding!r}; allowed: fill, truncate, ragged.")
    counts: Counter[str] = Counter()
    groups = []
    for example, runs in _by_example(_scored(trajectories, counts)):
        for module in dict.fromkeys(call.module for run in runs for call in run.calls):
            table = {place: [c for c in run.calls if c.module == module] for place, run in enumerate(runs)}
            table = {place: calls for place, calls in table.items() if calls}
            padded = _pad(table, padding, rng, counts)
            for invocation in range(max(len(calls) for calls in padded.values())):
                members = [
                    Member(runs[p], (calls[invocation],)) for p, calls in padded.items() if invocation < len(calls)
                ]
                groups.append(Group((example, module, invocation), tuple(members)))
    return _finish(groups, size, scale, counts)


def trajectory_groups(trajectories: Sequence[Trajectory], *, size: int, scale: Scale) -> Grouping:
    """Groups of Eq. 9: the runs of one example, cut to `size` members of the largest reward variance."""
    counts: Counter[str] = Counter()
    scored = _scored(trajectories, counts)
    groups = [Group((example,), tuple(Member(run, run.calls) for run in runs)) for example, runs in _by_example(scored)]
    counts["calls/grouped"] = sum(len(member.calls) for group in groups for member in group.members)
    return _finish(groups, size, scale, counts)


def select_k_diverse(rewards: Sequence[float], size: int) -> list[int]:
    """Indices, in order, of the `size` rewards with the largest variance.

    Exact for any number of rewards: as a function of one element the variance is a convex parabola, so moving
    an element outward to an unused, more extreme value on one of its two sides never lowers it. Some best
    choice is therefore the lowest i and the highest size - i of the sorted rewards; all size + 1 are tried.
    """
    if size >= len(rewards):
        return list(range(len(rewards)))
    order = sorted(range(len(rewards)), key=lambda index: rewards[index])
    splits = [order[:low] + order[len(order) - (size - low) :] for low in range(size + 1)]
    return sorted(max(splits, key=lambda chosen: np.var([rewards[index] for index in chosen])))


def advantages(rewards: Sequence[np.ndarray], scale: Scale) -> list[np.ndarray]:
    """Per group: rewards minus the group's mean, divided by the deviation of the group, of the batch, or by nothing.

    Deviations are population ones (ddof 0).
    """
    centred = [group - group.mean() for group in rewards]
    if scale == "none":
        return centred
    if scale == "batch":
        deviation = np.concatenate(rewards).std()
        return [group / (deviation + DEVIATION_EPS) for group in centred]
    return [group / (before.std() + DEVIATION_EPS) for group, before in zip(centred, rewards, strict=True)]


def _scored(trajectories: Sequence[Trajectory], counts: Counter[str]) -> list[Trajectory]:
    """Runs with a reward; the calls of the others are counted as dropped."""
    scored = [run for run in trajectories if run.reward is not None]
    counts["calls/dropped_unscored"] += sum(len(run.calls) for run in trajectories if run.reward is None)
    for run in scored:
        if not np.isfinite(run.reward):
            raise UserError(
                f"Run {run.rollout} of example {run.example} has reward {run.reward}: a reward is a finite number."
            )
    return scored


def _by_example(trajectories: Sequence[Trajectory]) -> list[tuple[str, list[Trajectory]]]:
    ordered = sorted(trajectories, key=lambda run: (run.example, run.rollout))
    return [
        (example, [run for run in runs if run.calls]) for example, runs in groupby(ordered, key=lambda run: run.example)
    ]


def _pad(
    table: dict[int, list[Call]], padding: Padding, rng: random.Random, counts: Counter[str]
) -> dict[int, list[Call]]:
    """PadGroups: the calls of one module, run by run, brought to one length."""
    lengths = [len(calls) for calls in table.values()]
    counts["calls/grouped"] += sum(lengths)
    if padding == "truncate":
        shortest = min(lengths)
        lost = sum(length - shortest for length in lengths)
        counts["calls/grouped"] -= lost
        counts["calls/dropped_truncate"] += lost
        return {place: calls[:shortest] for place, calls in table.items()}
    if padding == "fill":
        longest = max(lengths)
        counts["calls/repeated"] += sum(longest - length for length in lengths)
        return {place: calls + rng.choices(calls, k=longest - len(calls)) for place, calls in table.items()}
    return table


def _finish(groups: list[Group], size: int, scale: Scale, counts: Counter[str]) -> Grouping:
    """Cut to size, drop what can't teach, and set the advantages."""
    kept, pools = [], []
    for group in groups:
        chosen = select_k_diverse(group.rewards, size) if group.members else []
        reason = _why_useless(group.rewards[chosen])
        counts["members/dropped_k_diverse"] += len(group.members) - len(chosen)
        counts[f"groups/{'kept' if reason is None else 'dropped_' + reason}"] += 1
        if reason is None:
            kept.append(Group(group.key, tuple(group.members[index] for index in chosen)))
            pools.append(group)
    if kept:
        spread = advantages([group.rewards for group in kept], scale)
        kept = [_with_advantages(group, values) for group, values in zip(kept, spread, strict=True)]
    return Grouping(tuple(kept), dict(counts), tuple(pools))


def _why_useless(rewards: np.ndarray) -> str | None:
    if len(rewards) < 2:
        return "single"
    return "no_variance" if rewards.std() < MIN_DEVIATION else None


def _with_advantages(group: Group, values: np.ndarray) -> Group:
    members = (Member(m.trajectory, m.calls, float(a)) for m, a in zip(group.members, values, strict=True))
    return Group(group.key, tuple(members))
