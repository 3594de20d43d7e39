"""Attention over a prefix tree by SDPA: blocks of consecutive queries, each with its visible keys only.

Legend of shapes: N query nodes, K keys, H query heads, J key-value heads, E head size.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mmgrpo.prefix_tree import PrefixTree


class TreeBlocks:
    """Stateless memory of one pass over a whole tree."""

    def __init__(self, tree: PrefixTree, device: torch.device):
        self.tree = tree
        blocks = tree.blocks()
        self.queries = [len(queries) for queries, _ in blocks]
        self.keys = [len(visible) for _, visible in blocks]
        self.visible = torch.from_numpy(np.concatenate([visible for _, visible in blocks])).to(device)
        self.allowed = [
            torch.from_numpy(tree.ancestors(np.arange(queries.start, queries.stop), visible)).to(device)
            for queries, visible in blocks
        ]
        self._biases: dict[tuple[torch.dtype, int], list[Tensor]] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        query, key = query.to(value.dtype), key.to(value.dtype)  # rotary embedding leaves fp32 under autocast
        # Taken for all blocks at once and split, so that the backward pass adds a node's gradients up in one go.
        parts = zip(
            query.split(self.queries, dim=2),
            key.index_select(2, self.visible).split(self.keys, dim=2),
            value.index_select(2, self.visible).split(self.keys, dim=2),
            self._bias(value.dtype, query.shape[1] // key.shape[1]),
            strict=True,
        )
        return torch.cat([grouped_attention(*part, scaling) for part in parts], dim=2)

    def _bias(self, dtype: torch.dtype, shared: int) -> list[Tensor]:
        """Each block's, made once: every layer keeps them for its backward pass."""
        if (dtype, shared) not in self._biases:
            self._biases[dtype, shared] = [additive(allowed, dtype).repeat(shared, 1) for allowed in self.allowed]
        return self._biases[dtype, shared]


def grouped_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scaling: float) -> Tensor:
    """SDPA whose query heads share key-value heads, without copying those.

    query [1, H, N, E], key and value [1, J, K, E], bias [H / J x N, K] added to the scores -> [1, H, N, E].
    """
    _, heads, nodes, size = query.shape
    own = key.shape[1]
    # On a CPU the backward pass gives each thread whole heads: where they don't share out, each head's queries are cut.
    cuts = math.lcm(own, torch.get_num_threads()) // own
    cuts = cuts if query.device.type == "cpu" and len(bias) % cuts == 0 else 1
    folded = query.reshape(own, cuts, -1, size).transpose(0, 1)
    key, value = (each.expand(cuts, -1, -1, -1) for each in (key, value))
    out = scaled_dot_product_attention(folded, key, value, attn_mask=bias.unflatten(0, (cuts, 1, -1)), scale=scaling)
    return out.transpose(0, 1).reshape(1, heads, nodes, size)


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where allowed, the lowest finite number elsewhere."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, torch.finfo(dtype).min)
