"""Choices of the method, each as one strategy under two profiles that differ in that choice alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from mmgrpo.report import claims, evidence, frames, names, statistics
from mmgrpo.report.claims import Claim
from mmgrpo.report.frames import SeedScores
from mmgrpo.report.writers import Table, count, estimate


@dataclass(frozen=True)
class Ablation:
    """The strategy scores higher under the profile `new` than under `base`."""

    choice: str
    new: str
    base: str
    strategy: str = "module_grpo"


ABLATIONS = (
    Ablation(
        "CISPO over GRPO, both with two updates on each batch of rollouts", "ablation_cispo", "ablation_two_updates"
    ),
    Ablation(
        "K-diverse choice of 12 from 24 rollouts of 2 inputs over all 12 of 4 inputs", "ablation_k_diverse", "laptop"
    ),
    Ablation("`fill` over `truncate`", "laptop", "ablation_truncate"),
)

CAPTION = (
    "Each choice: one strategy under a profile that makes it, against the same strategy under a profile that doesn't; what "
    "else differs is said with the choice. Gains in points of 100 with their 95% bootstrap interval over seeds and test examples, both "
    "sides resampled together; verdicts as for the claims."
)


def build(source: str) -> Table | None:
    """The committed ablations on rows of `source`; None where none is committed."""
    used = {name for ablation in ABLATIONS for name in (ablation.new, ablation.base)}
    cells = {name: frames.by_kind(evidence.read(source, name)) for name in used}
    numbers = pd.DataFrame([row for ablation in ABLATIONS for row in _rows(ablation, cells)])
    if numbers.empty:
        return None
    shown = pd.DataFrame({
        "Choice": numbers["choice"],
        "Strategy": [names.strategy(name) for name in numbers["strategy"]],
        "Ours on": [
            f"{names.task(task)}, {names.model(model)}"
            for task, model in zip(numbers["task"], numbers["model"], strict=True)
        ],
        "Ours, points": [estimate(row.points, row.low, row.high, sign=True) for row in numbers.itertuples()],
        "Seeds": [count(seeds) for seeds in numbers["seeds"]],
        "Verdict": numbers["verdict"],
    })  # fmt: skip
    return Table("table_ablations", "Choices of the method", CAPTION, shown, numbers, smoke=False)


def _rows(ablation: Ablation, cells: Mapping[str, Mapping[tuple[str, str, str], SeedScores]]) -> list[dict]:
    """A row a task and model that both profiles have; `cells` are those of each profile."""
    sides = {
        (task, model, side): cell
        for side, profile in (("new", ablation.new), ("base", ablation.base))
        for (task, model, strategy), cell in cells[profile].items()
        if strategy == ablation.strategy
    }
    rows = []
    for (task, model), pair in claims.pairs(Claim("new", "base"), sides).items():
        gain = statistics.gain([pair])
        rows.append({
            "choice": ablation.choice, "strategy": ablation.strategy, "task": task, "model": model,
            "new": ablation.new, "base": ablation.base, "seeds": len(pair.new),
            "points": gain.points.estimate, "low": gain.points.low, "high": gain.points.high, "verdict": gain.verdict,
        })  # fmt: skip
    return rows
