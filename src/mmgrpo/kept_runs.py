"""Runs that a training leaves in its folder for reading: those of its first step, and those that validation scored.

Only the owner can read the files: what was asked and said may be private.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mmgrpo.errors import UserError
from mmgrpo.json_files import write_json
from mmgrpo.trajectory import Trajectory, from_json

VALIDATED = "validation-*.private.json"


def sampled(folder: Path) -> Path:
    """The file of the first step's rollouts."""
    return folder / "rollouts-0.private.json"


def validated(folder: Path, step: float) -> Path:
    """The file of the validation runs before training (step 0) or after a step."""
    return folder / VALIDATED.replace("*", str(int(step)))


def write(runs: Sequence[Trajectory], file: Path) -> None:
    """Keep runs without predictions and log-probabilities: nothing is trained on them any more, and JSON has no NaN."""
    write_json([_plain(run) for run in runs], file, private=True)


def read(file: Path) -> list[Trajectory]:
    """Runs in the order in which they were written. Raises UserError where they are gone or damaged."""
    try:
        runs = [from_json(run) for run in json.loads(file.read_text(encoding="utf-8"))]
        if not runs:
            raise ValueError("no runs")
        return runs
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is missing or damaged ({error}): delete {file.parent} and, of a cell of the study, the record.json "
            "beside it, and run again."
        ) from None


def _plain(run: Trajectory) -> dict[str, Any]:
    return asdict(replace(run, prediction=None, calls=tuple(replace(call, logprobs=()) for call in run.calls)))
