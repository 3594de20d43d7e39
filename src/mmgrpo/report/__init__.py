"""Records in, tables and figures out: `write(profile)` makes a profile's, `write_committed()` those of our own runs.

Nothing here imports torch or DSPy, which would take longer than the report.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmgrpo import paths
from mmgrpo.records import Record, read_all
from mmgrpo.report import ablations, claims, evidence, figures, frames, names, readme, settings_table, tables, writers
from mmgrpo.report.writers import Table


def build(records: Sequence[Record], folder: Path, *, committed: Sequence[Record] = ()) -> list[Path]:
    """Write every table (.md, .tex, .csv) and figure (.pdf, .png) of `records` into `folder`; return the files.

    `records` are of one profile, and `committed` is what is committed of the same tasks. Files of smoke runs end in
    `_smoke`, and say inside what they are. Raises UserError where there are no records, or where they can't be compared.
    """
    frames.check(records)
    compared = [tables.scores(records, committed), tables.agreement(records, committed)]
    return _write(compared, records, folder)


def build_committed(folder: Path) -> list[Path]:
    """Write tables and figures of the committed records, and of nothing else, into `folder`; return the files."""
    files = []
    for source, records in evidence.studies().items():
        frames.check(records)
        compared = [tables.scores((), records), ablations.build(source)]
        files += _write(compared, records, folder / evidence.FOLDERS[source])
    return files


def write(profile: str) -> list[Path]:
    """Write tables and figures of all records of `profile` into the figures folder; return the files."""
    records = read_all(paths.results() / profile)
    return build(records, paths.figures(), committed=evidence.beside(records, profile))


def write_committed() -> list[Path]:
    """Write tables and figures of the committed records, and the README's results; return the tables and figures."""
    files = build_committed(paths.committed_figures())
    if (page := paths.readme()) is not None:
        readme.update(page)
    return files


def recorded(profile: str) -> bool:
    """Whether this machine has any record of `profile`."""
    return any((paths.results() / profile).glob("**/record.json"))


def _write(compared: Sequence[Table | None], records: Sequence[Record], folder: Path) -> list[Path]:
    """Write the tables that compare, then all that `records` alone say."""
    made_tables = [
        *compared, claims.build(records), tables.cost(records), tables.groups(records),
        tables.parts(records), tables.outcomes(records), settings_table.build(records),
    ]  # fmt: skip
    files = [file for table in made_tables if table is not None for file in writers.write(table, folder)]
    for name, draw in figures.FIGURES.items():
        if (figure := draw(records)) is not None:
            files += figures.save(figure, folder, names.file_stem(name, frames.is_smoke(records)))
    return files


__all__ = ["build", "build_committed", "recorded", "write", "write_committed"]
