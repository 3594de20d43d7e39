"""A grid, a training and a prompt search killed at random times end as if nothing had been.

Each test has a short form, which `make test` runs, and a long one under `make test-faults`.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import children
import pytest
from safetensors.torch import load_file
from training_setup import same

LONG = pytest.mark.faults
PATIENCE = 120  # seconds that an undisturbed process may take


def kill_at_random(processes, target, arguments, rounds, rng, longest, after=lambda: None) -> int:
    """Start the process, kill it after up to `longest` seconds, again and again. Returns how many were alive then."""
    killed = 0
    for _ in range(rounds):
        process = processes.Process(target=target, args=arguments)
        process.start()
        process.join(rng.uniform(0, longest))
        killed += process.is_alive()
        process.kill()
        process.join()
        after()
    return killed


def finish(processes, target, arguments) -> float:
    """Run the process undisturbed; seconds that it took."""
    started = time.monotonic()
    process = processes.Process(target=target, args=arguments)
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == 0
    return time.monotonic() - started


def records_below(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("record.json")}


@pytest.mark.parametrize("rounds", [3, pytest.param(20, marks=LONG)])
def test_grid_killed_at_random_ends_with_the_same_records(processes, tally, tmp_path, monkeypatch, rounds):
    monkeypatch.setenv("MMGRPO_RESULTS_DIR", str(tmp_path))  # children.todo sets it; put back afterwards
    seeds = 2 * rounds
    took = finish(processes, children.run_grid, (tmp_path / "reference", seeds))
    reference = records_below(tmp_path / "reference")
    assert len(reference) == 3 * seeds
    seen: dict[str, bytes] = {}

    def look():
        now = records_below(tmp_path / "killed")
        tally["records lost"] += sum(now.get(name) != content for name, content in seen.items())
        seen.update(now)

    arguments = (tmp_path / "killed", seeds)
    killed = kill_at_random(
        processes, children.run_grid, arguments, rounds, random.Random(rounds), 2 * took / rounds, look
    )
    finish(processes, children.run_grid, arguments)
    look()
    differ = sum(seen.get(name) != content for name, content in reference.items())
    tally["rounds"] += rounds
    tally["processes killed"] += killed
    tally["runs whose final weights or scores differ"] += differ
    assert (killed > 0, tally["records lost"], differ, seen.keys() == reference.keys()) == (True, 0, 0, True)


@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=LONG)])
def test_training_killed_at_random_ends_with_the_same_weights(processes, tally, tmp_path, rounds):
    (tmp_path / "reference").mkdir()
    (tmp_path / "killed").mkdir()
    took = finish(processes, children.train, (tmp_path / "reference",))
    killed = kill_at_random(
        processes, children.train, (tmp_path / "killed",), rounds, random.Random(rounds), 0.4 * took
    )  # the first run also warms up: later ones are faster
    finish(processes, children.train, (tmp_path / "killed",))
    one, other = (load_file(tmp_path / name / "final.safetensors") for name in ("reference", "killed"))
    differ = not same(one, other)
    tally["rounds"] += rounds
    tally["processes killed"] += killed
    tally["runs whose final weights or scores differ"] += differ
    assert killed and not differ


@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=LONG)])
@pytest.mark.parametrize("kind", ["mipro", "gepa"])
def test_search_killed_at_random_finds_the_same_and_asks_for_no_reply_twice(processes, tally, tmp_path, kind, rounds):
    took = finish(processes, children.optimize, (kind, tmp_path / "reference"))
    arguments = (kind, tmp_path / "killed")
    killed = kill_at_random(processes, children.optimize, arguments, rounds, random.Random(rounds), 0.6 * took)
    kept = sum(file.read_text().count("\n") for file in (tmp_path / "killed").rglob("replies.jsonl"))
    finish(processes, children.optimize, arguments)
    one, other = (json.loads((tmp_path / name / "found.json").read_text()) for name in ("reference", "killed"))
    differ = one["result"] != other["result"]
    tally["rounds"] += rounds
    tally["processes killed"] += killed
    tally["runs whose final weights or scores differ"] += differ
    assert killed and not differ
    assert other["sampled"] - (one["sampled"] - kept) in (0, 1)  # a line that the last kill cut short
