"""Peak memory of a training step, ours and TRL's, each in a process of its own: its largest resident set above the one
before the step. On a GPU, the peak of the allocator instead.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import torch

from mmgrpo.bench import shapes
from mmgrpo.bench.record import Comparison, Setup, Target
from mmgrpo.bench.training import our_step, plain_copy, trl_step

EVERY = 0.002  # seconds between two looks at the resident set


def compare(setup: Setup) -> list[Comparison]:
    ours, peer = (_in_new_process(step_peak, setup, side) for side in ("ours", "trl"))
    what = shapes.banking()[1]
    return [
        Comparison.of(
            setup, "memory", f"peak memory of a training step, {what}, {setup.size.inputs} x {setup.size.rollouts}",
            ours=ours, peer=peer, peer_name="TRL GRPOTrainer", unit="MiB", ratio=ours / peer,
            target=Target(0.6, at_most=True), runs=1,
        )
    ]  # fmt: skip


def step_peak(setup: Setup, side: str) -> float:
    """MiB that one training step of `side` (ours or trl) adds to this process at most."""
    policy, size = setup.make_policy(), setup.size
    rows = shapes.one_module(policy.tokenizer, size).rows
    with TemporaryDirectory() as folder:
        if side == "ours":
            step = our_step(policy, rows, size, Path(folder))
        else:
            step = trl_step(plain_copy(policy.trainable()), policy.tokenizer, rows, size, Path(folder))
        return added_at_peak(step) / 2**20


def added_at_peak(action: Callable[[], None]) -> int:
    """Bytes that `action` needs at most above what is in use before."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        action()
        return torch.cuda.max_memory_allocated() - before
    _return_free_memory()
    process, over = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not over.wait(EVERY):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        action()
    finally:
        over.set()
        watcher.join()
    return max(peak, process.memory_info().rss) - before


def _return_free_memory() -> None:
    """Give freed memory back to the system, where the C library can: `action` would reuse it and seem to need less."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def _in_new_process(function: Callable, *arguments) -> float:
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawned) as pool:
        return pool.submit(function, *arguments).result()
