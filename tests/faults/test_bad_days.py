"""A full disk, a clock that jumps, and an API on a bad day."""

from __future__ import annotations

import errno
import os
import random
import time

import children
import dspy
import pytest
from api_double import ERRORS, LATE_SECONDS, ApiDouble
from tiny_policy import fields, scripted_lm

from mmgrpo import records, rollout
from mmgrpo.errors import UserError

BAD_DAYS = [*ERRORS, "garbage", "hangs up", "cut off", "late"]


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("MMGRPO_RESULTS_DIR", str(tmp_path))


def test_full_disk_is_one_sentence_and_the_old_record_stays(tmp_path, monkeypatch):
    import record_factory

    file = records.write(record_factory.record(seed=1), tmp_path / "record.json")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for broken in ("fsync", "replace"):
        with (
            monkeypatch.context() as patch,
            pytest.raises(UserError, match="The disk is full, so .* Make room and run"),
        ):
            patch.setattr(os, broken, full)
            records.write(record_factory.record(seed=2), file)
    assert records.read(file).seed == 1
    assert list(tmp_path.iterdir()) == [file]


def test_clock_that_jumps_changes_nothing(tmp_path, monkeypatch, capsys):
    rng, honest = random.Random(0), time.time
    monkeypatch.setattr(time, "time", lambda: honest() + rng.uniform(-1e6, 1e6))
    children.run_grid(tmp_path, 2)
    said = capsys.readouterr().out
    assert said.count(" points in 0 min 0") == 6


class Ask(dspy.Module):
    """The policy's module and then another language model."""

    def __init__(self, other):
        super().__init__()
        self.own, self.other = dspy.Predict("q -> t"), other

    def forward(self, q):
        self.own(q=q)
        with dspy.context(lm=self.other):
            return dspy.Predict("q -> t")(q=q)


def runs_of(days, count, retries=0):
    """Runs that ask an API with these days, one after the other."""
    with ApiDouble(days) as api:
        other = dspy.LM(
            "openai/gpt-4o-mini", api_base=api.address, api_key="none", cache=False, num_retries=retries,
            timeout=LATE_SECONDS / 2,
        )  # fmt: skip
        jobs = rollout.jobs_for([dspy.Example(q=str(n)).with_inputs("q") for n in range(count)], 1, 0)
        lm = scripted_lm(lambda *_: fields(t="x"))
        return rollout.run(Ask(other), jobs, lm=lm, metric=lambda *_: 1.0), api


@pytest.mark.parametrize("day", BAD_DAYS)
def test_bad_day_costs_one_run_and_no_other(day):
    found, _ = runs_of([day, "good"], 6)
    assert sorted(run.outcome for run in found) == ["completed"] * 5 + ["crashed"]
    (crashed,) = (run for run in found if run.outcome == "crashed")
    assert "Error" in crashed.error and crashed.reward is None and len(crashed.calls) == 1


@pytest.mark.parametrize("day", ["rate limit", "broken", "hangs up"])
def test_retry_brings_the_reply(day):
    found, api = runs_of([day, "good"], 1, retries=2)
    assert [run.outcome for run in found] == ["completed"] and api.asked == 2


def test_api_that_stays_away_stops_the_run_with_its_reason():
    with pytest.raises(UserError, match="4 of 4 runs failed, the first because the program raised .*Error"):
        runs_of(["broken"], 4)
