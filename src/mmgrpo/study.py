"""One cell made ready (`prepare`) and its result made a record (`record_of`): what all strategies share."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import resource
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dspy
import torch

from mmgrpo import cells, paths, policy, profiles, records, rollout, tasks
from mmgrpo.cells import Cell
from mmgrpo.json_files import write_json
from mmgrpo.machine import processor
from mmgrpo.policy import Policy
from mmgrpo.records import Record, Score
from mmgrpo.settings import GRPOSettings, MIPROSettings, Profile, SamplingSettings
from mmgrpo.tasks import Splits, Task
from mmgrpo.trajectory import Trajectory

PACKAGES = ("mmgrpo", "torch", "transformers", "trl", "peft", "accelerate", "dspy", "datasets", "optuna", "gepa")


@dataclass(frozen=True)
class Study:
    """A cell with everything that its strategy works on."""

    cell: Cell
    profile: Profile
    task: Task
    splits: Splits
    policy: Policy
    program: dspy.Module

    @property
    def grpo(self) -> GRPOSettings:
        return self.profile.grpo_for(self.cell.task, self.cell.model, self.cell.strategy)

    @property
    def sampling(self) -> SamplingSettings:
        return self.profile.sampling_for(self.cell.model)

    @property
    def mipro(self) -> MIPROSettings:
        return self.profile.mipro

    @property
    def training_folder(self) -> Path:
        """For checkpoints and the replies of a search; a change of anything that the cell depends on starts a new one."""
        return self.cell.folder / f"training-{self.cell.fingerprint()}"

    def settings(self) -> dict[str, Any]:
        """Every setting that the cell runs with, by the names of `settings.py`."""
        return self.cell.settings(self.profile)

    def evaluate(self, program: dspy.Module, split: Sequence[dspy.Example], title: str) -> list[Trajectory]:
        """Greedy runs of `program` on the examples of a split."""
        return rollout.evaluate(program, split, policy=self.policy, metric=self.task.judge, progress=title)


@dataclass
class Stopwatch:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


@dataclass(frozen=True)
class Trained:
    """What a strategy hands back: the program under the policy as it now is, and how it got there."""

    program: dspy.Module
    curve: tuple[dict[str, float], ...] = ()
    validation: tuple[dict[str, float], ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)


def prepare(profile: str, task: str, model: str, strategy: str, seed: int) -> Study:
    """Load data, policy and program of one cell."""
    cell = cells.cell(profile, task, model, strategy, seed)
    settings = profiles.load(profile)
    what = tasks.get(task, settings.tasks[task].options)
    splits = what.load(settings.tasks[task].splits)
    loaded = policy.load(model, settings.policy_for(task), seed)
    return Study(cell, settings, what, splits, loaded, what.program(splits))


def record_of(study: Study, trained: Trained, test: Sequence[Trajectory], watch: Stopwatch) -> Record:
    """The record of a finished cell. Prompts of a task with private text go to a file that only its owner can read."""
    program = _state(trained.program)
    if study.task.private_units(study.splits):
        write_json(program, study.cell.private_program, private=True)
        program = {}
    return Record(
        task=study.cell.task,
        model=study.cell.model,
        strategy=study.cell.strategy,
        profile=study.cell.profile,
        seed=study.cell.seed,
        smoke=study.profile.smoke,
        source=study.splits.source,
        fingerprint=study.splits.fingerprint,
        settings=study.settings(),
        versions={name: importlib.metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()},
        commit=_commit(),
        machine=_machine(study.policy.precision),
        scores=tuple(Score(run.example, rollout.score(run), run.outcome, dict(run.details)) for run in test),
        curve=trained.curve,
        validation=trained.validation,
        seconds=dict(watch.seconds),
        tokens=dict(study.policy.engine.tokens),
        peak_memory_gb=_peak_memory_gb(),
        program=program,
        notes=trained.notes | {"cell": study.cell.fingerprint()},
    )


def _state(program: dspy.Module) -> dict[str, Any]:
    """Instructions and demonstrations; the weights have a folder of their own."""
    bare = program.deepcopy()
    bare.set_lm(None)
    return bare.dump_state()


def spent(before: dict[str, dict[str, float]], now: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """What paid APIs cost in between, by role and by what is counted of each."""
    return {
        role: {name: total - before.get(role, {}).get(name, 0) for name, total in totals.items()}
        for role, totals in now.items()
    }


def finished(cell: Cell, fingerprint: str | None = None) -> Record | None:
    """The cell's record where it has one that is whole and up to date; `fingerprint`, where known, is the cell's."""
    if not cell.record.exists():
        return None
    record = records.read(cell.record)
    wanted = cell.fingerprint() if fingerprint is None else fingerprint
    return record if record.notes.get("cell") == wanted else None


def _commit() -> str:
    """The project's git commit, with a plus where files differ from it; empty outside a checkout."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(paths.PROJECT), *arguments], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "HEAD")
    return commit + ("+" if commit and git("status", "--porcelain") else "")


def _machine(precision: str) -> dict[str, Any]:
    return {
        "cpu": processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "precision": precision,
    }


def _peak_memory_gb() -> float:
    """Peak resident memory of the process, or the peak on the GPU where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if platform.system() == "Darwin" else peak / 1e6
