"""Validation, the adapter that comes back, and adapters of modules."""

import dataclasses
import json

import dspy
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_policy import RawAdapter, tiny_model, tiny_policy
from training_setup import VALID, Pair, compile_, fresh, noise, optimizer, same, weights

from mmgrpo import rollout, study
from mmgrpo.policy.merging import adapter_name
from mmgrpo.training_run import TrainingRun

pytestmark = pytest.mark.usefixtures("nothing_but_training", "temporary_folders_go")


def test_validation_scores_the_weights_after_its_step(monkeypatch, tmp_path):
    policy, seen = tiny_policy(), []
    original = rollout.evaluate

    def evaluate(*args, **kwargs):
        runs = original(*args, **kwargs)
        name = "model.layers.1.mlp.up_proj"
        layer = policy.trainable().get_base_model().get_submodule(name)
        merged = layer.get_base_layer().weight + layer.get_delta_weight("default")
        assert torch.allclose(policy.sampler.model.get_submodule(name).weight, merged, atol=1e-6)
        seen.append(weights(policy))
        return runs

    monkeypatch.setattr(rollout, "evaluate", evaluate)
    compile_(policy, optimizer(folder=tmp_path, validate_every=1), valset=VALID)
    assert len(seen) == 3
    assert same(seen[0], fresh())
    for step in (1, 2):
        stored = load_file(tmp_path / f"checkpoint-{step}" / "adapter_model.safetensors")
        assert same({f"default/{name}": value for name, value in stored.items()}, seen[step])
        assert not same(seen[step - 1], seen[step])


@pytest.mark.parametrize("scores", [(0.1, 0.9, 0.2), (0.5, 0.1, 0.2), (0.3, 0.3, 0.3), (0.1, 0.2, 0.3)])
def test_adapter_with_the_best_score_comes_back(monkeypatch, scores):
    policy, seen, left = tiny_policy(), [], iter(scores)

    def mean_score(runs):
        seen.append(weights(policy))
        return next(left)

    monkeypatch.setattr(rollout, "mean_score", mean_score)
    program = compile_(policy, optimizer(validate_every=1), valset=VALID)
    best = scores.index(max(scores))  # the earliest of equals
    assert program.training_log.best == {"step": best, "score": scores[best]}
    assert [entry["score"] for entry in program.training_log.validation] == list(scores)
    assert same(seen[best], weights(policy))


def test_without_a_validation_set_the_last_adapter_comes_back(tmp_path):
    policy = tiny_policy()
    log = compile_(policy, optimizer(folder=tmp_path)).training_log
    stored = load_file(tmp_path / "checkpoint-2" / "adapter_model.safetensors")
    assert same({f"default/{name}": value for name, value in stored.items()}, weights(policy))
    assert (log.best, log.validation) == ({"step": 2.0}, ())


@pytest.mark.parametrize("adapters", ["shared", "per_module"])
def test_adapters_are_peft_folders_that_a_fresh_model_loads(adapters):
    policy = tiny_policy()
    log = compile_(policy, optimizer(adapters=adapters)).training_log
    ids = torch.tensor([[5, 6, 7, 8]])
    for module in ("a", "b"):
        folder = log.adapter / adapter_name(module) if adapters == "per_module" else log.adapter
        loaded = PeftModel.from_pretrained(tiny_model(), folder).eval()
        policy.activate(module)
        ours = policy.trainable().eval()
        assert torch.allclose(loaded(input_ids=ids).logits, ours(input_ids=ids).logits, atol=1e-5)


@pytest.mark.parametrize("adapters", ["shared", "per_module"])
def test_returned_program_answers_with_its_adapter_in_plain_dspy(adapters):
    policy = tiny_policy()
    with dspy.context(adapter=RawAdapter()):
        program = compile_(policy, optimizer(adapters=adapters, learning_rate=0.1))
        plain = [program(q=example.q).t for example in VALID]
        runs = rollout.evaluate(program, VALID, policy=policy, metric=noise)
        assert [run.prediction.t for run in runs] == plain
        with dspy.context(lm=tiny_policy().lm()):
            assert [Pair()(q=example.q).t for example in VALID] != plain


def test_state_of_the_returned_program_can_be_stored():
    program = compile_(tiny_policy(), optimizer(steps=1))
    state = json.loads(json.dumps(study._state(program)))
    again = Pair()
    again.load_state(state)
    assert again.a.signature.instructions == program.a.signature.instructions


# Separate adapters


def test_no_name_of_a_module_is_a_bad_name_of_an_adapter(recwarn):
    modules = ["a", "lora", "default", "keys", "search.predict", "search_predict"]
    policy = tiny_policy()
    policy.attach_adapters(modules)
    assert len({policy.adapter_of(module) for module in modules} | {"default"}) == len(modules) + 1
    assert [str(each.message) for each in recwarn if "dapter name" in str(each.message)] == []


def test_group_updates_the_adapter_of_its_module_alone(monkeypatch):
    original = TrainingRun.collect

    def only_a(run, step):
        batch = original(run, step)
        return dataclasses.replace(batch, rows=tuple(row for row in batch.rows if row.module == "a"))

    monkeypatch.setattr(TrainingRun, "collect", only_a)
    policy = tiny_policy()
    compile_(policy, optimizer(adapters="per_module", beta=0.1))
    before, after = fresh(("a", "b")), weights(policy)
    a, b = adapter_name("a"), adapter_name("b")
    assert same({n: v for n, v in before.items() if n.startswith(f"{b}/")}, weights(policy, b))
    assert not any(torch.equal(before[name], after[name]) for name in before if name.startswith(f"{a}/"))


def test_every_module_with_a_group_is_trained():
    policy = tiny_policy()
    compile_(policy, optimizer(adapters="per_module"))
    before, after = fresh(("a", "b")), weights(policy)
    assert not any(torch.equal(before[name], after[name]) for name in before)
