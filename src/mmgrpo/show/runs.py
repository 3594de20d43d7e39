"""Runs of a program and the groups they form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from IPython.display import HTML

from mmgrpo.grouping import Group, Member
from mmgrpo.show.markup import Markup, folded, number, pre, shaded, table
from mmgrpo.trajectory import Call, Trajectory


def toy_run(rollout: int, modules: str, reward: float | None) -> Trajectory:
    """A run made by hand: `modules` names its calls in order, such as "plan search search"."""
    calls: list[Call] = []
    for place, module in enumerate(modules.split()):
        invocation = sum(call.module == module for call in calls)
        completion = tuple(range(2 + place))  # later calls are longer, so that lengths can be told apart
        text = f"{module} {invocation} of run {rollout}"
        calls.append(Call(module, invocation, (0,), completion, (-1.0,) * len(completion), 1.0, text, "ok", 1.0))
    return Trajectory("toy", rollout, tuple(calls), reward, "unscorable" if reward is None else "completed")


def trajectory(run: Trajectory, tokenizer: Any = None) -> HTML:
    """One run, a row a call. With a tokenizer each prompt is there too, folded."""
    rows = []
    for call in run.calls:
        row = {
            "module": call.module,
            "invocation": call.invocation,
            "tokens": len(call.completion_ids),
            "status": call.status,
        }
        reply = pre(call.text)
        if tokenizer is not None:
            reply += folded(f"prompt, {len(call.prompt_ids)} tokens", tokenizer.decode(call.prompt_ids))
        rows.append(row | {"reply": Markup(reply)})
    error = "" if run.error is None else f" ({run.error})"
    return table(rows, f"run {run.rollout} of example {run.example}: {run.outcome}{error}, reward {number(run.reward)}")


def groups(shown: Sequence[Group]) -> HTML:
    """A row a member: run, reply, length that normalises it, reward and advantage (blue above zero, orange below)."""
    if not shown:
        return HTML(
            "<p>No group: where all rewards of a group are equal there is nothing to learn, and it is left out.</p>"
        )
    rows = []
    for group in shown:
        for place, member in enumerate(group.members):
            key = " · ".join(map(str, group.key)) if place == 0 else ""
            row = {"group": key, "run": member.trajectory.rollout, "reply": _replies(member), "tokens": member.tokens}
            rows.append(row | {"reward": number(member.trajectory.reward), "advantage": shaded(member.advantage)})
    return table(rows)


def _replies(member: Member) -> Markup:
    if len(member.calls) == 1:
        return pre(member.calls[0].text)
    return pre("\n".join(f"[{call.module} {call.invocation}] {call.text}" for call in member.calls))
