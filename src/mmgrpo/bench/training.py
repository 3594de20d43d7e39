"""The training step: loss and gradient of the same rows, ours and by TRL's own GRPOTrainer.

Ours is `RowTrainer.training_step`. TRL's is `GRPOTrainer._compute_loss` with the backward pass, on the rows as TRL
makes them: prompts padded on the left, completions on the right, as many rows a pass as the token budget holds. Both
compute in fp32 and without a KL term, ours with what it recomputes on a CPU (`recomputation.py`) and TRL's without
gradient checkpointing. Their gradients are compared, and in the first benchmark each with ours at weights and products in
fp64 (norms and log-probabilities stay in fp32), which says whose rounding a difference is.
TRL 1.16 computes logits at all positions on a CPU (on a GPU, only at those of the completions).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from mmgrpo.bench import shapes
from mmgrpo.bench.measure import side_by_side
from mmgrpo.bench.record import Comparison, Setup, Size, Target
from mmgrpo.bench.shapes import TEMPERATURE, Shape
from mmgrpo.objective import Row
from mmgrpo.policy import Policy
from mmgrpo.settings import GRPOSettings
from mmgrpo.trainer import Batch, RowTrainer, arguments, no_reward

FULL = {"inputs": 4, "rollouts": 12, "runs": 1}
Step = Callable[[], None]


def one_module(setup: Setup) -> list[Comparison]:
    return [_compare(setup, "training", shapes.one_module, Target(6), rounding=True)]


def full(setup: Setup) -> list[Comparison]:
    larger = replace(setup, size=replace(setup.size, **FULL))
    return [_compare(larger, "training_full", shapes.one_module, Target(10))]


def two_modules(setup: Setup) -> list[Comparison]:
    return [_compare(replace(setup, size=replace(setup.size, runs=1)), "training_modules", shapes.two_modules, None)]


def four_hops(setup: Setup) -> list[Comparison]:
    """On one input: TRL's step grows with all tokens of all calls."""
    smaller = replace(setup, size=replace(setup.size, inputs=1, runs=1))
    return [_compare(smaller, "training_hops", shapes.four_hops, None)]


def _compare(
    setup: Setup, benchmark: str, make: Callable[..., Shape], target: Target | None, *, rounding: bool = False
) -> Comparison:
    policy, size = setup.make_policy(), setup.size
    shape = make(policy.tokenizer, size)
    shake(policy)
    peer_model = plain_copy(policy.trainable())
    with TemporaryDirectory() as folder:
        ours = our_step(policy, shape.rows, size, Path(folder))
        peer = trl_step(peer_model, policy.tokenizer, shape.rows, size, Path(folder))
        seconds, peer_seconds = side_by_side([ours, peer], size.runs)
        found, peers = gradient(policy.trainable()), gradient(peer_model)
        details = {
            "gradient_error": relative_error(found, peers),
            "rows": len(shape.rows), "tokens": shapes.all_tokens(shape.rows),
        }  # fmt: skip
        if rounding:
            policy.trainable().double()
            our_step(policy, shape.rows, size, Path(folder))()
            exact = gradient(policy.trainable())
            details |= {"rounding": relative_error(found, exact), "peer_rounding": relative_error(peers, exact)}
    return Comparison.of(
        setup, benchmark, f"training step, {shape.what}", ours=seconds, peer=peer_seconds,
        peer_name="TRL GRPOTrainer", unit="s", ratio=peer_seconds / seconds, target=target, details=details,
    )  # fmt: skip


def shake(policy: Policy, seed: int = 0) -> None:
    """Give the LoRA matrices random values: fresh ones add nothing, and half of their gradients are zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in policy.trainable().named_parameters():
        if "lora_B" in name:
            weight.data.copy_(0.01 * torch.randn(weight.shape, generator=generator))


def plain_copy(model):
    """A model as PEFT and transformers make it; to be taken before a trainer wraps the forward pass."""
    copied = copy.deepcopy(model)
    base = copied.get_base_model() if hasattr(copied, "get_base_model") else copied
    base.set_attn_implementation("sdpa")
    return copied


def our_step(policy: Policy, rows: Sequence[Row], size: Size, folder: Path) -> Step:
    """A function that leaves the gradient of all rows in the policy."""
    settings = GRPOSettings(steps=1, beta=0.0, token_budget=size.token_budget)
    trainer = RowTrainer(
        policy=policy, settings=settings, collect=lambda step: Batch(tuple(rows), {}),
        args=arguments(settings, folder=folder, seed=0, precision=policy.precision, report_to="none"), callbacks=[],
    )  # fmt: skip

    def step() -> None:
        trainer.model.zero_grad(set_to_none=True)
        trainer.training_step(trainer.model, {})

    return step


def trl_step(model, tokenizer, rows: Sequence[Row], size: Size, folder: Path) -> Step:
    """The same by TRL. Its loss is a mean over rows of means over tokens, so advantages carry our weights."""
    trainer = GRPOTrainer(
        model=model, reward_funcs=no_reward, processing_class=tokenizer, train_dataset=Dataset.from_dict({"prompt": ["-"]}),
        args=trl_arguments(folder, per_device_train_batch_size=2, num_generations=2),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    longest = max(len(row.prompt_ids) for row in rows) + max(len(row.completion_ids) for row in rows)
    count = math.ceil(len(rows) / max(1, size.token_budget // longest))
    batches = [rows[place::count] for place in range(count)]

    def step() -> None:
        trainer.model.train()
        trainer.model.zero_grad(set_to_none=True)
        trainer.current_gradient_accumulation_steps = len(batches)
        for batch in batches:
            inputs = _padded(batch, tokenizer.pad_token_id, len(batches), trainer.accelerator.device)
            trainer.accelerator.backward(trainer._compute_loss(trainer.model, inputs))

    return step


def trl_arguments(folder: Path, **changes) -> GRPOConfig:
    """TRL's configuration for the loss and precision that ours has; on a GPU with checkpointing, as ours."""
    return GRPOConfig(
        output_dir=str(folder), seed=0, loss_type="grpo", beta=0.0, temperature=TEMPERATURE, bf16=False,
        use_cpu=not torch.cuda.is_available(), gradient_checkpointing=torch.cuda.is_available(), save_strategy="no",
        report_to="none", disable_tqdm=True, dataloader_pin_memory=False, **changes,
    )  # fmt: skip


def gradient(model) -> Tensor:
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.requires_grad])


def relative_error(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def _padded(rows: Sequence[Row], padding: int, batches: int, device) -> dict[str, Tensor]:
    """A micro-batch as `_compute_loss` takes it."""

    def padded(sequences, side: str) -> tuple[Tensor, Tensor]:
        tensors = [torch.tensor(ids) for ids in sequences]
        masks = [torch.ones_like(ids) for ids in tensors]
        ids = pad_sequence(tensors, batch_first=True, padding_value=padding, padding_side=side)
        return ids.to(device), pad_sequence(masks, batch_first=True, padding_side=side).to(device)

    prompt_ids, prompt_mask = padded([row.prompt_ids for row in rows], "left")
    completion_ids, completion_mask = padded([row.completion_ids for row in rows], "right")
    scale = batches * len(rows)
    advantages = [row.advantage * row.token_weight * len(row.completion_ids) * scale for row in rows]
    return {
        "prompt_ids": prompt_ids, "prompt_mask": prompt_mask,
        "completion_ids": completion_ids, "completion_mask": completion_mask,
        "advantages": torch.tensor(advantages, device=device),
    }  # fmt: skip
