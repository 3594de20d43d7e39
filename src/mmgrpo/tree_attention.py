"""Attention over a prefix tree, registered with transformers under the name `mmgrpo_tree`.

A model switched to it by `use_tree_attention` behaves as with SDPA until a forward call carries the keyword
`memory`; then every layer hands its queries, keys and values to `memory.attend`. Three memories
exist: `TreeBlocks` (training: one pass over a whole tree, gradients included), and the sampler's two
(`policy/sampler.py`), which keep keys and values between passes.
Legend of shapes: N query nodes, H query heads, J key-value heads, E head size.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mmgrpo.prefix_tree import PrefixTree

NAME = "mmgrpo_tree"


class Memory(Protocol):
    """What the layers of one forward pass attend to."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """query [1, H, N, E], key and value [1, J, N, E] -> [1, H, N, E]."""


def use_tree_attention(model: PreTrainedModel) -> bool:
    """Switch `model` to tree attention; False where its layers can't be served (sliding windows, recurrence)."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    # Mistral, Mixtral and others name no layer types: a window in the configuration is in use unless it says otherwise.
    windowed = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    if kinds != {"full_attention"} or windowed:
        return False
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    return True


def forward_arguments(memory: Memory, model: PreTrainedModel) -> dict:
    """Keyword arguments that make a forward call use `memory`."""
    # A 4-D mask is passed through untouched, so that no causal N x N mask is built for nothing.
    return {"memory": memory, "attention_mask": torch.zeros(1, 1, 1, 1, device=model.device), "use_cache": False}


def _attention(
    module, query, key, value, attention_mask, scaling=None, dropout=0.0, memory: Memory | None = None, **kwargs
):
    if memory is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    return memory.attend(module.layer_idx, query, key, value, scaling).transpose(1, 2), None


def grouped_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scaling: float) -> Tensor:
    """SDPA whose query heads share key-value heads, without copying those.

    query [1, H, N, E], key and value [1, J, K, E], bias [N, K] added to the scores -> [1, H, N, E].
    """
    _, heads, nodes, size = query.shape
    shared = heads // key.shape[1]
    folded = query.reshape(1, key.shape[1], shared * nodes, size)
    out = scaled_dot_product_attention(folded, key, value, attn_mask=bias.repeat(shared, 1)[None, None], scale=scaling)
    return out.reshape(1, heads, nodes, size)


class TreeBlocks:
    """Stateless memory of one pass over a whole tree: blocks of queries, each with its visible keys only."""

    def __init__(self, tree: PrefixTree, device: torch.device):
        self.blocks = []
        for queries, visible in tree.blocks():
            allowed = tree.ancestors(np.arange(queries.start, queries.stop), visible)
            self.blocks.append(
                (
                    queries.start,
                    queries.stop,
                    torch.from_numpy(visible).to(device),
                    torch.from_numpy(allowed).to(device),
                )
            )
        self._biases: dict[torch.dtype, list[Tensor]] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        query, key = query.to(value.dtype), key.to(value.dtype)  # rotary embedding leaves fp32 under autocast
        out = []
        for (start, stop, visible, _), bias in zip(self.blocks, self._bias(value.dtype), strict=True):
            seen_key, seen_value = key.index_select(2, visible), value.index_select(2, visible)
            out.append(grouped_attention(query[:, :, start:stop], seen_key, seen_value, bias, scaling))
        return torch.cat(out, dim=2)

    def _bias(self, dtype: torch.dtype) -> list[Tensor]:
        if dtype not in self._biases:
            self._biases[dtype] = [additive(allowed, dtype) for *_, allowed in self.blocks]
        return self._biases[dtype]


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where allowed, the lowest finite number elsewhere."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, torch.finfo(dtype).min)
