"""One grid at a time in a results folder, one training at a time in its folder."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from mmgrpo.errors import UserError


@contextlib.contextmanager
def only_one(work: str, folder: Path, setting: str) -> Iterator[None]:
    """Hold `folder` for the `work` of this process; raises UserError where another one holds it.

    `setting` is where the user chooses the folder. The kernel gives the lock back when its process ends, however it
    ends: none is left behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"Another {work} is running in {folder}: wait until it ends, or give this one a folder of its own "
                f"with {setting}."
            ) from None
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # closing the file leaves the lock to processes forked meanwhile
