"""A run's record: one JSON file, written beside and renamed, and read back with its checksum checked.

Tables and figures are made from records only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmgrpo.errors import UserError
from mmgrpo.json_files import write_json

SCHEMA = 1


@dataclass(frozen=True)
class Score:
    """One test example: the id is a hash of its inputs, so that no private text enters a record."""

    example: str
    score: float
    outcome: str  # completed, interrupted, crashed or unscorable
    details: dict[str, float]  # parts of the metric, by name (leakage, recall by hop, ...)


@dataclass(frozen=True)
class Record:
    """Everything a table or figure may say of one run."""

    task: str
    model: str
    strategy: str
    profile: str
    seed: int
    smoke: bool
    source: str  # where the rows came from: embedded, local or hub
    fingerprint: str  # hash of the rows of all splits
    settings: dict[str, Any]
    versions: dict[str, str]
    commit: str
    machine: dict[str, Any]  # cpu, system, cores, threads, gpu, precision
    scores: tuple[Score, ...]  # the test split, in its order
    curve: tuple[dict[str, float], ...]  # one entry an update: step, reward, and what the trainer logs
    validation: tuple[dict[str, float], ...]  # step (or trial, for prompt optimization), score
    seconds: dict[str, float]  # by stage: optimize, evaluate; of a run that was resumed, the last process's, as are
    tokens: dict[str, int]  # prompt, completion, calls
    peak_memory_gb: float
    program: dict[str, Any]  # DSPy state of the final program: instructions and demonstrations
    notes: dict[str, Any]  # what paid APIs cost by role (`spending`), whether it was `resumed`, what a strategy adds
    schema: int = SCHEMA

    @property
    def mean(self) -> float:
        """Mean test score of the runs that could be scored, in points of 100."""
        scored = [s.score for s in self.scores if s.outcome != "unscorable"]
        return 100 * sum(scored) / len(scored) if scored else float("nan")


def write(record: Record, file: Path) -> Path:
    """Write `record` so that `file` either has all of it or is as it was before."""
    body = dataclasses.asdict(record)
    return write_json({"sha256": _checksum(body), "record": body}, file)


def read(file: Path) -> Record:
    """Read a record; raises UserError where it is cut short, changed or of another schema."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        body, checksum = content["record"], content["sha256"]
        whole = _checksum(body) == checksum
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"The record {file} can't be read ({error}): delete it and run its cell again.") from None
    if not whole:
        raise UserError(f"The record {file} doesn't match its checksum: delete it and run its cell again.")
    schema = body.get("schema") if isinstance(body, dict) else None
    if schema != SCHEMA:
        raise UserError(f"The record {file} has schema {schema}, this version reads {SCHEMA}: run its cell again.")
    try:
        scores = tuple(Score(**score) for score in body.pop("scores"))
        return Record(
            **body | {"scores": scores, "curve": tuple(body["curve"]), "validation": tuple(body["validation"])}
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"The record {file} lacks a field ({error}): delete it and run its cell again.") from None


def read_all(folder: Path) -> list[Record]:
    """All records below `folder`, in the order of their paths."""
    return [read(file) for file in sorted(folder.glob("**/record.json"))]


def _checksum(body: dict) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
