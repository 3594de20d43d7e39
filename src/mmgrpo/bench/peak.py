"""How much of the machine's matrix-multiply peak a training step uses, counting only work that has to be done.

FLOPs of a step over a prefix tree of N distinct tokens, n of which predict a completion token:

    4 P N + 6 Q N + 4 V d n + 12 L H E Σ (depth + 1)

P weights of the frozen linear layers (forward, and backward to their inputs: no gradient of their weights), Q weights of
the LoRA matrices (forward, and both gradients), V x d the head, and attention of L layers with H heads of size E,
where each token sees itself and the tokens before it in its row.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from mmgrpo import prefix_tree
from mmgrpo.bench import shapes
from mmgrpo.bench.measure import side_by_side
from mmgrpo.bench.record import Comparison, Setup, Target
from mmgrpo.bench.training import our_step
from mmgrpo.logprobs import inputs_of
from mmgrpo.objective import Row
from mmgrpo.tree_attention import head_size

PRODUCTS = 8  # in one timing of the peak


def compare(setup: Setup) -> list[Comparison]:
    policy, size = setup.make_policy(), setup.size
    shape = shapes.one_module(policy.tokenizer, size)
    factor = torch.randn(size.matrix, size.matrix, device=policy.trainable().device)

    def product() -> None:
        for _ in range(PRODUCTS):
            factor @ factor

    with TemporaryDirectory() as folder:
        step = our_step(policy, shape.rows, size, Path(folder))
        for way in (step, product):
            way()  # warms up
        seconds, product_seconds = side_by_side([step, product], size.runs)
    flops, tokens = step_flops(policy.trainable(), shape.rows, size.token_budget)
    ours, peak = flops / seconds / 1e9, 2 * PRODUCTS * size.matrix**3 / product_seconds / 1e9
    return [
        Comparison.of(
            setup, "peak", f"training throughput of distinct tokens, {shape.what}", ours=ours, peer=peak,
            peer_name=f"matrix product, {size.matrix} x {size.matrix}", unit="GFLOP/s", ratio=ours / peak,
            target=Target(0.5), details={"distinct_tokens": tokens, "tokens_a_second": tokens / seconds},
        )
    ]  # fmt: skip


def step_flops(model, rows: Sequence[Row], budget: int) -> tuple[float, int]:
    """FLOPs of a step by the formula above, and its distinct tokens, summed over the step's passes."""
    config = model.config
    inputs = inputs_of(rows)
    weights = {name: weight for name, weight in model.named_parameters() if weight.ndim == 2}
    lora = sum(weight.numel() for name, weight in weights.items() if "lora_" in name)
    head = config.vocab_size * config.hidden_size
    frozen = sum(w.numel() for name, w in weights.items() if ".layers." in name and "lora_" not in name)
    attention = 12 * config.num_hidden_layers * config.num_attention_heads * head_size(config)
    flops, tokens = 0.0, 0
    for pack in prefix_tree.pack(inputs, budget):
        tree = prefix_tree.build([inputs[place] for place in pack])
        ends = [path[len(rows[place].prompt_ids) - 1 :] for place, path in zip(pack, tree.paths, strict=True)]
        predicting = len(np.unique(np.concatenate(ends)))
        flops += (4 * frozen + 6 * lora) * len(tree) + 4 * head * predicting
        flops += attention * float((tree.positions + 1).sum())
        tokens += len(tree)
    return flops, tokens
