"""Which calls are compared with which, and with what advantage."""

import math
import random
from itertools import combinations

import numpy as np
import pytest
from factories import PROPERTY, run, runs
from hypothesis import given
from hypothesis import strategies as st

from mmgrpo.errors import UserError
from mmgrpo.grouping import advantages, module_groups, select_k_diverse, trajectory_groups

ALL = 99  # a group size that cuts nothing


def by_module(trajectories, padding="ragged", size=ALL, scale="group", seed=0):
    return module_groups(trajectories, padding=padding, size=size, scale=scale, rng=random.Random(seed))


def texts(group):
    return [member.calls[0].text for member in group.members]


def values(group):
    return [member.advantage for member in group.members]


# Runs of up to three examples; within an example no two rewards are the same, so no group lacks variance.
@st.composite
def steps(draw, unscored=True):
    trajectories = []
    for example in "xyz"[: draw(st.integers(1, 3))]:
        structures = draw(st.lists(st.text("abc", max_size=6), min_size=1, max_size=5))
        for rollout, modules in enumerate(structures):
            reward = None if unscored and draw(st.integers(0, 4)) == 0 else rollout / 4
            trajectories.append(run(modules, reward, rollout, example=example))
    return draw(st.permutations(trajectories))


PADDINGS = st.sampled_from(["fill", "truncate", "ragged"])


# The worked example: four runs call one module 1, 3, 2 and 3 times, with rewards 0, 1, 1 and 0.
UNEVEN = runs(("a", 0.0), ("aaa", 1.0), ("aa", 1.0), ("aaa", 0.0))


def test_truncate_keeps_the_calls_that_every_run_has():
    grouping = by_module(UNEVEN, "truncate")
    assert [group.key for group in grouping.groups] == [("x", "a", 0)]
    assert texts(grouping.groups[0]) == ["x/0/a0", "x/1/a0", "x/2/a0", "x/3/a0"]
    assert values(grouping.groups[0]) == pytest.approx([-1, 1, 1, -1], abs=1e-3)  # mean 0.5, deviation 0.5
    assert grouping.counts["calls/grouped"] == 4
    assert grouping.counts["calls/dropped_truncate"] == 5


def test_ragged_compares_each_call_with_those_that_exist():
    grouping = by_module(UNEVEN, "ragged")
    assert [group.key[2] for group in grouping.groups] == [0, 1, 2]
    assert texts(grouping.groups[1]) == ["x/1/a1", "x/2/a1", "x/3/a1"]  # rewards 1, 1, 0
    assert values(grouping.groups[1]) == pytest.approx([0.7071, 0.7071, -1.4142], abs=1e-3)
    assert texts(grouping.groups[2]) == ["x/1/a2", "x/3/a2"]
    assert values(grouping.groups[2]) == pytest.approx([1, -1], abs=1e-3)
    assert grouping.counts["calls/grouped"] == 9


def test_fill_repeats_calls_up_to_the_longest_run():
    grouping = by_module(UNEVEN, "fill")
    assert [len(group.members) for group in grouping.groups] == [4, 4, 4]
    assert [values(group) for group in grouping.groups] == [pytest.approx([-1, 1, 1, -1], abs=1e-3)] * 3
    assert [texts(group)[0] for group in grouping.groups] == ["x/0/a0"] * 3  # all that run 0 has
    assert texts(grouping.groups[2])[2] in ("x/2/a0", "x/2/a1")
    assert grouping.counts["calls/grouped"] == 9
    assert grouping.counts["calls/repeated"] == 3  # two for run 0, one for run 2


@PROPERTY
@given(steps(), PADDINGS)
def test_every_sampled_call_is_grouped_or_counted_as_dropped(trajectories, padding):
    counts = by_module(trajectories, padding).counts
    dropped = sum(count for name, count in counts.items() if name.startswith("calls/dropped_"))
    assert counts.get("calls/grouped", 0) + dropped == sum(len(one.calls) for one in trajectories)


@PROPERTY
@given(steps(), PADDINGS)
def test_grouped_and_repeated_calls_are_the_members_of_the_groups(trajectories, padding):
    grouping = by_module(trajectories, padding)
    counts = grouping.counts
    members = sum(len(group.members) for group in grouping.groups) + counts.get("groups/dropped_single", 0)
    assert members == counts.get("calls/grouped", 0) + counts.get("calls/repeated", 0)


@PROPERTY
@given(steps(), st.sampled_from(["truncate", "ragged"]))
def test_no_call_is_in_two_groups_and_each_is_in_the_group_of_its_key(trajectories, padding):
    groups = by_module(trajectories, padding).groups
    seen = [text for group in groups for text in texts(group)]
    assert len(seen) == len(set(seen))
    for group in groups:
        example, module, invocation = group.key
        assert texts(group) == [f"{example}/{m.trajectory.rollout}/{module}{invocation}" for m in group.members]


@PROPERTY
@given(steps())
def test_fill_repeats_only_calls_of_the_same_run_and_module(trajectories):
    for group in by_module(trajectories, "fill").groups:
        example, module, invocation = group.key
        for member in group.members:
            own = [call for call in member.trajectory.calls if call.module == module]
            assert member.trajectory.example == example
            assert any(member.calls[0] is call for call in own)
            if invocation < len(own):
                assert member.calls[0] is own[invocation]


@PROPERTY
@given(steps(), PADDINGS, st.integers(2, 4), st.sampled_from(["group", "batch", "none"]))
def test_advantages_of_a_group_have_mean_zero_and_the_order_of_its_rewards(trajectories, padding, size, scale):
    for group in by_module(trajectories, padding, size, scale).groups:
        assert 2 <= len(group.members) <= size
        assert np.mean(values(group)) == pytest.approx(0, abs=1e-9)
        assert np.array_equal(np.argsort(values(group), kind="stable"), np.argsort(group.rewards, kind="stable"))


@PROPERTY
@given(steps())
def test_order_of_the_trajectories_changes_nothing(trajectories):
    ordered = sorted(trajectories, key=lambda one: (one.example, one.rollout))
    assert by_module(trajectories, "fill") == by_module(ordered, "fill")


@PROPERTY
@given(st.lists(st.one_of(st.floats(-2, 2), st.sampled_from([0.0, 0.25, 0.5, 1.0])), max_size=12), st.integers(1, 12))
def test_select_k_diverse_finds_the_largest_variance_of_all_selections(rewards, size):
    chosen = select_k_diverse(rewards, size)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(size, len(rewards))
    if chosen:
        best = max(np.var(some) for some in combinations(rewards, len(chosen)))
        assert np.var([rewards[index] for index in chosen]) == pytest.approx(best, rel=1e-9, abs=1e-15)


def test_group_is_cut_to_its_most_different_rewards():
    grouping = by_module(runs(("a", 0.4), ("a", 1.0), ("a", 0.5), ("a", 0.0), ("a", 0.9)), size=3)
    assert texts(grouping.groups[0]) == ["x/1/a0", "x/3/a0", "x/4/a0"]  # 1.0, 0.0, 0.9
    assert grouping.counts["members/dropped_k_diverse"] == 2


def test_smaller_group_stays_as_it_is():
    assert len(by_module(runs(("a", 0.0), ("a", 1.0)), size=12).groups[0].members) == 2


def test_equal_rewards_are_dropped_and_counted():
    grouping = by_module(runs(("ab", 0.5), ("ab", 0.5), ("a", 0.5)))
    assert grouping.groups == ()
    assert grouping.counts["groups/dropped_no_variance"] == 2
    assert "groups/kept" not in grouping.counts


def test_one_equal_group_leaves_the_other_examples_alone():
    grouping = by_module(runs(("a", 0.5), ("a", 0.5)) + runs(("a", 0.0), ("a", 1.0), example="y"))
    assert [group.key for group in grouping.groups] == [("y", "a", 0)]
    assert (grouping.counts["groups/kept"], grouping.counts["groups/dropped_no_variance"]) == (1, 1)


def test_key_of_a_single_run_is_dropped_and_counted():
    grouping = by_module(runs(("a", 0.0), ("ab", 1.0)))
    assert [group.key for group in grouping.groups] == [("x", "a", 0)]
    assert grouping.counts["groups/dropped_single"] == 1


@pytest.mark.parametrize("padding", ["fill", "truncate", "ragged"])
def test_interrupted_run_leaves_the_later_module_its_group(padding):
    grouping = by_module(runs(("ab", 1.0), ("ab", 0.0), ("a", -1.0)), padding)  # run 2 broke off in module a
    assert {group.key[1]: len(group.members) for group in grouping.groups} == {"a": 3, "b": 2}
    assert grouping.counts.get("calls/dropped_truncate", 0) == 0


def test_modules_called_in_turn_stay_apart():
    grouping = by_module(runs(("abab", 1.0), ("abab", 0.0)))
    assert [group.key for group in grouping.groups] == [("x", "a", 0), ("x", "a", 1), ("x", "b", 0), ("x", "b", 1)]


def test_examples_stay_apart():
    grouping = by_module(runs(("a", 1.0), ("a", 0.0)) + runs(("a", 0.0), ("a", 1.0), example="y"))
    assert [texts(group) for group in grouping.groups] == [["x/0/a0", "x/1/a0"], ["y/0/a0", "y/1/a0"]]


def test_seed_zero_is_a_seed_like_any_other():
    long = runs(("a" * 9, 1.0), ("aaa", 0.0))
    filled = [[texts(group) for group in by_module(long, "fill", seed=seed).groups] for seed in (0, 0, 1)]
    assert filled[0] == filled[1] != filled[2]


def test_runs_without_a_score_are_counted_and_left_out():
    grouping = by_module(runs(("ab", 1.0), ("ab", 0.0), ("ab", None)))
    assert [len(group.members) for group in grouping.groups] == [2, 2]
    assert grouping.counts["calls/dropped_unscored"] == 2


@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_reward_that_is_no_finite_number_names_its_run(reward):
    broken = runs(("a", 1.0), ("a", reward))
    with pytest.raises(UserError, match="Run 1 of example x"):
        by_module(broken)
    with pytest.raises(UserError, match="Run 1 of example x"):
        trajectory_groups(broken, size=ALL, scale="group")


def test_unknown_padding_is_refused_by_name():
    with pytest.raises(UserError, match="'pad'.*fill, truncate, ragged"):
        by_module(UNEVEN, "pad")


def test_scale_divides_by_the_deviation_of_group_or_batch_or_by_nothing():
    rewards = [np.array([0.0, 2.0]), np.array([0.0, 4.0])]  # deviations 1 and 2; of all four 1.6583
    spread = {scale: np.concatenate(advantages(rewards, scale)) for scale in ("none", "group", "batch")}
    assert spread["none"] == pytest.approx([-1, 1, -2, 2])
    assert spread["group"] == pytest.approx([-1, 1, -1, 1], abs=1e-3)
    assert spread["batch"] == pytest.approx([-0.6030, 0.6030, -1.2060, 1.2060], abs=1e-3)


def test_trajectory_groups_give_all_calls_of_a_run_one_advantage():
    grouping = trajectory_groups(UNEVEN, size=ALL, scale="group")
    (group,) = grouping.groups
    assert group.key == ("x",)
    assert values(group) == pytest.approx([-1, 1, 1, -1], abs=1e-3)
    assert [len(member.calls) for member in group.members] == [1, 3, 2, 3]
    assert [member.tokens for member in group.members] == [2, 6, 4, 6]  # two tokens a call


def test_trajectory_groups_drop_and_cut_like_module_groups():
    equal = trajectory_groups(runs(("a", 0.5), ("ab", 0.5)), size=ALL, scale="group")
    assert (equal.groups, equal.counts["groups/dropped_no_variance"]) == ((), 1)
    cut = trajectory_groups(runs(("a", 0.4), ("ab", 1.0), ("a", 0.0)), size=2, scale="group")
    assert [member.trajectory.rollout for member in cut.groups[0].members] == [1, 2]


@PROPERTY
@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=6), PADDINGS, st.integers(2, 6))
def test_one_module_called_once_gives_the_trajectory_groups(rewards, padding, size):
    single = runs(*(("a", reward) for reward in rewards))
    one, other = by_module(single, padding, size), trajectory_groups(single, size=size, scale="group")
    assert [group.members for group in one.groups] == [group.members for group in other.groups]


@pytest.mark.parametrize("trajectories", [[], runs(("", 1.0), ("", 0.0)), runs(("a", None))])
def test_nothing_to_compare_gives_no_groups(trajectories):
    assert by_module(trajectories).groups == ()
    assert trajectory_groups(trajectories, size=ALL, scale="group").groups == ()


def test_the_pool_is_the_group_before_its_members_were_chosen():
    found = module_groups(
        runs(("a", 1.0), ("a", 0.0), ("a", 0.5)), padding="fill", size=2, scale="group", rng=random.Random(0)
    )
    assert found.pools[0].rewards.tolist() == [1.0, 0.0, 0.5]
    assert found.groups[0].rewards.tolist() == [1.0, 0.0]
    assert found.pools[0].key == found.groups[0].key
