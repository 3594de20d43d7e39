"""Fast and slow: prompts are updated every few weight steps, both paid from one budget of program runs.

After "Learning, Fast and Slow", which interleaves what the paper composes once. Each round spends some of the
budget on MIPROv2 and its share of the rest on module-level GRPO under the prompts just found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import dspy

from mmgrpo.errors import UserError
from mmgrpo.optimizer import MMGRPO
from mmgrpo.policy.lm import PolicyLM
from mmgrpo.prompt_optimization import mipro
from mmgrpo.rollout import Metric
from mmgrpo.settings import FastSlowSettings, GRPOSettings, MIPROSettings, SamplingSettings


@dataclass(frozen=True)
class Interleaved:
    """The program of the last round, and what all rounds did."""

    program: dspy.Module
    curve: tuple[dict[str, float], ...]  # of all rounds, steps counted through
    validation: tuple[dict[str, float], ...]
    budget: dict[str, int]  # program runs: allowed, spent on prompts, spent on weights


class CountedMetric:
    """A metric that counts its calls, each one a program run that was paid for."""

    def __init__(self, metric: Metric):
        self._metric = metric
        self._lock = Lock()
        self.calls = 0

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> Any:
        with self._lock:
            self.calls += 1
        return self._metric(example, prediction, trace)


def fast_slow(
    program: dspy.Module,
    *,
    lm: PolicyLM,
    metric: Metric,
    trainset: Sequence[dspy.Example],
    valset: Sequence[dspy.Example],
    settings: FastSlowSettings,
    grpo: GRPOSettings,
    mipro_settings: MIPROSettings,
    sampling: SamplingSettings,
    seed: int,
    folder: Path,
) -> Interleaved:
    """Run all rounds; the weights of each go on from the round before."""
    a_step = grpo.inputs * grpo.rollouts
    allowed = grpo.steps * a_step
    on_prompts, on_weights = 0, 0
    curve: list[dict[str, float]] = []
    validation: list[dict[str, float]] = []
    for turn in range(settings.rounds):
        counted = CountedMetric(metric)
        found = mipro(
            program, lm=lm, metric=counted, trainset=trainset, valset=valset,
            settings=mipro_settings.model_copy(update={"trials": settings.trials}), seed=seed + turn,
        )  # fmt: skip
        on_prompts += counted.calls
        steps = (allowed - on_prompts - on_weights) // a_step // (settings.rounds - turn)
        if steps < 1:
            raise UserError(
                f"The budget of {allowed} program runs is used up in round {turn + 1} of {settings.rounds} ({on_prompts} on prompts): "
                "raise grpo.steps, or lower fast_slow.trials or the validation split."
            )
        optimizer = MMGRPO(
            metric, level="module", settings=grpo.model_copy(update={"steps": steps, "validate_every": steps}),
            sampling=sampling, seed=seed + turn, folder=folder / f"round-{turn}",
        )  # fmt: skip
        with dspy.context(lm=lm):
            program = optimizer.compile(found.program, trainset=trainset, valset=valset)
        log, before = program.training_log, len(curve)
        lm = lm.with_weights(log.adapter)
        on_weights += steps * a_step
        curve += [entry | {"step": entry["step"] + before} for entry in log.curve]
        validation += [
            entry | {"step": entry["step"] + before} for entry in log.validation if entry["step"] or not before
        ]
    return Interleaved(
        program, tuple(curve), tuple(validation), {"allowed": allowed, "prompts": on_prompts, "weights": on_weights}
    )
