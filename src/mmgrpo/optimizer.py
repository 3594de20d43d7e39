"""mmGRPO as a DSPy optimizer: give it a program, a metric and training inputs, as any prompt optimizer.

How it differs from the paper: groups without reward variance are left out of the update, and groups smaller
than `group_size` stay smaller (`grouping.py`). What it trains is token for token what it sampled, instructions
and demonstrations of the student's prompts included.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import dspy
from dspy.teleprompt import Teleprompter

from mmgrpo import distributed
from mmgrpo.errors import UserError
from mmgrpo.policy.lm import PolicyLM
from mmgrpo.rollout import Metric, own_lms
from mmgrpo.settings import GRPOSettings, SamplingSettings
from mmgrpo.training_run import Level, Recipe, TrainingRun


class MMGRPO(Teleprompter):
    """Trains the weights of a program's language model by module-level or trajectory-level GRPO.

    Args:
        metric: `metric(example, prediction, trace=None)` -> a number or a bool; its scores are the rewards. The worst answer
            earns 0: a reply that doesn't parse has `settings.format_failure_reward` in training and 0 in validation.
        level: "module" (Alg. 2, the paper's main variant) or "trajectory" (Eq. 9).
        settings: everything about steps, groups and the update; defaults are the paper's.
        sampling: how rollouts are sampled.
        seed: of rollouts, order of examples, padding and initial adapter.
        folder: for checkpoints; a second compile with the same folder goes on where the first stopped.
            Default: a temporary one, which several processes (`accelerate launch`) can't share. The metric is no part
            of what tells a folder's training from another: give a changed one another folder.
        report_to: of the Hugging Face trainer: "none" (default), "tensorboard" or "wandb".
    """

    def __init__(
        self,
        metric: Metric,
        *,
        level: Level = "module",
        settings: GRPOSettings | None = None,
        sampling: SamplingSettings | None = None,
        seed: int = 0,
        folder: Path | str | None = None,
        report_to: str = "none",
    ):
        if level not in ("module", "trajectory"):
            raise UserError(f"Unknown level {level!r}; allowed: module, trajectory.")
        if not callable(metric):
            raise UserError(f"The metric is {metric!r}; it must be a function metric(example, prediction, trace=None).")
        self.metric = metric
        self.level = level
        self.settings = settings if settings is not None else GRPOSettings()
        self.sampling = sampling if sampling is not None else SamplingSettings()
        self.seed = seed
        self.folder = None if folder is None else Path(folder)
        self.report_to = report_to

    def compile(
        self,
        student: dspy.Module,
        *,
        trainset: Sequence[dspy.Example],
        teacher: dspy.Module | Sequence[dspy.Module] | None = None,
        valset: Sequence[dspy.Example] | None = None,
    ) -> dspy.Module:
        """Train the policy behind `student`, and return a copy of it that carries a `training_log`.

        Training starts from the weights of the student's language model. The copy has a language model of its own,
        with the adapter that scored best on `valset` (without one: the last); modules that another language model
        answered, as `dspy.context(lm=...)` has it, keep that. Teachers, programs with the
        same modules under other prompts, make an equal share of each group's runs.
        """
        lm = _policy_lm_behind(student)
        teachers = [] if teacher is None else [teacher] if isinstance(teacher, dspy.Module) else list(teacher)
        _check(student, teachers, trainset, self.settings)
        if self.folder is None and distributed.launched() > 1:
            raise UserError("Several processes train together: give MMGRPO a `folder` that all of them can reach.")
        recipe = Recipe(self.metric, self.level, self.settings, self.sampling, self.seed, self.report_to)
        folder = self.folder if self.folder is not None else Path(tempfile.mkdtemp(prefix="mmgrpo-"))
        program = student.deepcopy()
        with own_lms([program, *teachers], lambda own: None):  # they sample as the rollouts say
            log = TrainingRun(recipe, [program, *teachers], list(trainset), list(valset or []), lm, folder).train()
        for name, predictor in program.named_predictors():
            if name not in log.elsewhere:  # another language model goes on answering what it answered in training
                own = predictor.lm if isinstance(predictor.lm, PolicyLM) else lm
                predictor.lm = own.with_weights(log.adapter, lm.policy.adapter_of(name))
        program.training_log = log
        program._compiled = True
        return program


def _policy_lm_behind(student: dspy.Module) -> PolicyLM:
    """The one policy language model that all of the student's predictors use, by themselves or through `dspy.configure`."""
    if not isinstance(student, dspy.Module):
        raise UserError(f"The student is {student!r}; it must be a dspy.Module with at least one predictor.")
    elsewhere = student.training_log.elsewhere if hasattr(student, "training_log") else ()
    predictors = [(name, predictor) for name, predictor in student.named_predictors() if name not in elsewhere]
    if not predictors:
        raise UserError(
            f"{type(student).__name__} has no predictors that can be trained: give it a dspy.Predict or dspy.ChainOfThought of its "
            "own; parts that were compiled before are frozen (set their `_compiled` to False)."
        )
    lms = [predictor.lm if predictor.lm is not None else dspy.settings.lm for _, predictor in predictors]
    for (name, predictor), lm in zip(predictors, lms, strict=True):
        if isinstance(lm, PolicyLM):
            continue
        if predictor.lm is not None:
            raise UserError(
                f"{name} has a language model of its own, {type(lm).__name__}({getattr(lm, 'model', '')}), which can't be trained "
                "here: set its `lm` to None, or call it inside `with dspy.context(lm=...)` where it is to keep that one."
            )
        found = "no language model is set"
        if lm is not None:
            found = f"{type(lm).__name__}({getattr(lm, 'model', '')}) can't be trained here"
        raise UserError(f"{found}: set one with dspy.configure(lm=mmgrpo.policy.load(...).lm()).")
    if len({(id(lm.policy), lm.weights) for lm in lms}) > 1:
        raise UserError("The student's predictors use different policies or adapters: MMGRPO trains one at a time.")
    return lms[0]


def _check(student: dspy.Module, teachers: list[dspy.Module], trainset: Sequence, settings: GRPOSettings) -> None:
    if not trainset:
        raise UserError("The trainset is empty: give at least one dspy.Example with inputs.")
    names = [name for name, _ in student.named_predictors()]
    for teacher in teachers:
        others = [name for name, _ in teacher.named_predictors()]
        if others != names:
            raise UserError(f"A teacher has the modules {others}, the student {names}: they must be the same.")
        for predictor in teacher.predictors():
            if predictor.lm is not None and not isinstance(predictor.lm, PolicyLM):
                raise UserError(
                    f"A teacher uses {predictor.lm.model}, whose tokens can't be trained: call its set_lm(None)."
                )
    if settings.rollouts % (1 + len(teachers)):
        raise UserError(
            f"{settings.rollouts} rollouts can't be shared equally by {1 + len(teachers)} programs: change `rollouts`."
        )
    if settings.inputs > len(trainset):
        raise UserError(
            f"A step takes {settings.inputs} inputs, and the trainset has {len(trainset)}: give more examples, or set `inputs` lower."
        )
