"""The settings that runs were made with, beside the paper's, and where each came from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from mmgrpo.records import Record
from mmgrpo.report import frames, names, published
from mmgrpo.report.writers import Table

DISPLAY = {"task": names.task, "model": names.model, "strategy": names.strategy, "seed": str}
CAPTION = (
    "Settings of the runs, as their records have them. A setting with several values has a row for each, with the runs "
    "that used it; settings that only some strategies have are shown with those. The last column is the paper's value "
    "where it is known to us."
)


def build(records: Sequence[Record]) -> Table:
    """One row a setting and value: settings first, then code, data, machine and library versions."""
    runs = pd.DataFrame([{name: getattr(record, name) for name in frames.RUN} for record in records])
    contents = [_content(record) for record in records]
    paper = {key: _paper_value(value) for key, value in published.settings().items()}
    rows = []
    for key in dict.fromkeys(key for content in contents for key in content):
        values = [content.get(key) for content in contents]
        for value in dict.fromkeys(value for value in values if value is not None):
            used = _used_by(runs, [given == value for given in values])
            rows.append({"setting": key, "value": value, "runs": used, "paper": paper.get(key, names.MISSING)})
    numbers = pd.DataFrame(rows, columns=["setting", "value", "runs", "paper"])
    shown = numbers.rename(columns=str.capitalize)
    return Table("table_settings", "Settings", CAPTION, shown, numbers, frames.is_smoke(records))


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted keys and displayed values: {"grpo": {"steps": 24}} -> {"grpo.steps": "24"}."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _display(value)
    return flat


def _content(record: Record) -> dict[str, str]:
    origin = {"commit": record.commit, "source": record.source, "rows": record.fingerprint}
    return (
        flatten(record.settings)
        | flatten(origin, "origin.")
        | flatten(record.machine, "machine.")
        | flatten(record.versions, "version.")
    )


def _used_by(runs: pd.DataFrame, used: list[bool]) -> str:
    """Which runs, named by whatever of task, model, strategy and seed sets them apart; "all" where nothing does."""
    parts = []
    for column, display in DISPLAY.items():
        some = list(dict.fromkeys(runs.loc[used, column]))
        if len(some) < runs[column].nunique():
            parts.append(("seed " if column == "seed" else "") + ", ".join(display(name) for name in some))
    return "; ".join(parts) or "all"


def _paper_value(value: Any) -> str:
    """A value, or the values by task, model or strategy with their names."""
    if not isinstance(value, dict):
        return _display(value)
    return ", ".join(f"{_display(each)} ({names.either(name)})" for name, each in value.items())


def _display(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}".replace("e-0", "e-")
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_display, value))
    return str(value)
