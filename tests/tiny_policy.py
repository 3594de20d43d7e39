"""A policy of random weights with the real tokenizer, and a scripted one without any: small enough for one core."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from types import SimpleNamespace

import dspy
import torch
from dspy.utils.exceptions import AdapterParseError
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from mmgrpo.policy import Policy, embedded
from mmgrpo.policy.lm import PolicyEngine, PolicyLM
from mmgrpo.policy.sampler import Completion, Sampler, SamplingRequest
from mmgrpo.settings import PolicySettings


@cache
def tokenizer():
    """SmolLM2's; every test shares it."""
    return AutoTokenizer.from_pretrained(embedded.published())


def tiny_model(seed: int = 0, **changes) -> LlamaForCausalLM:
    """Two narrow layers over the real vocabulary."""
    torch.manual_seed(seed)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer()), num_key_value_heads=2, max_position_embeddings=4096,
            tie_word_embeddings=True, initializer_range=0.2, eos_token_id=2, pad_token_id=2, **size | changes,
        )
    )  # fmt: skip


def tiny_policy(seed: int = 0, sampler: Sampler | None = None, **settings) -> Policy:
    """A policy that can be sampled and trained in milliseconds; its replies are noise."""
    chosen = {"precision": "fp32", "max_tokens": 6, "batch": 16, "lora_rank": 4, "lora_alpha": 16} | settings
    return Policy("tiny", tiny_model(), tokenizer(), PolicySettings(**chosen), seed, sampler)


class RawAdapter(dspy.ChatAdapter):
    """Takes every reply as it is for the first output field, so that noise parses; some replies it refuses."""

    def __init__(self, refuse: Callable[[str], bool] = lambda text: False):
        super().__init__(use_json_adapter_fallback=False)
        self.refuse = refuse

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict:
        if self.refuse(completion):
            raise AdapterParseError("RawAdapter", signature, completion)
        return dict.fromkeys(signature.output_fields, completion)


class ScriptedSampler:
    """Answers each request with `reply(prompt, request)`, the prompt decoded with its special tokens."""

    def __init__(self, reply: Callable[[str, SamplingRequest], str]):
        self.reply = reply
        self.requests: list[SamplingRequest] = []

    def generate(self, requests: Sequence[SamplingRequest]) -> list[Completion]:
        self.requests += requests
        return [self._answer(request) for request in requests]

    def _answer(self, request: SamplingRequest) -> Completion:
        text = self.reply(tokenizer().decode(request.prompt_ids), request)
        ids = (*tokenizer()(text, add_special_tokens=False)["input_ids"], tokenizer().eos_token_id)
        finish = "length" if len(ids) > request.max_tokens else "stop"
        ids = tuple(ids[: request.max_tokens])
        return Completion(ids, (-0.5,) * len(ids), finish)


def scripted_lm(reply: Callable[[str, SamplingRequest], str], *, temperature: float = 1.0, **settings) -> PolicyLM:
    """A policy LM whose replies are a function of the prompt; `lm.policy.engine.sampler` has the requests."""
    chosen = PolicySettings(**{"max_tokens": 200} | settings)
    engine = PolicyEngine(ScriptedSampler(reply), tokenizer(), chosen, seed=0)
    policy = SimpleNamespace(name="scripted", engine=engine, settings=chosen)
    policy.lm = lambda **sampling: PolicyLM(policy, max_tokens=chosen.max_tokens, **{"temperature": 0.0} | sampling)
    return policy.lm(temperature=temperature)


def fields(**values: object) -> str:
    """A reply in ChatAdapter's format."""
    return "".join(f"[[ ## {name} ## ]]\n{value}\n\n" for name, value in values.items()) + "[[ ## completed ## ]]"


def question(prompt: str) -> str:
    """What stands in the last user turn of a decoded prompt."""
    return prompt.rsplit("<|im_start|>user\n", 1)[1].split("<|im_end|>", 1)[0]
