"""What the fault tests start and kill: a grid of cheap cells, and a training and a prompt search of the tiny policy."""

from __future__ import annotations

import os
from pathlib import Path

import cheap_cell
import dspy
import torch
from safetensors.torch import save_file
from searches import search
from tiny_policy import RawAdapter, tiny_policy
from training_setup import noise, optimizer, weights

from mmgrpo import cells, grid, profiles
from mmgrpo.json_files import write_json
from mmgrpo.local import Local

SECONDS = 0.05  # of a cell
STATM = Path("/proc/self/statm")
TRAIN = [dspy.Example(q=f"question {place}").with_inputs("q") for place in range(5)]


def todo(results: Path, seeds: int) -> list[cells.Cell]:
    """Cells of three strategies, one of which needs another."""
    os.environ["MMGRPO_RESULTS_DIR"] = str(results)
    changes = {"strategies": ("vanilla", "prompt_optimization", "composition"), "seeds": tuple(range(seeds))}
    return cells.expand(profiles.load("smoke").model_copy(update=changes), ["banking77"])


def run_grid(results: Path, seeds: int) -> None:
    listed = todo(results, seeds)
    assert grid.run(listed, Local(2, lambda cell: cheap_cell.command(cell, seconds=SECONDS))) == []


def train(folder: Path) -> None:
    """Train and write the final weights."""
    torch.set_num_threads(1)
    policy = tiny_policy()
    with dspy.context(lm=policy.lm(), adapter=RawAdapter()):
        optimizer(folder=folder / "run", steps=8, validate_every=2).compile(
            dspy.Predict("q -> t"), trainset=TRAIN, valset=TRAIN[:2]
        )
    save_file(weights(policy), folder / "final.safetensors")


def optimize(kind: str, folder: Path) -> None:
    """Search with MIPROv2 or GEPA, and write what was found and how many replies were sampled."""
    torch.set_num_threads(1)
    found, sampler, tokens = search(kind, folder / "run")
    result = {"program": found.program.dump_state(), "trials": found.trials, "tokens": tokens}
    write_json({"result": result, "sampled": len(sampler.requests)}, folder / "found.json")


def train_long(folder: Path, steps: int, leak: int) -> None:
    """Train, and write the resident memory in MiB at each reward; `leak` is how many bytes each of them loses."""
    torch.set_num_threads(1)
    resident, lost = [], []

    def metric(example, prediction, trace=None):
        lost.append(bytearray(leak))
        resident.append(int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)
        return noise(example, prediction)

    policy = tiny_policy()
    with dspy.context(lm=policy.lm(), adapter=RawAdapter()):
        optimizer(metric, folder=folder / "run", steps=steps, validate_every=20).compile(
            dspy.Predict("q -> t"), trainset=TRAIN, valset=TRAIN[:2]
        )
    write_json(resident, folder / "resident.json")
