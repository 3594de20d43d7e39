"""A browser of rollouts: choose an input, one of its runs and a call; see prompt, reply, tokens, reward, advantages.

`browser` has menus and needs a notebook that runs widgets. `browser_html` is the same as a page that unfolds,
for where widgets don't run: plain HTML without a script.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from IPython.display import HTML

from mmgrpo.grouping import Group
from mmgrpo.show.markup import Markup, folded, number, pre, shaded, unfolding
from mmgrpo.trajectory import Call, Trajectory

if TYPE_CHECKING:
    from ipywidgets import Dropdown, VBox

Credit = dict[tuple[str, int, str, int], list[tuple[str, float]]]  # (example, rollout, module, invocation) -> groups


def browser(runs: Sequence[Trajectory], groups: Sequence[Group] = (), tokenizer: Any = None) -> VBox:
    """Menus for input, run and call, over the chosen call. With a tokenizer prompts and tokens are there too."""
    import ipywidgets  # here, because nothing else needs it

    credit, view = _credit(groups), ipywidgets.HTML()
    example, run, call = (ipywidgets.Dropdown(description=name) for name in ("input", "run", "call"))

    def choose_example(_: Any) -> None:
        _offer(run, [(_of_run(each), at) for at, each in enumerate(runs) if each.example == example.value])

    def choose_run(_: Any) -> None:
        calls = () if run.value is None else runs[run.value].calls
        _offer(call, [(_of_call(each), (run.value, at)) for at, each in enumerate(calls)])

    def choose_call(_: Any) -> None:
        if call.value is None:
            view.value = "<p>No call was made.</p>"
            return
        of, at = call.value
        view.value = _call(runs[of], runs[of].calls[at], credit, tokenizer)

    for menu, chosen in ((example, choose_example), (run, choose_run), (call, choose_call)):
        menu.observe(chosen, names="value")
    choose_call(None)
    _offer(example, list(dict.fromkeys(each.example for each in runs)))
    return ipywidgets.VBox([example, run, call, view])


def browser_html(runs: Sequence[Trajectory], groups: Sequence[Group] = (), tokenizer: Any = None) -> HTML:
    """Inputs that unfold into runs, runs into calls, calls into prompt, tokens and reply."""
    credit, parts = _credit(groups), []
    for example in dict.fromkeys(run.example for run in runs):
        mine = [run for run in runs if run.example == example]
        inside = "".join(unfolding(_of_run(run), _calls(run, credit, tokenizer)) for run in mine)
        parts.append(unfolding(f"input {example}: {len(mine)} runs", Markup(inside)))
    return HTML("".join(parts) or "<p>No run was made.</p>")


def _offer(menu: Dropdown, options: list) -> None:
    """Set a menu's options and choose the first; by itself a menu that had none would choose none."""
    menu.options = options
    if options and menu.index is None:
        menu.index = 0


def _calls(run: Trajectory, credit: Credit, tokenizer: Any) -> Markup:
    return Markup("".join(unfolding(_of_call(call), _call(run, call, credit, tokenizer)) for call in run.calls))


def _call(run: Trajectory, call: Call, credit: Credit, tokenizer: Any) -> Markup:
    """Everything about one call. Its reward is that of its run."""
    found = credit.get((run.example, run.rollout, call.module, call.invocation), [])
    advantages = "".join(f"<li>in group {html.escape(group)}: {shaded(value)}</li>" for group, value in found)
    parts = [
        f"<p>{html.escape(_of_run(run))}<br>{html.escape(_of_call(call))}</p>",
        f"<p>Advantages:</p><ul>{advantages}</ul>" if found else "<p>In no group that teaches.</p>",
    ]
    if tokenizer is not None:
        parts.append(folded(f"prompt, {len(call.prompt_ids)} tokens", tokenizer.decode(call.prompt_ids)))
        title = "tokens with their log-probabilities" if call.logprobs else "tokens"  # kept runs have none
        parts.append(unfolding(title, _tokens(call, tokenizer)))
    return Markup("".join([*parts, pre(call.text)]))


def _tokens(call: Call, tokenizer: Any) -> Markup:
    tokens = [repr(tokenizer.decode([token])) for token in call.completion_ids]
    if not call.logprobs:
        return pre("\n".join(tokens))
    pairs = zip(tokens, call.logprobs, strict=True)
    return pre("\n".join(f"{number(logprob):>8}  {token}" for token, logprob in pairs))


def _credit(groups: Sequence[Group]) -> Credit:
    """The groups of each call, with its advantage there; `fill` puts a call in several."""
    credit: Credit = {}
    for group in groups:
        example, *key = group.key
        name = " · ".join(map(str, key)) or "of whole runs"
        for member in group.members:
            for call in member.calls:
                place = (example, member.trajectory.rollout, call.module, call.invocation)
                credit.setdefault(place, []).append((name, member.advantage))
    return credit


def _of_run(run: Trajectory) -> str:
    error = "" if run.error is None else f" ({run.error})"
    return f"run {run.rollout}: {run.outcome}{error}, reward {number(run.reward)}, {len(run.calls)} calls"


def _of_call(call: Call) -> str:
    return f"{call.module} {call.invocation}: {call.status}, {len(call.completion_ids)} tokens"
