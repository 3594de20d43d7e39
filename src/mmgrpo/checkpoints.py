"""Checkpoints that are whole: each gets a manifest of its files' hashes once it is written, and only such count."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from transformers import TrainerCallback

from mmgrpo import distributed
from mmgrpo.hashing import sha256_of
from mmgrpo.json_files import write_json

MANIFEST = "manifest.json"


def seal(folder: Path) -> None:
    """Write the manifest of a finished checkpoint."""
    write_json(_hashes(folder), folder / MANIFEST)


def last_good(folder: Path) -> Path | None:
    """The newest whole checkpoint in a run's folder, or None. Removes those after it, which are cut short or changed.

    They must go: the trainer would count them among the two that it keeps, and delete whole ones for them.
    """
    distributed.wait()
    found = _last_good(folder) if distributed.is_first() else None
    return distributed.all_of([found])[0]


def _last_good(folder: Path) -> Path | None:
    for checkpoint in sorted(folder.glob("checkpoint-[0-9]*"), key=step_of, reverse=True):
        if is_whole(checkpoint):
            return checkpoint
        print(
            f"{checkpoint} is damaged or was not finished: removed, training goes on from the one before.", flush=True
        )
        shutil.rmtree(checkpoint)
    return None


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint has a manifest and exactly the files that it lists."""
    try:
        listed = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return listed == _hashes(checkpoint)


class Seal(TrainerCallback):
    """Seals each checkpoint that the trainer writes; the one before stays until the trainer writes the next."""

    def on_save(self, args, state, control, **kwargs):
        distributed.wait()  # all have written their part
        if distributed.is_first():
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")
        distributed.wait()


def step_of(checkpoint: Path) -> int:
    """The update after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def _hashes(folder: Path) -> dict[str, str]:
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file != folder / MANIFEST]
    return {str(file.relative_to(folder)): sha256_of(file) for file in files}
