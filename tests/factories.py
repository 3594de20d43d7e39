"""Calls, runs, rows and models small enough to check by eye, for tests of grouping, loss and sampling."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import settings
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen3Config, Qwen3ForCausalLM

from mmgrpo.objective import Row
from mmgrpo.trajectory import Call, Trajectory

PROPERTY = settings(max_examples=60, deadline=None, derandomize=True, database=None)  # the same examples each time


def call(
    module: str = "a", invocation: int = 0, *, prompt=(1, 2), completion=(3, 4), text: str = "", **changes
) -> Call:
    """A call that parsed; `changes` replace any other field."""
    fields = {"logprobs": (-1.0,) * len(completion), "temperature": 1.0, "status": "ok", "parsed": 1.0} | changes
    return Call(module, invocation, tuple(prompt), tuple(completion), text=text, **fields)


def run(modules: str, reward: float | None, rollout: int = 0, *, example: str = "x", tokens: int = 2) -> Trajectory:
    """A run that called `modules` in this order, one letter a module; each call's text names it: `x/0/a1`."""
    calls = []
    for place, module in enumerate(modules):
        invocation = modules[:place].count(module)
        name = f"{example}/{rollout}/{module}{invocation}"
        calls.append(call(module, invocation, prompt=(ord(module),), completion=range(tokens), text=name))
    return Trajectory(example, rollout, tuple(calls), reward, "completed" if reward is not None else "unscorable")


def runs(*described: tuple[str, float | None], example: str = "x") -> list[Trajectory]:
    """Runs of one example, from (modules, reward) of each."""
    return [run(modules, reward, rollout, example=example) for rollout, (modules, reward) in enumerate(described)]


def row(prompt: Sequence[int], completion: Sequence[int], temperature: float = 1.0) -> Row:
    return Row(tuple(prompt), tuple(completion), (0.0,) * len(completion), temperature, 1.0, 1.0, "a")


def random_ids(length: int, seed: int, vocabulary: int = 90) -> tuple[int, ...]:
    """Token ids that no tiny model treats specially."""
    return tuple(np.random.default_rng(seed).integers(3, vocabulary, length).tolist())


# The wide initialisation makes tokens differ clearly in probability, so that a wrong number shows.
_SIZE = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "initializer_range": 0.3, "tie_word_embeddings": False,
}  # fmt: skip


def tiny_llama(seed: int = 0, **changes) -> LlamaForCausalLM:
    """Two layers, four query heads that share two key-value heads."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**_SIZE | changes)).eval()


def tiny_qwen3(seed: int = 0, **changes) -> Qwen3ForCausalLM:
    """Heads wider than hidden size over heads, and norms of queries and keys, as all Qwen3 models have."""
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(Qwen3Config(**_SIZE | {"head_dim": 16} | changes)).eval()


def tiny_mistral(seed: int = 0, window: int | None = 6, **changes) -> MistralForCausalLM:
    """Each token sees the last `window` tokens only."""
    torch.manual_seed(seed)
    return MistralForCausalLM(MistralConfig(**_SIZE | {"sliding_window": window, "head_dim": 8} | changes)).eval()


def with_lora(model, *adapters: str, seed: int = 0):
    """A PEFT model over a copy of `model`, with adapters (one `default` if none is named) that are not the identity."""
    from peft import LoraConfig, get_peft_model

    projections = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"]
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=projections, task_type="CAUSAL_LM")
    first, *others = adapters or ("default",)
    policy = get_peft_model(copy.deepcopy(model), lora, adapter_name=first)
    for name in others:
        policy.add_adapter(name, lora)
    shake(policy, seed)
    return policy


def shake(policy, seed: int) -> None:
    """Give every LoRA matrix new random values, as an update would."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in policy.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0.0, 0.1, generator=generator)
