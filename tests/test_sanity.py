"""A long study must not wear the machine out: what a rollout or a training opens, it closes; many runs at once are fine."""

import gc
import os
import threading
from pathlib import Path

import dspy
import pytest
from tiny_policy import fields, scripted_lm, tiny_policy
from training_setup import VALID, compile_, optimizer

from mmgrpo import rollout

pytestmark = pytest.mark.usefixtures("nothing_but_training")

DESCRIPTORS = Path("/proc/self/fd") if Path("/proc/self/fd").exists() else Path("/dev/fd")


def held() -> tuple[int, int]:
    """Threads and file descriptors of this process."""
    gc.collect()
    return threading.active_count(), len(os.listdir(DESCRIPTORS))


class Double(dspy.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = dspy.Predict("q -> t"), dspy.Predict("q -> t")

    def forward(self, q):
        return self.b(q=self.a(q=q).t)


def run(count, batch, reply=lambda prompt, request: fields(t="x")):
    lm = scripted_lm(reply, batch=batch)
    jobs = rollout.jobs_for([dspy.Example(q=str(n)).with_inputs("q") for n in range(count)], 1, 0)
    return rollout.run(Double(), jobs, lm=lm, metric=lambda *_: 1.0), lm.policy.engine.sampler


def test_what_can_be_counted_can_be_lost(tmp_path):
    before = held()
    with (tmp_path / "x").open("w"):
        assert held() == (before[0], before[1] + 1)


def test_a_rollout_gives_back_its_threads_and_files():
    run(8, 8)  # what libraries open once and keep
    before = held()
    for _ in range(3):
        run(40, 16)
    assert held() == before


def test_a_rollout_that_breaks_off_gives_them_back_too():
    def broken(prompt, request):
        raise KeyboardInterrupt

    run(8, 8)
    before = held()
    with pytest.raises(KeyboardInterrupt):
        run(40, 16, broken)
    assert held() == before


def test_a_training_gives_back_its_threads_and_files(tmp_path):
    compile_(tiny_policy(), optimizer(folder=tmp_path / "first"), valset=VALID)
    before = held()
    for place in ("second", "third"):
        compile_(tiny_policy(), optimizer(folder=tmp_path / place), valset=VALID)
    assert held() == before


def test_512_runs_at_once():
    together = 0

    def reply(prompt, request):
        nonlocal together
        together = max(together, sum(thread.is_alive() for thread in threading.enumerate()))
        return fields(t="x")

    runs, sampler = run(600, 256, reply)
    assert together >= 512
    assert len(runs) == 600 and all(one.outcome == "completed" and len(one.calls) == 2 for one in runs)
    assert len(sampler.requests) == 1200
