"""Records as tidy frames: one row a run, a test example, an update or a validation.

The score of an unscorable example is NaN here, so that no mean counts it as a wrong answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mmgrpo.errors import UserError
from mmgrpo.records import Record, Score

RUN = ["task", "model", "strategy", "seed"]  # what tells one run of a profile from another
KIND = ["task", "model", "strategy"]
OUTCOMES = ("completed", "interrupted", "crashed", "unscorable")
SHORT = 3  # hours; where no run takes as long, times are shown in minutes
NO_RECORDS = "There are no records to report on: run some cells first, then build the report again."


@dataclass(frozen=True, eq=False)
class SeedScores:
    """All seeds of one task, model and strategy, scored on the same examples in the same order."""

    seeds: tuple[int, ...]
    examples: tuple[str, ...]
    scores: np.ndarray  # [seeds, examples], in [0, 1]; NaN where unscorable


def check(records: Sequence[Record]) -> None:
    """Raise UserError unless `records` are of one profile, all scored, with at most one for each run."""
    if not records:
        raise UserError(NO_RECORDS)
    profiles = sorted({record.profile for record in records})
    if len(profiles) > 1:
        raise UserError(
            f"The records are of {len(profiles)} profiles ({', '.join(profiles)}): report on one at a time."
        )
    ((run, count),) = Counter(_key(record) for record in records).most_common(1)
    if count > 1:
        raise UserError(
            f"There are {count} records of one run ({', '.join(map(str, run))}): keep one and delete the others."
        )
    unscored = [record for record in records if not record.scores]
    if unscored:
        run = ", ".join(map(str, _key(unscored[0])))
        raise UserError(f"The record of {run} has no test scores: delete it and run its cell again.")


def is_smoke(records: Sequence[Record]) -> bool:
    """Whether any record is of a smoke run, which makes the whole report one."""
    return any(record.smoke for record in records)


def runs(records: Sequence[Record]) -> pd.DataFrame:
    """One row a run: score in points, counts of outcomes, hours by stage and in all, tokens, paid APIs, memory in GB.

    `hours_before` is what the optimization took that the run starts from (a composition's prompts), NaN where it
    starts from nothing. It counts in `hours`, as do the tokens and calls of that earlier run. `rollouts` are the runs that
    training sampled, NaN where none were logged. What a run cost is NaN where it, or the one before, was `resumed`.
    """
    rows = []
    for record in records:
        outcomes = Counter(score.outcome for score in record.scores)
        rollouts = [entry["rollouts"] for entry in record.curve if "rollouts" in entry]  # of a batch's first update
        earlier = [record.notes["prompt_optimization"]] if "prompt_optimization" in record.notes else []
        resumed, costs = any(note.get("resumed") for note in (record.notes, *earlier)), _costs(record, earlier)
        rows.append(
            _identity(record)
            | {"score": 100 * _mean(_values(record.scores)), "examples": len(record.scores)}
            | {outcome: outcomes[outcome] for outcome in OUTCOMES}
            | {"rollouts": sum(rollouts) if rollouts else np.nan, "resumed": resumed, "smoke": record.smoke}
            | (dict.fromkeys(costs, np.nan) if resumed else costs)  # those of the last process are no run's
        )
    return pd.DataFrame(rows)


def unit_of_time(hours: pd.Series) -> tuple[str, int]:
    """The unit in which to show times of which `hours` are the longest, and how many of it an hour has."""
    return ("min", 60) if hours.max() < SHORT else ("h", 1)


def examples(records: Sequence[Record]) -> pd.DataFrame:
    """One row a test example of a run: its place, id, score in [0, 1], outcome and the parts of its metric."""
    rows = [
        _identity(record)
        | {"place": place, "example": score.example, "score": value, "outcome": score.outcome}
        | {f"detail_{part}": amount for part, amount in score.details.items()}
        for record in records
        for place, (score, value) in enumerate(zip(record.scores, _values(record.scores), strict=True))
    ]
    return pd.DataFrame(rows, columns=None if rows else [*RUN, "place", "example", "score", "outcome"])


def details(records: Sequence[Record]) -> pd.DataFrame:
    """One row a run whose metric has parts: the mean of each part over the scorable examples that have it."""
    rows = []
    for record in records:
        parts = [score.details for score in record.scores if score.details and score.outcome != "unscorable"]
        found = dict.fromkeys(name for part in parts for name in part)
        if found:
            rows.append(_identity(record) | {name: _mean_of(name, parts) for name in found})
    return pd.DataFrame(rows, columns=None if rows else RUN)


def curve(records: Sequence[Record]) -> pd.DataFrame:
    """One row an update of a run, with whatever the trainer logged; NaN where a run lacks a key."""
    return _entries(records, "curve", ["step", "reward"])


def validation(records: Sequence[Record]) -> pd.DataFrame:
    """One row a validation of a run: `step` (the update, or trial of a prompt optimization), and score in [0, 1]."""
    return _entries(records, "validation", ["step", "score"])


def by_kind(records: Sequence[Record]) -> dict[tuple[str, str, str], SeedScores]:
    """(task, model, strategy) -> its scores by seed and example; raises UserError where examples or settings differ."""
    found: dict[tuple[str, str, str], list[Record]] = {}
    for record in sorted(records, key=_key):
        found.setdefault((record.task, record.model, record.strategy), []).append(record)
    return {key: _seed_scores(members) for key, members in found.items()}


def require_same_examples(task: str, *lists: tuple[str, ...]) -> None:
    """Raise UserError where runs of `task` that are to be compared were scored on other examples."""
    if len(set(lists)) > 1:
        raise UserError(
            f"Runs of {task} were scored on different test examples, so they can't be compared: "
            "delete the records made with other data or settings and run their cells again."
        )


def _seed_scores(records: Sequence[Record]) -> SeedScores:
    lists = [tuple(score.example for score in record.scores) for record in records]
    require_same_examples(records[0].task, *lists)
    first = records[0]
    if any(record.settings != first.settings for record in records):
        raise UserError(
            f"The seeds of {first.strategy} on {first.task} ran with different settings, so they can't be averaged: delete the "
            "records made with other settings and run their cells again."
        )
    scores = np.stack([_values(record.scores) for record in records])
    return SeedScores(seeds=tuple(record.seed for record in records), examples=lists[0], scores=scores)


def _values(scores: Sequence[Score]) -> np.ndarray:
    """Scores in [0, 1], [examples]; NaN where unscorable."""
    return np.array([np.nan if score.outcome == "unscorable" else score.score for score in scores], dtype=float)


def _costs(record: Record, earlier: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Hours, tokens, paid APIs and memory of a run; `earlier` are its notes on runs that it starts from."""
    before = sum(note["seconds"].get("optimize", 0.0) for note in earlier) if earlier else np.nan
    tokens = sum((Counter(note.get("tokens", {})) for note in earlier), Counter(record.tokens))
    return (
        {f"hours_{stage}": seconds / 3600 for stage, seconds in record.seconds.items()}
        | {"hours_before": before / 3600, "hours": np.nansum([before, *record.seconds.values()]) / 3600}
        | {f"tokens_{kind}": tokens[kind] for kind in record.tokens}
        | _paid(note.get("spending") for note in (record.notes, *earlier))
        | {"peak_memory_gb": record.peak_memory_gb}
    )


def _paid(spending: Iterable[dict[str, dict[str, float]] | None]) -> dict[str, float]:
    """Calls and dollars of paid APIs in all; NaN where no API was asked, or where they or a price are not known."""
    parts = list(spending)
    if None in parts or not any(parts):
        return {"api_calls": np.nan, "api_dollars": np.nan}
    roles = [role for part in parts for role in part.values()]
    priced = not any(role["unpriced"] for role in roles)
    return {
        "api_calls": sum(role["calls"] for role in roles),
        "api_dollars": sum(role["dollars"] for role in roles) if priced else np.nan,
    }


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _mean_of(name: str, parts: Sequence[dict[str, float]]) -> float:
    """Mean over the parts that have it; zeros in the others' places keep the order in which pandas would add them."""
    values = np.array([part.get(name, np.nan) for part in parts], dtype=float)
    known = ~np.isnan(values)
    return float(np.where(known, values, 0.0).sum() / known.sum())


def _entries(records: Sequence[Record], field: str, columns: list[str]) -> pd.DataFrame:
    rows = [_identity(record) | dict(entry) for record in records for entry in getattr(record, field)]
    frame = pd.DataFrame(rows, columns=None if rows else RUN)
    return frame.reindex(columns=[*frame.columns, *(name for name in columns if name not in frame.columns)])


def _identity(record: Record) -> dict[str, Any]:
    return {"task": record.task, "model": record.model, "strategy": record.strategy, "seed": record.seed}


def _key(record: Record) -> tuple[str, str, str, int]:
    return record.task, record.model, record.strategy, record.seed
