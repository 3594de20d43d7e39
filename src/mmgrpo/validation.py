"""Validation while training goes on: scores every few updates, and the best adapter kept.

The runs that were scored are kept for the first and for the best step: what was said before and after.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import TrainerCallback

from mmgrpo import distributed, kept_runs, rollout
from mmgrpo.json_files import write_json

if TYPE_CHECKING:
    from mmgrpo.training_run import TrainingRun

BEST = "best"  # adapters that are kept for their validation score


def best_adapter(folder: Path, step: float) -> Path:
    """Where the adapter of the best step lies, as long as no better one is found."""
    return folder / f"{BEST}-{int(step)}"


class Validation(TrainerCallback):
    """Scores the policy on the validation set before training and every few updates; keeps the best adapter."""

    def __init__(self, run: TrainingRun):
        self.run = run
        self.file = run.folder / "validation.json"
        self.scores: list[dict[str, float]] = []
        self.best: dict[str, float] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step and self.file.exists():
            self._restore(state.global_step)
        elif self.run.valset:
            self._score(0)

    def ended(self, step: int, last: int) -> bool:
        """Whether a run whose last checkpoint is at `step` ended there: at its `last` step, or out of patience."""
        if self.file.exists():
            self._restore(step)
        elif self.run.valset:
            return False
        return step == last or self._out_of_patience()

    def _restore(self, step: int) -> None:
        """What was scored up to a checkpoint."""
        kept = json.loads(self.file.read_text())
        self.scores = [entry for entry in kept["scores"] if entry["step"] <= step]
        self.best = kept["best"]

    def on_step_end(self, args, state, control, **kwargs):
        every = self.run.recipe.settings.validate_every * self.run.recipe.settings.iterations
        if self.run.valset and (state.global_step % every == 0 or state.global_step == state.max_steps):
            self._score(state.global_step)
            done = self._out_of_patience()
            control.should_training_stop |= done
            control.should_save |= done

    def _out_of_patience(self) -> bool:
        patience = self.run.recipe.settings.patience
        later = [entry for entry in self.scores if entry["step"] > self.best["step"]]
        return patience is not None and len(later) >= patience

    def _score(self, step: int) -> None:
        run = self.run
        run.policy.sync()
        scored = rollout.evaluate(
            run.programs[0],
            run.valset,
            policy=run.policy,
            metric=run.recipe.metric,
            progress=f"validation at step {step}",
            together=True,
        )
        entry = {"step": float(step), "score": rollout.mean_score(scored)}
        self.scores.append(entry)
        if not self.best or entry["score"] > self.best["score"]:
            run.save(best_adapter(run.folder, step))
            self.best = entry
        if distributed.is_first():
            if self.best == entry or step == 0:
                kept_runs.write(scored, kept_runs.validated(run.folder, step))
            write_json({"scores": self.scores, "best": self.best}, self.file)
            for older in run.folder.glob(f"{BEST}-[0-9]*"):  # now that none is named any more
                if older != best_adapter(run.folder, self.best["step"]):
                    shutil.rmtree(older)
            for older in run.folder.glob(kept_runs.VALIDATED):
                if older not in (kept_runs.validated(run.folder, step) for step in (0, self.best["step"])):
                    older.unlink()
