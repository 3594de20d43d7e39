"""What is measured before training: who parsed, and which inputs have runs of different reward."""

import dataclasses

from factories import runs
from test_show import study

from mmgrpo import headroom


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
