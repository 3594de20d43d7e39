"""Log-probabilities of sampled tokens under a model, every shared prefix computed once.

Rows are merged into a prefix tree and run as one packed sequence; logits are computed only at nodes that
predict a completion token. Exact: the same numbers and gradients as each row alone, to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmgrpo import prefix_tree, tree_attention
from mmgrpo.prefix_tree import PrefixTree
from mmgrpo.tree_attention import NAME, TreeMemory, forward_arguments


def inputs_of(rows: Sequence) -> list[tuple[int, ...]]:
    """What the model reads of each row: all but the last completion token, which is only predicted."""
    return [(*row.prompt_ids, *row.completion_ids[:-1]) for row in rows]


def completion_logprobs(
    model, rows: Sequence, memory_over: Callable[[PrefixTree, PreTrainedModel], TreeMemory] = tree_attention.over
) -> Tensor:
    """Log-probabilities of all completion tokens of `rows`, one after the other: [sum of completion lengths].

    Each row has `prompt_ids`, `completion_ids` (neither empty) and `temperature`, by which its logits are divided.
    The last completion token is predicted but never an input, so it is no node of the tree. `memory_over` chooses how
    attention over the tree is computed.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    inputs = inputs_of(rows)
    if base.config._attn_implementation != NAME:
        return torch.cat([_alone(model, row, ids) for row, ids in zip(rows, inputs, strict=True)])
    memory = memory_over(prefix_tree.build(inputs), base)
    tree = memory.tree
    predicting = [path[len(row.prompt_ids) - 1 :] for row, path in zip(rows, tree.paths, strict=True)]
    nodes, place = np.unique(np.concatenate(predicting), return_inverse=True)
    device = base.device
    logits = model(
        input_ids=torch.from_numpy(tree.tokens)[None].to(device),
        position_ids=torch.from_numpy(tree.positions)[None].to(device),
        logits_to_keep=torch.from_numpy(nodes).to(device),
        **forward_arguments(memory, base),
    ).logits[0]
    targets = torch.tensor([token for row in rows for token in row.completion_ids], device=device)
    temperatures = torch.tensor([row.temperature for row in rows for _ in row.completion_ids], device=device)
    return _select(logits, torch.from_numpy(place).to(device), targets, temperatures)


def _select(logits: Tensor, place: Tensor, targets: Tensor, temperatures: Tensor) -> Tensor:
    """log softmax(logits[place] / temperature)[target], normalising each distinct (node, temperature) once."""
    out = torch.empty(len(targets), device=logits.device)
    for temperature in temperatures.unique():
        chosen = (temperatures == temperature).nonzero().squeeze(1)
        logprobs = (logits.float() / temperature).log_softmax(-1)
        out = out.index_put((chosen,), logprobs[place[chosen], targets[chosen]])
    return out


def _alone(model, row, ids: Sequence[int]) -> Tensor:
    """The same for one row without a tree, for architectures that it can't serve."""
    device = next(model.parameters()).device
    keep = torch.arange(len(row.prompt_ids) - 1, len(ids), device=device)
    logits = model(input_ids=torch.tensor([ids], device=device), logits_to_keep=keep, use_cache=False).logits[0]
    targets = torch.tensor(row.completion_ids, device=device)
    temperatures = torch.full((len(targets),), row.temperature, device=device)
    return _select(logits, torch.arange(len(targets), device=device), targets, temperatures)
