"""Attention over a prefix tree by SDPA: blocks of consecutive queries, each with its visible keys only.

Legend of shapes: N query nodes, K keys, H query heads, J key-value heads, E head size.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mmgrpo.prefix_tree import PrefixTree


class TreeBlocks:
    """Stateless memory of one pass over a whole tree."""

    def __init__(self, tree: PrefixTree, device: torch.device):
        self.tree = tree
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


def grouped_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scaling: float) -> Tensor:
    """SDPA whose query heads share key-value heads, without copying those.

    query [1, H, N, E], key and value [1, J, K, E], bias [N, K] added to the scores -> [1, H, N, E].
    """
    _, heads, nodes, size = query.shape
    shared = heads // key.shape[1]
    folded = query.reshape(1, key.shape[1], shared * nodes, size)
    out = scaled_dot_product_attention(folded, key, value, attn_mask=bias.repeat(shared, 1)[None, None], scale=scaling)
    return out.reshape(1, heads, nodes, size)


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where allowed, the lowest finite number elsewhere."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, torch.finfo(dtype).min)
