"""Attention over a prefix tree by FlexAttention, whose fused kernel leaves out tiles of keys that no query may see.

Key k is visible to query q where q lies in k's subtree: k <= q < leave[k]. The kernel asks so of each pair in a tile
that is visible in part, and needs the lists of such tiles and of whole ones beforehand. PyTorch's `create_block_mask`
finds them by looking at all N x N pairs, kept in memory unless it is compiled, too. Here they are read off the tree's
numbers: exact, N steps and one comparison for each pair of tiles, and nothing to compile.

Trees are padded to whole tiles, so that one compiled function serves micro-batches of all sizes.
Not measured yet: the compiled kernel has gradients on CUDA alone, and we had no GPU to run it on. Tests run the same
calls uncompiled on a CPU, gradients included, and the compiled kernel wherever they find a GPU.
Legend of shapes: N nodes, H query heads, J key-value heads, E head size, T tiles.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from mmgrpo.prefix_tree import PrefixTree, build

TILE = 128  # nodes; FlexAttention's default, which the blocks of its kernels divide
Kernel = Callable[..., Tensor]  # called as `flex_attention` is


class TreeFlex:
    """Stateless memory of one pass over a whole tree."""

    def __init__(self, tree: PrefixTree, device: torch.device, kernel: Kernel):
        tiles = max(2, -(-len(tree) // TILE))  # a lone tile would be compiled for itself
        self.tree = tree.padded(tiles * TILE)  # what the pass has to run over
        self._mask = block_mask(self.tree, TILE, device)
        self._kernel = kernel

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        query, key = query.to(value.dtype), key.to(value.dtype)  # rotary embedding leaves fp32 under autocast
        return self._kernel(query, key, value, block_mask=self._mask, scale=scaling, enable_gqa=True)


def block_mask(tree: PrefixTree, size: int, device: torch.device) -> BlockMask:
    """The tiles of `size` nodes that are visible in part or as a whole: T x T numbers, never N x N."""
    some, every = tree.tiles(size)
    leave = torch.from_numpy(tree.leave.astype(np.int32)).to(device)

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < leave[key])

    lists = (*_listed(some & ~every), *_listed(every))
    lengths = (len(tree), len(tree))
    return BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=size, mask_mod=visible, seq_lengths=lengths).to(device)


@cache
def compiled() -> Kernel:
    """The fused kernel, one function for a whole process: it compiles for the first size, then once for all others."""
    # Past its limit of compilations a function would run unfused, with all N x N scores: fail instead.
    kernel = torch.compile(flex_attention, fullgraph=True)
    # Of two models in a process, the second has another scaling: a constant of the kernel, as the first one's.
    return torch._dynamo.config.patch(specialize_float=True)(kernel)


@cache
def runs(device: torch.device, dtype: torch.dtype, heads: int, shared: int, size: int) -> bool:
    """Whether the fused kernel gives attention and gradients for `shared` key-value heads; says why not, once."""
    try:
        for tiles in (2, 3):  # of two sizes: the second is compiled for all others
            memory = TreeFlex(build([range(tiles * TILE)]), device, compiled())
            zeros = partial(torch.zeros, dtype=dtype, device=device, requires_grad=True)
            query, key, value = (
                zeros(1, len(memory.tree), count, size).transpose(1, 2) for count in (heads, shared, shared)
            )
            with torch.enable_grad():
                memory.attend(0, query, key, value, size**-0.5).sum().backward()
    except Exception as error:  # a compiler, a driver and a GPU can fail in any way; all mean the same here
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        warnings.warn(
            f"FlexAttention does not run on {device} for {heads} heads of {size} in {dtype} ({reason}): attention over "
            "prefix trees is computed by SDPA in blocks, which gives the same numbers.",
            stacklevel=2,
        )
        return False
    return True


def _listed(chosen: np.ndarray) -> tuple[Tensor, Tensor]:
    """[1, 1, T] how many tiles of keys are chosen for each tile of queries, and [1, 1, T, T] all tiles, those first."""
    counts = chosen.sum(axis=1, dtype=np.int32)
    order = np.argsort(~chosen, axis=1, kind="stable").astype(np.int32)
    return torch.from_numpy(counts)[None, None], torch.from_numpy(order)[None, None]
