"""One policy trained by several processes (`accelerate launch`): shares of work, and sums over all of them.

Every process runs its share of the rollouts, sees all of them, and forms the same groups and rows; then each trains on
its share of the micro-batches and the gradients are added up. Weights of tokens are those of the whole step, so
that the sum is the gradient one process would have. With one process, everything here changes nothing.
With FSDP each process keeps a part of the frozen weights, and all gather them together, layer by layer: then all have to
make the same number of passes. The adapters stay whole in each process.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Item = TypeVar("Item")


def launched() -> int:
    """How many processes `accelerate launch` started, before they know of each other; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank_and_size() -> tuple[int, int]:
    """Which process this is, and how many train together."""
    several = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if several else (0, 1)


def is_first() -> bool:
    """Whether this process is the one that writes files."""
    return rank_and_size()[0] == 0


def share(items: Sequence[Item], spare: Item | None = None) -> Sequence[Item]:
    """This process's part of `items`: neighbours, so that prompts with a shared prefix stay together.

    With a `spare` all parts are equally long: those that would be shorter have it at their end.
    """
    rank, size = rank_and_size()
    mine = items[rank * len(items) // size : (rank + 1) * len(items) // size]
    longest = -(-len(items) // size)
    return mine if spare is None else [*mine, *[spare] * (longest - len(mine))]


def all_of(mine: Sequence[Item]) -> list[Item]:
    """What became of all shares, in the order of the whole; waits for all processes."""
    size = rank_and_size()[1]
    if size == 1:
        return list(mine)
    parts: list[list[Item]] = [[]] * size
    dist.all_gather_object(parts, list(mine))
    return [item for part in parts for item in part]


def wait() -> None:
    """Go on when all processes are here."""
    if rank_and_size()[1] > 1:
        dist.barrier()


def summed(tensor: Tensor) -> Tensor:
    """The sum of all processes' tensors, in place."""
    if rank_and_size()[1] > 1:
        dist.all_reduce(tensor)
    return tensor


def sum_gradients(weights: Sequence[torch.nn.Parameter]) -> None:
    """Add up the gradients of all processes; a weight that has none anywhere keeps none."""
    if rank_and_size()[1] == 1:
        return
    used = summed(torch.tensor([float(weight.grad is not None) for weight in weights], device=weights[0].device))
    for weight, count in zip(weights, used.tolist(), strict=True):
        if count:
            weight.grad = summed(torch.zeros_like(weight) if weight.grad is None else weight.grad)
