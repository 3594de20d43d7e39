"""One GRPO run from the first rollout to the best adapter: inputs -> rollouts -> groups -> rows -> update."""

from __future__ import annotations

import json
import math
import random
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import dspy
import numpy as np
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from trl import GRPOConfig

from mmgrpo import checkpoints, distributed, kept_runs, rollout
from mmgrpo.errors import UserError
from mmgrpo.grouping import Group, Grouping, module_groups, trajectory_groups
from mmgrpo.hashing import seed_of, text_of
from mmgrpo.json_files import write_json
from mmgrpo.lock import only_one
from mmgrpo.objective import rows_of
from mmgrpo.outline import outline
from mmgrpo.policy import Policy
from mmgrpo.policy.lm import PolicyLM
from mmgrpo.settings import GRPOSettings, SamplingSettings
from mmgrpo.trainer import Batch, RowTrainer, StepBar, arguments
from mmgrpo.trajectory import Trajectory
from mmgrpo.validation import Validation, best_adapter

Level = Literal["module", "trajectory"]


@dataclass(frozen=True)
class Recipe:
    """What an optimizer was told; the same for every compile."""

    metric: rollout.Metric
    level: Level
    settings: GRPOSettings
    sampling: SamplingSettings
    seed: int
    report_to: str


@dataclass(frozen=True)
class TrainingLog:
    """What a compile did."""

    curve: tuple[dict[str, float], ...]  # one entry an update: step, reward, groups, calls, loss, seconds, ...
    validation: tuple[dict[str, float], ...]  # step (0: before training) and score in [0, 1]
    best: dict[str, float]  # step and score of the adapter that came back; without a validation set the last step
    adapter: Path  # its PEFT folder
    elsewhere: tuple[str, ...]  # modules that another language model answered, and only that
    rollouts: dict[str, Any] | None  # outline of one input's rollouts and groups; None where no group ever taught


class TrainingRun:
    """The state of one compile. `programs` are the student and its teachers, which share a group's runs."""

    def __init__(self, recipe: Recipe, programs, trainset: list, valset: list, lm: PolicyLM, folder: Path):
        self.recipe = recipe
        self.programs: list[dspy.Module] = programs
        self.trainset: list[dspy.Example] = trainset
        self.valset: list[dspy.Example] = valset
        self.policy: Policy = lm.policy
        self.start = lm.weights
        self.folder = folder

    def train(self) -> TrainingLog:
        """Train from the folder's last checkpoint, or from the start, to the last step."""
        args = arguments(  # they start the group of processes, where there are several
            self.recipe.settings, folder=self.folder, seed=self.recipe.seed,
            precision=self.policy.precision, report_to=self.recipe.report_to,
        )  # fmt: skip
        with self._held():
            self._claim_folder()
            return self._train(args)

    def _held(self) -> AbstractContextManager[None]:
        """The folder for this launch alone; its first process, which writes there, holds it."""
        if not distributed.is_first():
            return nullcontext()
        return only_one("training", self.folder, "`folder` (for a notebook's with MMGRPO_RESULTS_DIR)")

    def _train(self, args: GRPOConfig) -> TrainingLog:
        modules = [name for name, _ in self.programs[0].named_predictors()]
        self.policy.attach_adapters(
            modules if self.recipe.settings.adapters == "per_module" else [], self.start, self.recipe.seed
        )
        validation = Validation(self)
        trainer = RowTrainer(
            policy=self.policy,
            settings=self.recipe.settings,
            collect=self.collect,
            args=args,
            callbacks=[validation, checkpoints.Seal(), StepBar(f"{self.recipe.level}-level GRPO")],
        )
        self._go_on(trainer, validation)
        best = validation.best if self.valset else {"step": float(trainer.state.global_step)}
        adapter = best_adapter(self.folder, best["step"])
        if not self.valset:
            self.save(adapter)
        if not checkpoints.is_whole(adapter):
            raise UserError(f"{adapter} is damaged: delete {self.folder} and run again.")
        self.policy.load_adapter(adapter)
        curve = tuple(_floats(entry) for entry in trainer.state.log_history if "reward" in entry)
        elsewhere = _tell_idle(modules, curve)
        rollouts = json.loads(self._outline.read_text(encoding="utf-8")) if self._outline.exists() else None
        return TrainingLog(curve, tuple(validation.scores), best, adapter, elsewhere, rollouts)

    def _go_on(self, trainer: RowTrainer, validation: Validation) -> None:
        """Train from the last checkpoint; where training ended there, read what it came to."""
        checkpoint = checkpoints.last_good(self.folder)
        if checkpoint is not None and validation.ended(checkpoints.step_of(checkpoint), trainer.args.max_steps):
            if distributed.is_first():
                print(f"{self.folder} holds this training, finished: it comes back. Delete the folder to train anew.")
            trainer.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
            if not self.valset:  # else the best adapter comes back, and not the last
                self.policy.load_adapter(checkpoint)
        else:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))

    @property
    def _outline(self) -> Path:
        return self.folder / "rollouts.json"

    def _claim_folder(self) -> None:
        """Note in the folder what is trained there, so that no other run goes on from its checkpoints."""
        parts = {
            "level": self.recipe.level, "seed": self.recipe.seed, "start": str(self.start),
            "policy": [self.policy.name, self.policy.precision, self.policy.settings.model_dump()],
            "settings": self.recipe.settings.model_dump(), "sampling": self.recipe.sampling.model_dump(),
            "programs": [program.dump_state() for program in self.programs],
            "examples": [[dict(example) for example in examples] for examples in (self.trainset, self.valset)],
        }  # fmt: skip
        mine = {name: f"{seed_of(text_of(part)):x}" for name, part in parts.items()}
        file = self.folder / "run.json"
        others = [*self.folder.glob("checkpoint-*"), *self.folder.glob("best-*")]
        if others and not file.exists():  # these names are ours to write and to remove
            raise UserError(f"{self.folder} holds {others[0].name}, which is of no run of ours: choose another folder.")
        if file.exists() and (found := json.loads(file.read_text())) != mine:
            other = ", ".join(name for name in mine if found.get(name) != mine[name])
            raise UserError(
                f"{self.folder} holds another run (with other {other}): choose another folder, or delete this one."
            )
        if distributed.is_first():
            write_json(mine, file)

    def save(self, folder: Path) -> None:
        """Write the adapter with the hashes of its files, once for all processes."""
        if distributed.is_first():
            self.policy.save_adapter(folder)
            checkpoints.seal(folder)
        distributed.wait()

    def collect(self, step: int) -> Batch:
        """Rollouts of a step's inputs with the weights as they are, grouped and weighted."""
        started = time.perf_counter()
        self.policy.sync()
        settings, sampling = self.recipe.settings, self.recipe.sampling
        lm = self.policy.lm(**sampling.model_dump())
        jobs = rollout.jobs_for(
            inputs_of_step(self.trainset, step, settings.inputs, self.recipe.seed),
            settings.rollouts,
            self.recipe.seed,
            step,
        )
        trajectories = []
        for place, program in enumerate(self.programs):
            mine = [job for job in jobs if job.rollout % len(self.programs) == place]
            trajectories += rollout.run(
                program, mine, lm=lm, metric=self.recipe.metric,
                format_failure_reward=settings.format_failure_reward, together=True,
            )  # fmt: skip
        if all(run.outcome == "completed" and not run.calls for run in trajectories):
            raise UserError(
                f"None of the program's modules was called in {len(trajectories)} runs: there is nothing to train. Its "
                "forward has to call its own predictors, by their attributes."
            )
        if step == 0:  # later it would lose what was learnt
            self._refuse_rewards_that_pay_failure(trajectories)
        if step == 0 and distributed.is_first():
            kept_runs.write(trajectories, kept_runs.sampled(self.folder))
        grouping = grouped(trajectories, self.recipe, step)
        if grouping.groups and distributed.is_first():
            write_json(outline(step, trajectories, grouping.groups), self._outline)
        tokens = sum(len(call.completion_ids) for run in trajectories for call in run.calls)
        spent = {
            "rollouts": float(len(trajectories)), "completion_tokens": float(tokens),
            "seconds_rollout": time.perf_counter() - started,
        }  # fmt: skip
        return Batch(tuple(rows_of(grouping.groups)), metrics_of(trajectories, grouping), spent)

    def _refuse_rewards_that_pay_failure(self, trajectories: Sequence[Trajectory]) -> None:
        """Raise UserError where an answer earns less than no answer, in training or in validation."""
        least = min((run.reward for run in trajectories if run.outcome == "completed"), default=0.0)
        failure = self.recipe.settings.format_failure_reward
        if least < failure or (self.valset and least < 0):
            raise UserError(
                f"A run that completed earned {least:g}, where one whose reply doesn't parse earns {failure:g} in training and 0 in "
                "validation: add a constant to the metric, so that the worst answer earns 0."
            )


def grouped(trajectories: Sequence[Trajectory], recipe: Recipe, step: int) -> Grouping:
    """The groups of a step's runs at the recipe's level."""
    settings = recipe.settings
    if recipe.level == "trajectory":
        return trajectory_groups(trajectories, size=settings.group_size, scale=settings.scale)
    rng = random.Random(seed_of(recipe.seed, step, "padding"))
    return module_groups(
        trajectories, padding=settings.padding, size=settings.group_size, scale=settings.scale, rng=rng
    )


def _tell_idle(modules: Sequence[str], curve: Sequence[dict[str, float]]) -> tuple[str, ...]:
    """The modules that another language model answered throughout; warns of those that no run called."""
    untrained = [name for name in modules if curve and not any(f"reward/{name}" in entry for entry in curve)]
    elsewhere = tuple(name for name in untrained if any(f"elsewhere/{name}" in entry for entry in curve))
    if idle := [name for name in untrained if name not in elsewhere]:
        warnings.warn(
            f"No run called {', '.join(idle)}: nothing was learnt there. Check the program's branches, or the trainset's inputs.",
            stacklevel=2,
        )
    return elsewhere


def inputs_of_step(trainset: Sequence[dspy.Example], step: int, inputs: int, seed: int) -> list[dspy.Example]:
    """The examples of a step, all different: a piece of a seeded permutation, a new one each epoch. Needs no state.

    The rest of a permutation that fills no step is left out, as another one is the next epoch's.
    """
    epoch, place = divmod(step, len(trainset) // inputs)
    order = list(trainset)
    random.Random(seed_of(seed, "epoch", epoch)).shuffle(order)
    return order[place * inputs : (place + 1) * inputs]


def metrics_of(trajectories: Sequence[Trajectory], grouping: Grouping) -> dict[str, float]:
    """What the log keeps of a step's rollouts and groups."""
    rewards = np.array([run.reward for run in trajectories if run.reward is not None])
    calls = [call for run in trajectories for call in run.calls]
    elsewhere = Counter(module for run in trajectories for module in run.elsewhere)
    metrics = {
        "reward": float(rewards.mean()) if len(rewards) else 0.0,
        "reward_std": float(rewards.std()) if len(rewards) else 0.0,
        "format_failures": sum(_failed_format(run) for run in trajectories) / len(trajectories),
        "unscored": sum(run.reward is None for run in trajectories) / len(trajectories),
        "group_std": _mean_deviation(grouping.groups),
        "group_std_all": _mean_deviation(grouping.pools),
    }
    for module in dict.fromkeys(call.module for call in calls):
        own = [
            run.reward for run in trajectories for call in run.calls if call.module == module and run.reward is not None
        ]
        metrics[f"reward/{module}"] = float(np.mean(own)) if own else 0.0
    metrics |= {f"elsewhere/{module}": float(count) for module, count in elsewhere.items()}
    return metrics | {name: float(count) for name, count in grouping.counts.items()}


def _failed_format(run: Trajectory) -> bool:
    """Whether an output that didn't parse ended the run; a prompt that outgrows the context interrupts one, too."""
    return run.outcome == "interrupted" and any(call.status != "ok" for call in run.calls)


def _mean_deviation(groups: Sequence[Group]) -> float:
    return float(np.mean([group.rewards.std() for group in groups])) if groups else 0.0


def _floats(entry: dict) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in entry.items()
        if isinstance(value, int | float | str) and _is_number(value)
    }


def _is_number(value: object) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False
