"""A program that we have never seen, trained as its owner would: through the public API, in a few lines.

Its control flow is the point: one module answers once a run, one up to three times, one in some runs only.
"""

import tempfile

import dspy
import pytest
from safetensors.torch import load_file
from tiny_policy import RawAdapter, tiny_policy

from mmgrpo import training_run
from mmgrpo.grouping import module_groups
from mmgrpo.optimizer import MMGRPO
from mmgrpo.settings import GRPOSettings, SamplingSettings

MODULES = ("suggest.predict", "taste", "replace")
BASKETS = ["lentils and two carrots", "stale bread, tomatoes", "rice, eggs, spinach", "noodles and peanuts"]


class Kitchen(dspy.Module):
    """A dish from what is left, tasted until the taster is content, with a substitute where a guest needs one."""

    def __init__(self):
        super().__init__()
        self.suggest = dspy.ChainOfThought("basket -> dish")
        self.taste = dspy.Predict("dish, spoonful: int -> verdict")
        self.replace = dspy.Predict("dish, allergen -> dish_without_it")

    def forward(self, basket):
        dish = self.suggest(basket=basket).dish
        for spoonful in range(3):
            verdict = self.taste(dish=dish, spoonful=spoonful).verdict
            if len(verdict) % 3 == 0:
                break
        if len(dish) % 2:
            dish = self.replace(dish=dish, allergen="peanuts").dish_without_it
        return dspy.Prediction(dish=dish, verdict=verdict)


def delicious(example, prediction, trace=None):
    """Differs from run to run; the replies of random weights mean nothing."""
    return sum(map(ord, prediction.dish + prediction.verdict)) % 11 / 10


def train(model):
    """All that its owner writes."""
    trainset = [dspy.Example(basket=basket).with_inputs("basket") for basket in BASKETS]
    settings = GRPOSettings(steps=2, inputs=2, rollouts=8, group_size=8, learning_rate=1e-2, warmup_steps=0)
    optimizer = MMGRPO(delicious, settings=settings, sampling=SamplingSettings(temperature=1.0))
    with dspy.context(lm=model.lm()):
        return optimizer.compile(Kitchen(), trainset=trainset)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """The trained program, and for each step the runs and what became of their calls."""
    steps = []

    def spy(runs, **how):
        steps.append((runs, module_groups(runs, **how)))
        return steps[-1][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("runs")))
        patch.setattr(training_run, "module_groups", spy)
        with dspy.context(adapter=RawAdapter()):  # noise parses
            return train(tiny_policy()), steps


def invocations(run, module):
    return [call.invocation for call in run.calls if call.module == module]


def test_every_call_of_every_module_is_captured(outcome):
    runs = [run for runs, _ in outcome[1] for run in runs]
    assert len(runs) == 2 * 2 * 8
    assert {run.outcome for run in runs} == {"completed"}
    assert {call.module for run in runs for call in run.calls} == set(MODULES)
    made = {module: [invocations(run, module) for run in runs] for module in MODULES}
    assert all(found == [0] for found in made["suggest.predict"])
    assert {len(found) for found in made["taste"]} == {1, 2, 3}
    assert all(found == list(range(len(found))) for found in made["taste"])
    assert {len(found) for found in made["replace"]} == {0, 1}  # the branch is taken in some runs only


def test_each_module_has_a_group_at_each_place(outcome):
    for runs, grouping in outcome[1]:
        expected = {}  # group: rewards of the runs that call its module at all
        for example in {run.example for run in runs}:
            for module in MODULES:
                calling = [run for run in runs if run.example == example and invocations(run, module)]
                for place in range(max((len(invocations(run, module)) for run in calling), default=0)):
                    expected[example, module, place] = sorted(run.reward for run in calling)
        found = {group.key: sorted(group.rewards) for group in grouping.groups}
        assert found == {key: rewards for key, rewards in expected.items() if len(set(rewards)) > 1}
        assert {module for _, module, _ in found} == set(MODULES)
        assert {place for _, module, place in found if module == "taste"} == {0, 1, 2}
        assert grouping.counts["calls/grouped"] == sum(len(run.calls) for run in runs)


def test_the_weights_changed(outcome):
    adapter = load_file(outcome[0].training_log.adapter / "adapter_model.safetensors")
    outer = [weights for name, weights in adapter.items() if "lora_B" in name]  # zero before training
    assert outer and all(weights.abs().max() > 0 for weights in outer)


def test_the_trained_program_runs_and_tells_how_it_was_trained(outcome):
    program, log = outcome[0], outcome[0].training_log
    assert [entry["step"] for entry in log.curve] == [1.0, 2.0]
    assert [entry["groups/kept"] for entry in log.curve] == [len(grouping.groups) for _, grouping in outcome[1]]
    assert {predictor.lm.weights for predictor in program.predictors()} == {log.adapter}
    with dspy.context(adapter=RawAdapter()):
        prediction = program(basket="two onions")  # no language model but its own
    assert isinstance(program, Kitchen) and prediction.dish and prediction.verdict
