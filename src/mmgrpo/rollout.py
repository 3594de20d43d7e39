"""Runs a program many times under the policy, on its own threads, and scores each run.

Runs wait for each other at every language-model call, so that one batch serves all (`policy/batcher.py`). A reply
that doesn't parse ends its run, which keeps its calls and gets the format-failure reward; a prompt that outgrows the
context ends it, too, with a reward of 0. A program that raises crashes its run, which then scores 0 in an evaluation; a
metric that raises makes it unscorable, and it doesn't count. Neither is trained on, and both stop everything when
they happen too often, on more than one example.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import dspy
import numpy as np
from dspy.utils.exceptions import ContextWindowExceededError
from tqdm.auto import tqdm

from mmgrpo import distributed
from mmgrpo.errors import UserError, user_error_in
from mmgrpo.policy import Policy
from mmgrpo.policy.lm import PolicyLM
from mmgrpo.policy.recorder import SETTING, Recorder
from mmgrpo.trajectory import Call, Trajectory, example_id

Metric = Callable[..., Any]

FAILURE_REWARD = 0.0  # of a run that broke off for another reason than its format
MAX_FAILED_SHARE = 0.2  # of the runs may raise, or one example's; more means that program or metric are at fault
MAX_THREADS = 512


@dataclass(frozen=True)
class Job:
    """One run to make."""

    example: dspy.Example
    rollout: int
    seed: tuple[object, ...]  # what the run's sampling depends on


def jobs_for(examples: Sequence[dspy.Example], rollouts: int, *seed: object) -> list[Job]:
    """Each example `rollouts` times, counted on where one comes again; seeds derive from `seed`, example and rollout."""
    made: Counter[str] = Counter()
    jobs = []
    for example in examples:
        name = example_id(example)
        jobs += [Job(example, g, (*seed, name, g)) for g in range(made[name], made[name] + rollouts)]
        made[name] += rollouts
    return jobs


def run(
    program: dspy.Module,
    jobs: Sequence[Job],
    *,
    lm: PolicyLM,
    metric: Metric,
    format_failure_reward: float = -1.0,
    progress: str | None = None,
    together: bool = False,
) -> list[Trajectory]:
    """Run and score all jobs, in their order. `progress` names a progress bar.

    `together`: the processes of a training share the jobs; each gets all runs, without their predictions.
    """
    mine = distributed.share(jobs) if together else jobs
    done = _run_here(program, mine, lm, metric, format_failure_reward, progress) if mine else []
    if together:
        done = distributed.all_of([replace(one, prediction=None) for one in done])
    _stop_where_too_many_failed(done)
    return done


def _run_here(
    program: dspy.Module,
    jobs: Sequence[Job],
    lm: PolicyLM,
    metric: Metric,
    format_failure_reward: float,
    progress: str | None,
) -> list[Trajectory]:
    """Run and score the jobs on threads of this process."""
    policy: Policy = lm.policy
    count = min(len(jobs), MAX_THREADS, 2 * policy.settings.batch)
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(jobs)):
        todo.put(index)
    done: list[Trajectory | None] = [None] * len(jobs)
    stop = threading.Event()
    settings = {"lm": lm, "adapter": strict_adapter(), "disable_history": True}
    with tqdm(total=len(jobs), desc=progress, disable=progress is None, leave=False) as bar:

        def work(leave: Callable[[], None]) -> None:
            try:
                while not stop.is_set():
                    index = todo.get_nowait()
                    done[index] = _run_one(program, jobs[index], settings, metric, format_failure_reward)
                    bar.update()
            except queue.Empty:
                pass
            except BaseException:
                stop.set()  # the other threads need not go on
                raise
            finally:
                leave()

        batcher = policy.engine.batcher
        with batcher.workers(count) as leave, ThreadPoolExecutor(count) as pool:
            try:
                futures = [pool.submit(contextvars.copy_context().run, work, leave) for _ in range(count)]
                batcher.drive()
                for future in futures:
                    future.result()
            finally:
                stop.set()
    return done


def evaluate(
    program: dspy.Module,
    examples: Sequence[dspy.Example],
    *,
    policy: Policy,
    metric: Metric,
    progress: str | None = None,
    together: bool = False,
) -> list[Trajectory]:
    """Greedy runs, one an example, also where the program has a policy LM of its own that isn't greedy.

    A run that didn't complete scores 0 (see `score`).
    """
    with own_lms([program], lambda lm: lm.copy(temperature=0.0)):
        jobs = jobs_for(examples, 1)
        return run(program, jobs, lm=policy.lm(), metric=metric, progress=progress, together=together)


@contextmanager
def own_lms(programs: Sequence[dspy.Module], change: Callable[[PolicyLM], PolicyLM | None]) -> Iterator[None]:
    """Change the policy LMs that predictors have of their own, for a while; afterwards all are as before."""
    own = [(predictor, predictor.lm) for program in programs for predictor in program.predictors()]
    for predictor, lm in own:
        if isinstance(lm, PolicyLM):
            predictor.lm = change(lm)
    try:
        yield
    finally:
        for predictor, lm in own:
            predictor.lm = lm


def score(trajectory: Trajectory) -> float:
    """What a run counts in an evaluation: its reward when it completed, else 0."""
    return trajectory.reward if trajectory.outcome == "completed" else 0.0


def mean_score(trajectories: Sequence[Trajectory]) -> float:
    """Mean over the runs that could be scored."""
    scored = [score(run) for run in trajectories if run.outcome != "unscorable"]
    return sum(scored) / len(scored)


def strict_adapter() -> dspy.Adapter:
    """The caller's adapter without the JSON fallback, whose second prompt would be a call the program never made."""
    adapter = dspy.settings.adapter
    if adapter is None:
        return dspy.ChatAdapter(use_json_adapter_fallback=False)
    if getattr(adapter, "use_json_adapter_fallback", False):
        import copy

        adapter = copy.copy(adapter)
        adapter.use_json_adapter_fallback = False
    return adapter


def _run_one(
    program: dspy.Module, job: Job, settings: dict, metric: Metric, format_failure_reward: float
) -> Trajectory:
    recorder = Recorder(program, settings["lm"].policy.engine, job.seed)
    callbacks = [*(dspy.settings.callbacks or []), recorder]
    prediction, error, outcome, reward, details = None, None, "completed", None, {}
    with dspy.context(**settings, callbacks=callbacks, trace=[], **{SETTING: recorder}):
        try:
            prediction = _call(program, job.example.inputs())
            if prediction is None and _unparsed(recorder.calls):  # as dspy.BestOfN ends when no try succeeds
                raise ValueError("the program returned nothing after replies that did not parse")
        except ContextWindowExceededError as raised:
            outcome, error, reward = "interrupted", _sentence(raised), FAILURE_REWARD
        except Exception as raised:
            _pass_on(raised)
            error = _sentence(raised)
            # A reply that didn't parse is the reason, whatever was raised: dspy.Parallel gives None for one.
            if unparsed := _unparsed(recorder.calls):
                outcome, reward = "interrupted", format_failure_reward * (1 - unparsed[-1].parsed)
            else:  # the program's own fault, or another language model's: recorded, and fatal when frequent
                outcome = "crashed"
        else:
            try:
                judged = metric(job.example, prediction, None)
                reward, details = _number(judged), _parts(judged)
            except Exception as raised:  # likewise the metric's
                _pass_on(raised)
                outcome, error = "unscorable", _sentence(raised)
    if recorder.fault is not None:  # whatever program and metric made of it
        raise recorder.fault
    elsewhere = recorder.elsewhere if outcome == "completed" else ()
    name = example_id(job.example)
    return Trajectory(name, job.rollout, recorder.calls, reward, outcome, error, prediction, details, elsewhere)


def _pass_on(error: BaseException) -> None:
    """Raise the UserError that is in `error`, if any: it says what the user is to do, and fails no single run."""
    if (found := user_error_in(error)) is not None:
        raise found from found.__cause__


def _unparsed(calls: Sequence[Call]) -> list[Call]:
    """The calls whose reply did not parse; those that nobody tried to parse where there are no others."""
    failed = [call for call in calls if call.status != "ok"]
    return [call for call in failed if call.status != "unread"] or failed


def _call(program: dspy.Module, inputs: dspy.Example) -> Any:
    """The program's output; one that only awaits is run to its end here."""
    if not hasattr(type(program), "forward") and hasattr(type(program), "aforward"):
        return asyncio.run(program.acall(**inputs))
    return program(**inputs)


def _number(value: Any) -> float:
    value = getattr(value, "score", value)
    if isinstance(value, np.bool_):
        value = bool(value)
    if not isinstance(value, Real) or not math.isfinite(value):
        raise UserError(
            f"The metric returned {value!r}: a reward is a finite number, such as float(prediction.answer == example.answer)."
        )
    return float(value)


def _parts(value: Any) -> dict[str, float]:
    """The parts of a reward that a metric tells, as plain numbers."""
    parts = getattr(value, "details", {})
    numbers = isinstance(parts, Mapping) and all(
        isinstance(part, Real) and math.isfinite(part) for part in parts.values()
    )
    if not numbers:
        raise UserError(
            f"The metric's `details` are {parts!r}: they are finite numbers by name, such as {{'recall': 0.5}}."
        )
    return {str(name): float(part) for name, part in parts.items()}


def _sentence(error: BaseException) -> str:
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first}"


def _stop_where_too_many_failed(done: Sequence[Trajectory]) -> None:
    failed = [run for run in done if run.outcome in ("crashed", "unscorable")]
    failing, examples = {run.example for run in failed}, {run.example for run in done}
    one_of_several = len(failing) == 1 < len(examples)  # the example may be at fault itself
    if len(failed) > MAX_FAILED_SHARE * len(done) and not one_of_several:
        what = "program" if failed[0].outcome == "crashed" else "metric"
        raise UserError(
            f"{len(failed)} of {len(done)} runs failed, the first because the {what} raised {failed[0].error}: "
            f"mend the {what} and run again."
        )
