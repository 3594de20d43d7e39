"""Keys and values that the sampler keeps between forward passes: of the prompts' tree, then of each row.

Legend of shapes: L layers, R live rows, P distinct prompts, S tokens of the stem, H query heads, J key-value heads,
E head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmgrpo.prefix_tree import PrefixTree
from mmgrpo.tree_attention import head_size
from mmgrpo.tree_blocks import additive, grouped_attention


@dataclass(frozen=True)
class Stem:
    """Keys and values of a prefix, kept from one prefill to the next."""

    tokens: tuple[int, ...]
    keys: Tensor  # [L, 1, J, S, E]
    values: Tensor


class Prefilled:
    """Memory of the prefill: keys and values of all nodes of the prompts' tree, filled block by block.

    The stem, a path from the root that is common to all rows, is the tree's first nodes: what `known` has of it
    is copied. `start` is the first node that has to be computed.
    """

    def __init__(self, config, tree: PrefixTree, dtype: torch.dtype, device: torch.device, known: Stem | None):
        size = head_size(config)
        shape = (config.num_hidden_layers, 1, config.num_key_value_heads, len(tree), size)
        self.tree = tree
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.start = 0
        if known is not None:
            self.start = len(known.tokens)
            self.keys[:, :, :, : self.start], self.values[:, :, :, : self.start] = known.keys, known.values

    def stem(self) -> Stem:
        """A copy of what all rows have in common."""
        length = self.tree.stem
        tokens = tuple(self.tree.tokens[:length].tolist())
        return Stem(tokens, self.keys[:, :, :, :length].clone(), self.values[:, :, :, :length].clone())

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
    """Memory of the decode phase: the stem once, the rest of each distinct prompt once, and what each row generates.

    Decoding on a CPU is bound by reading keys and values; this way a prompt is read once for all of its rows. A
    query attends to the three parts apart, and their results are combined by their log-sum-exps.
    """

    def __init__(self, prefilled: Prefilled, tree: PrefixTree, room: int):
        device = prefilled.keys.device
        stem = tree.stem
        ends, prompt = np.unique([path[-1] for path in tree.paths], return_inverse=True)
        rests = {path[-1]: path[stem:] for path in tree.paths}
        longest = max(len(rest) for rest in rests.values())
        nodes = np.zeros((len(ends), longest), np.int64)
        inside = np.zeros((len(ends), longest), bool)
        for place, end in enumerate(ends):
            nodes[place, : len(rests[end])] = rests[end]
            inside[place, : len(rests[end])] = True
        gather = torch.from_numpy(nodes).to(device)
        self.stem_keys = prefilled.keys[:, 0, :, :stem]  # [L, J, S, E]
        self.stem_values = prefilled.values[:, 0, :, :stem]
        self.rest_keys = prefilled.keys[:, 0][:, :, gather].transpose(1, 2).contiguous()  # [L, P, J, longest, E]
        self.rest_values = prefilled.values[:, 0][:, :, gather].transpose(1, 2).contiguous()
        self.rest_bias = additive(torch.from_numpy(inside).to(device), prefilled.keys.dtype)  # [P, longest]
        layers, _, heads, _, size = prefilled.keys.shape
        self.tail_keys = torch.empty(
            (layers, len(prompt), heads, room, size), dtype=prefilled.keys.dtype, device=device
        )
        self.tail_values = torch.empty_like(self.tail_keys)
        self.lengths = torch.tensor([len(path) for path in tree.paths], device=device)  # [R] tokens of the prompt
        self.made = 0  # tokens that every live row has generated and passed through the model
        self._arrange(prompt)

    def keep(self, places: list[int]) -> None:
        """Let all rows but those at `places` go."""
        chosen = torch.tensor(places, device=self.lengths.device)
        self.lengths = self.lengths[chosen]
        self.tail_keys, self.tail_values = self.tail_keys[:, chosen], self.tail_values[:, chosen]
        used, prompt = np.unique(self.prompt[places], return_inverse=True)
        if len(used) < len(self.rest_bias):
            left = torch.from_numpy(used).to(self.lengths.device)
            self.rest_keys, self.rest_values = self.rest_keys[:, left], self.rest_values[:, left]
            self.rest_bias = self.rest_bias[left]
        self._arrange(prompt)

    def _arrange(self, prompt: np.ndarray) -> None:
        """Lay the rows out by prompt: `slots` [P, most rows of one] has their numbers, `places` [R] the way back."""
        self.prompt = prompt  # [R] the number of each row's prompt
        counts = np.bincount(prompt)
        order = np.argsort(prompt, kind="stable")
        within = np.empty(len(prompt), np.int64)
        within[order] = np.concatenate([np.arange(count) for count in counts])
        slots = np.zeros((len(counts), counts.max()), np.int64)  # an unused slot repeats row 0, to no effect
        slots[prompt, within] = np.arange(len(prompt))
        device = self.lengths.device
        self.slots = torch.from_numpy(slots).to(device)
        self.places = torch.from_numpy(prompt * slots.shape[1] + within).to(device)

    def advance(self) -> Tensor:
        """Make room for one token a row and return its positions [R]."""
        self.made += 1
        return self.lengths + (self.made - 1)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """query [1, H, R, E], one token a row, each attending to its own row."""
        _, heads, live, size = query.shape
        groups = key.shape[1]
        self.tail_keys[layer, :, :, self.made - 1] = key[0].transpose(0, 1)
        self.tail_values[layer, :, :, self.made - 1] = value[0].transpose(0, 1)
        by_row = (
            query[0].transpose(0, 1).reshape(live, groups, heads // groups, size)
        )  # heads of a group are neighbours
        parts = [self._rest(layer, by_row, scaling), self._tail(layer, by_row, scaling)]
        if self.stem_keys.shape[2]:
            parts.append(self._stem(layer, by_row, scaling))
        return _combined(parts).reshape(live, heads, size).transpose(0, 1)[None].to(query.dtype)

    def _stem(self, layer: int, by_row: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
        live, groups, shared, size = by_row.shape
        folded = by_row.transpose(0, 1).reshape(1, groups, live * shared, size)
        out, weight = _attention(folded, self.stem_keys[layer][None], self.stem_values[layer][None], None, scaling)
        return (
            out[0].reshape(groups, live, shared, size).transpose(0, 1),
            weight[0].reshape(groups, live, shared).transpose(0, 1),
        )

    def _rest(self, layer: int, by_row: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
        _, groups, shared, size = by_row.shape
        prompts, most = self.slots.shape
        by_slot = by_row.index_select(0, self.slots.flatten()).unflatten(0, (prompts, most))
        folded = by_slot.transpose(1, 2).reshape(prompts, groups, most * shared, size)
        bias = self.rest_bias[:, None, None].expand(-1, groups, most * shared, -1)
        out, weight = _attention(folded, self.rest_keys[layer], self.rest_values[layer], bias, scaling)
        out = out.reshape(prompts, groups, most, shared, size).transpose(1, 2).flatten(0, 1)
        weight = weight.reshape(prompts, groups, most, shared).transpose(1, 2).flatten(0, 1)
        return out.index_select(0, self.places), weight.index_select(0, self.places)

    def _tail(self, layer: int, by_row: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
        keys, values = self.tail_keys[layer, :, :, : self.made], self.tail_values[layer, :, :, : self.made]
        return _attention(by_row, keys, values, None, scaling)


def _attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scaling: float) -> tuple[Tensor, Tensor]:
    """Attention [B, J, N, E] with the log-sum-exp of its scores [B, J, N], which the public call doesn't return."""
    if query.device.type == "cpu":
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return flash(query.contiguous(), key, value, attn_mask=bias, scale=scaling)
    scores = scaling * query.float() @ key.float().transpose(-1, -2)
    scores = scores if bias is None else scores + bias
    weight = scores.logsumexp(-1)
    return (scores - weight[..., None]).exp() @ value.float(), weight


def _combined(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The attention over all keys from attentions over parts of them with their log-sum-exps."""
    share = torch.stack([weight.float() for _, weight in parts]).softmax(0)
    return sum(each[..., None] * out for each, (out, _) in zip(share, parts, strict=True))
