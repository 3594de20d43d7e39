"""What training keeps of its rollouts for the report."""

import dspy
from tiny_policy import RawAdapter, tiny_policy

from mmgrpo.optimizer import MMGRPO
from mmgrpo.settings import GRPOSettings, SamplingSettings


class Pair(dspy.Module):
    """Two modules, the second called twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b = dspy.Predict("q -> t"), dspy.Predict("q -> t")

    def forward(self, q):
        return dspy.Prediction(t=self.a(q=q).t + self.b(q=q).t + self.b(q="again").t)


def noise(example, prediction, trace=None):
    """A reward that differs between runs and means nothing."""
    return sum(map(ord, prediction.t)) % 11 / 10


def test_the_log_keeps_one_inputs_rollouts_and_the_deviation_before_the_choice(tmp_path):
    settings = GRPOSettings(steps=2, inputs=2, rollouts=3, group_size=2, warmup_steps=0, beta=0.0)
    trainset = [dspy.Example(q=f"question {place}").with_inputs("q") for place in range(4)]
    optimizer = MMGRPO(noise, settings=settings, sampling=SamplingSettings(temperature=1.0), seed=0, folder=tmp_path)
    with dspy.context(lm=tiny_policy().lm(), adapter=RawAdapter(lambda text: False)):
        log = optimizer.compile(Pair(), trainset=trainset).training_log
    assert len(log.rollouts["runs"]) == 3 and log.rollouts["groups"]
    assert all(len(group["members"]) == 2 for group in log.rollouts["groups"])
    assert all(entry["group_std_all"] <= entry["group_std"] for entry in log.curve)
    assert any(entry["group_std_all"] < entry["group_std"] for entry in log.curve)
