"""Keys and values that the sampler keeps between forward passes: of the prompts' tree, then of each row.

Legend of shapes: L layers, R live rows, T tokens of a pass, P distinct prompts, S tokens of the stem, H query heads,
J key-value heads, E head size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmgrpo.prefix_tree import PrefixTree
from mmgrpo.tree_attention import head_size
from mmgrpo.tree_blocks import additive, grouped_attention

CHUNK = 64  # tokens of a row's own that are read together


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
        self.shared = config.num_attention_heads // config.num_key_value_heads  # query heads of a key-value head
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.start = 0
        if known is not None:
            self.start = len(known.tokens)
            self.keys[:, :, :, : self.start], self.values[:, :, :, : self.start] = known.keys, known.values

    def stem(self) -> Stem:
        """A copy of what all rows have in common, which outlives the rest."""
        length = self.tree.stem
        tokens = tuple(self.tree.tokens[:length].tolist())
        return Stem(tokens, self.keys[:, :, :, :length].clone(), self.values[:, :, :, :length].clone())

    def enter(self, queries: range, visible: np.ndarray) -> None:
        allowed = torch.from_numpy(self.tree.ancestors(np.arange(queries.start, queries.stop), visible))
        self.queries = slice(queries.start, queries.stop)
        self.visible = torch.from_numpy(visible).to(self.keys.device)
        self.bias = additive(allowed.to(self.keys.device), self.keys.dtype).repeat(self.shared, 1)

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

    def __init__(self, prefilled: Prefilled, stem: Stem, room: int):
        device, tree = prefilled.keys.device, prefilled.tree
        self.stem_keys, self.stem_values = stem.keys[:, 0], stem.values[:, 0]  # [L, J, S, E]
        ends, prompt = np.unique([path[-1] for path in tree.paths], return_inverse=True)  # [R] each row's prompt
        rests = {path[-1]: path[tree.stem :] for path in tree.paths}
        alike = _alike(np.array([len(rests[end]) for end in ends]))
        self.rests = [_Rests(prefilled, [rests[ends[prompt]] for prompt in group]) for group in alike]
        self.group, self.prompt = np.empty_like(prompt), np.empty_like(prompt)  # [R] place of each row's prompt
        for number, group in enumerate(alike):
            for place, same in enumerate(group):
                self.group[prompt == same], self.prompt[prompt == same] = number, place
        layers, _, heads, _, size = prefilled.keys.shape
        room = math.ceil(room / CHUNK) * CHUNK
        # Zeros, as what is not yet written is read too, with no weight.
        self.tail_keys = torch.zeros(
            (layers, heads, len(tree.paths), room, size), dtype=prefilled.keys.dtype, device=device
        )  # [L, J, R, room, E]
        self.tail_values = torch.zeros_like(self.tail_keys)
        self.lengths = np.array([len(path) for path in tree.paths])  # [R] tokens of the prompt
        self._shared = prefilled.shared

    def keep(self, places: list[int]) -> None:
        """Let all rows but those at `places` go."""
        chosen = torch.tensor(places, device=self.tail_keys.device)
        self.lengths = self.lengths[places]
        self.tail_keys, self.tail_values = self.tail_keys[:, :, chosen], self.tail_values[:, :, chosen]
        groups, self.group = np.unique(self.group[places], return_inverse=True)
        self.prompt = self.prompt[places]
        self.rests = [self.rests[group] for group in groups]
        for number, rests in enumerate(self.rests):
            mine = self.group == number
            used, self.prompt[mine] = np.unique(self.prompt[mine], return_inverse=True)
            rests.keep(used)

    def advance(self, made: Sequence[int], fresh: Sequence[int]) -> Tensor:
        """Begin a pass: row r keeps the first `made[r]` of its own tokens, and `fresh[r]` follow; positions [T]."""
        device = self.tail_keys.device
        row = np.repeat(np.arange(len(made)), fresh)
        place = np.concatenate([np.arange(m, m + f) for m, f in zip(made, fresh, strict=True)])
        self._fresh = torch.from_numpy(row * self.tail_keys.shape[3] + place).to(device)  # [T] of rows end to end
        self._by_prompt = _Slots(self.prompt[row], self.group[row], device)
        self._by_row = _Slots(row, np.zeros_like(row), device)
        # In whole chunks, so that a row's scores are summed in the same order however long its neighbours are.
        self._used = math.ceil((place.max() + 1) / CHUNK) * CHUNK
        (slots,) = self._by_row.slots
        last = torch.from_numpy(place).to(device)[slots].repeat_interleave(self._shared, dim=1)
        seen = torch.arange(self._used, device=device) <= last[:, None, :, None]
        self._tail_bias = additive(seen, self.tail_keys.dtype)  # [R, 1, most fresh of a row x shared, used]
        return torch.from_numpy(self.lengths[row] + place).to(device)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """query [1, H, T, E], key and value [1, J, T, E], each token attending to its own row."""
        _, heads, tokens, size = query.shape
        groups = key.shape[1]
        self.tail_keys[layer].flatten(1, 2).index_copy_(1, self._fresh, key[0])
        self.tail_values[layer].flatten(1, 2).index_copy_(1, self._fresh, value[0])
        by_token = (
            query[0].transpose(0, 1).reshape(tokens, groups, heads // groups, size)
        )  # heads of a group are neighbours
        keys, values = (tail[layer].transpose(0, 1)[:, :, : self._used] for tail in (self.tail_keys, self.tail_values))
        parts = [
            self._by_prompt.attention(by_token, [rests.layer(layer) for rests in self.rests], scaling),
            self._by_row.attention(by_token, [(keys, values, self._tail_bias)], scaling),
        ]
        if self.stem_keys.shape[2]:
            parts.append(self._stem(layer, by_token, scaling))
        return _combined(parts).reshape(tokens, heads, size).transpose(0, 1)[None].to(query.dtype)

    def _stem(self, layer: int, by_token: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
        tokens, groups, shared, size = by_token.shape
        folded = by_token.transpose(0, 1).reshape(1, groups, tokens * shared, size)
        out, weight = _attention(folded, self.stem_keys[layer][None], self.stem_values[layer][None], None, scaling)
        return (
            out[0].reshape(groups, tokens, shared, size).transpose(0, 1),
            weight[0].reshape(groups, tokens, shared).transpose(0, 1),
        )


class _Rests:
    """What some distinct prompts of like length have behind the stem, padded to the longest of them."""

    def __init__(self, prefilled: Prefilled, paths: list[np.ndarray]):
        device = prefilled.keys.device
        nodes = np.zeros((len(paths), max(map(len, paths))), np.int64)
        inside = np.zeros(nodes.shape, bool)
        for place, path in enumerate(paths):
            nodes[place, : len(path)] = path
            inside[place, : len(path)] = True
        gather = torch.from_numpy(nodes).to(device)
        self.keys, self.values = (
            prefilled.keys[:, 0][:, :, gather],
            prefilled.values[:, 0][:, :, gather],
        )  # [L, J, P, K, E]
        self.bias = additive(torch.from_numpy(inside).to(device), prefilled.keys.dtype)[:, None, None]  # [P, 1, 1, K]

    def keep(self, places: np.ndarray) -> None:
        """Let all prompts but those at `places` go."""
        if len(places) < len(self.bias):
            chosen = torch.from_numpy(places).to(self.bias.device)
            self.keys, self.values = self.keys[:, :, chosen], self.values[:, :, chosen]
            self.bias = self.bias[chosen]

    def layer(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values [P, J, K, E] and what is added to the scores [P, 1, 1, K]."""
        return self.keys[layer].transpose(0, 1), self.values[layer].transpose(0, 1), self.bias


def _alike(lengths: np.ndarray) -> list[np.ndarray]:
    """Numbers of prompts by like length: padded to the longest of its group, none becomes more than twice as long.

    One query of thousands of tokens would otherwise be paid for by all prompts of the batch. What is up to a chunk
    long is alike.
    """
    groups: list[list[int]] = []
    for number in np.argsort(-lengths, kind="stable"):
        longest = lengths[groups[-1][0]] if groups else math.inf
        if 2 * lengths[number] < longest and longest > CHUNK:
            groups.append([])
        groups[-1].append(int(number))
    return [np.array(group) for group in groups]


class _Slots:
    """Tokens laid out by what they read together, their prompt or their row.

    Token t reads number `read[t]` of group `group[t]`. A group has B things to read, with most tokens of one M.
    """

    def __init__(self, read: np.ndarray, group: np.ndarray, device: torch.device):
        self.slots: list[Tensor] = []  # of each group [B, M] the tokens' numbers
        places, before = np.empty(len(read), np.int64), 0
        for number in range(group.max() + 1):
            mine = np.flatnonzero(group == number)
            counts = np.bincount(read[mine])
            order = np.argsort(read[mine], kind="stable")
            within = np.empty(len(mine), np.int64)
            within[order] = np.concatenate([np.arange(count) for count in counts])
            slots = np.zeros((len(counts), counts.max()), np.int64)  # an unused slot repeats token 0, to no effect
            slots[read[mine], within] = mine
            places[mine] = before + read[mine] * slots.shape[1] + within
            before += slots.size
            self.slots.append(torch.from_numpy(slots).to(device))
        self._places = torch.from_numpy(places).to(device)  # [T] the way back

    def attention(self, by_token: Tensor, parts: Sequence[tuple[Tensor, Tensor, Tensor]], scaling: float):
        """by_token [T, J, H / J, E]; of each group key and value [B, J, K, E] and bias [B, 1, 1 or M x H / J, K].

        Returns what `_attention` does, laid out as `by_token`.
        """
        outs, weights = zip(
            *(self._of_group(by_token, slots, *part, scaling) for slots, part in zip(self.slots, parts, strict=True)),
            strict=True,
        )
        return torch.cat(outs).index_select(0, self._places), torch.cat(weights).index_select(0, self._places)

    @staticmethod
    def _of_group(by_token: Tensor, slots: Tensor, key: Tensor, value: Tensor, bias: Tensor, scaling: float):
        _, groups, shared, size = by_token.shape
        blocks, most = slots.shape
        by_slot = by_token.index_select(0, slots.flatten()).unflatten(0, (blocks, most))
        folded = by_slot.transpose(1, 2).reshape(blocks, groups, most * shared, size)
        out, weight = _attention(folded, key, value, bias.expand(-1, groups, most * shared, -1), scaling)
        out = out.reshape(blocks, groups, most, shared, size).transpose(1, 2).flatten(0, 1)
        return out, weight.reshape(blocks, groups, most, shared).transpose(1, 2).flatten(0, 1)


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
