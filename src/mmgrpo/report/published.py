"""The paper's numbers, read from `published.yaml` into tidy frames."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

import pandas as pd
import yaml

RESULT_COLUMNS = ["task", "model", "strategy", "mean", "sd", "source"]


def results() -> pd.DataFrame:
    """One row for each published score: points of 100; `sd` over 3 seeds is NaN where the paper gives none."""
    content = _content()
    rows = []
    for strategy, entry in content["results"].items():
        source = f"{content['source']}, {entry['place']}"
        for task in entry.keys() - {"place"}:
            for model, score in entry[task].items():
                rows.append((task, model, strategy, score["mean"], score.get("sd", float("nan")), source))
    return pd.DataFrame(rows, columns=RESULT_COLUMNS).sort_values(["task", "model", "strategy"], ignore_index=True)


def averages() -> dict[str, float]:
    """Strategy -> mean over the six task and model pairs, in points, as the paper states it."""
    return dict(_content()["averages"])


def cost() -> pd.DataFrame:
    """One row for each strategy with a published cost: wall-clock `hours` of one run, and `hardware`."""
    rows = [{"strategy": strategy, **entry} for strategy, entry in _content()["cost"].items()]
    return pd.DataFrame(rows, columns=["strategy", "hours", "hardware"])


def hours(strategy: str) -> float:
    """Wall-clock hours of one run of a strategy, on the hardware that `cost` names."""
    return _content()["cost"][strategy]["hours"]


def settings() -> dict[str, Any]:
    """Setting (by its dotted key in a record) -> the paper's value, or its values by task, model or strategy."""
    return dict(_content()["settings"])


def source() -> str:
    """Where the numbers come from, with their caveat."""
    content = _content()
    return f"{content['source']}. {content['note']}"


@cache
def _content() -> dict[str, Any]:
    return yaml.safe_load(resources.files("mmgrpo").joinpath("published.yaml").read_text(encoding="utf-8"))
