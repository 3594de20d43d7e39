"""What a record keeps of one input's rollouts and the groups they became: names, numbers and lengths, never text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from mmgrpo.grouping import Group, Member
from mmgrpo.trajectory import Call, Trajectory


def outline(step: int, trajectories: Sequence[Trajectory], groups: Sequence[Group]) -> dict[str, Any]:
    """The input of a step that has the most of its `groups` (at least one), as JSON.

    `step` counts from 0. `runs` are in the order of their rollouts; a group's `key` is (module, invocation), or
    empty for whole runs; a member's `places` say which calls of its run it is made of.
    """
    ((example, _),) = Counter(group.key[0] for group in groups).most_common(1)
    runs = sorted((run for run in trajectories if run.example == example), key=lambda run: run.rollout)
    return {
        "step": step,
        "example": example,
        "runs": [_run(run) for run in runs],
        "groups": [
            {"key": list(group.key[1:]), "members": [_member(member) for member in group.members]}
            for group in groups
            if group.key[0] == example
        ],
    }


def _run(run: Trajectory) -> dict[str, Any]:
    calls = [_call(call) for call in run.calls]
    return {"rollout": run.rollout, "reward": run.reward, "outcome": run.outcome, "calls": calls}


def _call(call: Call) -> dict[str, Any]:
    return {
        "module": call.module,
        "invocation": call.invocation,
        "tokens": len(call.completion_ids),
        "status": call.status,
    }


def _member(member: Member) -> dict[str, Any]:
    places = [place for place, call in enumerate(member.trajectory.calls) if any(call is own for own in member.calls)]
    return {"rollout": member.trajectory.rollout, "places": places, "advantage": member.advantage}
