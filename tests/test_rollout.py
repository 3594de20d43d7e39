"""Runs of a program: how each ends, what it scores, and what does not stop the others."""

import math
import threading
from types import SimpleNamespace

import dspy
import pytest
from dspy.utils.exceptions import AdapterParseError
from tiny_policy import RawAdapter, fields, question, scripted_lm, tiny_policy, tokenizer

from mmgrpo import distributed, rollout
from mmgrpo.errors import UserError
from mmgrpo.grouping import module_groups
from mmgrpo.rollout import jobs_for
from mmgrpo.training_run import metrics_of


def examples(*questions):
    return [dspy.Example(q=text).with_inputs("q") for text in questions or ("one", "two", "three")]


def one(example, prediction, trace=None):
    return 1.0


def run(
    program, reply=lambda prompt, request: fields(a="yes"), *, chosen=None, rollouts=1, metric=one, seed=0, **options
):
    jobs = jobs_for(chosen or examples(), rollouts, seed)
    return rollout.run(program, jobs, lm=scripted_lm(reply), metric=metric, **options)


class Ask(dspy.Module):
    def __init__(self, signature="q -> a"):
        super().__init__()
        self.ask = dspy.Predict(signature)

    def forward(self, q):
        return self.ask(q=q)


class Chain(dspy.Module):
    """Three modules, one after the other."""

    def __init__(self):
        super().__init__()
        self.a = dspy.Predict("q -> x, y")
        self.b = dspy.Predict("x -> z, w")
        self.c = dspy.Predict("z -> a")

    def forward(self, q):
        first = self.a(q=q)
        return self.c(z=self.b(x=first.x).z)


def chain_reply(b):
    """Good replies of modules a and c, and `b` of module b."""

    def reply(prompt, request):
        if "[[ ## q ## ]]" in question(prompt):
            return fields(x="from a", y="-")
        return b if "[[ ## x ## ]]" in question(prompt) else fields(a="end")

    return reply


def test_run_that_breaks_off_keeps_its_calls_up_to_the_failed_one():
    (trajectory,) = run(Chain(), chain_reply("nonsense"), chosen=examples("the claim"))
    assert trajectory.outcome == "interrupted"
    assert trajectory.error.startswith("AdapterParseError: ")
    assert [(call.module, call.status) for call in trajectory.calls] == [("a", "ok"), ("b", "format_failure")]
    assert trajectory.calls[1].text == "nonsense"


def test_failed_call_has_its_own_prompt_and_not_the_programs_inputs():
    (trajectory,) = run(Chain(), chain_reply("nonsense"), chosen=examples("the claim"))
    prompt = question(tokenizer().decode(trajectory.calls[1].prompt_ids))
    assert "[[ ## x ## ]]\nfrom a" in prompt
    assert "the claim" not in prompt and "[[ ## q ## ]]" not in prompt


@pytest.mark.parametrize(
    ("b", "default", "double"),
    [("nonsense", -1.0, -2.0), (fields(w=1), -0.5, -1.0), (fields(z=1, w=2), 1.0, 1.0)],
)
def test_format_failure_costs_the_share_of_fields_that_are_missing(b, default, double):
    assert run(Chain(), chain_reply(b))[0].reward == default
    assert run(Chain(), chain_reply(b), format_failure_reward=-2.0)[0].reward == double


def test_format_failure_is_a_run_with_a_reward_like_any_other():
    trajectories = run(Chain(), chain_reply(fields(w=1)))
    assert [trajectory.reward for trajectory in trajectories] == [-0.5] * 3
    assert rollout.mean_score(trajectories) == 0.0  # yet in an evaluation it counts as a wrong answer


class Forgiving(dspy.Module):
    def __init__(self):
        super().__init__()
        self.ask = dspy.Predict("q -> a")

    def forward(self, q):
        try:
            return self.ask(q=q)
        except AdapterParseError:
            return dspy.Prediction(a="a guess")


def test_program_that_catches_the_parse_error_completes():
    (trajectory,) = run(Forgiving(), lambda prompt, request: "nonsense", chosen=examples("q"))
    assert (trajectory.outcome, trajectory.reward, trajectory.error) == ("completed", 1.0, None)
    assert trajectory.prediction.a == "a guess"
    assert [call.status for call in trajectory.calls] == ["format_failure"]


def test_json_fallback_makes_no_second_call():
    lm = scripted_lm(lambda prompt, request: "nonsense")
    for adapter in (None, dspy.ChatAdapter(), dspy.JSONAdapter()):
        with dspy.context(adapter=adapter):
            (trajectory,) = rollout.run(Ask(), jobs_for(examples("q"), 1, 0), lm=lm, metric=one)
        assert (trajectory.outcome, len(trajectory.calls)) == ("interrupted", 1)
    assert len(lm.policy.engine.sampler.requests) == 3


def test_callers_adapter_and_settings_are_left_alone():
    adapter = dspy.ChatAdapter(use_json_adapter_fallback=True)
    lm = scripted_lm(lambda prompt, request: "nonsense")
    with dspy.context(adapter=adapter, lm="mine", trace=[], callbacks=[]):
        before = dict(dspy.settings.config)
        rollout.run(Ask(), jobs_for(examples(), 2, 0), lm=lm, metric=one)
        assert dict(dspy.settings.config) == before
        assert dspy.settings.adapter is adapter and adapter.use_json_adapter_fallback is True


def test_order_of_the_jobs_is_the_order_of_the_runs():
    trajectories = run(Ask(), rollouts=2, metric=lambda example, prediction, trace=None: len(example.q))
    assert [(trajectory.reward, trajectory.rollout) for trajectory in trajectories] == [
        (3.0, 0), (3.0, 1), (3.0, 0), (3.0, 1), (5.0, 0), (5.0, 1),
    ]  # fmt: skip


def test_example_that_comes_twice_is_run_with_other_seeds():
    jobs = jobs_for(examples("one", "two", "one"), 2, 0)
    assert [job.rollout for job in jobs] == [0, 1, 0, 1, 2, 3]
    assert len({job.seed for job in jobs}) == 6


class Pair(dspy.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = dspy.Predict("q -> a"), dspy.Predict("q -> a")

    def forward(self, q):
        return self.b(q=self.a(q=q).a)


def sampled(seed, batch=16):
    policy = tiny_policy(batch=batch)
    with dspy.context(adapter=RawAdapter()):
        return rollout.run(Pair(), jobs_for(examples(), 4, seed), lm=policy.lm(temperature=1.0), metric=one)


def test_same_seed_gives_the_same_runs_and_another_seed_others():
    first, again, other = sampled(0), sampled(0), sampled(1)
    assert [run.calls for run in first] == [run.calls for run in again]
    assert not any(a.calls[0].text == b.calls[0].text for a, b in zip(first, other, strict=True))
    assert len({call.text for run in first for call in run.calls}) == 24  # the rollouts of one example differ, too


def test_size_of_the_batches_changes_no_text():
    texts = [[call.text for run in sampled(0, batch) for call in run.calls] for batch in (16, 3)]
    assert texts[0] == texts[1]


def failing(*which, error=ValueError("no such label")):
    def metric(example, prediction, trace=None):
        if example.q in which:
            raise error
        return 1.0

    return metric


def test_metric_that_raises_leaves_its_run_unscored():
    chosen = examples(*"abcdefghij")
    trajectories = run(Ask(), chosen=chosen, metric=failing("c", "h"))
    assert [trajectory.reward for trajectory in trajectories] == [1, 1, None, 1, 1, 1, 1, None, 1, 1]
    assert (trajectories[2].outcome, trajectories[2].error) == ("unscorable", "ValueError: no such label")
    assert len(trajectories[2].calls) == 1
    assert rollout.mean_score(trajectories) == 1.0  # of those that were scored


def test_metric_that_raises_often_stops_everything_with_its_reason():
    with pytest.raises(UserError, match="3 of 10 runs failed.*the metric raised ValueError: no such label"):
        run(Ask(), chosen=examples(*"abcdefghij"), metric=failing("c", "h", "i"))


@pytest.mark.parametrize("value", [math.nan, math.inf, "0.5", None, [1.0]])
def test_reward_that_is_no_finite_number_is_refused(value):
    with pytest.raises(UserError, match="a reward is a finite number"):
        run(Ask(), metric=lambda example, prediction, trace=None: value)


@pytest.mark.parametrize("value", [0, 0.25, -3.0, dspy.Prediction(score=0.5, feedback="fair")])
def test_reward_may_be_any_finite_number_or_a_scored_prediction(value):
    assert run(Ask(), metric=lambda *_: value)[0].reward == float(getattr(value, "score", value))


def test_numbers_of_numpy_are_rewards_too():
    import numpy as np

    assert run(Ask(), metric=lambda *_: np.float32(0.5))[0].reward == 0.5
    assert run(Ask(), metric=lambda *_: np.int64(2))[0].reward == 2.0


def test_verdicts_are_rewards_of_one_and_zero():
    import numpy as np

    assert run(Ask(), metric=lambda *_: True)[0].reward == run(Ask(), metric=lambda *_: np.bool_(True))[0].reward == 1.0
    assert run(Ask(), metric=lambda *_: False)[0].reward == 0.0


@pytest.mark.parametrize("details", [{"recall": math.nan}, {"recall": "half"}, [0.5], None])
def test_parts_of_a_reward_that_are_no_numbers_are_refused(details):
    with pytest.raises(UserError, match="they are finite numbers by name"):
        run(Ask(), metric=lambda *_: SimpleNamespace(score=0.5, details=details))


def test_parts_of_a_reward_are_kept_as_plain_numbers():
    import numpy as np

    (first, *_) = run(Ask(), metric=lambda *_: SimpleNamespace(score=0.5, details={"recall": np.float32(0.25)}))
    assert first.details == {"recall": 0.25} and type(first.details["recall"]) is float


class Brittle(Ask):
    def forward(self, q):
        found = self.ask(q=q)
        if "bad" in q:
            raise KeyError("missing shelf")
        return found


def test_crash_of_the_program_is_recorded_with_its_calls():
    trajectories = run(Brittle(), chosen=examples("bad", *"abcdefghi"))
    assert (trajectories[0].outcome, trajectories[0].reward) == ("crashed", None)
    assert trajectories[0].error == "KeyError: 'missing shelf'"
    assert len(trajectories[0].calls) == 1
    assert [trajectory.outcome for trajectory in trajectories[1:]] == ["completed"] * 9


def test_program_that_often_crashes_stops_everything():
    with pytest.raises(UserError, match="2 of 4 runs failed.*the program raised KeyError: 'missing shelf'"):
        run(Brittle(), chosen=examples("bad", "very bad", "a", "b"))
    with pytest.raises(UserError, match="2 of 2 runs failed"):
        run(Brittle(), chosen=examples("bad"), rollouts=2)


def test_a_program_that_breaks_on_the_only_example_is_stopped():
    calls = iter(range(12))

    class Flaky(Ask):
        def forward(self, q):
            if next(calls):
                raise KeyError("missing shelf")
            return self.ask(q=q)

    with pytest.raises(UserError, match="11 of 12 runs failed"):
        run(Flaky(), chosen=examples("only"), rollouts=12)


def test_one_example_that_the_program_cannot_take_stops_nothing():
    trajectories = run(Brittle(), chosen=examples("bad", "a"), rollouts=2)
    assert [trajectory.outcome for trajectory in trajectories] == ["crashed"] * 2 + ["completed"] * 2


def test_failures_are_judged_by_the_runs_of_all_processes(monkeypatch):
    whole = run(Brittle(), chosen=examples("a", "b", "bad"), rollouts=2)
    monkeypatch.setattr(distributed, "share", lambda jobs: jobs[4:])  # the runs of the example that breaks
    monkeypatch.setattr(distributed, "all_of", lambda mine: [*whole[:4], *mine])
    together = run(Brittle(), chosen=examples("a", "b", "bad"), rollouts=2, together=True)
    assert [one.outcome for one in together] == ["completed"] * 4 + ["crashed"] * 2
    monkeypatch.setattr(distributed, "all_of", lambda mine: mine)
    with pytest.raises(UserError, match="2 of 2 runs failed"):
        run(Brittle(), chosen=examples("a", "b", "bad"), rollouts=2, together=True)


def test_dead_language_model_does_not_look_like_success():
    def broken(prompt, request):
        raise RuntimeError("out of memory")

    with pytest.raises(UserError, match="out of memory"):
        run(Ask(), broken)


def test_prompt_over_the_context_fails_its_run_alone_with_a_sentence():
    lm = scripted_lm(lambda prompt, request: fields(a="yes"), context=600)
    jobs = jobs_for(examples("short", "long " * 600, "brief"), 1, 0)
    first, long, last = rollout.run(Ask(), jobs, lm=lm, metric=one)
    assert [first.outcome, long.outcome, last.outcome] == ["completed", "interrupted", "completed"]
    assert (long.reward, long.calls) == (rollout.FAILURE_REWARD, ())
    assert "prompt of ask has" in long.error and "max_tokens 200" in long.error and "context of 600" in long.error
    assert rollout.score(long) == 0.0
    grouping = module_groups([first, long, last], padding="ragged", size=3, scale="group", rng=None)
    assert metrics_of([first, long, last], grouping)["format_failures"] == 0.0  # nothing failed to parse


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("Stop here.")])
def test_interrupt_in_one_run_ends_the_others(error):
    made = []

    def metric(example, prediction, trace=None):
        made.append(example.q)
        if example.q == "2":
            raise error
        return 1.0

    lm = scripted_lm(lambda prompt, request: fields(a="yes"), batch=2)  # four threads
    with pytest.raises(type(error)):
        rollout.run(Ask(), jobs_for(examples(*map(str, range(200))), 1, 0), lm=lm, metric=metric)
    assert len(made) <= 12
    assert [thread.name for thread in threading.enumerate() if "PoolExecutor" in thread.name] == []
    assert len(rollout.run(Ask(), jobs_for(examples(), 1, 0), lm=lm, metric=one)) == 3  # and it works again


def test_progress_bar_is_optional(capsys):
    run(Ask())
    assert capsys.readouterr().err == ""
    run(Ask(), progress="asking")
    assert "asking" in capsys.readouterr().err


def test_evaluation_is_greedy_and_makes_one_run_an_example():
    lm = scripted_lm(lambda prompt, request: fields(a="yes"))
    trajectories = rollout.evaluate(Ask(), examples(), policy=lm.policy, metric=one)
    assert len(trajectories) == 3
    assert {request.temperature for request in lm.policy.engine.sampler.requests} == {0.0}
    assert rollout.mean_score(trajectories) == 1.0


def test_evaluation_is_greedy_whatever_language_model_the_program_has():
    lm = scripted_lm(lambda prompt, request: fields(a="yes"))
    program = Pair()
    program.a.lm = own = lm.copy(temperature=0.8)
    rollout.evaluate(program, examples(), policy=lm.policy, metric=one)
    assert {request.temperature for request in lm.policy.engine.sampler.requests} == {0.0}
    assert (program.a.lm, program.b.lm) == (own, None) and own.kwargs["temperature"] == 0.8


def test_tokens_are_counted():
    lm = scripted_lm(lambda prompt, request: fields(a="yes"))
    trajectories = rollout.run(Pair(), jobs_for(examples(), 8, 0), lm=lm, metric=one)
    calls = [call for trajectory in trajectories for call in trajectory.calls]
    counted = lm.policy.engine.tokens
    assert counted["calls"] == len(calls) == 48
    assert counted["prompt"] == sum(len(call.prompt_ids) for call in calls)
    assert counted["completion"] == sum(len(call.completion_ids) for call in calls)
