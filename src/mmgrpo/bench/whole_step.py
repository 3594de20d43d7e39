"""A whole GRPO step: rollouts, rewards, loss, gradient and update, by `MMGRPO` and by TRL's GRPOTrainer with its own
generate, on the same prompts of a program of one module. Rewards mean nothing but differ, so that all groups teach.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import dspy
from datasets import Dataset
from transformers import PrinterCallback
from trl import GRPOTrainer

from mmgrpo.bench import shapes
from mmgrpo.bench.measure import side_by_side
from mmgrpo.bench.record import Comparison, Setup, Size, Target
from mmgrpo.bench.training import plain_copy, trl_arguments
from mmgrpo.optimizer import MMGRPO
from mmgrpo.policy import Policy
from mmgrpo.settings import GRPOSettings, SamplingSettings
from mmgrpo.tasks import banking77


def compare(setup: Setup) -> list[Comparison]:
    policy, size = setup.make_policy(), setup.size
    shape = shapes.one_module(policy.tokenizer, size)
    prompts = list(dict.fromkeys(policy.tokenizer.decode(row.prompt_ids) for row in shape.rows))
    logs: dict[str, list[dict]] = {"ours": [], "peer": []}
    with TemporaryDirectory() as folder:
        peer_trainer = _trl(policy, prompts, max(len(row.prompt_ids) for row in shape.rows), size, Path(folder))

        def peer() -> None:
            peer_trainer.train()
            logs["peer"] += [log for log in peer_trainer.state.log_history if "completions/mean_length" in log]

        ours_seconds, peer_seconds = side_by_side([lambda: logs["ours"].append(_ours(policy, size)), peer], size.runs)
    calls = size.inputs * size.rollouts
    details = {  # completions end where the model ends them, so their lengths differ
        "tokens_a_call": sum(log["completion_tokens"] for log in logs["ours"]) / size.runs / calls,
        "peer_tokens_a_call": sum(log["completions/mean_length"] for log in logs["peer"]) / size.runs,
    }
    return [
        Comparison.of(
            setup, "step", f"whole GRPO step, {shape.what}", ours=ours_seconds, peer=peer_seconds,
            peer_name="TRL GRPOTrainer", unit="s", ratio=peer_seconds / ours_seconds, target=Target(5), details=details,
        )
    ]  # fmt: skip


def _ours(policy: Policy, size: Size) -> dict[str, float]:
    splits, _ = shapes.banking()
    settings = GRPOSettings(
        steps=1, inputs=size.inputs, rollouts=size.rollouts, group_size=size.rollouts, beta=0.0, warmup_steps=0,
        token_budget=size.token_budget,
    )  # fmt: skip
    sampling = SamplingSettings(temperature=shapes.TEMPERATURE)
    with dspy.context(lm=policy.lm()), TemporaryDirectory() as folder:
        optimizer = MMGRPO(_reward, settings=settings, sampling=sampling, folder=folder)
        trained = optimizer.compile(banking77.program(splits), trainset=splits.train[: size.inputs])
        return trained.training_log.curve[-1]


def _trl(policy: Policy, prompts: list[str], longest: int, size: Size, folder: Path) -> GRPOTrainer:
    """TRL's trainer for one step of the same size, in micro-batches that fit the token budget."""
    rows = size.inputs * size.rollouts
    most = max(1, size.token_budget // (longest + policy.settings.max_tokens))
    batch = max(number for number in range(1, rows + 1) if rows % number == 0 and number <= most)
    settings = GRPOSettings()
    trainer = GRPOTrainer(
        model=plain_copy(policy.trainable()), reward_funcs=_rewards, processing_class=policy.tokenizer,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        args=trl_arguments(
            folder, per_device_train_batch_size=batch, gradient_accumulation_steps=rows // batch,
            num_generations=size.rollouts, max_completion_length=policy.settings.max_tokens, max_steps=1,
            learning_rate=settings.learning_rate, max_grad_norm=settings.max_grad_norm, logging_steps=1,
        ),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer


def _reward(example, prediction, trace=None) -> float:
    return _noise("".join(map(str, prediction.values())))


def _rewards(prompts, completions, **kwargs) -> list[float]:
    return [_noise(text) for text in completions]


def _noise(text: str) -> float:
    return zlib.crc32(text.encode()) % 1000 / 1000
