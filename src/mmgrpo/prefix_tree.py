"""Token sequences merged into a trie by any common prefix, laid out for one packed forward pass.

Nodes are numbered in depth-first order, so that the subtree of node i is the range [i, leave[i]) and
"j is an ancestor of i" is two comparisons: j <= i < leave[j]. Attention needs no N x N mask: a block of
consecutive queries sees the path from the root to its first node, and the block itself. In tiles of queries by
keys, the farthest and the nearest `leave` of a tile's keys say which tiles hold a visible pair.
Legend of shapes: N nodes, R rows, D depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

BLOCK = 256  # queries that share one set of visible keys: larger blocks see more masked keys, smaller ones run slower


@dataclass(frozen=True)
class PrefixTree:
    """The trie of some rows. All arrays are int64."""

    tokens: np.ndarray  # [N] token of each node
    positions: np.ndarray  # [N] depth of each node, which is its place in every row through it
    leave: np.ndarray  # [N] one past the last node of the subtree
    paths: tuple[np.ndarray, ...]  # for each row, in the caller's order, its nodes from the root

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property  # a batch asks several times
    def stem(self) -> int:
        """How many tokens all rows begin with, leaving each row at least its last; they are the first nodes."""
        shortest = min(len(path) for path in self.paths) - 1
        alike = np.all([path[:shortest] == self.paths[0][:shortest] for path in self.paths], axis=0)
        return int(alike.cumprod().sum())

    def ancestors(self, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """[len(queries), len(keys)] True where the key's node is on the path to the query's node, itself included."""
        return (keys[None, :] <= queries[:, None]) & (queries[:, None] < self.leave[keys][None, :])

    def blocks(self, size: int = BLOCK, first: int = 0) -> list[tuple[range, np.ndarray]]:
        """Consecutive query nodes from `first` on with the nodes that they may see: (queries, visible keys in order)."""
        layout = []
        for start in range(first, len(self), size):
            stop = min(start + size, len(self))
            layout.append((range(start, stop), np.concatenate([_above(self.positions, start), np.arange(start, stop)])))
        return layout

    def tiles(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Two [tiles of queries, tiles of keys] of bools, tiles of `size` nodes: is any pair visible, are all pairs?"""
        starts = np.arange(0, len(self), size)
        stops = np.minimum(starts + size, len(self))
        farthest, nearest = np.maximum.reduceat(self.leave, starts), np.minimum.reduceat(self.leave, starts)
        # A subtree that begins in an earlier tile and reaches into this one holds this one's first node.
        some = (starts <= starts[:, None]) & (starts[:, None] < farthest)
        every = (stops <= starts[:, None] + 1) & (stops[:, None] <= nearest)
        return some, every

    def padded(self, nodes: int) -> PrefixTree:
        """The tree with further roots behind it, no row's and each seeing itself only: `nodes` in all."""
        fresh = np.arange(len(self), nodes)
        zeros = np.zeros_like(fresh)
        return PrefixTree(
            np.concatenate([self.tokens, zeros]),
            np.concatenate([self.positions, zeros]),
            np.concatenate([self.leave, fresh + 1]),
            self.paths,
        )


def build(rows: Sequence[Sequence[int]]) -> PrefixTree:
    """Merge `rows` (each of at least one token) by their common prefixes."""
    order = sorted(range(len(rows)), key=lambda index: rows[index])
    tokens: list[int] = []
    positions: list[int] = []
    leave: list[int] = []
    paths: list[np.ndarray] = [np.empty(0, np.int64)] * len(rows)
    previous: list[int] = []  # nodes of the row before; sorted order makes its shared part the longest possible
    for index in order:
        row = rows[index]
        shared = common_prefix(row, [tokens[node] for node in previous])
        for node in previous[shared:]:
            leave[node] = len(tokens)
        fresh = range(len(tokens), len(tokens) + len(row) - shared)
        tokens.extend(row[shared:])
        positions.extend(range(shared, len(row)))
        leave.extend([0] * len(fresh))
        previous = previous[:shared] + list(fresh)
        paths[index] = np.array(previous, np.int64)
    for node in previous:
        leave[node] = len(tokens)
    return PrefixTree(
        np.array(tokens, np.int64), np.array(positions, np.int64), np.array(leave, np.int64), tuple(paths)
    )


def pack(rows: Sequence[Sequence[int]], budget: int) -> list[list[int]]:
    """Split rows (by index) into packs whose tries have at most `budget` nodes, neighbours in the trie together.

    A row that shares more than it adds may take its pack beyond the budget, to twice the length of the pack's first row
    at most: the completions of a prompt that all but fills a budget would else compute that prompt again each.
    """
    order = sorted(range(len(rows)), key=lambda index: rows[index])
    packs: list[list[int]] = []
    used = 0
    for place, index in enumerate(order):
        row = rows[index]
        shared = common_prefix(row, rows[order[place - 1]]) if place else 0
        extra = len(row) - shared
        most = max(budget, 2 * len(rows[packs[-1][0]])) if extra < shared else budget
        if not packs or used + extra > most:
            packs.append([])
            used, extra = 0, len(row)
        packs[-1].append(index)
        used += extra
    return packs


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    length = min(len(one), len(other))
    for place in range(length):
        if one[place] != other[place]:
            return place
    return length


def _above(positions: np.ndarray, node: int) -> np.ndarray:
    """The nodes strictly above `node`, from the root, found by walking back through the depth-first order."""
    depth = positions[node]
    above = np.empty(depth, np.int64)
    while depth:
        node -= 1
        if positions[node] == depth - 1:
            depth -= 1
            above[depth] = node
    return above
