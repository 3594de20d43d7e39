"""A task: program, data, judge and facts. One file each beside this one, named as the task is.

A task's file has a function `task(options)` that returns its `Task`, and a settings class `Options` for what a
profile may say of it under `options`. Adding a task is adding such a file and an entry in a profile.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy
from pydantic import ValidationError

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
class Judgement:
    """What a judge says of one prediction."""

    score: float  # in [0, 1]
    feedback: str  # what was right or wrong and what would be better, for prompt optimizers that read
    details: dict[str, float] = field(default_factory=dict)  # parts of the score by name (leakage, recall by hop, ...)


@dataclass(frozen=True)
class Api:
    """The paid APIs that a task's program and judge ask."""

    keys: tuple[str, ...]  # the environment variables that hold their keys
    calls: int  # of one run of the program, its judging included
    dollars_per_call: float


@dataclass(frozen=True)
class Task:
    """What a study needs to know of a task."""

    name: str
    title: str
    load: Callable[[SplitSizes], Splits]
    program: Callable[[Splits], dspy.Module]
    judge: Callable[..., Judgement]  # judge(example, prediction, trace=None)
    oracle: Callable[[dspy.Example], dspy.Prediction]  # what a program that knows the answer returns
    chance: Callable[[Splits], float]  # validation score in [0, 1] to expect without any language model
    paper_sizes: tuple[int, int]  # training and evaluation examples in the paper
    citation: str
    licence: str
    folder: str  # of its files below MMGRPO_DATA_DIR
    spending: Callable[[], dict[str, dict[str, float]]] = dict  # so far, of each paid API by role, as `ApiModel.spent`
    api: Api | None = None
    lacking: Callable[[str], str | None] = lambda source: None  # what rows of a source need that isn't here, a sentence
    private: Callable[[dspy.Example], Sequence[str]] = lambda example: ()  # texts of an example that few may see

    def metric(self, example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> float:
        """The score alone, in [0, 1], as DSPy's optimizers want it."""
        return self.judge(example, prediction, trace).score

    def private_units(self, splits: Splits) -> frozenset[str]:
        """The private texts of all rows."""
        rows = (*splits.train, *splits.valid, *splits.test)
        return frozenset(unit for example in rows for unit in self.private(example))


def names() -> list[str]:
    """All tasks that there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def get(name: str, options: dict[str, Any] | None = None) -> Task:
    """The task `name` with a profile's options; raises UserError for an unknown task or option. Loads nothing yet."""
    if name not in names():
        raise UserError(f"Unknown task {name!r}; {nearest(name, names())}.")
    module = importlib.import_module(f"{__name__}.{name}")
    try:
        return module.task(module.Options(**(options or {})))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        allowed = nearest(key, list(module.Options.model_fields))
        raise UserError(f"The option {key!r} of task {name}: {problem['msg']}; {allowed}.") from None


def cut(train_side: Sequence[dspy.Example], test_side: Sequence[dspy.Example], sizes: SplitSizes, *, name: str):
    """Seeded, disjoint splits: training and validation from one side, test from the other.

    Rows of the training side whose inputs stand in the test side are left out first.
    """
    tested = {_normal(example) for example in test_side}
    train_side = [example for example in _unique(train_side) if _normal(example) not in tested]
    test_side = _unique(test_side)
    for side, rows, wanted in (
        ("training and validation", train_side, sizes.train + sizes.valid),
        ("test", test_side, sizes.test),
    ):
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
