"""What is trained is what was sampled, token for token, on a policy of random weights."""

from dataclasses import replace

import dspy
import pytest
import torch
from factories import shake
from tiny_policy import RawAdapter, tiny_policy
from training_setup import TRAIN, Pair, Spy, compile_, fresh, noise, optimizer, same, weights

from mmgrpo import rollout, trainer
from mmgrpo.logprobs import completion_logprobs
from mmgrpo.policy.sampler import TreeSampler
from mmgrpo.rollout import jobs_for
from mmgrpo.training_run import TrainingRun

pytestmark = pytest.mark.usefixtures("nothing_but_training", "temporary_folders_go")


class Single(dspy.Module):
    def __init__(self):
        super().__init__()
        self.a = dspy.Predict("q -> t")

    def forward(self, q):
        return self.a(q=q)


def some(text):
    """Which replies are refused: about half, whatever they say."""
    return sum(map(ord, text)) % 2 == 0


@pytest.mark.parametrize("level", ["module", "trajectory"])
def test_loss_covers_the_sampled_tokens_and_no_other(monkeypatch, level):
    losses, runs = Spy(monkeypatch, trainer, "policy_loss"), Spy(monkeypatch, rollout, "run")
    program = Pair()
    program.b.demos = [dspy.Example(q="a demonstration", t="its answer")]
    log = compile_(tiny_policy(), optimizer(level=level, steps=1, padding="ragged"), program, refuse=some).training_log
    calls = [call for run in runs.calls[0][2] for call in run.calls]
    assert {call.status for call in calls} == {"ok", "truncated"}  # unparsed replies are among them
    assert log.curve[0]["groups/kept"] == (2 if level == "trajectory" else 6)  # of 2 inputs; of a once, of b twice
    weights_given = torch.cat([args[4] for args, _, _ in losses.calls])
    assert len(weights_given) == sum(len(call.completion_ids) for call in calls)
    assert float(weights_given.sum()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("modules", [(), ("a", "b")])
def test_trainer_and_sampler_agree_on_every_token(modules):
    program = Pair()
    program.b.demos = [dspy.Example(q="a demonstration", t="its answer"), dspy.Example(q="another", t="[[ ## t ## ]]")]
    policy = tiny_policy()
    policy.attach_adapters(modules)
    shake(policy.trainable(), seed=1)  # as if trained for a while
    policy.sync()
    with dspy.context(adapter=RawAdapter(some)):
        lm = policy.lm(temperature=0.7, top_p=0.9, top_k=50)
        runs = rollout.run(program, jobs_for(TRAIN, 3, 0), lm=lm, metric=noise)
    for module in ("a", "b"):
        calls = [call for run in runs for call in run.calls if call.module == module]
        policy.activate(module)
        trained = completion_logprobs(policy.trainable(), calls)
        sampled = torch.tensor([value for call in calls for value in call.logprobs])
        assert (trained - sampled).abs().max() < 1e-3
    assert any(run.outcome == "interrupted" for run in runs) and any(run.outcome == "completed" for run in runs)


def test_log_says_how_far_trainer_and_sampler_are_apart():
    log = compile_(tiny_policy(), optimizer(), refuse=some).training_log
    assert all(entry["sampler_mismatch"] < 1e-3 for entry in log.curve)


def test_tokens_that_the_sampler_found_less_likely_count_more_up_to_the_cap(monkeypatch):
    """A sampler that reports every log-probability by 1 too low: the ratio e is capped at 2."""
    honest = TreeSampler._generate_batch

    def low(sampler, requests):
        return [replace(one, logprobs=tuple(p - 1 for p in one.logprobs)) for one in honest(sampler, requests)]

    monkeypatch.setattr(TreeSampler, "_generate_batch", low)
    off, on, high = (
        compile_(tiny_policy(), optimizer(steps=1, importance_cap=cap)).training_log.curve[0]
        for cap in (None, 2.0, 9.0)
    )
    assert on["grad_norm"] / off["grad_norm"] == pytest.approx(2.0, rel=1e-4)
    assert high["grad_norm"] / off["grad_norm"] == pytest.approx(2.7183, rel=1e-3)
    assert [entry["truncated"] for entry in (off, on, high)] == pytest.approx([0, 1, 0])
    assert off["sampler_mismatch"] == pytest.approx(1, abs=1e-3)


def test_kl_is_zero_before_the_first_update_and_positive_after():
    for adapters in ("shared", "per_module"):
        log = compile_(tiny_policy(), optimizer(beta=0.1, adapters=adapters)).training_log
        assert log.curve[0]["kl"] == 0.0
        assert log.curve[1]["kl"] > 1e-6


def test_module_and_trajectory_level_are_one_for_a_program_of_one_call():
    found = []
    for level in ("module", "trajectory"):
        policy = tiny_policy()
        compile_(policy, optimizer(level=level), Single())
        found.append(weights(policy))
    assert same(*found)
    assert not same(found[0], fresh())


def test_cispo_is_grpo_in_the_first_step_on_new_rollouts():
    found = []
    for objective in ("grpo", "cispo"):
        policy = tiny_policy()
        compile_(policy, optimizer(objective=objective, steps=1))
        found.append(weights(policy))
    for name, value in found[0].items():
        assert torch.allclose(value, found[1][name], atol=1e-6)
    assert not same(found[0], fresh())


def test_second_iteration_compares_with_the_policy_that_sampled(monkeypatch):
    losses, collected = Spy(monkeypatch, trainer, "policy_loss"), Spy(monkeypatch, TrainingRun, "collect")
    monkeypatch.setattr(TrainingRun, "collect", lambda run, step: collected(run, step))
    log = compile_(tiny_policy(), optimizer(iterations=2)).training_log
    assert [args[1] for args, _, _ in collected.calls] == [0, 1]
    assert [entry["step"] for entry in log.curve] == [1, 2, 3, 4]
    assert [entry.get("rollouts") for entry in log.curve] == [6, None, 6, None]  # sampled once for two updates
    (now, before), (then, old) = ((args[0].detach(), args[1]) for args, _, _ in losses.calls[:2])
    assert torch.allclose(now, before, atol=1e-6)
    assert torch.equal(before, old)
    assert (then - old).abs().max() > 1e-4


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_passes_know_the_type_that_they_run_in(monkeypatch, precision):
    asked = []

    def spy(*given):
        asked.append(torch.is_autocast_enabled("cpu"))
        return completion_logprobs(*given)

    monkeypatch.setattr(trainer, "completion_logprobs", spy)
    compile_(tiny_policy(precision=precision), optimizer(steps=1))
    assert asked and set(asked) == {precision == "bf16"}
