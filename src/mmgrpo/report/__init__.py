"""Records in, tables and figures out: `build(records, folder)` writes all of them, `write(profile)` a profile's.

Nothing here imports torch or DSPy, which would take longer than the report.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmgrpo import paths
from mmgrpo.records import Record, read_all
from mmgrpo.report import claims, figures, frames, names, settings_table, tables, writers


def build(records: Sequence[Record], folder: Path) -> list[Path]:
    """Write every table (.md, .tex, .csv) and figure (.pdf, .png) of `records` into `folder`; return the files.

    `records` are of one profile. Files of smoke runs end in `_smoke`, and say inside what they are.
    Raises UserError where there are no records, or where they can't be compared.
    """
    frames.check(records)
    made_tables = [
        tables.scores(records), claims.build(records), tables.cost(records), tables.groups(records),
        tables.parts(records), tables.outcomes(records), settings_table.build(records),
    ]  # fmt: skip
    smoke = frames.is_smoke(records)
    files = [file for table in made_tables if table is not None for file in writers.write(table, folder)]
    for name, draw in figures.FIGURES.items():
        if (figure := draw(records)) is not None:
            files += figures.save(figure, folder, names.file_stem(name, smoke))
    return files


def write(profile: str) -> list[Path]:
    """Write tables and figures of all records of `profile` into the figures folder; return the files."""
    return build(read_all(paths.results() / profile), paths.figures())


__all__ = ["build", "write"]
