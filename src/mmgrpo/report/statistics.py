"""Means, spreads and bootstrap intervals over seeds and test examples.

Shapes: S seeds, E test examples, R replicates. Scores are in [0, 1]; every result is in points of 100 or in percent.

One replicate draws S of the seeds and E of the examples with replacement. The seeds of a cell share
their test examples, so one draw of examples serves all seeds of a replicate: drawing them anew for
each seed would make the interval too narrow. Models of one task share the draw for the same reason.
With few seeds the spread between seeds is understated, and with one seed it isn't covered at all: where seeds deviate
by 8 points, studies of strategies that don't differ find a gain or a loss in some 45, 13 and 10 of 100 with one, two and
three seeds (nominal: 5; a test repeats the simulation). A verdict from one seed says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

REPLICATES = 4000
LEVEL = 95.0  # percent
SEED = 0  # of all draws: the same records give the same intervals
ROUNDING = 1e-9  # points; numbers that differ by less are equal

HOLDS, FAILS, UNDECIDED, EQUAL = "holds", "does not hold", "undecided", "equal"
ONE_SEED = " (one seed)"  # after a verdict whose interval covers the test examples alone


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% percentile bootstrap interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Pair:
    """Two strategies on the same seeds and examples of one task and model."""

    task: str
    model: str
    new: np.ndarray  # [S, E]; NaN where unscorable
    base: np.ndarray  # [S, E]

    @property
    def equal(self) -> bool:
        return equal(self.new, self.base)


@dataclass(frozen=True)
class Gain:
    """What one strategy gains over another."""

    points: Interval
    relative: Interval  # percent of the base; NaN where it is zero, without bounds where that of a replicate is
    verdict: str  # by the interval of the points and whether a pair has one seed, or "equal" where every pair is


def mean_and_sd(scores: np.ndarray) -> tuple[float, float]:
    """Mean over seeds of a [S, E] array and its sample standard deviation (S - 1; NaN with one seed), in points."""
    by_seed = 100 * _seed_means(scores, np.ones((1, scores.shape[1])))[0]
    return float(by_seed.mean()), float(by_seed.std(ddof=1)) if len(by_seed) > 1 else float("nan")


def mean_interval(scores: np.ndarray, *, task: str = "", model: str = "") -> Interval:
    """Interval of the mean score of a [S, E] array, in points; `task` and `model` choose the random stream."""
    return _interval(mean_and_sd(scores)[0], 100 * _replicates(scores, task, model))


def gain(pairs: Sequence[Pair]) -> Gain:
    """Gain of `new` over `base`, averaged over `pairs` with equal weight (the paper's average).

    Both sides of a pair get the same draws. An example that is unscorable on one side counts on neither.
    The relative gain is that of the two averages.
    """
    sides = [_scorable_on_both(pair) for pair in pairs]
    new, base = (np.mean([mean_and_sd(side[i])[0] for side in sides]) for i in (0, 1))
    drawn = np.mean(
        [[_replicates(side, pair.task, pair.model) for side in both] for pair, both in zip(pairs, sides, strict=True)],
        axis=0,
    )
    drawn_new, drawn_base = 100 * drawn  # [2, R]
    points = _interval(new - base, drawn_new - drawn_base)
    seeds = min(len(pair.new) for pair in pairs)
    found = EQUAL if all(pair.equal for pair in pairs) else verdict(points, seeds)
    estimate = 100 * (new / base - 1) if base > 0 else np.nan
    if not base > 0 or (drawn_base <= 0).any():
        return Gain(points, Interval(float(estimate), np.nan, np.nan), found)
    return Gain(points, _interval(estimate, 100 * (drawn_new / drawn_base - 1)), found)


def difference(new: np.ndarray, base: np.ndarray, *, paired: bool, task: str = "", model: str = "") -> Interval:
    """Mean score of a [S, E] array less that of another study's, in points; each side has seeds of its own.

    `paired`: both were scored on the same examples, which are then drawn together. Unlike in `gain`, an example that
    is unscorable on one side counts on the other, as it does in the two means that are reported.
    """
    drawn_new = _replicates(new, task, model)
    drawn_base = _replicates(base, task if paired else f"{task}, base", f"{model}, base")
    return _interval(mean_and_sd(new)[0] - mean_and_sd(base)[0], 100 * (drawn_new - drawn_base))


def equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether both have the same scores, unscorable examples included, and any score at all."""
    return bool(np.array_equal(one, other, equal_nan=True) and not np.isnan(one).all())


def within(value: float, interval: Interval) -> bool:
    """Whether `value` lies between the bounds, or on one of them but for rounding."""
    return interval.low - ROUNDING <= value <= interval.high + ROUNDING


def verdict(interval: Interval, seeds: int) -> str:
    """Whether a gain is there, by the interval of the gain over so many seeds: a rule on its sign, not on its size.

    - "holds": the lower bound is above zero.
    - "does not hold": the upper bound is below zero.
    - "undecided": zero lies within, or there is no interval.

    The first two are said of one seed where there is one alone.
    """
    if not (interval.low > ROUNDING or interval.high < -ROUNDING):
        return UNDECIDED
    return (HOLDS if interval.low > ROUNDING else FAILS) + (ONE_SEED if seeds == 1 else "")


def _interval(estimate: float, replicates: np.ndarray) -> Interval:
    tail = (100 - LEVEL) / 2
    known = replicates[~np.isnan(replicates)]  # a replicate that drew no scorable example has no mean
    low, high = np.percentile(known, [tail, 100 - tail]) if known.size else (np.nan, np.nan)
    return Interval(float(estimate), float(low), float(high))


def _replicates(scores: np.ndarray, task: str, model: str) -> np.ndarray:
    """Mean score of each replicate, [R]; reproducible from the task and the model."""
    seeds, examples = scores.shape
    of_examples = _example_draws(task, examples)
    of_seeds = _draw_counts(np.random.default_rng([SEED, *f"{task} {model}".encode()]), seeds)
    return (of_seeds * _seed_means(scores, of_examples)).sum(axis=1) / seeds


@lru_cache(maxsize=8)  # tasks; all of a task's cells share their draw
def _example_draws(task: str, examples: int) -> np.ndarray:
    draws = _draw_counts(np.random.default_rng([SEED, *task.encode()]), examples).astype(float)
    draws.setflags(write=False)
    return draws


def _draw_counts(rng: np.random.Generator, size: int) -> np.ndarray:
    """How often each of `size` items is drawn in `size` draws with replacement, [R, size]."""
    drawn = rng.integers(size, size=(REPLICATES, size)) + size * np.arange(REPLICATES)[:, None]
    return np.bincount(drawn.ravel(), minlength=REPLICATES * size).reshape(REPLICATES, size)


def _seed_means(scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean of each seed over its scorable examples, each counted as often as drawn: [S, E], [R, E] -> [R, S]."""
    scorable = ~np.isnan(scores)
    with np.errstate(invalid="ignore"):  # a draw without a scorable example has no mean: NaN
        return (counts @ np.where(scorable, scores, 0.0).T) / (counts @ scorable.astype(float).T)


def _scorable_on_both(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    if pair.new.shape != pair.base.shape:
        raise ValueError(f"a pair needs the same seeds and examples: {pair.new.shape} and {pair.base.shape}")
    unscorable = np.isnan(pair.new) | np.isnan(pair.base)
    return np.where(unscorable, np.nan, pair.new), np.where(unscorable, np.nan, pair.base)
