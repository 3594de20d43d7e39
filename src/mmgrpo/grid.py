"""Runs the cells of a study with papermill, one notebook run each, and the report at the end.

Finished cells are skipped, a failed cell keeps its partial notebook and the rest goes on. Time left is told
from the first cell on: from what cells of the same strategy took on this machine, or else from a guess for 2 cores.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmgrpo import paths, profiles, records, report, study
from mmgrpo.cells import Cell
from mmgrpo.errors import UserError

# What a cell of the laptop profile takes on 2 cores, to within a factor of two; a smoke cell takes about a minute.
GUESS_SECONDS = {
    "vanilla": 90,
    "prompt_optimization": 300,
    "trajectory_grpo": 400,
    "module_grpo": 400,
    "composition": 500,
    "gepa": 400,
    "fast_slow": 600,
}
SMOKE_SECONDS = 60


@dataclass(frozen=True)
class Failure:
    """A cell that did not finish."""

    cell: Cell
    reason: str


def run(todo: Sequence[Cell]) -> list[Failure]:
    """Run all cells in order; those without an up-to-date record. Returns what failed."""
    failures: list[Failure] = []
    waiting = [cell for cell in todo if _finished(cell) is None]
    print(
        f"{len(todo)} cells, {len(todo) - len(waiting)} finished before. About {_clock(_expected(waiting))} to go.",
        flush=True,
    )
    for place, cell in enumerate(waiting):
        lost = next((need for need in cell.needs if _finished(need) is None), None)
        if lost is not None:
            failures.append(Failure(cell, f"it needs {lost.name}, which has no record"))
            continue
        print(f"[{place + 1}/{len(waiting)}] {cell.name} (about {_clock(_expected(waiting[place:]))} left)", flush=True)
        started = time.monotonic()
        try:
            _run_notebook(cell)
        except UserError as error:
            failures.append(Failure(cell, str(error)))
            print(f"    failed: {error}", flush=True)
            continue
        print(f"    {records.read(cell.record).mean:.1f} points in {_clock(time.monotonic() - started)}", flush=True)
    return failures


def write_report(profile: str) -> list[Path]:
    """Tables and figures from all records of a profile."""
    return report.build(records.read_all(paths.results() / profile), paths.figures())


def _run_notebook(cell: Cell) -> None:
    """One papermill run; the executed notebook stays beside the record, whole or partial."""
    import papermill
    from papermill.exceptions import PapermillException

    cell.folder.mkdir(parents=True, exist_ok=True)
    parameters = {"profile": cell.profile, "task": cell.task, "model": cell.model, "seed": cell.seed}
    executed = cell.folder / "notebook.ipynb"
    _refuse_without_parameters(cell.notebook)
    try:
        papermill.execute_notebook(
            cell.notebook, executed, parameters=parameters, kernel_name="python3", progress_bar=False,
            cwd=str(paths.NOTEBOOKS),
        )  # fmt: skip
    except PapermillException as error:
        reason = getattr(error, "evalue", "") or str(error)
        raise UserError(f"{reason.strip().splitlines()[-1]} (partial notebook: {executed})") from None
    if _finished(cell) is None:
        raise UserError(f"{cell.notebook.name} ran through but left no record at {cell.record}.")


def _refuse_without_parameters(notebook: Path) -> None:
    import nbformat

    tags = [tag for c in nbformat.read(notebook, as_version=4).cells for tag in c.metadata.get("tags", [])]
    if "parameters" not in tags:
        raise UserError(
            f"{notebook.name} has no cell tagged `parameters`: tag the one that sets profile, task, model and seed."
        )


def _finished(cell: Cell):
    """The cell's record, or None; a damaged record is set aside so that its cell runs again."""
    try:
        return study.finished(cell)
    except UserError as error:
        os.replace(cell.record, cell.record.with_suffix(".damaged"))
        print(f"    {error} It was set aside.", flush=True)
        return None


def _expected(waiting: Sequence[Cell]) -> float:
    """Seconds that the cells will take, from records of the same profile and strategy where there are some."""
    measured: dict[tuple[str, str], float] = {}
    for file in paths.results().glob("*/**/record.json"):
        try:
            record = records.read(file)
        except UserError:
            continue
        measured[record.profile, record.strategy] = sum(record.seconds.values())
    return sum(measured.get((cell.profile, cell.strategy), _guess(cell)) for cell in waiting)


def _guess(cell: Cell) -> float:
    return SMOKE_SECONDS if profiles.load(cell.profile).smoke else GUESS_SECONDS[cell.strategy]


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
