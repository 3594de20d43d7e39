"""What a program is, reads and answers, and what its settings and its metric say."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import dspy
import pandas as pd
from dspy.lm15 import Message, Request
from IPython.display import HTML

from mmgrpo.cells import Cell
from mmgrpo.lessons import Lesson
from mmgrpo.policy import Policy
from mmgrpo.report import names, published, settings_table
from mmgrpo.show.markup import fields, number, pre, table
from mmgrpo.study import Study
from mmgrpo.trajectory import Trajectory


def settings(ready: Study) -> pd.DataFrame:
    """Ours beside the paper's: the settings that the cell's strategy uses and the paper states."""
    paper = published.settings()
    rows = {
        key: {"ours": value, "paper": _of_paper(paper[key], ready.cell)}
        for key, value in settings_table.flatten(ready.settings()).items()
        if key in paper
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(index="setting")


def program(shown: dspy.Module) -> HTML:
    """The modules of a program in order: what each is told, sees and answers, and its demonstrations."""
    rows = []
    for name, predictor in shown.named_predictors():
        signature = predictor.signature
        row = {
            "module": name,
            "instructions": pre(signature.instructions),
            "inputs": ", ".join(signature.input_fields),
        }
        rows.append(row | {"outputs": ", ".join(signature.output_fields), "demonstrations": len(predictor.demos)})
    return table(rows)


def prompt(shown: dspy.Module, example: dspy.Example, policy: Policy) -> HTML:
    """The first module's prompt for an example, as DSPy's adapter and the policy render it."""
    name, predictor = shown.named_predictors()[0]
    inputs = {key: example.get(key, "(made by the program)") for key in predictor.signature.input_fields}
    system, *turns = dspy.ChatAdapter().format(predictor.signature, predictor.demos, inputs)
    messages = tuple(getattr(Message, turn["role"])(turn["content"]) for turn in turns)
    ids = policy.engine.render(Request(policy.name, messages, system["content"]))
    return HTML(f"<p>{html.escape(name)}, {len(ids)} tokens</p>{pre(policy.tokenizer.decode(ids))}")


def metric(ready: Study) -> pd.DataFrame:
    """The judge on the first training example: given the right answer, and the right answer to another one."""
    example, *others = ready.splits.train
    right = ready.task.oracle(example)
    wrong = next(answer for other in others if dict(answer := ready.task.oracle(other)) != dict(right))
    judged = {
        "its own right answer": ready.task.judge(example, right),
        "another one's": ready.task.judge(example, wrong),
    }
    rows = [{"score": each.score, "feedback": each.feedback} | each.details for each in judged.values()]
    return pd.DataFrame(rows, index=list(judged))


def answers(examples: Sequence[dspy.Example], **columns: Sequence[Trajectory]) -> HTML:
    """Examples with their gold answer and, a column each, the last reply of one run of each."""
    rows = []
    for place, example in enumerate(examples):
        row = {"input": fields(example.inputs()), "gold": fields(example.labels())}
        for name, run in ((name, runs[place]) for name, runs in columns.items()):
            row[name] = pre(f"reward {number(run.reward)}, {run.outcome}\n\n{run.calls[-1].text if run.calls else ''}")
        rows.append(row)
    return table(rows)


def lesson(shown: Lesson) -> HTML:
    """A post-training lesson: the messages and the reply that is learnt."""
    turns = [*shown.prompt, {"role": "reply to learn", "content": shown.completion}]
    return table([{"role": turn["role"], "text": pre(turn["content"])} for turn in turns])


def _of_paper(value: Any, cell: Cell) -> str:
    """The paper's value for the cell's task or strategy; values that differ otherwise with what they are of."""
    shown = settings_table.flatten(value if isinstance(value, dict) else {cell.task: value})
    for key in (cell.task, cell.strategy):
        if key in shown:
            return shown[key]
    return ", ".join(f"{each} ({names.either(name)})" for name, each in shown.items())
