"""Does it learn? A real model, a program of two modules, and a reward that only the first of them can earn.

Takes minutes, so `make test` leaves it out: `make test-learning` runs it.
"""

import random

import dspy
import pytest
from training_setup import Spy

from mmgrpo import policy, training_run
from mmgrpo.errors import UserError
from mmgrpo.optimizer import MMGRPO
from mmgrpo.settings import GRPOSettings, PolicySettings, SamplingSettings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.learning,
    pytest.mark.usefixtures("nothing_but_training", "temporary_folders_go"),
]

PRICES = {"bicycle": 0.0, "car": 0.25, "ferry": 0.5, "plane": 0.75, "train": 1.0}  # the reward of each way to travel
TOWNS = ["Lisbon", "Oslo", "Vienna", "Dublin", "Prague", "Athens", "Warsaw", "Geneva"]
TRAIN = [dspy.Example(town=town).with_inputs("town") for town in TOWNS]
SETTINGS = GRPOSettings(
    steps=24,
    inputs=2,
    rollouts=6,
    group_size=6,
    learning_rate=3e-4,
    warmup_steps=0,
    beta=0.0,
    max_grad_norm=0.5,
    format_failure_reward=-0.01,  # next to nothing, so that better formatting doesn't look like better choices
)
THIRD = SETTINGS.steps // 3
MARGIN = 0.15  # of a reward between 0 and 1


class Journey(dspy.Module):
    """One module chooses how to travel, the other puts the choice into a sentence, for which there is no reward."""

    def __init__(self):
        super().__init__()
        choice = dspy.Signature({"town": (str, dspy.InputField()), "travel": (str, dspy.OutputField())})
        self.choose = dspy.Predict(choice.with_instructions(f"Choose one way to travel: {', '.join(PRICES)}."))
        self.say = dspy.Predict(dspy.Signature("travel -> sentence", "Say in a few words how somebody travels."))

    def forward(self, town):
        travel = self.choose(town=town).travel
        return dspy.Prediction(travel=travel, sentence=self.say(travel=travel).sentence)


def worth(prediction):
    """What the choice earns; no known way to travel, or several at once, is worth nothing."""
    named = [price for way, price in PRICES.items() if way in prediction.travel.lower()]
    return named[0] if len(named) == 1 else 0.0


def train(monkeypatch, reward):
    """What the choices of each step's runs were worth on average, and the groups and the log of the training."""
    try:
        model = policy.load("smollm2-135m", PolicySettings(max_tokens=32, batch=32), seed=0)
    except (UserError, OSError) as error:
        pytest.skip(f"The embedded model can't be had here ({error}).")
    steps = Spy(monkeypatch, training_run, "metrics_of")
    optimizer = MMGRPO(reward, settings=SETTINGS, sampling=SamplingSettings(temperature=1.0))
    with dspy.context(lm=model.lm()):
        log = optimizer.compile(Journey(), trainset=TRAIN).training_log
    found = [[worth(run.prediction) if run.prediction else 0.0 for run in runs] for (runs, _), _, _ in steps.calls]
    groups = [group for (_, grouping), _, _ in steps.calls for group in grouping.groups]
    return [sum(step) / len(step) for step in found], groups, log


def rise(worths):
    """From the first third of the steps to the last."""
    return sum(worths[-THIRD:]) / THIRD - sum(worths[:THIRD]) / THIRD


def test_reward_rises_for_what_earns_it_and_not_for_noise(monkeypatch):
    worths, groups, log = train(monkeypatch, lambda example, prediction, trace=None: worth(prediction))
    print("worth of each step:", [round(step, 2) for step in worths])  # shown where the test fails
    assert {group.key[1] for group in groups} == {"choose", "say"}
    assert all({"reward/choose", "reward/say"} <= set(entry) for entry in log.curve)
    assert rise(worths) > MARGIN
    first, last = log.curve[:THIRD], log.curve[-THIRD:]
    assert sum(entry["reward"] for entry in last) - sum(entry["reward"] for entry in first) > MARGIN * THIRD

    draws = random.Random(0)
    noise, groups, _ = train(monkeypatch, lambda example, prediction, trace=None: draws.random())
    print("the same under random rewards:", [round(step, 2) for step in noise])
    assert groups  # it was trained all right
    assert rise(noise) < rise(worths) / 2
