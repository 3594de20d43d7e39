"""Means, bootstrap intervals and verdicts, on arrays small enough to check by hand."""

import numpy as np
import pytest

from mmgrpo.report import statistics
from mmgrpo.report.statistics import Interval, Pair, difference, gain, mean_and_sd, mean_interval, verdict, within

NAN = float("nan")


def test_mean_and_sd_are_over_seeds_in_points():
    mean, sd = mean_and_sd(np.array([[1.0, 0.0], [1.0, 1.0]]))  # seeds score 50 and 100
    assert mean == 75
    assert sd == pytest.approx(35.3553, abs=1e-4)  # 50 / sqrt(2)


def test_one_seed_has_no_deviation():
    mean, sd = mean_and_sd(np.array([[1.0, 0.0, 0.0, 0.0]]))
    assert mean == 25
    assert np.isnan(sd)


def test_unscorable_examples_count_neither_as_right_nor_as_wrong():
    assert mean_and_sd(np.array([[1.0, NAN, 0.0]]))[0] == 50


def test_interval_without_variance_is_the_mean():
    assert mean_interval(np.ones((3, 5))) == Interval(100, 100, 100)


def test_examples_are_resampled():
    # Of two examples, 1 and 0, a quarter of the replicates draws only the one and a quarter only the other.
    assert mean_interval(np.array([[1.0, 0.0]])) == Interval(50, 0, 100)


def test_seeds_are_resampled():
    assert mean_interval(np.array([[1.0] * 6, [0.0] * 6])) == Interval(50, 0, 100)


def test_seeds_that_agree_add_no_certainty_about_the_examples():
    one = np.array([[1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0]])
    alone, thrice = mean_interval(one), mean_interval(np.repeat(one, 3, axis=0))
    assert (thrice.low, thrice.high) == pytest.approx((alone.low, alone.high))


def test_interval_has_the_width_of_the_normal_approximation():
    half_right = np.tile([1.0, 0.0], 200)[None]  # standard error 100 * sqrt(0.25 / 400) = 2.5 points, times 1.96
    interval = mean_interval(half_right)
    assert interval.low == pytest.approx(45.1, abs=0.6)
    assert interval.high == pytest.approx(54.9, abs=0.6)


def test_interval_of_the_same_scores_is_the_same():
    scores = np.random.default_rng(1).random((3, 40))
    assert mean_interval(scores) == mean_interval(scores.copy())


def test_tasks_have_random_streams_of_their_own():
    scores = np.random.default_rng(1).random((1, 40))
    assert mean_interval(scores, task="hover") != mean_interval(scores, task="papillon")


def test_gain_resamples_both_strategies_together():
    base = np.array([[0.0, 0.25, 0.5, 0.75]] * 2)
    result = gain([Pair("t", "m", base + 0.25, base)])  # each example gains 25 points, whichever are drawn
    assert (result.points.estimate, result.points.low, result.points.high) == pytest.approx((25, 25, 25))
    assert result.relative.estimate == pytest.approx(100 * 25 / 37.5)


def test_relative_gain_of_an_average_is_that_of_the_averages():
    pairs = [
        Pair("a", "m", np.full((1, 4), 0.6), np.full((1, 4), 0.5)),
        Pair("b", "m", np.full((1, 4), 0.4), np.full((1, 4), 0.1)),
    ]
    result = gain(pairs)  # averages 50 and 30
    assert result.points.estimate == pytest.approx(20)
    assert result.relative.estimate == pytest.approx(100 * 20 / 30)


def test_difference_of_examples_that_are_the_same_is_that_of_each():
    base = np.array([[0.0, 0.25, 0.5, 0.75]] * 3)  # three seeds against one
    apart = difference(base[:1] + 0.25, base, paired=True)  # each example gains 25 points, whichever are drawn
    assert (apart.estimate, apart.low, apart.high) == pytest.approx((25, 25, 25))


def test_difference_of_other_examples_has_the_spread_of_both_sides():
    half_right = np.tile([1.0, 0.0], 200)[None]  # standard error 2.5 points a side, 3.54 of the difference, times 1.96
    apart = difference(half_right, half_right, paired=False)
    assert apart.estimate == 0
    assert apart.low == pytest.approx(-6.9, abs=0.6)
    assert apart.high == pytest.approx(6.9, abs=0.6)


def test_difference_draws_the_seeds_of_each_side_apart():
    both = np.array([[1.0] * 6, [0.0] * 6])  # drawn together, the two sides would never differ
    assert difference(both, both, paired=True) == Interval(0, -100, 100)


def test_example_unscorable_on_one_side_counts_in_the_difference_of_the_means():
    assert difference(np.array([[1.0, 0.0]]), np.array([[NAN, 0.0]]), paired=True).estimate == 50


@pytest.mark.parametrize(("value", "expected"), [(10.0, True), (30.0, True), (9.99, False), (30.01, False)])
def test_bounds_are_within(value, expected):
    assert within(value, Interval(20.0, 10.0 + 1e-12, 30.0 - 1e-12)) is expected  # but for rounding


def test_nothing_is_within_an_interval_without_bounds():
    assert not within(50.0, Interval(NAN, NAN, NAN))


def test_example_unscorable_on_one_side_counts_on_neither():
    new, base = np.array([[1.0, 1.0, 0.0]]), np.array([[NAN, 1.0, 0.0]])
    assert gain([Pair("t", "m", new, base)]).points == Interval(0, 0, 0)


@pytest.mark.parametrize(
    ("new", "base", "expected"),
    [
        ([[1.0, NAN]], [[1.0, NAN]], True),
        ([[1.0, 0.0]], [[0.0, 1.0]], False),  # equal means are not enough
        ([[1.0, 0.0]], [[1.0, NAN]], False),
        ([[NAN]], [[NAN]], False),  # nothing is known
        ([[1.0, 0.0]], [[1.0]], False),
    ],
)
def test_scores_are_equal_on_every_example_or_not_at_all(new, base, expected):
    assert Pair("t", "m", np.array(new), np.array(base)).equal is expected


def test_verdict_of_a_gain_is_equal_only_where_every_pair_is():
    same = Pair("a", "m", np.array([[1.0, 0.0]]), np.array([[1.0, 0.0]]))
    other = Pair("b", "m", np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]))
    assert gain([same]).verdict == "equal"
    assert gain([other]).verdict == gain([same, other]).verdict == "undecided"


def test_relative_gain_over_zero_is_missing():
    result = gain([Pair("t", "m", np.ones((1, 3)), np.zeros((1, 3)))])
    assert result.points.estimate == 100
    assert np.isnan([result.relative.estimate, result.relative.low, result.relative.high]).all()


def test_relative_gain_has_no_bounds_where_a_replicate_draws_a_base_of_zero():
    relative = gain([Pair("t", "m", np.array([[1.0, 1.0]]), np.array([[1.0, 0.0]]))]).relative
    assert relative.estimate == 100
    assert np.isnan([relative.low, relative.high]).all()


def test_nothing_scorable_has_no_mean_and_no_interval():
    interval = mean_interval(np.full((1, 3), NAN))
    assert np.isnan([interval.estimate, interval.low, interval.high]).all()


def test_pair_of_other_shapes_is_refused():
    with pytest.raises(ValueError, match="same seeds and examples"):
        gain([Pair("t", "m", np.ones((2, 3)), np.ones((1, 3)))])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.1, 5.0, "holds"),
        (-5.0, -0.1, "does not hold"),
        (-1.0, 1.0, "undecided"),
        (0.0, 5.0, "undecided"),
        (-5.0, 0.0, "undecided"),
        (1e-14, 5.0, "undecided"),  # rounding, not a gain
        (NAN, NAN, "undecided"),
    ],
)
def test_verdict_follows_the_bounds(low, high, expected):
    assert verdict(Interval(1.0, low, high), seeds=2) == expected
    assert verdict(Interval(1.0, low, high), seeds=1).removesuffix(" (one seed)") == expected


def test_verdict_of_one_seed_says_so_where_it_decides():
    assert verdict(Interval(1.0, 0.1, 5.0), seeds=1) == "holds (one seed)"
    assert verdict(Interval(1.0, -1.0, 5.0), seeds=1) == "undecided"
    several = Pair("banking77", "m", np.ones((3, 4)), np.zeros((3, 4)))
    single = Pair("hover", "m", np.ones((1, 4)), np.zeros((1, 4)))
    assert gain([several]).verdict == "holds"
    assert gain([several, single]).verdict == "holds (one seed)"


def test_few_seeds_decide_too_often_where_there_is_nothing_to_find(monkeypatch):
    """The rates that the module's docstring gives, as far as 400 studies can tell (they deviate by 2.5 points)."""
    monkeypatch.setattr(statistics, "REPLICATES", 1000)
    rates = {seeds: wrong_verdicts(seeds, studies=400) for seeds in (1, 2, 3)}
    assert rates[1] == pytest.approx(0.45, abs=0.07)
    assert rates[2] == pytest.approx(0.13, abs=0.05)
    assert rates[3] == pytest.approx(0.10, abs=0.05)


def wrong_verdicts(seeds: int, *, studies: int, deviation: float = 0.08, examples: int = 240) -> float:
    """Share of studies of two strategies that don't differ on average in which a gain or a loss was found."""
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(studies):
        chance = rng.beta(1.2, 2.0, size=examples)  # of a right answer, by example
        base = np.tile(rng.random(examples) < chance, (seeds, 1)).astype(float)  # greedy: all seeds are one run
        moved = np.clip(chance + rng.normal(0, deviation, size=(seeds, 1)), 0, 1)
        wrong += (
            gain([Pair("simulated", "m", (rng.random(moved.shape) < moved).astype(float), base)]).verdict != "undecided"
        )
    return wrong / studies
