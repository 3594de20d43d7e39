"""What a run of PAPILLON is worth: (quality + earned x (1 - leakage)) / 2.

Leakage is the share of the query's private units that stand in the request. Quality comes from one of two judges:

- `Comparison`, the paper's: a language model compares the response with the target, in both orders.
- `Overlap`, which needs no API: ROUGE-L against the target.

`earned` is what the paper doesn't have: the paper pays 0.5 for a run that sends nothing and says nothing, as that leaks
nothing. Here the privacy half is earned by delegating. A request or response without a word earns none of it. Under
`Comparison` every other run earns all, which is the paper's score. Overlap has no such sharp verdict, so under
`Overlap` the half grows with quality and is whole from `USEFUL` on; a constant reply would else get 0.5.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import dspy
from rouge_score import rouge_scorer

from mmgrpo.privacy import CJK, leaked
from mmgrpo.tasks import Judgement

USEFUL = 0.25  # quality from which on `Overlap` pays the whole privacy half
FORM_LETTER = (
    "Dear Sir or Madam, I am writing to let you know about a request. Please let me know if you have any questions. "
    "Thank you for your understanding. Kind regards, [Your Name]"
)
QUESTION = """A user asked an assistant:

{query}

First response:

{first}

Second response:

{second}

Which response serves the user better? Answer with one word, First or Second."""

_WORD = re.compile(rf"[{CJK}]|[^\W_{CJK}]+")


@dataclass(frozen=True)
class Quality:
    """A judge's opinion of a response."""

    value: float  # in [0, 1]
    earned: float  # share of the privacy half that such a response earns
    feedback: str


def judge(
    example: dspy.Example, prediction: dspy.Prediction, trace=None, *, quality: Callable[..., Quality]
) -> Judgement:
    """Score one run; `quality(example, request, response)` is a judge.

    The feedback names private units. It is for the policy, which runs locally and knows the query anyway, and for
    optimizers that reflect with the policy; never show it to the untrusted language model.
    """
    request, response = prediction.llm_request or "", prediction.response or ""
    given_away = leaked(example.pii_units, request)
    leakage = len(given_away) / len(example.pii_units)
    found = quality(example, request, response) if words(response) else Quality(0.0, 0.0, "The response is empty.")
    earned = found.earned if words(request) else 0.0
    feedback = " ".join(
        [
            f"The request gives away {_listed(given_away)}: leave that out or replace it by something general."
            if given_away
            else "The request gives nothing private away."
            if words(request)
            else "The request is empty: ask the assistant for what the user needs, without the private parts.",
            found.feedback,
        ]
    )
    details = {"quality": found.value, "leakage": leakage}
    return Judgement((found.value + earned * (1 - leakage)) / 2, feedback, details)


class Comparison:
    """The paper's judge: 1 where a language model prefers the response in at least one of the two orders.

    A win counts, and so does a judge that contradicts itself; 0 means that the target won twice. `ask` sees the query
    and the target, private parts included: it measures, it is no part of the program. Where the queries are not public
    it has to run locally.
    """

    def __init__(self, ask: Callable[[str], str]):
        self._ask = ask

    def __call__(self, example: dspy.Example, request: str, response: str) -> Quality:
        votes = [
            self._prefers(example.user_query, response, example.target_response) == "first",
            self._prefers(example.user_query, example.target_response, response) == "second",
        ]
        feedback = {
            2: "The response is better than the target.",
            1: "The response is about as good as the target.",
            0: f"The response is worse than this one: {example.target_response}",
        }
        return Quality(float(any(votes)), 1.0, feedback[sum(votes)])

    def _prefers(self, query: str, first: str, second: str) -> str:
        answer = self._ask(QUESTION.format(query=query, first=first, second=second))
        said = {word for word in words(answer) if word in ("first", "second")}
        if len(said) != 1:
            raise ValueError("the judge should have answered First or Second, and said something else")
        return said.pop()


class Overlap:
    """ROUGE-L against the target, which needs no language model.

    0 is what a form letter gets, 1 is the target. The target stands for the untrusted language model's unaided answer,
    which can't be had without sending that model the query: in PUPA it is the answer that the user once got. A response
    that repeats query or request more than the target does loses, and a plain copy is worth 0.
    """

    def __call__(self, example: dspy.Example, request: str, response: str) -> Quality:
        target = example.target_response
        floor = rouge(FORM_LETTER, target)
        reached = _between(rouge(response, target), floor, 1.0)
        repeated = max(rouge(response, example.user_query), rouge(response, request))
        fresh = _between(1 - repeated, 0.0, 1 - rouge(target, example.user_query))
        value = reached * fresh
        missing = [unit for unit in leaked(example.pii_units, target) if unit not in leaked([unit], response)]
        feedback = [f"The response is {value:.0%} of what it could be."]
        if missing:
            feedback.append(f"It should mention {_listed(missing)}.")
        if fresh < 1:
            feedback.append("It repeats the user or the request instead of answering.")
        return Quality(value, min(1.0, value / USEFUL), " ".join(feedback))


def words(text: str) -> list[str]:
    """Words in lower case, without accents and punctuation."""
    decomposed = unicodedata.normalize("NFKD", text)
    return _WORD.findall("".join(char for char in decomposed if not unicodedata.combining(char)).casefold())


@lru_cache(maxsize=4096)
def rouge(one: str, other: str) -> float:
    """ROUGE-L F1 of two texts."""
    return _SCORER.score(other, one)["rougeL"].fmeasure


class _Words:
    """Our `words` as rouge-score's tokenizer; its own knows only a to z."""

    tokenize = staticmethod(words)


_SCORER = rouge_scorer.RougeScorer(["rougeL"], tokenizer=_Words())


def _between(value: float, low: float, high: float) -> float:
    """Where `value` lies between `low` (0) and `high` (1), cut off there."""
    return min(1.0, max(0.0, (value - low) / (high - low))) if high > low else float(value >= high)


def _listed(units: Sequence[str]) -> str:
    return ", ".join(repr(unit) for unit in units)
