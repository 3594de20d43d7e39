"""Cells of a study: one task, model, strategy and seed each, with what they need and where they write."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from mmgrpo import paths, policy, profiles, tasks
from mmgrpo.errors import UserError, nearest
from mmgrpo.hashing import sha256_of
from mmgrpo.library import library_hash
from mmgrpo.settings import Profile

NOTEBOOK_OF = {
    "vanilla": "01_vanilla.ipynb",
    "prompt_optimization": "02_prompt_optimization.ipynb",
    "trajectory_grpo": "03_trajectory_grpo.ipynb",
    "module_grpo": "04_module_grpo.ipynb",
    "composition": "05_composition.ipynb",
    "gepa": "09_gepa.ipynb",
    "fast_slow": "10_fast_slow.ipynb",
}
NEEDS = {"composition": ("prompt_optimization",)}  # strategies whose record another one starts from
SETTINGS_OF = {  # sections of a profile that a strategy's numbers depend on, beside its task and policy
    "vanilla": (),
    "prompt_optimization": ("mipro",),
    "trajectory_grpo": ("sampling", "grpo"),
    "module_grpo": ("sampling", "grpo"),
    "composition": ("sampling", "grpo", "mipro"),
    "gepa": ("gepa",),
    "fast_slow": ("sampling", "grpo", "mipro", "fast_slow"),
}
LORA = {"lora_rank", "lora_alpha", "lora_dropout"}  # of the policy, for strategies that train it


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    profile: str
    task: str
    model: str
    strategy: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.task} · {self.model} · {self.strategy} · seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Where the cell's record, checkpoints and executed notebook lie."""
        return (
            paths.results()
            / self.profile
            / self.task
            / self.model.replace("/", "--")
            / self.strategy
            / f"seed-{self.seed}"
        )

    @property
    def record(self) -> Path:
        return self.folder / "record.json"

    @property
    def private_program(self) -> Path:
        """The final program of a task with private text, whose demonstrations no record may have."""
        return self.folder / "program.private.json"

    @property
    def notebook(self) -> Path:
        return paths.NOTEBOOKS / NOTEBOOK_OF[self.strategy]

    @property
    def trains(self) -> bool:
        """Whether the strategy updates the policy's weights."""
        return "grpo" in SETTINGS_OF[self.strategy]

    @property
    def needs(self) -> tuple[Cell, ...]:
        return tuple(
            Cell(self.profile, self.task, self.model, strategy, self.seed) for strategy in NEEDS.get(self.strategy, ())
        )

    def settings(self, profile: Profile) -> dict[str, Any]:
        """The settings that the cell's strategy uses, by the names of `settings.py`; `profile` is the cell's."""
        of_task, used = profile.tasks[self.task], SETTINGS_OF[self.strategy]
        sections = {
            "sampling": profile.sampling_for(self.model),
            "grpo": profile.grpo_for(self.task, self.model, self.strategy),
            "mipro": profile.mipro,
            "gepa": profile.gepa,
            "fast_slow": profile.fast_slow,
        }
        return {
            "splits": of_task.splits.model_dump(),
            "task": of_task.options,
            "policy": profile.policy_for(self.task).model_dump(exclude=None if self.trains else LORA),
        } | {name: sections[name].model_dump() for name in used}

    def fingerprint(self) -> str:
        """Hash of all that the cell's record depends on. For many cells, `fingerprints` reads files once."""
        return fingerprints([self])[self]


def fingerprints(todo: Iterable[Cell]) -> dict[Cell, str]:
    """Hash of all that each cell's record depends on: settings, library, notebook, data, adapter and the cells it needs.

    Profiles, notebooks and the tasks' local data files are read once for all of `todo`.
    """
    data, load = cache(local_files), cache(profiles.load)

    @cache
    def without_seed(one: Cell) -> str:
        return _hash(
            [one.task, one.model, one.strategy, one.settings(load(one.profile))]
            + [library_hash(), code_hash(one.notebook), data(one.task)]
        )

    @cache
    def whole(one: Cell) -> str:
        return _hash([without_seed(replace(one, seed=0)), one.seed, [whole(needed) for needed in one.needs]])

    return {one: whole(one) for one in todo}


def cell(profile: str, task: str, model: str, strategy: str, seed: int) -> Cell:
    """A checked cell; raises UserError naming what is allowed."""
    settings = profiles.load(profile)
    if task not in tasks.names():
        raise UserError(f"Unknown task {task!r}; {nearest(task, tasks.names())}.")
    if task not in settings.tasks:
        raise UserError(f"The profile {profile} has no task {task!r}; {nearest(task, list(settings.tasks))}.")
    tasks.get(task, settings.tasks[task].options)
    if model not in policy.names():
        raise UserError(f"Unknown model {model!r}; {nearest(model, policy.names())}.")
    if strategy not in NOTEBOOK_OF:
        raise UserError(f"Unknown strategy {strategy!r}; {nearest(strategy, list(NOTEBOOK_OF))}.")
    return Cell(profile, task, model, strategy, seed)


def expand(profile: Profile, only_tasks: Sequence[str], seeds: Sequence[int] = ()) -> list[Cell]:
    """All cells of a profile on `only_tasks`, each after the cells that it needs; `seeds`, or else the profile's."""
    todo = []
    for task in only_tasks:
        for model in profile.models:
            checked = [cell(profile.name, task, model, each, profile.seeds[0]) for each in profile.strategies]
            checked.sort(key=lambda one: list(NOTEBOOK_OF).index(one.strategy))
            todo += [replace(one, seed=seed) for seed in seeds or profile.seeds for one in checked]
    return todo


def chosen_tasks(profile: Profile, wanted: str) -> list[str]:
    """The tasks that `wanted` names: `all`, or a comma-separated list."""
    if wanted == "all":
        return list(profile.tasks)
    names = _listed(wanted)
    for name in names:
        if name not in profile.tasks:
            raise UserError(
                f"The profile {profile.name} has no task {name!r}; {nearest(name, ['all', *profile.tasks])}."
            )
    if not names:
        raise UserError(f"No task was named; {nearest('', ['all', *profile.tasks])}.")
    return list(dict.fromkeys(names))


def chosen_seeds(wanted: str) -> list[int]:
    """The seeds that a comma-separated list names; none where it is empty."""
    names = _listed(wanted)
    for name in names:
        if not (name.isascii() and name.isdigit()):
            raise UserError(f"Not a seed: {name!r}; allowed are whole numbers from 0 on, with commas between them.")
    return list(dict.fromkeys(map(int, names)))


def _listed(wanted: str) -> list[str]:
    """The parts of a comma-separated list."""
    return [part.strip() for part in wanted.split(",") if part.strip()]


def local_files(task: str) -> list[tuple[str, str]]:
    """Name and SHA256 of a task's files below MMGRPO_DATA_DIR: a copy of them is the same data, another version isn't."""
    if paths.local_data() is None:
        return []
    folder = paths.local_data() / tasks.get(task).folder
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return [(str(f.relative_to(folder)), _content_hash(f, f.stat().st_mtime_ns, f.stat().st_size)) for f in files]


@cache
def _content_hash(file: Path, *_: int) -> str:
    return sha256_of(file)


def code_hash(notebook: Path) -> str:
    """Hash of the code of a notebook; its prose and outputs don't count."""
    state = notebook.stat()
    return _code_hash(notebook, state.st_mtime_ns, state.st_size)


@cache
def _code_hash(notebook: Path, *_: int) -> str:
    return _hash(_code(notebook))


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _code(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
