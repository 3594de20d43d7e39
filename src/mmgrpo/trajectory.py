"""What one run of a program leaves behind: its language-model calls in order, and its reward.

A `Call` is captured when the language model answers, token by token, and never rendered again: what is trained
is what was sampled.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Literal

import dspy

from mmgrpo.hashing import text_of

CallStatus = Literal["ok", "format_failure", "truncated", "unread"]
Outcome = Literal["completed", "interrupted", "crashed", "unscorable"]


@dataclass(frozen=True)
class Call:
    """One language-model call ζ = (M, q, o) of the paper."""

    module: str  # name of the predictor in `program.named_predictors()`
    invocation: int  # how-many-th call of that module in its run, from 0
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...]  # of the completion's tokens, as the sampler had them (vLLM's: after top-p and top-k)
    temperature: float  # 0 means greedy; then `logprobs` are at temperature 1
    text: str  # the completion, decoded
    status: CallStatus  # truncated: ran into the token limit, and did not parse; unread: no adapter parsed it
    parsed: float  # share of the output fields that parsed, 0 to 1


@dataclass(frozen=True)
class Trajectory:
    """One run ρ of a program on one example."""

    example: str  # id of the example
    rollout: int  # which of the runs on that example, from 0
    calls: tuple[Call, ...]  # in order; an interrupted run ends with the call that failed
    reward: float | None  # None where the metric could not score the run
    outcome: Outcome
    error: str | None = None  # why the run did not complete, or could not be scored
    prediction: Any = None  # the program's output, for showing
    details: dict[str, float] = field(default_factory=dict)  # parts of the reward, where the metric tells them
    elsewhere: tuple[str, ...] = ()  # modules of a completed run that another language model answered


def from_json(run: dict[str, Any]) -> Trajectory:
    """A trajectory as it was before `dataclasses.asdict` and JSON; raises KeyError or TypeError where it isn't one."""
    sequences = ("prompt_ids", "completion_ids", "logprobs")  # tuples, which JSON has as lists
    calls = (Call(**call | {name: tuple(call[name]) for name in sequences}) for call in run["calls"])
    return Trajectory(**run | {"calls": tuple(calls), "elsewhere": tuple(run.get("elsewhere", ()))})


def example_id(example: dspy.Example) -> str:
    """A name for an example that reveals nothing of it: 12 hex digits of its inputs' hash."""
    return hashlib.sha256(text_of(dict(example.inputs())).encode()).hexdigest()[:12]
