"""A real vLLM engine and a real vLLM server against the project's own sampler and trainer. `make test-vllm` runs it."""

import copy
import multiprocessing
import os
import socket
import subprocess
import sys
import time

import dspy
import httpx
import pytest
import torch
from factories import random_ids, row, shake, with_lora
from tiny_policy import RawAdapter, tiny_model, tokenizer

from mmgrpo import policy as policies
from mmgrpo import rollout
from mmgrpo.errors import UserError
from mmgrpo.logprobs import completion_logprobs
from mmgrpo.optimizer import MMGRPO
from mmgrpo.policy import Policy
from mmgrpo.policy.remote import RemoteSampler
from mmgrpo.policy.sampler import SamplingRequest, TreeSampler
from mmgrpo.policy.vllm import VLLMSampler
from mmgrpo.settings import GRPOSettings, PolicySettings, SamplingSettings

pytestmark = pytest.mark.vllm
QUESTIONS = [dspy.Example(q=f"question {place}").with_inputs("q") for place in range(4)]
SETTINGS = PolicySettings(
    precision="fp32", context=1024, max_tokens=8, batch=16, lora_rank=4, lora_alpha=16, sampler="vllm"
)


def test_missing_vllm_is_named(monkeypatch):
    monkeypatch.setattr(policies, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="vLLM is not installed: install the extra `gpu`"):
        policies._vllm("tiny", "tiny", None, [2], SETTINGS, 0)


@pytest.fixture(scope="module")
def model():
    """Heads of 32 dimensions are the narrowest that vLLM's attention on CPUs takes."""
    return tiny_model(hidden_size=128, intermediate_size=64)


@pytest.fixture(scope="module")
def folder(request, tmp_path_factory):
    """Where the model lies for vLLM."""
    pytest.importorskip("vllm", reason="vLLM is not installed; `make test-vllm` makes an environment that has it")
    place = tmp_path_factory.mktemp("model")
    request.getfixturevalue("model").save_pretrained(place)
    tokenizer().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def sampler(folder):
    """One engine for all tests: it takes half a minute to start."""
    return VLLMSampler(folder, [2], SETTINGS, dtype=torch.float32)


@pytest.fixture(scope="module")
def server(folder):
    """The address of a server with the same model."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = (
        f"--model {folder} --served-model-name tiny --port {port} --dtype float32 --max-model-len 1024 --enforce-eager "
        "--enable-lora --max-loras 2 --max-lora-rank 8 --logprobs-mode processed_logprobs --generation-config vllm "
        f"--kv-cache-memory-bytes {1 << 30} --gpu-memory-utilization 0.3"
    )
    changes = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    # `vllm serve` asks for the version of a package named vllm, which the build for CPUs is not.
    process = subprocess.Popen(
        [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *command.split()], env=os.environ | changes
    )
    try:
        while not healthy(address):
            assert process.poll() is None, "the server could not start"
            time.sleep(1)
        yield address
    finally:
        process.terminate()
        process.wait()


def healthy(address):
    try:
        return httpx.get(f"{address}/health").is_success
    except httpx.TransportError:
        return False


@pytest.fixture(autouse=True)
def original_weights(request):
    """No test sees the adapters of another."""
    if "sampler" in request.fixturenames:
        request.getfixturevalue("sampler")._adapters._current = {}


def tree_sampler(model):
    return TreeSampler(copy.deepcopy(model), [2], 16, model)


def greedy(**changes):
    return [SamplingRequest(random_ids(length, length), 8, 0.0, **changes) for length in (1, 5, 40, 200)]


def sampled(temperature=0.7, **changes):
    return [SamplingRequest(random_ids(9, seed), 8, temperature, seed=seed, **changes) for seed in range(12)]


def trained_logprobs(model, requests, completions):
    """The trainer's log-probabilities, without any truncation."""
    rows = [
        row(asked.prompt_ids, one.ids, asked.temperature or 1.0)
        for asked, one in zip(requests, completions, strict=True)
    ]
    with torch.no_grad():
        return completion_logprobs(model, rows).tolist()


def flat(completions):
    return [value for one in completions for value in one.logprobs]


def assert_same(completions, expected):
    assert [(one.ids, one.finish) for one in completions] == [(one.ids, one.finish) for one in expected]
    assert flat(completions) == pytest.approx(flat(expected), abs=2e-3)


def test_greedy_completions_and_logprobs_are_those_of_the_own_sampler(sampler, model):
    assert_same(sampler.generate(greedy()), tree_sampler(model).generate(greedy()))
    assert sampler.generate([]) == []


def test_mixed_batch_of_greedy_and_sampled_requests(sampler, model):
    asked = [*greedy(), *sampled()]
    found = sampler.generate(asked)
    assert [one.ids for one in found[:4]] == [one.ids for one in tree_sampler(model).generate(greedy())]
    assert flat(found) == pytest.approx(trained_logprobs(model, asked, found), abs=2e-3)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.5])
def test_logprobs_are_those_that_the_trainer_computes(sampler, model, temperature):
    asked = sampled(temperature)
    found = sampler.generate(asked)
    assert len({one.ids for one in found}) == len(found)
    assert flat(found) == pytest.approx(trained_logprobs(model, asked, found), abs=2e-3)


def test_logprobs_are_of_what_top_k_left(sampler, model):
    asked = sampled(1.0, top_k=2)
    found = sampler.generate(asked)
    for request, one in zip(asked, found, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*request.prompt_ids, *one.ids[:-1]]])).logits[
                0, len(request.prompt_ids) - 1 :
            ]
        values, tokens = logits.topk(2, dim=-1)
        for token, logprob, kept, scores in zip(one.ids, one.logprobs, tokens, values.log_softmax(-1), strict=True):
            assert logprob == pytest.approx(scores[kept.tolist().index(token)].item(), abs=2e-3)


def test_completion_ends_at_a_stop_token_which_is_its_last(sampler, model):
    asked = greedy()
    whole = sampler.generate(asked)
    assert {one.finish for one in whole} == {"length"}
    honest, sampler.stop_ids = sampler.stop_ids, [whole[0].ids[3]]
    try:
        stopped = sampler.generate(asked)[0]
    finally:
        sampler.stop_ids = honest
    first = whole[0].ids.index(whole[0].ids[3])
    assert (stopped.ids, stopped.finish) == (whole[0].ids[: first + 1], "stop")


def test_each_version_of_the_policy_answers_with_its_own_weights(sampler, model):
    policy, own = with_lora(model), tree_sampler(model)
    answers = [sampler.generate(greedy())]
    for seed in (1, 2):
        shake(policy, seed)
        for one in (sampler, own):
            one.follow(policy)
        answers.append(sampler.generate(greedy()))
        assert_same(answers[-1], own.generate(greedy()))
    assert answers[0] != answers[1] != answers[2]


def test_modules_and_saved_adapters_answer_in_one_batch(sampler, model, tmp_path):
    policy, own = with_lora(model, "plan", "write"), tree_sampler(model)
    policy.save_pretrained(tmp_path)
    saved = greedy(weights=tmp_path / "plan")
    before = own.generate(saved)
    shake(policy, 1)
    for one in (sampler, own):
        one.follow(policy)
    asked = [*greedy(adapter="plan"), *greedy(adapter="write"), *greedy(adapter="unknown"), *saved]
    found = sampler.generate(asked)
    assert_same(found, own.generate(asked))
    assert_same(found[-4:], before)


def test_engine_that_died_is_started_again(sampler, model):
    expected = sampler.generate(greedy())
    (engine,) = [child for child in multiprocessing.active_children() if "EngineCore" in child.name]
    engine.kill()
    engine.join()
    assert_same(sampler.generate(greedy()), expected)


def kinds_of_letters(example, prediction, trace=None):
    return float(len(set(prediction.t)))


def short_training(**changes):
    settings = GRPOSettings(
        inputs=2, rollouts=4, group_size=4, learning_rate=0.03, warmup_steps=0, beta=0.0, importance_cap=2.0,
        max_grad_norm=1.0, **changes,
    )  # fmt: skip
    return MMGRPO(kinds_of_letters, settings=settings, sampling=SamplingSettings(temperature=1.0))


def test_training_run_with_vllm_as_its_sampler(sampler, model):
    policy = Policy("tiny", copy.deepcopy(model), tokenizer(), SETTINGS, 0, sampler)
    with dspy.context(lm=policy.lm(), adapter=RawAdapter()):
        log = short_training(steps=3).compile(dspy.Predict("q -> t"), trainset=QUESTIONS).training_log
    assert len(log.curve) == 3 and all(entry["sampler_mismatch"] < 1e-2 for entry in log.curve)
    assert any("lora_B" in name and weight.norm() > 0 for name, weight in policy.trainable().named_parameters())


def test_validation_samples_with_vllm_too(sampler, model):
    policy = Policy("tiny", copy.deepcopy(model), tokenizer(), SETTINGS, 0, sampler)
    by_us = TreeSampler(copy.deepcopy(model), [2], 16, model, tokenizer().decode)
    own = Policy("tiny", copy.deepcopy(model), tokenizer(), SETTINGS, 0, by_us)
    with dspy.context(lm=policy.lm(), adapter=RawAdapter()):
        how = short_training(steps=1, validate_every=1)
        log = how.compile(dspy.Predict("q -> t"), trainset=QUESTIONS, valset=QUESTIONS).training_log
        runs = rollout.evaluate(dspy.Predict("q -> t"), QUESTIONS, policy=own, metric=kinds_of_letters)
    assert [entry["step"] for entry in log.validation] == [0, 1]
    assert log.validation[0]["score"] == pytest.approx(rollout.mean_score(runs))


def test_server_answers_as_the_own_sampler_and_trainer_do(server, model, tmp_path):
    remote, own, policy = RemoteSampler([server], "tiny", [2], 8, tmp_path), tree_sampler(model), with_lora(model)
    assert_same(remote.generate(greedy()), own.generate(greedy()))
    asked = sampled()
    found = remote.generate(asked)
    assert flat(found) == pytest.approx(trained_logprobs(model, asked, found), abs=2e-3)
    for seed in (1, 2):
        shake(policy, seed)
        for one in (remote, own):
            one.follow(policy)
        assert_same(remote.generate(greedy()), own.generate(greedy()))
