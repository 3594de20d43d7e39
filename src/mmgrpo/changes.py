"""What learning looks like: the same examples under the program before and after, paired, and told from data.

A score says that something was learned, not what. `pair` orders examples by the change of their reward; `habits` says how a
field of the replies looks over all of them; `collapsed` and `against` find what nobody wanted: one reply for whatever
input, and a reward that rose while a part of it fell. Runs belong on the validation split: the test split is scored once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import dspy

from mmgrpo import checkpoints, kept_runs, rollout, strategies, study
from mmgrpo.errors import UserError
from mmgrpo.policy.merging import adapter_name
from mmgrpo.records import Record
from mmgrpo.study import Study
from mmgrpo.trajectory import Trajectory, example_id
from mmgrpo.validation import best_adapter

COMMON = 0.1  # share of the runs that give a reply which is called a common one


@dataclass(frozen=True)
class Change:
    """An example, and its run under the program before and after."""

    example: dspy.Example
    before: Trajectory
    after: Trajectory

    @property
    def gain(self) -> float:
        """By how much the score rose, -1 to 1; a run that didn't complete scores 0."""
        return rollout.score(self.after) - rollout.score(self.before)


@dataclass(frozen=True)
class Habit:
    """One field of a module's replies over many runs."""

    words: float  # mean of a reply
    names: float  # share of the words that begin with a capital letter
    commonest: str  # what most runs say there
    runs: int  # that say it
    share: float  # of all runs


def trained_program(ready: Study) -> dspy.Module:
    """The program that the cell's finished run left: its prompts, under its best adapter where weights were trained.

    Raises UserError where there is no up-to-date record, or its adapter is gone.
    """
    cell = ready.cell
    record = study.finished(cell)
    if record is None:
        raise UserError(
            f"{cell.name} has no up-to-date record of the profile {cell.profile}: run notebooks/{cell.notebook.name} with "
            f"the same parameters first, or `make reproduce PROFILE={cell.profile} TASKS={cell.task}`."
        )
    program = strategies.optimized_program(ready, record)
    folder = _adapter(ready, record)
    if folder is None:
        return program
    if not checkpoints.is_whole(folder):
        raise UserError(f"{folder} is missing or damaged: delete {cell.folder} and run {cell.name} again.")
    for name, predictor in program.named_predictors():
        adapter = adapter_name(name) if ready.grpo.adapters == "per_module" else "default"
        predictor.lm = ready.policy.lm().with_weights(folder, adapter)
    return program


def sampled(ready: Study, record: Record) -> list[Trajectory]:
    """The rollouts of the first training step, token for token as they were trained on, without log-probabilities.

    Raises UserError where the cell's strategy is not one training, or the runs are gone.
    """
    _needs_training(ready, record)
    return kept_runs.read(kept_runs.sampled(ready.training_folder))


def validated(ready: Study, record: Record) -> tuple[list[Trajectory], list[Trajectory]]:
    """Runs on the validation split before training and under the best adapter, as they were scored.

    Raises UserError where the cell's strategy is not one training, or the runs are gone.
    """
    _needs_training(ready, record)
    before, after = (kept_runs.validated(ready.training_folder, step) for step in (0, record.notes["best"]["step"]))
    return kept_runs.read(before), kept_runs.read(after)


def _needs_training(ready: Study, record: Record) -> None:
    if "best" not in record.notes:
        raise UserError(f"{ready.cell.name} keeps no runs: evaluate its programs, before and after, instead.")


def _adapter(ready: Study, record: Record) -> Path | None:
    """The PEFT folder of a record's weights; None where its strategy changed prompts only."""
    if "adapter" in record.notes:
        return ready.training_folder / record.notes["adapter"]
    if "best" in record.notes:
        return best_adapter(ready.training_folder, record.notes["best"]["step"])
    return None


def pair(examples: Sequence[dspy.Example], before: Sequence[Trajectory], after: Sequence[Trajectory]) -> list[Change]:
    """The runs by example, the largest gain first; examples of one gain stay in order.

    Runs that the metric couldn't score are left out with their partner. Raises UserError where the runs are of other
    examples.
    """
    known = {example_id(example): example for example in examples}
    later = {(run.example, run.rollout): run for run in after}
    earlier = {(run.example, run.rollout): run for run in before}
    if earlier.keys() != later.keys() or {example for example, _ in later} != set(known):
        raise UserError(
            f"{len(earlier)} runs before and {len(later)} after are not of the same {len(known)} examples: "
            "evaluate both programs on the examples that are given here."
        )
    changes = [Change(known[key[0]], run, later[key]) for key, run in earlier.items()]
    scored = [one for one in changes if "unscorable" not in (one.before.outcome, one.after.outcome)]
    return sorted(scored, key=lambda one: -one.gain)


def improved(changes: Sequence[Change]) -> list[Change]:
    """Those that `pair` found with a higher reward afterwards, the largest gain first."""
    return [one for one in changes if one.gain > 0]


def worsened(changes: Sequence[Change]) -> list[Change]:
    """Those that `pair` found with a lower reward afterwards, the largest loss first."""
    return [one for one in reversed(changes) if one.gain < 0]


def habits(program: dspy.Module, runs: Sequence[Trajectory]) -> dict[str, Habit]:
    """A habit for each field that a module of `program` answers, named "module: field"; replies that didn't parse have none."""
    said: dict[str, list[list[str]]] = {}  # by field, a list for each run
    for run in runs:
        for name, values in replies(program, run).items():
            said.setdefault(name, []).append(values)
    return {name: _habit(values, len(runs)) for name, values in said.items()}


def _habit(said: Sequence[list[str]], runs: int) -> Habit:
    once = [value for values in said for value in dict.fromkeys(values)]  # a run that repeats itself counts once
    ((commonest, times),) = Counter(once).most_common(1)
    words = [word for values in said for value in values for word in value.split()]
    capitals = sum(word[0].isupper() for word in words)
    return Habit(len(words) / sum(map(len, said)), capitals / max(1, len(words)), commonest, times, times / runs)


def replies(program: dspy.Module, run: Trajectory) -> dict[str, list[str]]:
    """What a run's modules said, in order, by "module: field"."""
    adapter, signatures = rollout.strict_adapter(), {name: one.signature for name, one in program.named_predictors()}
    said: dict[str, list[str]] = {}
    for call in run.calls:
        if call.status == "ok":
            for field, value in adapter.parse(signatures[call.module], call.text).items():
                text = "\n".join(map(str, value)) if isinstance(value, list) else str(value)
                said.setdefault(f"{call.module}: {field}", []).append(text)
    return said


def collapsed(program: dspy.Module, changes: Sequence[Change]) -> list[Change]:
    """Those without a gain that went over to the commonest reply of a field, the largest loss first.

    A reply that fewer than a tenth of the inputs get, or a single one, is no common one.
    """
    common = {
        name: habit.commonest
        for name, habit in habits(program, [one.after for one in changes]).items()
        if habit.runs > 1 and habit.share >= COMMON
    }

    def went_over(one: Change) -> bool:
        before, after = replies(program, one.before), replies(program, one.after)
        return any(value in after.get(name, []) and value not in before.get(name, []) for name, value in common.items())

    return [one for one in reversed(changes) if one.gain <= 0 and went_over(one)]


def against(changes: Sequence[Change], part: str) -> list[Change]:
    """Those whose reward rose while `part` of it, a detail of the judge, fell; the largest fall first."""
    risen = [one for one in improved(changes) if part in one.before.details and part in one.after.details]
    fallen = [one for one in risen if one.after.details[part] < one.before.details[part]]
    return sorted(fallen, key=lambda one: one.after.details[part] - one.before.details[part])
