"""Does it learn? The embedded model, a program of two modules, and a reward that only the first of them can earn.

Before that: is what the embedded model would be trained on what it sampled? Takes minutes, so `make test` leaves it
out: `make test-learning` runs it.
"""

import random
from typing import Literal

import dspy
import pytest
import torch
from training_setup import Pair, Spy, noise

from mmgrpo import policy, rollout, training_run
from mmgrpo.errors import UserError
from mmgrpo.logprobs import completion_logprobs
from mmgrpo.optimizer import MMGRPO
from mmgrpo.rollout import jobs_for
from mmgrpo.settings import GRPOSettings, PolicySettings, SamplingSettings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.learning,
    pytest.mark.usefixtures("nothing_but_training", "temporary_folders_go"),
]

PRICES = {  # the reward of each way to travel; of labels in one word the embedded policy knows the first alone
    "by_bicycle": 0.0,
    "by_car": 0.25,
    "by_ferry": 0.5,
    "by_plane": 0.75,
    "by_train": 1.0,
}
TOWNS = ["Lisbon", "Oslo", "Vienna", "Dublin", "Prague", "Athens", "Warsaw", "Geneva"]
TRAIN = [dspy.Example(town=town).with_inputs("town") for town in TOWNS]
QUESTIONS = [dspy.Example(q=f"the country of {town}").with_inputs("q") for town in TOWNS]
SETTINGS = GRPOSettings(
    steps=24,
    inputs=2,
    rollouts=6,
    group_size=6,
    learning_rate=1e-4,
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
        fields = {"town": (str, dspy.InputField()), "travel": (Literal[tuple(PRICES)], dspy.OutputField())}
        self.choose = dspy.Predict(dspy.Signature(fields, "Choose a way to travel to the town."))
        self.say = dspy.Predict(dspy.Signature("travel -> sentence", "Say in a few words how somebody travels."))

    def forward(self, town):
        travel = self.choose(town=town).travel
        return dspy.Prediction(travel=travel, sentence=self.say(travel=travel).sentence)


def worth(example, prediction, trace=None):
    """What the choice earns."""
    return PRICES[prediction.travel]


def chance():
    """Rewards as far apart that know nothing of the run, around what a reply that doesn't parse gets."""
    draws = random.Random(0)

    def reward(example, prediction, trace=None):
        return draws.choice(list(PRICES.values())) - 0.5

    return reward


def embedded_policy(**settings):
    try:
        return policy.load("smollm2-135m", PolicySettings(max_tokens=48, batch=48, **settings), seed=0)
    except (UserError, OSError) as error:
        pytest.skip(f"The embedded model can't be had here ({error}).")


def train(monkeypatch, reward):
    """What the choices of each step's runs were worth on average, and the groups and the log of the training."""
    model = embedded_policy()
    steps, grouped = Spy(monkeypatch, rollout, "run"), Spy(monkeypatch, training_run, "metrics_of")
    optimizer = MMGRPO(reward, settings=SETTINGS, sampling=SamplingSettings(temperature=1.0))
    with dspy.context(lm=model.lm()):
        log = optimizer.compile(Journey(), trainset=TRAIN).training_log
    found = [[worth(None, run.prediction) for run in runs if run.prediction] for _, _, runs in steps.calls]
    groups = [group for (_, grouping), _, _ in grouped.calls for group in grouping.groups]
    return [sum(step) / max(1, len(step)) for step in found], groups, log


def rise(worths):
    """From the first third of the steps to the last."""
    return sum(worths[-THIRD:]) / THIRD - sum(worths[:THIRD]) / THIRD


def test_trainer_and_sampler_agree_on_every_token():
    """With demonstrations, two modules of one signature, and replies that end before they parse."""
    model = embedded_policy(precision="fp32")
    program = Pair()
    program.b.demos = [dspy.Example(q="the capital of Norway", t="Oslo"), dspy.Example(q="two and two", t="four")]
    runs = rollout.run(program, jobs_for(QUESTIONS, 6, 0), lm=model.lm(temperature=1.5), metric=noise)
    calls = [call for run in runs for call in run.calls]
    trained = completion_logprobs(model.trainable(), calls)
    sampled = torch.tensor([value for call in calls for value in call.logprobs])
    assert (trained - sampled).abs().max() < 1e-3
    assert {call.module for call in calls} == {"a", "b"}
    assert any(call.status != "ok" for call in calls) and any(call.status == "ok" for call in calls)


def test_reward_rises_for_what_earns_it_and_not_for_noise(monkeypatch):
    worths, groups, log = train(monkeypatch, worth)
    print("worth of each step:", [round(step, 2) for step in worths])  # shown where the test fails
    assert {group.key[1] for group in groups} == {"choose", "say"}
    first, last = log.curve[:THIRD], log.curve[-THIRD:]
    assert all({"reward/choose", "reward/say"} <= set(entry) for entry in last)  # at first few runs come to the second
    assert rise(worths) > MARGIN
    assert sum(entry["reward"] for entry in last) - sum(entry["reward"] for entry in first) > MARGIN * THIRD

    noise, groups, _ = train(monkeypatch, chance())
    print("the same under rewards by chance:", [round(step, 2) for step in noise])
    assert groups  # it was trained all right
    assert rise(noise) < rise(worths) / 2
