"""Examples before and after: what was replied, what it earned, and how replies look over all examples."""

from __future__ import annotations

import html
from collections.abc import Sequence

from IPython.display import HTML

from mmgrpo import rollout
from mmgrpo.changes import Change, Habit
from mmgrpo.report import names, writers
from mmgrpo.show.markup import fields, number, pre, table
from mmgrpo.trajectory import Call, Trajectory

HABITS = {  # columns of numbers
    "words": lambda habit: writers.number(habit.words),
    "words in capitals, %": lambda habit: f"{100 * habit.names:.0f}",
    "runs with the commonest reply, %": lambda habit: f"{100 * habit.share:.0f}",
}


def changes(shown: Sequence[Change]) -> HTML:
    """Each example with its right answer, and every call of its run before beside the same call after."""
    return HTML("".join(map(_change, shown)) or "<p>No example changed in this way.</p>")


def habits(before: dict[str, Habit], after: dict[str, Habit]) -> HTML:
    """A row a field of a module's replies, each habit before → after."""
    rows = []
    for name in dict.fromkeys([*before, *after]):
        then = {"before": before.get(name), "after": after.get(name)}
        row = {"module: field": name}
        for head, tell in HABITS.items():
            row[head] = " → ".join(names.MISSING if habit is None else tell(habit) for habit in then.values())
        for when, habit in then.items():
            row[f"commonest {when}"] = names.MISSING if habit is None else pre(habit.commonest)
        rows.append(row)
    return table(rows)


def _change(one: Change) -> str:
    before, after = ({(call.module, call.invocation): call for call in run.calls} for run in (one.before, one.after))
    rows = [{"": "run", "before": _run(one.before), "after": _run(one.after)}]
    for place in dict.fromkeys([*before, *after]):
        module, invocation = place
        rows.append(
            {"": f"{module} {invocation}", "before": _reply(before.get(place)), "after": _reply(after.get(place))}
        )
    return (
        f"<p>Example {html.escape(one.before.example)}, gain {number(one.gain, sign=True)}</p>"
        f"{fields(one.example.inputs())}<p>Right:</p>{fields(one.example.labels())}{table(rows).data}"
    )


def _run(run: Trajectory) -> str:
    """What a run counts, how it ended, and the parts of its reward."""
    parts = "".join(f", {name} {number(value)}" for name, value in run.details.items())
    error = "" if run.error is None else f" ({run.error})"
    return f"reward {number(rollout.score(run))}, {run.outcome}{error}{parts}"


def _reply(call: Call | None) -> str:
    if call is None:
        return names.MISSING
    return pre(call.text if call.status == "ok" else f"({call.status})\n{call.text}")
