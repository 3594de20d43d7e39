"""What is measured before training: who parsed, and which inputs have runs of different reward."""

import dataclasses
import json

import pytest
from factories import runs
from test_show import study

from mmgrpo import headroom, paths
from mmgrpo.errors import UserError
from mmgrpo.hashing import sha256_of


def test_inputs_whose_runs_all_earn_the_same_do_not_inform():
    sampled = [
        *runs(("ab", 0.0), ("ab", 0.0), ("ab", 1.0)),
        *runs(("ab", 0.5), ("ab", 0.5), example="y"),
        *runs(("ab", None), ("ab", 1.0), example="z"),
    ]
    assert headroom.informative_share(sampled) == 1 / 3


def test_parse_rates_are_by_module():
    (run,) = runs(("ab", 1.0))
    failed = dataclasses.replace(run.calls[1], status="format_failure")
    assert headroom.parse_rates([run, dataclasses.replace(run, calls=(run.calls[0], failed))]) == {"a": 1.0, "b": 0.5}


def test_right_answers_of_banking_earn_full_marks_and_chance_is_one_label():
    ready = study()
    assert headroom.oracle_score(ready) == 1.0
    assert ready.task.chance(ready.splits) == 1 / len(ready.splits.labels)


def test_what_is_kept_is_of_the_policy_that_the_project_ships():
    kept = json.loads(headroom.FILE.read_text(encoding="utf-8"))
    assert kept["profile"] == "laptop"
    assert kept["adapter"] == sha256_of(paths.POSTTRAINED_ADAPTER / "adapter_model.safetensors")


def test_every_embedded_task_has_headroom_and_a_signal():
    kept = {each.task: each for each in headroom.kept()}
    assert set(kept) == {"Banking77", "PAPILLON", "HoVer"}
    for each in kept.values():
        assert each.chance < each.vanilla < each.oracle - 4 * each.standard_error
        assert each.informative > 0.5 and min(each.parsed.values()) > 0.8


def test_numbers_of_a_smoke_profile_are_not_kept(tmp_path):
    with pytest.raises(UserError, match="smoke is a smoke profile"):
        headroom.keep(headroom.kept(), "smoke", tmp_path / "headroom.json")
    assert not list(tmp_path.iterdir())


def test_what_is_kept_is_read_as_it_was_written(tmp_path):
    file = headroom.keep(headroom.kept(), "laptop", tmp_path / "headroom.json")
    assert headroom.kept(file) == headroom.kept()
