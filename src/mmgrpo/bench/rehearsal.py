"""One GRPO step at the paper's scale, rehearsed on a GPU: memory, speed, and how long its runs would take.

The model has Qwen3-8B's architecture and random weights, so that nothing is downloaded; what a step costs doesn't depend
on what the weights say. Prompts of different inputs share nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, Qwen3Config

from mmgrpo.bench.shapes import FIRST_WORD, all_tokens
from mmgrpo.objective import Row
from mmgrpo.policy import Policy, embedded
from mmgrpo.policy.sampler import SamplingRequest
from mmgrpo.report import published
from mmgrpo.settings import GRPOSettings, PolicySettings, SamplingSettings
from mmgrpo.trainer import Batch, RowTrainer, arguments

NO_GPU = "There is no GPU here, so nothing was rehearsed: the step needs one with about 80 GiB."
PAPER_STEPS = 750


@dataclass(frozen=True)
class Geometry:
    """A step; the defaults are the paper's, with a long prompt and a usual reply."""

    inputs: int = 4
    rollouts: int = 12
    prompt: int = 2000  # tokens
    completion: int = 200  # tokens
    steps: int = 2  # of which the last counts; the first compiles and warms up


@dataclass(frozen=True)
class Rehearsal:
    """What the last step cost."""

    sampling_seconds: float
    step_seconds: float  # sampling included
    sampled_tokens: int
    trained_tokens: int  # of all rows, prompts repeated
    peak_gib: float

    @property
    def hours(self) -> float:
        """Of a run of the paper's steps."""
        return PAPER_STEPS * self.step_seconds / 3600

    def __str__(self) -> str:
        training = self.step_seconds - self.sampling_seconds
        return "\n".join(
            [
                f"sampling: {self.sampling_seconds:.1f} s, {self.sampled_tokens / self.sampling_seconds:,.0f} tokens/s",
                f"training: {training:.1f} s, {self.trained_tokens / training:,.0f} tokens/s of all rows",
                f"one step: {self.step_seconds:.1f} s, peak memory {self.peak_gib:.1f} GiB",
                f"{PAPER_STEPS} steps: {self.hours:.1f} h on this GPU; the paper: {published.hours('module_grpo')} h on 2 x H100",
            ]
        )


def qwen3_8b() -> Qwen3Config:
    """The architecture of Qwen/Qwen3-8B."""
    return Qwen3Config(
        vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=40960, tie_word_embeddings=False, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip


def on_gpu() -> Rehearsal | None:
    """The rehearsal at full size; None where there is no GPU."""
    if not torch.cuda.is_available():
        return None
    settings = PolicySettings(precision="bf16", max_tokens=Geometry().completion)
    return rehearse(random_policy(qwen3_8b(), settings), Geometry())


def random_policy(config: PreTrainedConfig, settings: PolicySettings) -> Policy:
    """A policy of random weights, made where it stays. Its tokenizer is never used, but the trainer wants one."""
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return Policy("rehearsal", model, AutoTokenizer.from_pretrained(embedded.published()), settings, seed=0)


def rehearse(policy: Policy, geometry: Geometry) -> Rehearsal:
    """Sample and train `geometry.steps` steps on random prompts, and say what the last one cost."""
    begun: list[float] = []
    sampled: list[float] = []
    rows: list[Row] = []

    def collect(step: int) -> Batch:
        begun.append(_now())
        policy.sync()
        rows[:] = _sample(policy, geometry, step)
        sampled.append(_now())
        return Batch(tuple(rows), {"reward": 0.0})

    settings = GRPOSettings(
        steps=geometry.steps, inputs=geometry.inputs, rollouts=geometry.rollouts, group_size=geometry.rollouts
    )
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with TemporaryDirectory() as folder:
        args = arguments(settings, folder=Path(folder), seed=0, precision=policy.precision, report_to="none")
        args.save_strategy = "no"
        RowTrainer(policy=policy, settings=settings, collect=collect, args=args, callbacks=[]).train()
    finished = _now()
    return Rehearsal(
        sampling_seconds=sampled[-1] - begun[-1],
        step_seconds=finished - begun[-1],
        sampled_tokens=sum(len(row.completion_ids) for row in rows),
        trained_tokens=all_tokens(rows),
        peak_gib=torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else float("nan"),
    )


def _sample(policy: Policy, geometry: Geometry, step: int) -> list[Row]:
    """Rows of a step; half of each group is rewarded."""
    rng = np.random.default_rng(step)
    temperature = SamplingSettings().temperature
    highest = min(len(policy.tokenizer), policy.trainable().config.vocab_size)
    prompts = [tuple(rng.integers(FIRST_WORD, highest, geometry.prompt).tolist()) for _ in range(geometry.inputs)]
    requests = [
        SamplingRequest(prompt, geometry.completion, temperature, seed=step * 1000 + place)
        for place, prompt in enumerate(prompt for prompt in prompts for _ in range(geometry.rollouts))
    ]
    rows = []
    for place, (request, made) in enumerate(zip(requests, policy.sampler.generate(requests), strict=True)):
        advantage = 1.0 if place % 2 else -1.0
        weight = 1 / (len(requests) * len(made.ids))
        rows.append(Row(request.prompt_ids, made.ids, made.logprobs, temperature, advantage, weight, "module"))
    return rows


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
