"""The sampler against transformers' own generate, and against the trainer's log-probabilities."""

import copy
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from factories import random_ids, row, shake, tiny_llama, tiny_mistral, tiny_qwen3, with_lora
from tiny_policy import tiny_policy

from mmgrpo.errors import UserError
from mmgrpo.logprobs import completion_logprobs
from mmgrpo.policy import copy_in
from mmgrpo.policy import sampler as sampler_module
from mmgrpo.policy.key_values import _alike
from mmgrpo.policy.sampler import SamplingRequest, TreeSampler

STOPS = tuple(range(10, 20))  # a tenth of the vocabulary, so that both ends of a completion occur
MODELS = {"llama": tiny_llama, "qwen3": tiny_qwen3}


def sampler_of(model, batch=64):
    return TreeSampler(copy.deepcopy(model), STOPS, batch)


def generated(model, request):
    """Greedy continuation by transformers, the prompt alone in its batch."""
    prompt = torch.tensor([request.prompt_ids])
    out = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=request.max_tokens,
        eos_token_id=list(STOPS), pad_token_id=0,
    )  # fmt: skip
    return tuple(out[0, len(request.prompt_ids) :].tolist())


def prompts(kind):
    trunk = random_ids(14, 0)
    return {
        "one": [trunk],
        "shared trunk": [trunk + random_ids(length, length) for length in (1, 9, 4, 30, 2)],
        "nothing shared": [random_ids(length, length) for length in (3, 12, 1, 25, 7)],
        "nested": [trunk, trunk + random_ids(6, 1), trunk[:5], trunk, trunk[:1]],
    }[kind]


def greedy(prompt, max_tokens=24, **changes):
    return SamplingRequest(tuple(prompt), max_tokens, 0.0, **changes)


def sampled_requests():
    """Requests that share much, a little or nothing, of many lengths, temperatures and truncations."""
    choices = [{}, {"top_p": 0.8}, {"top_k": 5}, {"top_p": 0.9, "top_k": 20}]
    every = [prompt for kind in ("shared trunk", "nothing shared", "nested") for prompt in prompts(kind)]
    return [
        SamplingRequest(
            tuple(prompt), 5 + 3 * (place % 5), (0.6, 1.0, 1.4)[place % 3], seed=place, **choices[place % 4]
        )
        for place, prompt in enumerate(every)
    ]


def assert_same_completions(found, expected):
    assert [one.ids for one in found] == [one.ids for one in expected]
    assert [one.finish for one in found] == [one.finish for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.parametrize("kind", ["one", "shared trunk", "nothing shared", "nested"])
@pytest.mark.parametrize("name", MODELS)
def test_greedy_is_what_transformers_generates(name, kind):
    model = MODELS[name]()
    requests = [greedy(prompt, max_tokens=8 + 4 * place) for place, prompt in enumerate(prompts(kind))]
    completions = sampler_of(model).generate(requests)
    assert [one.ids for one in completions] == [generated(model, request) for request in requests]


def test_attention_is_scaled_as_the_model_says():
    model = tiny_llama()
    for layer in model.model.layers:
        layer.self_attn.scaling = 1.0  # instead of one over the root of the head size
    requests = [greedy(prompt) for prompt in prompts("nested")]
    found = [one.ids for one in sampler_of(model).generate(requests)]
    assert found == [generated(model, request) for request in requests]


def test_prefill_in_many_blocks_changes_nothing(monkeypatch):
    requests = sampled_requests()
    whole = sampler_of(tiny_llama()).generate(requests)
    monkeypatch.setattr(sampler_module, "PREFILL_BLOCK", 4)
    assert_same_completions(sampler_of(tiny_llama()).generate(requests), whole)


def test_completion_ends_at_a_stop_token_or_at_its_limit():
    requests = sampled_requests()
    completions = sampler_of(tiny_llama()).generate(requests)
    assert {one.finish for one in completions} == {"stop", "length"}
    for request, one in zip(requests, completions, strict=True):
        assert len(one.ids) == len(one.logprobs)
        assert not set(one.ids[:-1]) & set(STOPS)
        if one.finish == "stop":
            assert one.ids[-1] in STOPS
            assert len(one.ids) <= request.max_tokens
        else:
            assert one.ids[-1] not in STOPS
            assert len(one.ids) == request.max_tokens


def test_stop_token_at_the_limit_is_a_stop():
    first = sampler_of(tiny_llama()).generate([greedy(random_ids(4, 0), max_tokens=1)])[0]
    stopped = TreeSampler(tiny_llama(), first.ids, 8).generate([greedy(random_ids(4, 0), max_tokens=1)])[0]
    assert (first.finish, stopped.finish) == ("length", "stop")
    assert first.ids == stopped.ids


@pytest.mark.parametrize("name", MODELS)
def test_logprobs_are_those_that_the_trainer_computes(name):
    model = MODELS[name]()
    requests = sampled_requests() + [greedy(prompt) for prompt in prompts("nested")]
    completions = sampler_of(model).generate(requests)
    rows = [
        row(request.prompt_ids, one.ids, request.temperature or 1.0)  # greedy tokens are scored at temperature 1
        for request, one in zip(requests, completions, strict=True)
    ]
    with torch.no_grad():
        expected = completion_logprobs(model, rows)
    assert [p for one in completions for p in one.logprobs] == pytest.approx(expected.tolist(), abs=1e-4)


def test_result_of_a_request_does_not_depend_on_its_batch():
    requests = sampled_requests()
    together = sampler_of(tiny_llama()).generate(requests)
    alone = [sampler_of(tiny_llama()).generate([request])[0] for request in requests]
    assert_same_completions(together, alone)
    for batch in (1, 4):
        assert_same_completions(sampler_of(tiny_llama(), batch).generate(requests), alone)


def test_long_prompt_changes_nothing_for_short_ones_and_does_not_pad_them(monkeypatch):
    trunk = random_ids(40, 0)
    asked = [greedy(trunk + random_ids(length, length)) for length in (3, 5, 8, 64, 90, 500)]
    sampler, read = sampler_of(tiny_llama()), []

    def watched(memory, *given, decode=sampler._decode):
        read.append([tuple(rests.keys.shape[2:4]) for rests in memory.rests])
        return decode(memory, *given)

    monkeypatch.setattr(sampler, "_decode", watched)
    assert_same_completions(sampler.generate(asked), [sampler_of(tiny_llama()).generate([one])[0] for one in asked])
    assert read[0] == [(1, 500), (2, 90), (3, 8)]
    assert len(read[-1]) < len(read[0])


@pytest.mark.parametrize(
    "lengths, expected",
    [
        ([5], [[0]]),
        ([1, 64, 30], [[1, 2, 0]]),
        ([100, 51, 50, 49], [[0, 1, 2], [3]]),
        ([10, 7000, 200, 110, 3400, 150], [[1], [4], [2, 5, 3], [0]]),
    ],
)
def test_prompts_of_like_length_are_read_together(lengths, expected):
    assert [group.tolist() for group in _alike(np.array(lengths))] == expected


@pytest.mark.parametrize("right", [0, 1, 2, 99])
def test_guesses_save_passes_and_change_nothing(monkeypatch, right):
    requests = [*sampled_requests(), *(greedy(prompt, seed=99) for prompt in prompts("nothing shared"))]
    sampler, passes = sampler_of(tiny_llama()), []
    expected = sampler.generate(requests)
    coming = {request: one.ids for request, one in zip(requests, expected, strict=True)}

    def partly_right(row, most):
        rest = coming[row.request][len(row.ids) :]
        return [*rest[:right], *((token + 1) % 90 for token in rest[right:])][: min(most, row.room())]

    def counted(*given, decode=sampler._decode):
        passes.append(given)
        return decode(*given)

    monkeypatch.setattr(sampler_module, "PASS", 10_000)
    monkeypatch.setattr(sampler, "_decode", counted)
    monkeypatch.setattr(sampler_module._Row, "guess", partly_right)
    assert_same_completions(sampler.generate(requests), expected)
    longest = max(map(len, coming.values()))
    assert len(passes) <= math.ceil((longest - 1) / (1 + right)) + (right > 0)


def test_result_of_a_request_does_not_depend_on_the_order():
    requests = sampled_requests()
    order = random.Random(0).sample(range(len(requests)), len(requests))
    sampler = sampler_of(tiny_llama())
    in_order = sampler.generate(requests)
    permuted = sampler.generate([requests[index] for index in order])
    assert_same_completions(permuted, [in_order[index] for index in order])


def test_seed_decides_the_completion_and_zero_is_a_seed():
    ask = SamplingRequest(random_ids(6, 0), 12, 1.0, seed=0)
    first, again, other = sampler_of(tiny_llama()).generate([ask, ask, replace(ask, seed=1)])
    assert first == again
    assert first.ids != other.ids


def test_top_k_of_one_is_greedy():
    asked = [greedy(prompt) for prompt in prompts("nested")]
    warm = [replace(request, temperature=1.3, top_k=1, seed=9) for request in asked]
    sampler = sampler_of(tiny_llama())
    assert [one.ids for one in sampler.generate(warm)] == [one.ids for one in sampler.generate(asked)]


def test_no_requests_give_no_completions():
    assert sampler_of(tiny_llama()).generate([]) == []


def decode(ids):
    return "".join(chr(ord("A") + token % 26) for token in ids)


def test_completion_ends_with_the_stop_text():
    prompt = random_ids(6, 3)
    sampler = TreeSampler(tiny_llama(), (), 8, decode=decode)
    whole = sampler.generate([greedy(prompt, max_tokens=12)])[0]
    marker = decode(whole.ids[4:7])
    (cut,) = sampler.generate([greedy(prompt, max_tokens=12, stop=marker)])
    assert cut.finish == "stop" and decode(cut.ids).endswith(marker)
    assert cut.ids == whole.ids[: len(cut.ids)] and len(cut.ids) <= 7


def passed_tokens(sampler, requests):
    """How many tokens go through the model for some requests, and the completions."""
    passed = []
    hook = sampler.model.register_forward_pre_hook(
        lambda module, args, kwargs: passed.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    completions = sampler.generate(requests)
    hook.remove()
    return sum(passed), completions


def test_common_prefix_is_computed_once_for_all_batches():
    trunk = random_ids(60, 0)
    first, second = (
        [greedy(trunk + random_ids(5, seed), max_tokens=1) for seed in seeds] for seeds in ((1, 2, 3), (4, 5, 6))
    )
    sampler = sampler_of(tiny_llama())
    fresh, _ = passed_tokens(sampler, first)
    again, completions = passed_tokens(sampler, second)
    assert (fresh, again) == (60 + 15, 15)
    assert_same_completions(completions, sampler_of(tiny_llama()).generate(second))


def test_kept_prefix_goes_with_its_weights():
    model = tiny_llama()
    policy = with_lora(model)
    asked = [greedy(random_ids(60, 0) + random_ids(5, seed)) for seed in (1, 2)]
    sampler = sampler_of(model)
    sampler.generate(asked)
    shake(policy, 1)
    sampler.follow(policy)
    assert [one.ids for one in sampler.generate(asked)] == [generated(policy, request) for request in asked]


def test_followed_policy_answers_with_its_lora_weights():
    model = tiny_llama()
    policy = with_lora(model)
    sampler = sampler_of(model)
    asked = [greedy(prompt) for prompt in prompts("shared trunk")]
    before = sampler.generate(asked)
    for seed in (1, 2):  # and after an update, with the new ones alone
        shake(policy, seed)
        sampler.follow(policy)
        found = [one.ids for one in sampler.generate(asked)]
        assert found == [generated(policy, request) for request in asked]
        assert found != [one.ids for one in before]


def test_each_module_is_answered_with_its_own_adapter():
    model = tiny_llama()
    policy = with_lora(model, "plan", "write")
    sampler = sampler_of(model)
    sampler.follow(policy)
    asked = [greedy(prompt, adapter=("plan", "write")[place % 2]) for place, prompt in enumerate(prompts("nested"))]
    completions = sampler.generate(asked)
    for request, one in zip(asked, completions, strict=True):
        policy.set_adapter(request.adapter)
        assert one.ids == generated(policy, request)
    swapped = sampler.generate([replace(asked[0], adapter="write")])[0]
    assert swapped.ids != completions[0].ids


def test_saved_adapter_answers_as_it_did_in_training(tmp_path):
    model = tiny_llama()
    policy = with_lora(model)
    asked = greedy(random_ids(9, 0))
    expected = generated(policy, asked)
    policy.save_pretrained(tmp_path)
    sampler = TreeSampler(copy.deepcopy(model), STOPS, 8, model)
    assert sampler.generate([replace(asked, weights=tmp_path)])[0].ids == expected
    assert sampler.generate([asked])[0].ids == generated(model, asked) != expected  # untrained again
    shake(policy, 1)  # trained on since
    sampler.follow(policy)
    trained, saved = sampler.generate([asked, replace(asked, weights=tmp_path)])
    assert saved.ids == expected
    assert trained.ids == generated(policy, asked) != expected


def test_saved_adapters_of_modules_answer_for_their_module(tmp_path):
    model = tiny_llama()
    policy = with_lora(model, "plan", "write")
    policy.save_pretrained(tmp_path)
    sampler = TreeSampler(copy.deepcopy(model), STOPS, 8, model)
    modules = ("plan", "write")
    asked = [greedy(random_ids(9, 0), weights=tmp_path / name) for name in modules]
    for name, request, one in zip(modules, asked, sampler.generate(asked), strict=True):
        policy.set_adapter(name)
        assert one.ids == generated(policy, request)


def test_copy_for_sampling_has_other_weights_and_the_same_rotary_frequencies():
    model = tiny_llama(tie_word_embeddings=True)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    copied = copy_in(model, torch.bfloat16)
    assert all(torch.equal(weight, weights[name].bfloat16()) for name, weight in copied.state_dict().items())
    assert torch.equal(copied.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
    assert copied.lm_head.weight is copied.model.embed_tokens.weight
    for weight in copied.parameters():
        weight.data.zero_()
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())


def test_policy_samples_with_the_rotary_frequencies_that_it_trains_with():
    assert tiny_policy(precision="bf16").sampler.model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_bf16_sampler_stays_near_the_trainer():
    model = tiny_llama()
    requests = sampled_requests()
    completions = TreeSampler(copy_in(model, torch.bfloat16), STOPS, 64).generate(requests)
    rows = [row(asked.prompt_ids, one.ids, asked.temperature) for asked, one in zip(requests, completions, strict=True)]
    with torch.no_grad():
        expected = completion_logprobs(model, rows).numpy()
    found = np.array([p for one in completions for p in one.logprobs])
    assert 0 < np.abs(found - expected).mean() < 0.1


def test_sampler_leaves_the_followed_policy_as_it_is():
    policy = with_lora(tiny_llama())
    before = {name: weight.clone() for name, weight in policy.state_dict().items()}
    sampler = sampler_of(tiny_llama())
    sampler.follow(policy)
    sampler.generate([greedy(random_ids(5, 0))])
    assert all(torch.equal(weight, before[name]) for name, weight in policy.state_dict().items())
    assert any(weight.requires_grad for weight in policy.parameters())


def test_model_with_a_sliding_window_is_refused():
    with pytest.raises(UserError, match="MistralForCausalLM has sliding-window"):
        TreeSampler(tiny_mistral(window=6), STOPS, 8)
