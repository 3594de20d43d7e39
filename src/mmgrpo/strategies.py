"""The strategies of the study: each takes a prepared cell and returns its record.

vanilla: the program as it is. prompt_optimization: MIPROv2. trajectory_grpo and module_grpo: the two groupings of
mmGRPO. composition: MIPROv2's program, instructions and demonstrations fixed, then module-level GRPO under
those very prompts (the paper's BetterTogether(PO, mmGRPO)). Beyond the paper: gepa, a prompt optimizer that reads the
judge's feedback, and fast_slow, MIPROv2 and module-level GRPO in turns under one budget.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import dspy

from mmgrpo import records, study
from mmgrpo.cells import Cell
from mmgrpo.errors import UserError
from mmgrpo.fast_slow import fast_slow as interleave
from mmgrpo.optimizer import MMGRPO
from mmgrpo.policy import replies
from mmgrpo.prompt_optimization import mipro
from mmgrpo.records import Record
from mmgrpo.reflection import gepa as reflect
from mmgrpo.study import Stopwatch, Study, Trained
from mmgrpo.training_run import Level


def run(ready: Study) -> Record:
    """Run the cell's strategy, score its program on the test split once, write and return the record.

    A finished cell is not run again: its record is returned. One that was killed goes on where it was; what its record
    says of seconds, tokens, calls and memory is then the last process's alone, and `notes["resumed"]` is true.
    """
    record = study.finished(ready.cell)
    if record is None:
        record = _run(ready)
        records.write(record, ready.cell.record)
    replies.remove(ready.training_folder)
    return record


def _run(ready: Study) -> Record:
    # What a notebook sampled to show something is not the strategy's.
    ready.policy.engine.forget()
    before, resumed = ready.task.spending(), ready.training_folder.exists()
    watch = Stopwatch()
    with watch.stage("optimize"):
        trained = STRATEGIES[ready.cell.strategy](ready)
    with watch.stage("evaluate"):
        test = ready.evaluate(trained.program, ready.splits.test, "test")
    notes = {"spending": study.spent(before, ready.task.spending()), "resumed": resumed}
    return study.record_of(ready, replace(trained, notes=trained.notes | notes), test, watch)


def vanilla(ready: Study) -> Trained:
    """The program under the policy as it comes."""
    return Trained(ready.program)


def prompt_optimization(ready: Study) -> Trained:
    """MIPROv2; its proposer is the policy."""
    found = mipro(
        ready.program,
        lm=ready.policy.lm(),
        metric=ready.task.metric,
        trainset=ready.splits.train,
        valset=ready.splits.valid,
        settings=ready.mipro,
        seed=ready.cell.seed,
        folder=ready.training_folder,
    )
    return Trained(found.program, validation=found.trials, notes={"proposals": found.proposals})


def trajectory_grpo(ready: Study) -> Trained:
    """mmGRPO with trajectory-level groups."""
    return _grpo(ready, ready.program, "trajectory")


def module_grpo(ready: Study) -> Trained:
    """mmGRPO with module-level groups."""
    return _grpo(ready, ready.program, "module")


def composition(ready: Study) -> Trained:
    """Module-level GRPO that starts from the program of the cell's prompt-optimization record."""
    (needed,) = ready.cell.needs
    earlier = study.finished(needed)
    if earlier is None:
        raise UserError(
            f"{ready.cell.name} starts from {needed.name}, which has no up-to-date record: run notebooks/{needed.notebook.name} "
            "with the same parameters first, or `make reproduce`, which keeps the order."
        )
    trained = _grpo(ready, optimized_program(ready, earlier), "module")
    before = {
        "validation": list(earlier.validation), "seconds": earlier.seconds, "tokens": earlier.tokens,
        "spending": earlier.notes["spending"], "resumed": earlier.notes["resumed"],
    }  # fmt: skip
    return Trained(trained.program, trained.curve, trained.validation, {"prompt_optimization": before} | trained.notes)


def gepa(ready: Study) -> Trained:
    """GEPA; its proposer is the policy."""
    found = reflect(
        ready.program,
        lm=ready.policy.lm(),
        judge=ready.task.judge,
        trainset=ready.splits.train,
        valset=ready.splits.valid,
        settings=ready.profile.gepa,
        seed=ready.cell.seed,
        folder=ready.training_folder,
    )
    return Trained(found.program, validation=found.trials, notes={"proposals": found.proposals})


def fast_slow(ready: Study) -> Trained:
    """MIPROv2 and module-level GRPO in turns. The record's notes say what each spent of the budget of program runs."""
    done = interleave(
        ready.program,
        lm=ready.policy.lm(),
        metric=ready.task.metric,
        trainset=ready.splits.train,
        valset=ready.splits.valid,
        settings=ready.profile.fast_slow,
        grpo=ready.grpo,
        mipro_settings=ready.mipro,
        sampling=ready.sampling,
        seed=ready.cell.seed,
        folder=ready.training_folder,
        report_to=ready.profile.tracker,
    )
    adapter = str(done.adapter.relative_to(ready.training_folder))
    return Trained(done.program, done.curve, done.validation, {"budget": done.budget, "adapter": adapter})


def optimized_program(ready: Study, record: Record) -> dspy.Module:
    """The task's program with the instructions and demonstrations of a record, or of the private file beside it."""
    program = ready.program.deepcopy()
    program.load_state(record.program or _private_program(replace(ready.cell, strategy=record.strategy)))
    return program


def _private_program(cell: Cell) -> dict:
    if not cell.private_program.exists():
        raise UserError(
            f"The prompts of {cell.name} are private and not at {cell.private_program}: delete its record and run it again."
        )
    return json.loads(cell.private_program.read_text(encoding="utf-8"))


def _grpo(ready: Study, program: dspy.Module, level: Level) -> Trained:
    optimizer = MMGRPO(
        ready.task.judge,  # its parts stay with the runs that are kept
        level=level,
        settings=ready.grpo,
        sampling=ready.sampling,
        seed=ready.cell.seed,
        folder=ready.training_folder,
        report_to=ready.profile.tracker,
    )
    with dspy.context(lm=ready.policy.lm()):
        trained = optimizer.compile(program, trainset=ready.splits.train, valset=ready.splits.valid)
    log = trained.training_log
    return Trained(trained, log.curve, log.validation, {"best": log.best, "rollouts": log.rollouts})


STRATEGIES: dict[str, Callable[[Study], Trained]] = {
    "vanilla": vanilla,
    "prompt_optimization": prompt_optimization,
    "trajectory_grpo": trajectory_grpo,
    "module_grpo": module_grpo,
    "composition": composition,
    "gepa": gepa,
    "fast_slow": fast_slow,
}
