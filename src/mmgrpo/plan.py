"""What a grid will take, before anything starts: hours, GPUs, API calls, downloads, disk, and what is missing here.

Hours come from this machine's records of the same profile, task, model and strategy (`measured`), else from the committed
ones (`committed`, made on 2 cores), else from the paper (arXiv 2508.04660: 18.7 h on two H100 an mmGRPO run, 1.4 h on
one a MIPROv2 run), as it says (`paper`) or scaled by samples and model size (`paper, scaled`), else from our own guess
(`guess`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from mmgrpo import paths, profiles, records, tasks
from mmgrpo.cells import Cell, fingerprints
from mmgrpo.errors import UserError
from mmgrpo.policy import EMBEDDED, HUB_REVISIONS
from mmgrpo.report import evidence, published

# The paper's, of an 8B model.
GRPO_HOURS, GRPO_SAMPLES = published.hours("module_grpo"), 750 * 4 * 12
MIPRO_HOURS, MIPRO_TRIALS = published.hours("prompt_optimization"), 12
PAPER_BILLIONS = 8
PAPER_GPUS = 2

# What a cell with an embedded model takes on 2 cores, by order of magnitude, where no run of its task is committed.
GUESS_SECONDS = {"vanilla": 90, "prompt_optimization": 300, "composition": 500, "fast_slow": 600}
GUESS_TRAINED_SECONDS = 400
RUN_RATIO = 1.5  # a program run of a search or a training, its updates included, against one of vanilla: 1.0 to 1.9
SMOKE_SECONDS = 60
MINIBATCHES = 5  # MIPROv2 evaluates in full after so many trials on minibatches
RECORD_GB = 0.002  # record and executed notebook
DATA_GB = 0.01  # a task's public files
CHECKPOINTS = 7  # adapters' worth: two checkpoints of an adapter with Adam's two moments, and the best adapter


@dataclass(frozen=True)
class Model:
    """What a model asks of a machine. Sizes are those of the pinned files; an adapter has rank 16 in float32."""

    billions: float  # parameters
    download_gb: float
    adapter_gb: float
    gpus: int  # that a cell needs: sampling and training take turns on it
    gpu_gb: int | None = None  # of memory that such a GPU needs, where it is known
    gated: bool = False  # the hub wants a token


MODELS = {
    "smollm2-135m": Model(0.135, 0.1, 0.02, 0),
    "smollm2-135m-published": Model(0.135, 0.1, 0.02, 0),
    "Qwen/Qwen3-0.6B": Model(0.6, 1.5, 0.04, 1),
    "Qwen/Qwen3-8B": Model(8, 16.4, 0.175, 1, gpu_gb=80),
    "meta-llama/Llama-3.1-8B-Instruct": Model(8, 16.1, 0.168, 1, gpu_gb=80, gated=True),
}


@dataclass
class Survey:
    """What the results folder says of some cells and of those they need. Each record is read once."""

    finished: set[Cell] = field(default_factory=set)
    damaged: dict[Cell, str] = field(default_factory=dict)  # with the sentence that says why
    seconds: dict[tuple[str, ...], list[float]] = field(default_factory=dict)  # by profile, task, model and strategy
    unmeasured: dict[tuple[str, ...], tuple[float, str]] = field(default_factory=dict)  # likewise

    def add(self, cell: Cell, fingerprint: str) -> None:
        """Read the cell's record, if there is one; it is finished where the record has the cell's fingerprint."""
        self.finished.discard(cell)
        if not cell.record.exists():
            return
        try:
            record = records.read(cell.record)
        except UserError as error:
            self.damaged[cell] = str(error)
            return
        self.seconds.setdefault(_kind(cell), []).extend(_seconds(record))
        if record.notes.get("cell") == fingerprint:
            self.finished.add(cell)

    def expected(self, cell: Cell) -> tuple[float, str]:
        """Seconds that the cell will take, and where that number is from."""
        measured = self.seconds.get(_kind(cell))
        if measured:
            return sum(measured) / len(measured), "measured"
        if _kind(cell) not in self.unmeasured:
            self.unmeasured[_kind(cell)] = unmeasured(cell)
        return self.unmeasured[_kind(cell)]


def survey(todo: Iterable[Cell]) -> Survey:
    """Look at the records of all cells and of those they need."""
    found = Survey()
    for cell, fingerprint in fingerprints(one for asked in todo for one in (*asked.needs, asked)).items():
        found.add(cell, fingerprint)
    return found


def unmeasured(cell: Cell) -> tuple[float, str]:
    """Seconds of a cell that this machine has no record like, and where that number is from."""
    profile, model = profiles.load(cell.profile), MODELS[cell.model]
    if profile.smoke:
        return SMOKE_SECONDS, "guess"
    if committed := _committed_seconds(cell):
        return sum(committed) / len(committed), "committed"
    plain = replace(cell, strategy="vanilla")
    if committed := _committed_seconds(plain):
        each = sum(committed) / len(committed) / program_runs(plain)
        return RUN_RATIO * each * program_runs(cell), "committed, scaled"
    if cell.model in EMBEDDED:
        return GUESS_SECONDS.get(cell.strategy, GUESS_TRAINED_SECONDS), "guess"
    size = model.billions / PAPER_BILLIONS
    if cell.strategy == "vanilla":  # the paper gives no time; MIPROv2 scores many more examples than the test split has
        return 3600 * MIPRO_HOURS * size / 4, "guess"
    if cell.strategy == "prompt_optimization":
        hours, scale = MIPRO_HOURS, size * profile.mipro.trials / MIPRO_TRIALS
    elif cell.strategy == "gepa":
        # As many program runs as its budget has, at MIPROv2's pace on 100 validation examples.
        return 3600 * MIPRO_HOURS * size * profile.gepa.metric_calls / (100 * MIPRO_TRIALS), "guess"
    else:
        grpo = profile.grpo_for(cell.task, cell.model, cell.strategy)
        hours, scale = GRPO_HOURS, size * grpo.steps * grpo.inputs * grpo.rollouts / GRPO_SAMPLES
    return 3600 * hours * scale, "paper" if scale == 1 else "paper, scaled"


def _committed_seconds(cell: Cell) -> list[float]:
    """Seconds of the committed runs like the cell, over seeds."""
    seeds = paths.EVIDENCE / evidence.of_rows(_source(cell)) / cell.folder.parent.relative_to(paths.results())
    return [seconds for record in records.read_all(seeds) for seconds in _seconds(record)]


def _seconds(record: records.Record) -> list[float]:
    """What the run took, where its record knows it: one that was resumed knows its last process's seconds alone."""
    return [] if record.notes.get("resumed") else [sum(record.seconds.values())]


def _source(cell: Cell) -> str:
    """Where the cell's rows come from: `local`, `embedded` or `hub`."""
    return "local" if paths.local_data() is not None else profiles.load(cell.profile).tasks[cell.task].splits.source


def program_runs(cell: Cell) -> int:
    """About how often the cell runs its program: bootstrapped demonstrations may take more tries than are kept."""
    profile = profiles.load(cell.profile)
    splits, mipro = profile.tasks[cell.task].splits, profile.mipro
    if cell.strategy == "vanilla":
        return splits.test
    if cell.strategy == "prompt_optimization":
        full = 1 + -(-mipro.trials // MINIBATCHES) if mipro.minibatch else mipro.trials + 1
        scored = full * splits.valid + mipro.trials * (mipro.minibatch or 0)
        return scored + mipro.fewshot_candidates * mipro.bootstrapped_demos + splits.test
    if cell.strategy == "gepa":
        return profile.gepa.metric_calls + splits.test
    grpo = profile.grpo_for(cell.task, cell.model, cell.strategy)
    sampled, validations = grpo.steps * grpo.inputs * grpo.rollouts, 1 + -(-grpo.steps // grpo.validate_every)
    if cell.strategy == "fast_slow":  # each round validates before its weight steps and after them
        sampled, validations = profile.fast_slow.runs or sampled, 2 * profile.fast_slow.rounds
    return sampled + validations * splits.valid + splits.test


def table(todo: Sequence[Cell]) -> pd.DataFrame:
    """A row for each task, model and strategy, and the total. A download stands in the first row that needs it."""
    found = survey(todo)
    kinds: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in todo:
        kinds.setdefault((cell.task, cell.model, cell.strategy), []).append(cell)
    fetched: set[str] = set()
    rows = [_row(cells, found, fetched) for cells in kinds.values()]
    rows.append({"task": "total"} | {name: sum(row[name] for row in rows) for name in rows[0] if name in SUMS})
    return pd.DataFrame(rows).astype(object).fillna("").rename(columns=lambda name: name.replace("_", " "))


SUMS = ("cells", "to_run", "hours", "GPU_hours", "API_calls", "dollars", "download_GB", "disk_GB")


def _row(cells: list[Cell], found: Survey, fetched: set[str]) -> dict[str, object]:
    one = cells[0]
    model, api = MODELS[one.model], tasks.get(one.task, profiles.load(one.profile).tasks[one.task].options).api
    left = [cell for cell in cells if cell not in found.finished]
    seconds, source = found.expected(one)
    hours = len(left) * seconds / 3600
    calls = len(left) * program_runs(one) * api.calls if api is not None else 0
    # The paper trained with one GPU and sampled with another; here the two take turns on one.
    gpus = PAPER_GPUS if one.trains and source.startswith("paper") else model.gpus
    download = sum(size for name, size in _downloads(one).items() if left and name not in fetched)
    fetched.update(_downloads(one) if left else ())
    return {
        "task": one.task, "model": one.model, "strategy": one.strategy, "cells": len(cells), "to_run": len(left),
        "hours_each": round(seconds / 3600, 2), "from": source, "hours": round(hours, 2),
        "GPU_hours": round(hours * gpus, 1), "API_calls": calls,
        "dollars": round(calls * api.dollars_per_call, 2) if api is not None else 0.0,
        "download_GB": round(download, 2),
        "disk_GB": round(len(left) * (RECORD_GB + one.trains * CHECKPOINTS * model.adapter_gb), 2),
    }  # fmt: skip


def missing(todo: Sequence[Cell]) -> list[str]:
    """What this machine lacks for the cells that are to run, a sentence each. Asks nothing of the network."""
    import torch
    from huggingface_hub import constants, get_token

    lacks = []
    offline = constants.HF_HUB_OFFLINE
    here = torch.cuda.device_count()
    for name in dict.fromkeys(cell.model for cell in todo):
        wanted, memory = MODELS[name].gpus, MODELS[name].gpu_gb
        if wanted > here:
            size = f" of {memory} GB" if memory else ""
            lacks.append(f"{name} needs {wanted} GPU{size}; torch sees {here} here.")
        if name in HUB_REVISIONS and not _is_cached(name):
            if offline:
                lacks.append(
                    f"{name} is not in the cache and HF_HUB_OFFLINE is set: unset it, or fetch the model before."
                )
            elif MODELS[name].gated and get_token() is None:
                lacks.append(
                    f"{name} is gated: ask for access on the hub and log in (`hf auth login`, or set HF_TOKEN)."
                )
    for name, cell in {cell.task: cell for cell in todo}.items():
        what = tasks.get(name, profiles.load(cell.profile).tasks[name].options)
        source, api = _source(cell), what.api
        if (reason := what.lacking(source)) is not None:
            lacks.append(reason)
        for key in api.keys if api is not None else ():
            if not os.environ.get(key):
                lacks.append(f"{name} asks a paid API whose key is not in the environment: set {key}.")
        if source == "local" and not (paths.local_data() / what.folder).is_dir():
            lacks.append(f"MMGRPO_DATA_DIR has no folder {what.folder}: see data/README.md, or unset it.")
        elif source == "hub" and offline:
            lacks.append(
                f"{name} takes its rows from the hub and HF_HUB_OFFLINE is set: unset it, or set MMGRPO_DATA_DIR."
            )
    return lacks + _too_little_disk(todo)


def _too_little_disk(todo: Sequence[Cell]) -> list[str]:
    total = table(todo).iloc[-1]
    wanted = total["disk GB"] + total["download GB"]
    there = next(folder for folder in (paths.results(), *paths.results().parents) if folder.exists())
    free = shutil.disk_usage(there).free / 1e9
    return [f"{wanted:.1f} GB of disk are needed, {free:.1f} GB are free at {there}."] if wanted > free else []


def _downloads(cell: Cell) -> dict[str, float]:
    """GB still to fetch for a cell, by name."""
    wanted = {} if _is_cached(cell.model) else {cell.model: MODELS[cell.model].download_gb}
    return wanted | ({cell.task: DATA_GB} if _source(cell) == "hub" else {})


def _is_cached(model: str) -> bool:
    """Whether the model's files are on this machine."""
    from huggingface_hub import try_to_load_from_cache

    if model in EMBEDDED:
        return (paths.cache() / "smollm2-135m-instruct" / "config.json").exists()
    return isinstance(try_to_load_from_cache(model, "config.json", revision=HUB_REVISIONS[model]), str)


def _kind(cell: Cell) -> tuple[str, ...]:
    return cell.profile, cell.task, cell.model, cell.strategy
