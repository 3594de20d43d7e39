"""Seconds of two ways to do the same, taken in turns, so that both see the machine in the same state."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version

import torch

from mmgrpo.machine import processor


def side_by_side(ways: Sequence[Callable[[], object]], runs: int) -> list[float]:
    """Median seconds of each way over `runs` rounds; a round times every way once."""
    seconds = [[timed(way) for way in ways] for _ in range(runs)]
    return [statistics.median(column) for column in zip(*seconds, strict=True)]


def timed(way: Callable[[], object]) -> float:
    gc.collect()
    started = time.perf_counter()
    way()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def machine() -> str:
    """The processor and the versions that a number depends on, in words."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl"))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    return f"{device}, {torch.get_num_threads()} threads, {packages}"
