"""What a notebook shows of programs, runs, groups, records and reports: pandas frames, HTML tables and figures.

Whatever comes from a model or from data is escaped, so that a reply stays text; no scripts.
"""

from __future__ import annotations

import html
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import dspy
import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
from dspy.lm15 import Message, Request
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure

from mmgrpo import study as studies
from mmgrpo.cells import Cell
from mmgrpo.grouping import Group, Member
from mmgrpo.policy import Policy
from mmgrpo.posttraining import Lesson
from mmgrpo.records import Record
from mmgrpo.report import figures, frames, names, published, settings_table, writers
from mmgrpo.report.writers import Table
from mmgrpo.study import Study
from mmgrpo.trajectory import Call, Trajectory

LOUD = ("dspy", "transformers", "datasets", "peft", "trl", "accelerate", "httpx", "papermill", "optuna")
BLUE, ORANGE = (0, 114, 178), (230, 159, 0)  # Okabe and Ito: apart for colour-blind readers too
FULL = 2.0  # advantage, in deviations, from which on the colour is as strong as it gets
STRENGTH = 0.6  # of the strongest colour; black text stays readable on it
PRE = '<pre style="white-space: pre-wrap; text-align: left; margin: 0">'
ALWAYS, TRAINED, PROMPTED = ("splits.", "policy.context"), ("policy.lora", "sampling.", "grpo."), ("mipro.",)
USES = {
    "vanilla": (),
    "prompt_optimization": PROMPTED,
    "trajectory_grpo": TRAINED,
    "module_grpo": TRAINED,
    "gepa": (),
}  # others: both


class Markup(str):
    """Text that is HTML already. All other text is escaped on its way into a table."""


def quiet() -> None:
    """Keep warnings and progress bars of the libraries below us out of the cells; errors still show."""
    for name in LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def settings(ready: Study) -> pd.DataFrame:
    """Ours beside the paper's: the settings that the cell's strategy uses and the paper states."""
    paper = published.settings()
    used = (*ALWAYS, *USES.get(ready.cell.strategy, (*TRAINED, *PROMPTED)))
    rows = {
        key: {"ours": value, "paper": _of_paper(paper[key], ready.cell.task)}
        for key, value in settings_table.flatten(ready.settings()).items()
        if key in paper and key.startswith(used)
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(index="setting")


def program(shown: dspy.Module) -> HTML:
    """The modules of a program in order: what each is told, sees and answers, and its demonstrations."""
    rows = []
    for name, predictor in shown.named_predictors():
        signature = predictor.signature
        row = {
            "module": name,
            "instructions": _pre(signature.instructions),
            "inputs": ", ".join(signature.input_fields),
        }
        rows.append(row | {"outputs": ", ".join(signature.output_fields), "demonstrations": len(predictor.demos)})
    return _table(rows)


def prompt(shown: dspy.Module, example: dspy.Example, policy: Policy) -> HTML:
    """The first module's prompt for an example, as DSPy's adapter and the policy render it."""
    name, predictor = shown.named_predictors()[0]
    inputs = {key: example.get(key, "(made by the program)") for key in predictor.signature.input_fields}
    system, *turns = dspy.ChatAdapter().format(predictor.signature, predictor.demos, inputs)
    messages = tuple(getattr(Message, turn["role"])(turn["content"]) for turn in turns)
    ids = policy.engine.render(Request(policy.name, messages, system["content"]))
    return HTML(f"<p>{html.escape(name)}, {len(ids)} tokens</p>{_pre(policy.tokenizer.decode(ids))}")


def metric(ready: Study) -> pd.DataFrame:
    """The judge on the first training example: given the right answer, and the right answer to another one."""
    example, *others = ready.splits.train
    right = ready.task.oracle(example)
    wrong = next(answer for other in others if dict(answer := ready.task.oracle(other)) != dict(right))
    judged = {"its own right answer": ready.task.judge(example, right), "another one's": ready.task.judge(example, wrong)}
    rows = [{"score": each.score, "feedback": each.feedback} | each.details for each in judged.values()]
    return pd.DataFrame(rows, index=list(judged))


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
        folded = (
            ""
            if tokenizer is None
            else _folded(f"prompt, {len(call.prompt_ids)} tokens", tokenizer.decode(call.prompt_ids))
        )
        rows.append(row | {"reply": Markup(_pre(call.text) + folded)})
    error = "" if run.error is None else f" ({run.error})"
    return _table(
        rows, f"run {run.rollout} of example {run.example}: {run.outcome}{error}, reward {_number(run.reward)}"
    )


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
            rows.append(row | {"reward": _number(member.trajectory.reward), "advantage": _shaded(member.advantage)})
    return _table(rows)


def shade(advantage: float | None) -> str:
    """The background of an advantage, as #rrggbb; white at zero and where it is missing."""
    if advantage is None or math.isnan(advantage):
        return "#ffffff"
    target = BLUE if advantage > 0 else ORANGE
    strength = STRENGTH * min(abs(advantage) / FULL, 1.0)
    red, green, blue = (round(255 + strength * (part - 255)) for part in target)
    return f"#{red:02x}{green:02x}{blue:02x}"


def answers(examples: Sequence[dspy.Example], **columns: Sequence[Trajectory]) -> HTML:
    """Examples with their gold answer and, a column each, the last reply of one run of each."""
    rows = []
    for place, example in enumerate(examples):
        row = {"input": _pre(_fields(example.inputs())), "gold": _pre(_fields(example.labels()))}
        for name, run in ((name, runs[place]) for name, runs in columns.items()):
            row[name] = _pre(
                f"reward {_number(run.reward)}, {run.outcome}\n\n{run.calls[-1].text if run.calls else ''}"
            )
        rows.append(row)
    return _table(rows)


def outcome(record: Record) -> pd.DataFrame:
    """Test score ± standard error over examples in points of 100, parse failures, seconds by stage and tokens."""
    scores = 100 * frames.examples([record])["score"]
    row = {
        "test score": writers.spread(scores.mean(), scores.sem()),
        "test examples": len(scores),
        "parse failures": sum(score.outcome == "interrupted" for score in record.scores),
        **{f"{stage}, s": round(seconds, 1) for stage, seconds in record.seconds.items()},
        **{f"{kind} tokens": record.tokens[kind] for kind in ("prompt", "completion") if kind in record.tokens},
    }
    stamp = f" ({names.SMOKE_STAMP})" if record.smoke else ""
    return pd.DataFrame([row], index=[names.strategy(record.strategy) + stamp])


def cells(listed: Sequence[Cell]) -> pd.DataFrame:
    """A row a cell of the grid: what it is, the notebook that runs it, and its test score once it has a record."""
    rows = []
    for cell in listed:
        record = studies.finished(cell)
        row = {
            "task": cell.task,
            "model": cell.model,
            "strategy": cell.strategy,
            "seed": cell.seed,
            "notebook": cell.notebook.name,
        }
        rows.append(row | {"test score": names.MISSING if record is None else writers.number(record.mean)})
    return pd.DataFrame(rows)


def lesson(shown: Lesson) -> HTML:
    """A post-training lesson: the messages and the reply that is learnt."""
    turns = [*shown.prompt, {"role": "reply to learn", "content": shown.completion}]
    return _table([{"role": turn["role"], "text": _pre(turn["content"])} for turn in turns])


def losses(log: Sequence[dict[str, Any]]) -> HTML | Figure:
    """The loss curve of a trainer's log, or a sentence where it has no losses."""
    entries = [(float(entry["step"]), float(entry["loss"])) for entry in log if "loss" in entry]
    if not entries:
        return HTML("<p>No log of a training yet.</p>")
    with matplotlib.rc_context(figures.STYLE):
        figure, axis = plt.subplots(figsize=(figures.NARROWEST, figures.INCHES[1]), layout="constrained")
        plt.close(figure)  # pyplot forgets it; it can still be shown
        axis.plot(*zip(*entries, strict=True), color=figures.OTHER_COLOUR)
        axis.set_xlabel("Update")
        axis.set_ylabel("Loss of the replies")
    return figure


def report(
    make: Callable[[Sequence[Record]], Table | Figure | None], found: Sequence[Record]
) -> HTML | Markdown | Figure:
    """A table or figure of the report, or a sentence where the records have nothing for it."""
    if not found:
        return HTML("<p>No records of this profile yet: run <code>make reproduce PROFILE=…</code>, or notebook 06.</p>")
    made = make(found)
    if made is None:
        return HTML("<p>None of these records has anything for this: no run was trained.</p>")
    return made if isinstance(made, Figure) else Markdown(writers.markdown(made))


def _table(rows: Sequence[dict[str, Any]], title: str = "") -> HTML:
    heads = "".join(f"<th>{html.escape(head)}</th>" for head in (rows[0] if rows else ()))
    lines = [[v if isinstance(v, Markup) else html.escape(str(v)) for v in row.values()] for row in rows]
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>" for line in lines)
    above = f"<p>{html.escape(title)}</p>" if title else ""
    return HTML(f"{above}<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>")


def _pre(text: str) -> Markup:
    return Markup(f"{PRE}{html.escape(text)}</pre>")


def _folded(title: str, text: str) -> Markup:
    return Markup(f"<details><summary>{html.escape(title)}</summary>{_pre(text)}</details>")


def _replies(member: Member) -> Markup:
    if len(member.calls) == 1:
        return _pre(member.calls[0].text)
    return _pre("\n".join(f"[{call.module} {call.invocation}] {call.text}" for call in member.calls))


def _shaded(advantage: float | None) -> Markup:
    style = f"color: #000000; background-color: {shade(advantage)}; padding: 2px 6px"
    return Markup(f'<span style="{style}">{_number(advantage, sign=True)}</span>')


def _number(value: float | None, *, sign: bool = False) -> str:
    return writers.number(value, 2, sign=sign)


def _fields(example: dspy.Example) -> str:
    return "\n".join(f"{name}: {value}" for name, value in dict(example).items())


def _of_paper(value: Any, task: str) -> str:
    """The paper's value for the task; values that differ by model with their names."""
    shown = settings_table.flatten(value if isinstance(value, dict) else {task: value})
    return shown[task] if task in shown else ", ".join(f"{each} ({names.model(name)})" for name, each in shown.items())
