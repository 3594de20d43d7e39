"""Records as frames: one row a run, an example, an update; what can't be compared is refused."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from record_factory import curve, record

from mmgrpo.errors import UserError
from mmgrpo.records import Score
from mmgrpo.report import frames


def test_runs_have_points_hours_and_outcomes():
    row = frames.runs(
        [record([1.0, 0.0, 0.5, 0.0], outcomes=["completed", "interrupted", "completed", "unscorable"])]
    ).iloc[0]
    assert row["score"] == 50  # of the three that could be scored
    assert row["hours"] == 0.75  # 1800 and 900 seconds
    assert row["hours_optimize"] == 0.5
    assert (row["completed"], row["interrupted"], row["crashed"], row["unscorable"]) == (2, 1, 0, 1)
    assert row["tokens_prompt"] == 4000


ASKED = {
    "untrusted": {"calls": 2, "prompt": 600, "completion": 600, "dollars": 0.25, "unpriced": 0},
    "judge": {"calls": 4, "prompt": 900, "completion": 4, "dollars": 0.5, "unpriced": 0},
}
UNPRICED = {"judge": ASKED["judge"] | {"dollars": 0.0, "unpriced": 4}}
CACHED = {"judge": dict.fromkeys(ASKED["judge"], 0)}


def paid(**notes):
    """Calls and dollars of a run with these notes; None where missing."""
    row = frames.runs([record(notes=notes)]).iloc[0]
    return tuple(None if np.isnan(row[name]) else row[name] for name in ("api_calls", "api_dollars"))


def test_paid_apis_are_summed_over_their_roles():
    assert paid(spending=ASKED) == (6, 0.75)
    assert paid(spending=CACHED) == (0, 0)


def test_what_is_not_known_of_paid_apis_is_missing():
    assert paid() == (None, None)  # a record that doesn't tell
    assert paid(spending={}) == (None, None)  # a task that asks none
    assert paid(spending=UNPRICED) == (4, None)
    assert paid(spending=ASKED | {"untrusted": UNPRICED["judge"]}) == (8, None)


def test_apis_of_the_run_before_are_paid_too():
    before = {"seconds": {}, "tokens": {}}
    assert paid(spending=ASKED, prompt_optimization=before | {"spending": CACHED}) == (6, 0.75)
    assert paid(spending=ASKED, prompt_optimization=before | {"spending": ASKED}) == (12, 1.5)
    assert paid(spending=ASKED, prompt_optimization=before) == (None, None)


COSTS = [
    "hours", "hours_optimize", "hours_before", "tokens_prompt", "api_calls", "api_dollars", "peak_memory_gb",
]  # fmt: skip


@pytest.mark.parametrize("of_it", [True, False])
def test_what_a_resumed_run_cost_is_missing(of_it):
    before = {"seconds": {"optimize": 9.0}, "tokens": {}, "spending": ASKED, "resumed": not of_it}
    notes = {"spending": ASKED, "resumed": of_it, "prompt_optimization": before}
    logged = curve([0.1, 0.2], rollouts=48.0)
    broken = record(strategy="composition", notes=notes, curve=logged)
    whole = record(strategy="composition", notes={"spending": ASKED, "resumed": False}, curve=logged, seed=1)
    frame = frames.runs([broken, whole])
    assert frame["resumed"].tolist() == [True, False]
    assert frame.loc[0, COSTS].isna().all() and frame.loc[0, ["score", "rollouts"]].tolist() == [50, 96]
    assert frame.loc[1, [name for name in COSTS if name != "hours_before"]].notna().all()


def test_rollouts_are_those_of_the_updates_that_logged_them():
    first, second = curve([0.1, 0.2])
    assert frames.runs([record(curve=(first | {"rollouts": 48.0}, second))])["rollouts"].tolist() == [48]
    assert frames.runs([record(curve=(first, second)), record(seed=1)])["rollouts"].isna().all()


def test_examples_keep_their_order_and_the_parts_of_their_metric():
    scores = (Score("a", 1.0, "completed", {"leakage": 0.5}), Score("b", 0.0, "unscorable", {}))
    frame = frames.examples([dataclasses.replace(record(), scores=scores)])
    assert frame["example"].tolist() == ["a", "b"]
    assert frame["score"].iloc[0] == 1 and np.isnan(frame["score"].iloc[1])
    assert frame["detail_leakage"].iloc[0] == 0.5


def test_parts_of_a_metric_are_the_means_that_pandas_takes():
    rng = np.random.default_rng(0)
    parts = [{name: rng.random() for name in "tsrqponmlkjihgfedcba" if rng.random() < 0.8} for _ in range(500)]
    outcomes = rng.choice(["completed", "unscorable"], size=500, p=[0.9, 0.1])
    scores = tuple(Score(f"e{i}", 0.5, end, each) for i, (end, each) in enumerate(zip(outcomes, parts, strict=True)))
    found = frames.details([dataclasses.replace(record(), scores=scores), record(seed=1)])
    judged = [each for each, end in zip(parts, outcomes, strict=True) if each and end == "completed"]
    wanted = pd.DataFrame(judged).mean()
    assert found[list(wanted.index)].iloc[0].tolist() == wanted.tolist()  # bit for bit
    assert len(found) == 1  # a metric without parts has no row


def test_curve_has_a_row_an_update_and_missing_keys_are_missing():
    frame = frames.curve(
        [record(seed=0, curve=curve([0.1, 0.2], **{"groups/kept": 3.0})), record(seed=1, curve=curve([0.3]))]
    )
    assert frame["reward"].tolist() == [0.1, 0.2, 0.3]
    assert frame["groups/kept"].isna().tolist() == [False, False, True]


def test_validation_has_a_row_a_score():
    frame = frames.validation([record(validation=({"step": 8, "score": 0.5}, {"step": 1, "score": 0.25}))])
    assert frame["step"].tolist() == [8, 1]
    assert frame["score"].tolist() == [0.5, 0.25]


def test_records_without_curve_give_an_empty_frame_with_its_columns():
    assert frames.curve([record()]).empty
    assert {"task", "step", "reward"} <= set(frames.curve([record()]).columns)


def test_cells_stack_seeds_in_order():
    cell = frames.by_kind([record([0.0, 1.0], seed=5), record([1.0, 0.0], seed=2)])[
        "banking77", "smollm2-135m", "vanilla"
    ]
    assert cell.seeds == (2, 5)
    assert cell.scores.tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_seeds_on_other_examples_are_refused():
    with pytest.raises(UserError, match="different test examples"):
        frames.by_kind([record([1.0, 0.0], seed=0), record([1.0, 0.0, 1.0], seed=1)])


def test_seeds_with_other_settings_are_refused():
    with pytest.raises(UserError, match="The seeds of vanilla on banking77 ran with different settings"):
        frames.by_kind([record(seed=0), record(seed=1, settings={"grpo": {"steps": 2}})])


@pytest.mark.parametrize(
    ("records", "sentence"),
    [
        ([], "no records"),
        ([record(), record(profile="gpu", seed=1)], r"2 profiles \(gpu, laptop\)"),
        ([record(), record()], "2 records of one run"),
        ([record(scores=())], "no test scores"),
    ],
)
def test_check_refuses(records, sentence):
    with pytest.raises(UserError, match=sentence):
        frames.check(records)
