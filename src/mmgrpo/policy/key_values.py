"""Keys and values that the sampler keeps between forward passes: of the prompts' tree, then of each row.

Legend of shapes: L layers, R live rows, S longest row, H query heads, J key-value heads, E head size.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mmgrpo.prefix_tree import PrefixTree
from mmgrpo.tree_attention import additive, grouped_attention


class Prefilled:
    """Memory of the prefill: keys and values of all nodes of the prompts' tree, filled block by block."""

    def __init__(self, config, tree: PrefixTree, dtype: torch.dtype, device: torch.device):
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, 1, config.num_key_value_heads, len(tree), size)
        self.tree = tree
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)

    def enter(self, queries: range, visible: np.ndarray) -> None:
        allowed = torch.from_numpy(self.tree.ancestors(np.arange(queries.start, queries.stop), visible))
        self.queries = slice(queries.start, queries.stop)
        self.visible = torch.from_numpy(visible).to(self.keys.device)
        self.bias = additive(allowed.to(self.keys.device), self.keys.dtype)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        keys, values = self.keys[layer], self.values[layer]
        keys[:, :, self.queries], values[:, :, self.queries] = key, value
        return grouped_attention(
            query, keys.index_select(2, self.visible), values.index_select(2, self.visible), self.bias, scaling
        )


class Rows:
    """Memory of the decode phase: for each live row its prompt's keys and values, and room for what it generates."""

    def __init__(self, prefilled: Prefilled, tree: PrefixTree, room: int):
        device = prefilled.keys.device
        lengths = np.array([len(path) for path in tree.paths])
        longest = int(lengths.max())
        nodes = np.zeros((len(lengths), longest), np.int64)
        for place, path in enumerate(tree.paths):
            nodes[place, : len(path)] = path
        gather = torch.from_numpy(nodes).to(device)
        layers, _, heads, _, size = prefilled.keys.shape
        shape = (layers, len(lengths), heads, longest + room, size)
        self.keys = torch.zeros(shape, dtype=prefilled.keys.dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        for layer in range(layers):
            self.keys[layer, :, :, :longest] = prefilled.keys[layer, 0][:, gather].transpose(0, 1)
            self.values[layer, :, :, :longest] = prefilled.values[layer, 0][:, gather].transpose(0, 1)
        self.lengths = torch.from_numpy(lengths).to(device)  # [R] tokens of each row so far

    def keep(self, places: list[int]) -> None:
        """Let all rows but those at `places` go."""
        chosen = torch.tensor(places, device=self.lengths.device)
        self.lengths = self.lengths[chosen]
        self.keys, self.values = self.keys[:, chosen], self.values[:, chosen]

    def advance(self) -> Tensor:
        """Make room for one token a row and return its positions [R]."""
        self.slots = self.lengths
        self.lengths = self.lengths + 1
        self.used = int(self.lengths.max())
        within = torch.arange(self.used, device=self.lengths.device)[None] < self.lengths[:, None]
        self.bias = additive(within, self.keys.dtype)[:, None, None]  # [R, 1, 1, S]
        self.all = torch.arange(len(self.lengths), device=self.lengths.device)
        return self.slots

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """query [1, H, R, E], one token a row, each attending to its own row."""
        _, heads, live, size = query.shape
        groups = key.shape[1]
        self.keys[layer, self.all, :, self.slots] = key[0].transpose(0, 1)
        self.values[layer, self.all, :, self.slots] = value[0].transpose(0, 1)
        keys, values = self.keys[layer, :, :, : self.used], self.values[layer, :, :, : self.used]
        by_row = (
            query[0].transpose(0, 1).reshape(live, groups, heads // groups, size)
        )  # heads of a group are neighbours
        bias = self.bias.expand(-1, -1, heads // groups, -1)
        out = scaled_dot_product_attention(by_row, keys, values, attn_mask=bias, scale=scaling)  # [R, J, H/J, E]
        return out.reshape(live, heads, size).transpose(0, 1)[None]
