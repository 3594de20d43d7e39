"""Starts the processes that are killed, and sums up at the end what the kills did."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
TALLY: Counter[str] = Counter()
LOSSES = ("records lost", "runs whose final weights or scores differ")


@pytest.fixture(scope="session")
def processes():
    """A server that has imported everything once and forks a child for each process that is asked for."""
    found = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS / "faults"), found])
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["children"])
    first = context.Process(target=os.getpid)  # waits for the imports, so that no test measures them
    first.start()
    first.join()
    return context


@pytest.fixture
def tally() -> Counter[str]:
    return TALLY


def pytest_terminal_summary(terminalreporter) -> None:
    if TALLY["rounds"]:
        counts = [f"{TALLY[name]} {name}" for name in ("rounds", "processes killed", *LOSSES)]
        terminalreporter.write_line(f"faults: {', '.join(counts)}")
