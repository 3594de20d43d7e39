"""Fast and slow: prompts are updated every few weight steps, both paid from one budget of program runs.

After "Learning, Fast and Slow", which interleaves what the paper composes once. Each round spends some of the
budget on MIPROv2 and its share of the rest on module-level GRPO under the prompts just found.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback

from mmgrpo.errors import UserError
from mmgrpo.hashing import seed_of
from mmgrpo.json_files import write_json
from mmgrpo.optimizer import MMGRPO
from mmgrpo.policy.lm import PolicyLM
from mmgrpo.prompt_optimization import mipro
from mmgrpo.rollout import Metric
from mmgrpo.settings import FastSlowSettings, GRPOSettings, MIPROSettings, SamplingSettings

SEEDS = 2**31  # that NumPy and optuna take


@dataclass(frozen=True)
class Interleaved:
    """The program of the last round, and what all rounds did."""

    program: dspy.Module
    curve: tuple[dict[str, float], ...]  # of all rounds, steps counted through
    validation: tuple[dict[str, float], ...]
    budget: dict[str, int]  # program runs: allowed, spent on prompts, spent on weights
    adapter: Path  # PEFT folder of the last round's weights


class CountedRuns(BaseCallback):
    """Counts the runs of a program and its copies, those included that break off before they are scored."""

    def __init__(self, program: dspy.Module):
        self._shape = _shape(program)
        self._lock = Lock()
        self.runs = 0

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        if _shape(instance) == self._shape:
            with self._lock:
                self.runs += 1


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
    report_to: str = "none",
) -> Interleaved:
    """Run all rounds; the weights of each go on from the round before. A second call with `folder` goes on there."""
    if grpo.adapters != "shared":
        raise UserError(f"grpo.adapters is {grpo.adapters}: fast-slow trains one adapter, so set it to shared.")
    a_step = grpo.inputs * grpo.rollouts
    allowed = grpo.steps * a_step if settings.runs is None else settings.runs
    on_prompts, on_weights = 0, 0
    curve: list[dict[str, float]] = []
    validation: list[dict[str, float]] = []
    for turn in range(settings.rounds):
        here, its_seed = folder / f"round-{turn}", seed_of(seed, "round", turn) % SEEDS
        program, runs = _prompts(
            program, here / "prompts.private.json", lm=lm, metric=metric, trainset=trainset, valset=valset,
            settings=mipro_settings.model_copy(update={"trials": settings.trials}), seed=its_seed,
        )  # fmt: skip
        on_prompts += runs
        later = (settings.rounds - turn - 1) * on_prompts // (turn + 1)  # what prompts will cost in the rounds to come
        steps = (allowed - on_prompts - on_weights - later) // a_step // (settings.rounds - turn)
        if steps < 1:
            raise UserError(
                f"The budget of {allowed} program runs is used up in round {turn + 1} of {settings.rounds} ({on_prompts} on prompts): "
                "raise fast_slow.runs, or lower fast_slow.trials or the validation split."
            )
        optimizer = MMGRPO(
            metric, level="module", settings=grpo.model_copy(update={"steps": steps, "validate_every": steps}),
            sampling=sampling, seed=its_seed, folder=here, report_to=report_to,
        )  # fmt: skip
        with dspy.context(lm=lm):
            program = optimizer.compile(program, trainset=trainset, valset=valset)
        log, before = program.training_log, len(curve)
        lm = lm.with_weights(log.adapter)
        on_weights += steps * a_step
        curve += [entry | {"step": entry["step"] + before} for entry in log.curve]
        validation += [
            entry | {"step": entry["step"] + before} for entry in log.validation if entry["step"] or not before
        ]
    budget = {"allowed": allowed, "prompts": on_prompts, "weights": on_weights}
    return Interleaved(program, tuple(curve), tuple(validation), budget, log.adapter)


def _shape(module: dspy.Module) -> tuple:
    """What a program and its copies under optimization share, and nothing else that runs meanwhile."""
    return type(module), [(name, list(predictor.signature.fields)) for name, predictor in module.named_predictors()]


def _prompts(program: dspy.Module, file: Path, *, settings: MIPROSettings, **how: Any) -> tuple[dspy.Module, int]:
    """The program under MIPROv2's prompts, without a language model of its own, and what they cost in program runs.

    They stay in `file`, so that an interrupted round goes on under the very same; until then replies are kept beside it.
    """
    if not file.exists():
        counter = CountedRuns(program)
        with dspy.context(callbacks=[*(dspy.settings.callbacks or []), counter]):
            found = mipro(program, settings=settings, folder=file.parent, **how).program
        found.set_lm(None)
        write_json(
            {"settings": settings.model_dump(), "runs": counter.runs, "program": found.dump_state()}, file, private=True
        )
    stored = json.loads(file.read_text(encoding="utf-8"))
    if stored["settings"] != settings.model_dump():
        raise UserError(f"{file} was made with other settings of MIPROv2: choose another folder, or delete this one.")
    program = program.deepcopy()
    program.load_state(stored["program"])
    return program, stored["runs"]
