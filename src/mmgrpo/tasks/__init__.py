"""A task: program, data, metric and facts. One file each beside this one; `TASKS` names them all."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from mmgrpo.errors import UserError, nearest
from mmgrpo.settings import SplitSizes

SPLIT_SEED = 0  # every run of a study sees the same splits, so that strategies and seeds compare example by example


@dataclass(frozen=True)
class Splits:
    """The rows of a study, disjoint."""

    train: tuple[dspy.Example, ...]
    valid: tuple[dspy.Example, ...]  # taken from the training side
    test: tuple[dspy.Example, ...]
    source: str  # embedded, local or hub
    labels: tuple[str, ...] = ()  # what a classification task offers

    @property
    def fingerprint(self) -> str:
        """Hash of all rows in order."""
        rows = [[dict(example) for example in split] for split in (self.train, self.valid, self.test)]
        return hashlib.sha256(json.dumps([rows, self.labels], sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Task:
    """What a study needs to know of a task."""

    name: str
    title: str
    load: Callable[[SplitSizes], Splits]
    program: Callable[[Splits], dspy.Module]
    metric: Callable[..., Any]  # metric(example, prediction, trace=None) -> number in [0, 1]
    paper_sizes: tuple[int, int]  # training and evaluation examples in the paper
    citation: str
    licence: str


def get(name: str) -> Task:
    """The task `name`; raises UserError for an unknown one."""
    from mmgrpo.tasks import banking77

    tasks = {task.name: task for task in (banking77.TASK,)}
    if name not in tasks:
        raise UserError(f"Unknown task {name!r}; {nearest(name, list(tasks))}.")
    return tasks[name]


def cut(train_side: Sequence[dspy.Example], test_side: Sequence[dspy.Example], sizes: SplitSizes, *, name: str):
    """Seeded, disjoint splits: training and validation from one side, test from the other.

    Rows of the training side whose inputs stand in the test side are left out first.
    """
    tested = {_normal(example) for example in test_side}
    train_side = [example for example in _unique(train_side) if _normal(example) not in tested]
    test_side = _unique(test_side)
    for side, rows, wanted in (("training", train_side, sizes.train + sizes.valid), ("test", test_side, sizes.test)):
        if len(rows) < wanted:
            raise UserError(f"{name} has {len(rows)} {side} rows, the profile wants {wanted}: lower its split sizes.")
    shuffled = []
    for rows in (train_side, test_side):
        rows = list(rows)
        random.Random(SPLIT_SEED).shuffle(rows)
        shuffled.append(rows)
    training, test = shuffled
    train, valid = training[: sizes.train], training[sizes.train : sizes.train + sizes.valid]
    return tuple(train), tuple(valid), tuple(test[: sizes.test])


def _normal(example: dspy.Example) -> str:
    return json.dumps(dict(example.inputs()), sort_keys=True, default=str).casefold()


def _unique(examples: Sequence[dspy.Example]) -> list[dspy.Example]:
    return list({_normal(example): example for example in reversed(examples)}.values())[::-1]
