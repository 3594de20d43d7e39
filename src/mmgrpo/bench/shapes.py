"""Rollouts to train on, without sampling: a program's own prompts, completions of random tokens, random rewards.

Prompts are rendered by DSPy and the tokenizer as in a real run; what a module would have written stands there as other
rows' messages. Groups, advantages and weights are the library's.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import dspy
import numpy as np

from mmgrpo.bench.record import Size
from mmgrpo.grouping import module_groups
from mmgrpo.objective import Row, rows_of
from mmgrpo.settings import SplitSizes
from mmgrpo.tasks import Splits, banking77
from mmgrpo.trajectory import Call, Trajectory

TEMPERATURE = 0.6  # the paper's
FIRST_WORD = 100  # tokens below are special ones
LABELS = 77
MESSAGES = 64  # training rows that are read
VERBS = ("activate", "cancel", "change", "explain", "refund", "report", "verify")
OBJECTS = (
    "account_limit", "bank_transfer", "card_payment", "cash_withdrawal", "direct_debit", "exchange_rate",
    "identity_check", "lost_card", "monthly_fee", "top_up", "virtual_card",
)  # fmt: skip

Prompts = list[tuple[str, tuple[int, ...]]]  # of one run, in order: the module and its prompt


@dataclass(frozen=True)
class Shape:
    """Rows of one training step."""

    what: str  # for tables
    rows: tuple[Row, ...]


def banking() -> tuple[Splits, str]:
    """Banking77 with 77 labels and where they come from: real ones, or else made up by rule for the embedded rows."""
    splits = banking77.load(SplitSizes(train=MESSAGES, valid=1, test=1))
    if len(splits.labels) == LABELS:
        return splits, "Banking77"
    labels = tuple(f"{verb}_{thing}" for verb, thing in product(VERBS, OBJECTS))
    return replace(splits, labels=labels), "embedded Banking77 rows, 77 made-up labels"


def one_module(tokenizer, size: Size) -> Shape:
    """Classification with 77 labels: all rows of an input share one prompt, all prompts share what stands before the message."""
    splits, source = banking()
    signature = banking77.program(splits).predictors()[0].signature

    def prompts(example: int, rng: np.random.Generator) -> Prompts:
        return [("classify", _prompt(tokenizer, signature, text=splits.train[example].text))]

    return _shape(source, prompts, tokenizer, size)


def two_modules(tokenizer, size: Size) -> Shape:
    """A module that thinks, and one that classifies by the thoughts, which differ from run to run."""
    splits, source = banking()
    think = dspy.Signature("text -> thoughts", "Say what the customer of a bank may want.")
    fields = {
        "text": (str, dspy.InputField()),
        "thoughts": (str, dspy.InputField()),
        "label": (Literal[splits.labels], dspy.OutputField()),
    }
    decide = dspy.Signature(fields, "Find the intent of the message that a customer sends to a bank.")

    def prompts(example: int, rng: np.random.Generator) -> Prompts:
        text, thoughts = splits.train[example].text, _text(splits, rng, 2)
        return [
            ("think", _prompt(tokenizer, think, text=text)),
            ("decide", _prompt(tokenizer, decide, text=text, thoughts=thoughts)),
        ]

    return _shape(f"two modules, {source}", prompts, tokenizer, size)


def four_hops(tokenizer, size: Size) -> Shape:
    """Four modules in a row, each of which reads the notes of those before it and a passage."""
    hop = dspy.Signature("claim, notes: list[str], passage -> note", "Note what the passage says about the claim.")
    splits, source = banking()

    def prompts(example: int, rng: np.random.Generator) -> Prompts:
        claim, notes = splits.train[example].text, [_text(splits, rng, 2) for _ in range(4)]
        return [
            (f"hop{place}", _prompt(tokenizer, hop, claim=claim, notes=notes[:place], passage=_text(splits, rng, 8)))
            for place in range(4)
        ]

    return _shape(f"four hops with growing notes, texts of {source}", prompts, tokenizer, size)


def random_prompts(tokenizer, size: Size, *, length: int, modules: int = 1) -> Shape:
    """Prompts of `length` random tokens, one for each input and module, that share nothing."""
    rng = np.random.default_rng(2)
    made = [[_tokens(rng, length, tokenizer) for _ in range(modules)] for _ in range(size.inputs)]

    def prompts(example: int, rng: np.random.Generator) -> Prompts:
        return [(f"module{place}", prompt) for place, prompt in enumerate(made[example])]

    return _shape(f"random prompts of {length} tokens", prompts, tokenizer, size)


def _shape(what: str, prompts: Callable[[int, np.random.Generator], Prompts], tokenizer, size: Size) -> Shape:
    """Rows of `size.inputs` x `size.rollouts` runs, whose prompts are `prompts(example, random numbers)`."""
    rng = np.random.default_rng(0)
    runs = []
    for example, rollout in product(range(size.inputs), range(size.rollouts)):
        calls = [_call(*one, _tokens(rng, size.completion, tokenizer)) for one in prompts(example, rng)]
        runs.append(Trajectory(f"{example:04}", rollout, tuple(calls), float(rng.random()), "completed"))
    grouping = module_groups(runs, padding="fill", size=size.rollouts, scale="group", rng=random.Random(0))
    return Shape(f"{what}, {size.inputs} x {size.rollouts}", tuple(rows_of(grouping.groups)))


def _call(module: str, prompt: tuple[int, ...], completion: tuple[int, ...]) -> Call:
    return Call(module, 0, prompt, completion, (0.0,) * len(completion), TEMPERATURE, "", "ok", 1.0)


def _prompt(tokenizer, signature: type[dspy.Signature], **inputs) -> tuple[int, ...]:
    messages = dspy.ChatAdapter().format(signature, [], inputs)
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tuple(tokenizer(rendered, add_special_tokens=False)["input_ids"])


def _tokens(rng: np.random.Generator, length: int, tokenizer) -> tuple[int, ...]:
    return tuple(rng.integers(FIRST_WORD, len(tokenizer), length).tolist())


def _text(splits: Splits, rng: np.random.Generator, messages: int) -> str:
    return " ".join(splits.train[place].text for place in rng.choice(len(splits.train), messages, replace=False))


def all_tokens(rows: Sequence[Row]) -> int:
    """Tokens of all rows, prompts repeated."""
    return sum(len(row.prompt_ids) + len(row.completion_ids) for row in rows)
