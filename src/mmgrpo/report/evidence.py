"""The committed records: runs of our own that lie in the repository, for a reader's runs to be compared with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mmgrpo import paths
from mmgrpo import records as files
from mmgrpo.errors import UserError
from mmgrpo.json_files import write_json
from mmgrpo.records import Record
from mmgrpo.report import names

PROFILE = "laptop"  # the study that the README and the committed figures show
FOLDERS = {"embedded": ".", "real": "real"}  # source -> where its tables and figures lie, below the committed ones


def read(source: str, profile: str) -> list[Record]:
    """The committed records of a source (`embedded` or `real`) and profile; none where none are committed."""
    return files.read_all(paths.EVIDENCE / source / profile)


def keep(profile: str) -> list[Path]:
    """Copy this machine's records of `profile` with their executed notebooks to where they can be committed.

    Of runs on real rows, whose texts are not ours to copy, the scores stay and the prompts and notebooks don't.
    """
    written = []
    for file in sorted((paths.results() / profile).glob("**/record.json")):
        record = files.read(file)
        if record.smoke:
            raise UserError(
                f"{profile} is a smoke profile, whose scores mean nothing: keep the records of another one."
            )
        source, notebook = source_of(record), file.with_name("notebook.ipynb")
        target = paths.EVIDENCE / source / file.parent.relative_to(paths.results())
        if source == "real":
            record = replace(record, program={}, notes={k: v for k, v in record.notes.items() if k != "proposals"})
        written.append(files.write(record, target / file.name))
        if source == "embedded" and notebook.exists():
            content = json.loads(notebook.read_text(encoding="utf-8"))
            content["metadata"].pop("papermill", None)  # names folders of this machine
            written.append(write_json(content, target / notebook.name))
    if not written:
        raise UserError(
            f"There are no records of the profile {profile} in {paths.results()}: run `make reproduce` first."
        )
    return written


def studies() -> dict[str, list[Record]]:
    """Source -> its committed records, for the sources that have any."""
    return {source: records for source in FOLDERS if (records := read(source, PROFILE))}


def beside(records: Sequence[Record], profile: str) -> list[Record]:
    """What is committed of `profile` and the tasks of `records`, on rows of the same source and of no other."""
    sources: dict[str, set[str]] = {}
    for record in records:
        sources.setdefault(record.task, set()).add(source_of(record))
    committed = [each for source in FOLDERS for each in read(source, profile)]
    return [each for each in committed if sources.get(each.task) == {source_of(each)}]


def source_of(record: Record) -> str:
    """Where the rows are from: `embedded`, or `real`."""
    return of_rows(record.source)


def of_rows(source: str) -> str:
    """The name here of rows that a record calls `embedded`, `local` or `hub`: the latter two are public, hence `real`."""
    return "embedded" if source == "embedded" else "real"


def differences(records: Sequence[Record], committed: Sequence[Record]) -> str:
    """Which tasks' committed runs had other rows than `records`, in sentences; empty where all had the same."""
    tasks = names.ordered({each.task for each in records} & {each.task for each in committed}, names.TASKS)
    other_tests = [task for task in tasks if _tests(records, task) != _tests(committed, task)]
    other_rows = [task for task in tasks if _rows(records, task) != _rows(committed, task) and task not in other_tests]
    sentences = [
        f" The committed runs of {', '.join(map(names.task, found))} {what}."
        for found, what in (
            (other_tests, "were scored on other test examples than this machine's"),
            (other_rows, "had other training or validation rows than this machine's"),
        )
        if found
    ]
    return "".join(sentences)


def _tests(records: Sequence[Record], task: str) -> set[tuple[str, ...]]:
    return {tuple(score.example for score in record.scores) for record in records if record.task == task}


def _rows(records: Sequence[Record], task: str) -> set[str]:
    return {record.fingerprint for record in records if record.task == task}
