"""What a record keeps of rollouts: enough to draw them and their groups, and no text."""

import json
import random

from factories import call, run, runs

from mmgrpo.grouping import module_groups, trajectory_groups
from mmgrpo.outline import outline


def grouped(trajectories, **changes):
    settings = {"padding": "fill", "size": 9, "scale": "none", "rng": random.Random(0)} | changes
    return module_groups(trajectories, **settings).groups


def test_runs_and_groups_are_told_by_names_places_and_numbers():
    trajectories = runs(("abb", 1.0), ("ab", 0.0))
    found = outline(4, trajectories, grouped(trajectories))
    assert (found["step"], found["example"]) == (4, "x")
    assert [[(c["module"], c["invocation"], c["tokens"]) for c in each["calls"]] for each in found["runs"]] == [
        [("a", 0, 2), ("b", 0, 2), ("b", 1, 2)],
        [("a", 0, 2), ("b", 0, 2)],
    ]
    assert [group["key"] for group in found["groups"]] == [["a", 0], ["b", 0], ["b", 1]]
    assert found["groups"][2]["members"] == [
        {"rollout": 0, "places": [2], "advantage": 0.5},
        {"rollout": 1, "places": [1], "advantage": -0.5},  # the call that fills the group
    ]


def test_a_member_at_trajectory_level_is_all_calls_of_its_run():
    trajectories = runs(("ab", 1.0), ("a", 0.0))
    (group,) = outline(0, trajectories, trajectory_groups(trajectories, size=2, scale="none").groups)["groups"]
    assert group["key"] == [] and [member["places"] for member in group["members"]] == [[0, 1], [0]]


def test_the_input_with_most_groups_is_kept():
    trajectories = [*runs(("a", 1.0), ("a", 0.0), example="x"), *runs(("ab", 1.0), ("ab", 0.0), example="y")]
    found = outline(0, trajectories, grouped(trajectories))
    assert found["example"] == "y" and len(found["runs"]) == len(found["groups"]) == 2


def test_a_run_without_reward_is_kept_as_what_it_was():
    trajectories = [*runs(("a", 1.0), ("a", 0.0)), run("a", None, 2)]
    assert [each["reward"] for each in outline(0, trajectories, grouped(trajectories))["runs"]] == [1.0, 0.0, None]


def test_no_text_and_no_token_is_kept():
    secret = call(text="Ms Secret", prompt=(70001,), completion=(70002, 70003))
    trajectories = [run("a", reward, rollout) for rollout, reward in enumerate((1.0, 0.0))]
    trajectories = [
        type(each)(each.example, each.rollout, (secret,), each.reward, each.outcome) for each in trajectories
    ]
    kept = json.dumps(outline(0, trajectories, grouped(trajectories)))
    assert "Secret" not in kept and "7000" not in kept
