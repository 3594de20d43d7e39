"""A program, a reward and short ways to train on a policy of random weights, for the tests of training."""

import dspy
import torch
from peft import get_peft_model_state_dict
from tiny_policy import RawAdapter, tiny_policy

from mmgrpo.optimizer import MMGRPO
from mmgrpo.settings import GRPOSettings, SamplingSettings

TRAIN = [dspy.Example(q=f"question {place}").with_inputs("q") for place in range(5)]
VALID = TRAIN[:2]
QUESTIONS = [dspy.Example(question=f"question {n}", answer=str(n)).with_inputs("question") for n in range(6)]


class Pair(dspy.Module):
    """Two modules of one signature, the second called twice."""

    def __init__(self):
        super().__init__()
        signature = dspy.Signature("q -> t")
        self.a, self.b = dspy.Predict(signature), dspy.Predict(signature)

    def forward(self, q):
        first = self.a(q=q)
        return dspy.Prediction(t=first.t + self.b(q=q).t + self.b(q="again").t)


class Lenient(dspy.Module):
    """A program that answers whatever the random model says, so that untrained tiny weights give rewards to compare."""

    def __init__(self):
        super().__init__()
        self.reply = dspy.Predict("question -> answer")

    def forward(self, question):
        with dspy.context(adapter=RawAdapter()):
            return self.reply(question=question)


def by_length(example, prediction, trace=None):
    """A reward for the length of an answer, up to a multiple of seven."""
    return float(len(prediction.answer) % 7) / 7


def noise(example, prediction, trace=None):
    """A reward that differs between runs and means nothing."""
    return sum(map(ord, prediction.t)) % 11 / 10


def optimizer(metric=noise, *, level="module", seed=0, folder=None, **settings):
    chosen = {
        "steps": 2, "inputs": 2, "rollouts": 3, "group_size": 3, "learning_rate": 1e-2, "warmup_steps": 0,
        "beta": 0.0, "validate_every": 2, "save_every": settings.get("validate_every", 2), "max_grad_norm": 1.0,
    }  # fmt: skip
    return MMGRPO(
        metric, level=level, settings=GRPOSettings(**chosen | settings), sampling=SamplingSettings(temperature=1.0),
        seed=seed, folder=folder,
    )  # fmt: skip


def compile_(policy, how, program=None, *, valset=(), refuse=lambda text: False, lm=None, teacher=None, trainset=TRAIN):
    with dspy.context(lm=lm or policy.lm(), adapter=RawAdapter(refuse)):
        return how.compile(program or Pair(), trainset=trainset, valset=valset, teacher=teacher)


def weights(policy, adapter=None):
    names = [adapter] if adapter else list(policy.trainable().peft_config)
    found = {name: get_peft_model_state_dict(policy.trainable(), adapter_name=name) for name in names}
    return {f"{name}/{key}": value.clone() for name, one in found.items() for key, value in one.items()}


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def fresh(modules=(), seed=0):
    """The LoRA weights that training starts from."""
    policy = tiny_policy(seed)
    policy.attach_adapters(modules)
    return weights(policy)


class Spy:
    """Wraps a function of a module and keeps what it was given and gave."""

    def __init__(self, monkeypatch, place, name):
        self.original = getattr(place, name)
        self.calls = []
        monkeypatch.setattr(place, name, self)

    def __call__(self, *args, **kwargs):
        result = self.original(*args, **kwargs)
        self.calls.append((args, kwargs, result))
        return result
