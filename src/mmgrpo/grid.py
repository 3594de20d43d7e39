"""Runs the cells of a study, one notebook run each.

Finished cells are skipped. A failed cell keeps its partial notebook and its error, and the rest goes on. A cell starts
when those that it needs have a record. Time left is told from the first cell on (`plan.py`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Protocol, Self

from mmgrpo import paths, plan, records
from mmgrpo.cells import Cell
from mmgrpo.errors import UserError
from mmgrpo.local import Local
from mmgrpo.lock import only_one
from mmgrpo.progress import Progress, clock

TICK_SECONDS = 1.0  # between two looks at the clock


@dataclass(frozen=True)
class Failure:
    """A cell that did not finish."""

    cell: Cell
    reason: str


class Place(Protocol):
    """Where cells run: `local.Local` or `cluster.Cluster`."""

    slots: int  # cells at a time

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def submit(self, cell: Cell) -> Future[None]:
        """Run the cell; the future raises UserError with the reason where it fails."""


def run(todo: Sequence[Cell], place: Place | None = None) -> list[Failure]:
    """Run all cells without an up-to-date record at `place` (default: here, one at a time). Returns what failed."""
    with only_one("grid", paths.results(), "MMGRPO_RESULTS_DIR"):
        found = plan.survey(todo)
        for cell, reason in found.damaged.items():
            os.replace(cell.record, cell.record.with_suffix(".damaged"))
            print(f"{reason} It was set aside.", flush=True)
        waiting = [cell for cell in todo if cell not in found.finished]
        if outdated := sum(cell.record.exists() for cell in waiting):
            print(
                f"Of {outdated} cells the record was made with other code, settings or data: they run again, and it is "
                "kept as record.outdated beside the new one.",
                flush=True,
            )
        with Local() if place is None else place as there, Progress(len(waiting)) as progress:
            schedule = _Schedule(waiting, found, there, progress)
            progress.say(
                f"{len(todo)} cells, {len(todo) - len(waiting)} finished before. About {clock(schedule.left())} to go."
            )
            return schedule.run()


class _Schedule:
    """Cells that wait, cells that run, and what became of the others."""

    def __init__(self, waiting: list[Cell], found: plan.Survey, place: Place, progress: Progress):
        self.waiting = waiting
        self.found = found
        self.place = place
        self.progress = progress
        self.running: dict[Future[None], Cell] = {}
        self.failures: list[Failure] = []

    def run(self) -> list[Failure]:
        while self.waiting or self.running:
            self._start()
            done, _ = wait(self.running, timeout=TICK_SECONDS, return_when=FIRST_COMPLETED)
            for future in done:
                self._end(self.running.pop(future), future)
            self.progress.tick(self.left())
        return self.failures

    def left(self) -> float:
        """Seconds to the end, as far as is known."""
        waiting = sum(self.found.expected(cell)[0] for cell in self.waiting)
        running = [self.found.expected(cell)[0] - self.progress.passed(cell.name) for cell in self.running.values()]
        together = min(self.place.slots, len(self.waiting) + len(running))
        return (waiting + sum(max(0.0, seconds) for seconds in running)) / max(1, together)

    def _start(self) -> None:
        """Start what can start, in order, and give up what never will."""
        pending = {*self.waiting, *self.running.values()}
        for cell in list(self.waiting):
            lacking = [need for need in cell.needs if need not in self.found.finished]
            lost = [need for need in lacking if need not in pending]
            if lost:
                self.waiting.remove(cell)
                pending.remove(cell)
                self.failures.append(Failure(cell, f"it needs {lost[0].name}, which has no record"))
            elif not lacking and len(self.running) < self.place.slots:
                self.progress.begin(cell.name, self.found.expected(cell)[0], self.left())
                self.waiting.remove(cell)
                if cell.record.exists():  # outdated: were it left, the report would show it where the cell fails
                    os.replace(cell.record, cell.record.with_suffix(".outdated"))
                self.running[self.place.submit(cell)] = cell

    def _end(self, cell: Cell, future: Future[None]) -> None:
        try:
            future.result()
            self.found.add(cell, cell.fingerprint())
            if cell not in self.found.finished:
                raise UserError(f"{cell.notebook.name} ran through but left no record at {cell.record}.")
            result = f"{records.read(cell.record).mean:.1f} points"
        except Exception as error:  # whatever it is, the other cells go on
            self.failures.append(Failure(cell, str(error)))
            result = f"failed: {error}"
        self.progress.end(cell.name, result)
