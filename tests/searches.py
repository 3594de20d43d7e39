"""Small prompt searches over the tiny policy, and a sampler under them that counts and can die."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tiny_policy import tiny_policy
from training_setup import QUESTIONS, Lenient, by_length

from mmgrpo.policy.sampler import Completion, SamplingRequest
from mmgrpo.prompt_optimization import Optimized, mipro
from mmgrpo.reflection import gepa
from mmgrpo.settings import GEPASettings, MIPROSettings
from mmgrpo.tasks import Judgement

MIPRO = MIPROSettings(
    trials=4, fewshot_candidates=3, instruction_candidates=3, bootstrapped_demos=1, labeled_demos=1, proposal_tokens=8
)
GEPA = GEPASettings(metric_calls=40, minibatch=2, proposal_tokens=8)


class Mortal:
    """Samples with a tree sampler so many batches (those with a request that `counts`), then fails each time.

    Each request is sampled alone, so that its reply is the same to the last bit whatever was asked before or beside it.
    """

    def __init__(self, sampler, batches: int | None = None, counts: Callable = lambda request: True):
        self.sampler = sampler
        self.left = batches
        self.counts = counts
        self.requests: list[SamplingRequest] = []

    def generate(self, requests: Sequence[SamplingRequest]) -> list[Completion]:
        if self.left is not None:
            self.left -= any(map(self.counts, requests))
            if self.left < 0:
                raise OSError("gone")
        self.requests += requests
        return [self._alone(request) for request in requests]

    def _alone(self, request: SamplingRequest) -> Completion:
        self.sampler._stems.clear()
        return self.sampler.generate([request])[0]


def search(kind: str, folder: Path | None, batches: int | None = None) -> tuple[Optimized | None, Mortal, dict]:
    """What the search found (None: its sampler failed), the sampler, and how many tokens were counted."""
    policy = tiny_policy()
    sampler = policy.engine.sampler = Mortal(policy.sampler, batches)
    how = {"lm": policy.lm(), "trainset": QUESTIONS[:4], "valset": QUESTIONS[2:], "seed": 3, "folder": folder}
    try:
        if kind == "mipro":
            found = mipro(Lenient(), metric=by_length, settings=MIPRO, **how)
        else:
            found = gepa(Lenient(), judge=_judge, settings=GEPA, **how)
    except Exception as error:
        assert "gone" in f"{error} {error.__cause__}"
        found = None
    return found, sampler, dict(policy.engine.tokens)


def _judge(example, prediction, trace=None) -> Judgement:
    score = by_length(example, prediction)
    return Judgement(score, f"The answer is worth {score:.2f}.")


def asked(request: SamplingRequest) -> tuple:
    """What the reply to a request depends on, in one search."""
    return request.prompt_ids, request.temperature, request.seed if request.temperature else None
