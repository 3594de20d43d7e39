"""Runs cells on this machine: each in a process of its own, so that no crash and no memory is another's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Self

from mmgrpo import notebook_run
from mmgrpo.errors import UserError

if TYPE_CHECKING:
    from mmgrpo.cells import Cell

LOG = "log.txt"  # in the cell's folder: what its process printed


class Local:
    """`jobs` cells at a time, which share the cores equally."""

    def __init__(self, jobs: int = 1, command: Callable[[Cell], list[str]] | None = None):
        if jobs < 1:
            raise UserError(f"{jobs} cells at a time were asked for: allowed is 1 or more.")
        self.slots = jobs
        self.command = notebook_command if command is None else command
        self._threads = ThreadPoolExecutor(jobs)
        self._running: set[subprocess.Popen] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in list(self._running):
            process.kill()  # its kernel ends by itself; papermill has saved what the notebook had come to
        self._threads.shutdown(cancel_futures=True)

    def submit(self, cell: Cell) -> Future[None]:
        """Run the cell; the future raises UserError with the reason where it fails."""
        return self._threads.submit(run_process, self.command(cell), cell.folder, self._environment(), self._running)

    def _environment(self) -> dict[str, str]:
        """Threads such that cells don't fight for cores, unless the user has said how many."""
        if self.slots == 1 or "OMP_NUM_THREADS" in os.environ:
            return {}
        return {"OMP_NUM_THREADS": str(max(1, cores() // self.slots))}


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def notebook_command(cell: Cell) -> list[str]:
    """The command that runs a cell's notebook."""
    parameters = {"profile": cell.profile, "task": cell.task, "model": cell.model, "seed": cell.seed}
    given = {"notebook": str(cell.notebook), "folder": str(cell.folder), "parameters": parameters}
    return [sys.executable, "-m", "mmgrpo.notebook_run", json.dumps(given)]


def run_process(
    command: list[str], folder: Path, environment: dict[str, str], running: set[subprocess.Popen] | None = None
) -> None:
    """Run a cell's process to its end, with `environment` added to ours; raises UserError where it fails.

    Its stdin is a pipe whose other end we hold: it is closed when we are gone, and the process then ends itself.
    """
    running = set() if running is None else running
    folder.mkdir(parents=True, exist_ok=True)
    read_end, write_end = os.pipe()
    # GEPA draws in the order of a set of names: one order in all processes, so that a run can be repeated.
    environment = {"PYTHONHASHSEED": "0"} | os.environ | environment
    try:
        with (folder / LOG).open("w", encoding="utf-8") as log:
            process = subprocess.Popen(command, stdin=read_end, stdout=log, stderr=subprocess.STDOUT, env=environment)
        running.add(process)
        try:
            code = process.wait()
        finally:
            running.discard(process)
    finally:
        os.close(read_end)
        os.close(write_end)
    if code:
        raise UserError(_reason(code, folder))


def _reason(code: int, folder: Path) -> str:
    if code < 0:
        return f"its process was killed by {signal.Signals(-code).name} (log: {folder / LOG})"
    error = folder / notebook_run.ERROR
    if not error.exists():
        return f"its process ended with code {code} (log: {folder / LOG})"
    return f"{error.read_text(encoding='utf-8').splitlines()[0]} (partial notebook and {error.name} in {folder})"
