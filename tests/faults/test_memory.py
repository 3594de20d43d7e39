"""A long training holds no more memory at its end than soon after its start."""

from __future__ import annotations

import json
from statistics import mean

import children
import pytest

STEPS = 200
FLAT = 8.0  # MiB, a thousandth of what a leaked batch of the embedded model would take in so many steps

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not children.STATM.exists(), reason=f"There is no {children.STATM} here to read memory from."),
]


def grown(processes, folder, leak: int) -> float:
    """MiB that a training's resident memory grew by from the second quarter of its steps to the last."""
    process = processes.Process(target=children.train_long, args=(folder, STEPS, leak))
    process.start()
    process.join()
    assert process.exitcode == 0
    resident = json.loads((folder / "resident.json").read_text())
    quarter = len(resident) // 4
    growth = mean(resident[-quarter:]) - mean(resident[quarter : 2 * quarter])
    print(f"memory grew by {growth:.1f} MiB")
    return growth


def test_memory_stays_flat_over_200_steps(processes, tmp_path):
    assert grown(processes, tmp_path, leak=0) < FLAT


def test_a_leak_would_be_seen(processes, tmp_path):
    assert grown(processes, tmp_path, leak=2**14) > FLAT
