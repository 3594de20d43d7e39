"""What the sampler draws against chance: a vocabulary of five, so that four thousand draws show each probability."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from factories import tiny_llama
from scipy.stats import chisquare

from mmgrpo.policy import sampler as sampler_module
from mmgrpo.policy.sampler import SamplingRequest, TreeSampler

PROMPT = (1, 4, 2)
DRAWS = 4000


def five_words():
    return tiny_llama(vocab_size=5, initializer_range=0.15, bos_token_id=None, eos_token_id=None)


def sampler():
    return TreeSampler(five_words(), (), DRAWS)


def probabilities(model, prompt, temperature):
    with torch.no_grad():
        return (model(input_ids=torch.tensor([prompt])).logits[0, -1].double() / temperature).softmax(-1).numpy()


def first_tokens(temperature=1.0, **changes):
    asked = [SamplingRequest(PROMPT, 1, temperature, seed=seed, **changes) for seed in range(DRAWS)]
    counts = Counter(one.ids[0] for one in sampler().generate(asked))
    return np.array([counts[token] for token in range(5)])


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_tokens_come_as_often_as_their_probability_says(temperature):
    expected = probabilities(five_words(), PROMPT, temperature) * DRAWS
    assert expected.min() > 5
    assert chisquare(first_tokens(temperature), expected).pvalue > 0.01


def test_pairs_of_tokens_come_as_often_as_their_probabilities_say():
    model = five_words()
    asked = [SamplingRequest(PROMPT, 2, 1.5, seed=seed) for seed in range(DRAWS)]
    counts = Counter(one.ids for one in sampler().generate(asked))
    first = probabilities(model, PROMPT, 1.5)
    expected = np.array([first[token] * probabilities(model, (*PROMPT, token), 1.5) for token in range(5)]) * DRAWS
    found = np.array([[counts[token, following] for following in range(5)] for token in range(5)])
    assert expected.min() > 5
    assert chisquare(found.ravel(), expected.ravel()).pvalue > 0.01


def test_top_k_and_top_p_keep_the_likeliest_tokens_in_proportion():
    likely = probabilities(five_words(), PROMPT, 1.0)
    order = np.argsort(-likely)
    for kept, changes in [
        (2, {"top_k": 2}),
        (2, {"top_p": likely[order[:2]].sum() - 0.01}),  # the smallest set that holds this much
        (3, {"top_p": likely[order[:2]].sum() + 0.01}),
        (1, {"top_p": 0.01}),
        (1, {"top_k": 2, "top_p": likely[order[0]] / likely[order[:2]].sum() - 0.01}),  # top-p of what top-k left
    ]:
        found = first_tokens(**changes)
        assert set(np.flatnonzero(found)) == set(order[:kept])
        if kept > 1:
            share = likely[order[:kept]] / likely[order[:kept]].sum()
            assert chisquare(found[order[:kept]], share * DRAWS).pvalue > 0.01


def test_draw_at_the_very_end_is_a_token_that_is_allowed():
    logits = torch.tensor([[0.0, 1.0, 2.0, -200.0]]).repeat(2, 1)
    rows = [sampler_module._Row(SamplingRequest((1,), 5, 1.0, top_k=top_k)) for top_k in (None, 2)]
    for each in rows:
        each.noise = SimpleNamespace(random=lambda: 1 - 2**-53)  # 1 in float32
    assert [token for token, _ in sampler_module._choose(logits, rows)] == [2, 2]


def test_logprobs_are_of_the_whole_vocabulary_whatever_is_cut():
    one = sampler().generate([SamplingRequest(PROMPT, 1, 0.7, top_k=2)])[0]
    assert one.logprobs[0] == pytest.approx(np.log(probabilities(five_words(), PROMPT, 0.7)[one.ids[0]]), abs=1e-5)
