"""The figures, in one style. Each function takes records of one profile and returns a closed matplotlib Figure.

Where no record has anything for a figure, its function returns None: no figure is drawn empty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.figure import Figure

from mmgrpo.records import Record
from mmgrpo.report.figures.bars import scores
from mmgrpo.report.figures.costs import cost
from mmgrpo.report.figures.curves import learning_curves
from mmgrpo.report.figures.grouped import reward_variance, rollout_groups
from mmgrpo.report.figures.parts import by_hop, quality_leakage
from mmgrpo.report.figures.style import save

FIGURES: dict[str, Callable[[Sequence[Record]], Figure | None]] = {  # by the names of their files
    "figure_scores": scores,
    "figure_learning_curves": learning_curves,
    "figure_cost": cost,
    "figure_rollout_groups": rollout_groups,
    "figure_reward_variance": reward_variance,
    "figure_quality_leakage": quality_leakage,
    "figure_by_hop": by_hop,
}

__all__ = [
    "FIGURES", "by_hop", "cost", "learning_curves", "quality_leakage", "reward_variance", "rollout_groups", "save",
    "scores",
]  # fmt: skip
