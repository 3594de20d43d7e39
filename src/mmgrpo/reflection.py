"""DSPy's GEPA over the policy: instructions rewritten by the policy itself, from what the judge says of single runs.

Where MIPROv2 sees scores only, GEPA reads: it shows the proposer a few runs of a module with the judge's feedback on
each, and keeps every candidate that is best on some validation example. It changes no demonstrations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import dspy
from dspy.teleprompt.gepa import InstructionProposer

from mmgrpo.policy.lm import PolicyLM
from mmgrpo.prompt_optimization import FirstFault, Optimized, ProposerAdapter
from mmgrpo.rollout import strict_adapter
from mmgrpo.settings import GEPASettings
from mmgrpo.tasks import Judgement

PROPOSAL = "new_instruction"  # output field of GEPA's proposer

Judge = Callable[..., Judgement]  # judge(example, prediction, trace=None)


def gepa(
    program: dspy.Module,
    *,
    lm: PolicyLM,
    judge: Judge,
    trainset: Sequence[dspy.Example],
    valset: Sequence[dspy.Example],
    settings: GEPASettings,
    seed: int,
    folder: Path | None = None,
) -> Optimized:
    """Run GEPA on `program` under the weights of `lm`; candidates are scored greedily on `valset`.

    A trial also has `runs`, the program runs that were made until its candidate was found. With a `folder`, a run that was
    killed goes on where it was: give it the same arguments again.
    """
    adapter, fault = ProposerAdapter(PROPOSAL, program), FirstFault()
    program = program.deepcopy()
    program.set_lm(lm)
    optimizer = dspy.GEPA(
        metric=fault.watched(with_feedback(judge)),
        max_metric_calls=settings.metric_calls,
        reflection_minibatch_size=settings.minibatch,
        reflection_lm=lm.copy(temperature=settings.temperature, max_tokens=settings.proposal_tokens),
        instruction_proposer=InstructionProposer(adapter=adapter),
        add_format_failure_as_feedback=True,  # the commonest fault of a small model
        num_threads=lm.policy.settings.batch,
        track_stats=True,
        seed=seed,
    )
    with fault.search(lm, strict_adapter(), folder):
        best = optimizer.compile(program, trainset=list(trainset), valset=list(valset))
    found = best.detailed_results
    del best.detailed_results  # it holds every candidate
    scored = zip(found.val_aggregate_scores, found.discovery_eval_counts, strict=True)
    trials = tuple(
        {"step": float(place), "score": score, "runs": float(runs)} for place, (score, runs) in enumerate(scored)
    )
    return Optimized(best, trials, dict(adapter.proposals))


def with_feedback(judge: Judge) -> Callable[..., dspy.Prediction]:
    """The judge as a metric of GEPA's: the feedback on the whole run goes to each of its modules."""

    def metric(example, prediction, trace=None, module: str | None = None, own_trace=None) -> dspy.Prediction:
        judged = judge(example, prediction, trace)
        return dspy.Prediction(score=judged.score, feedback=judged.feedback)

    return metric
