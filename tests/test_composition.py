"""MMGRPO inside dspy.BetterTogether, weights that stay with their program, and the interleaved schedule."""

import tempfile

import dspy
import pytest
from tiny_policy import RawAdapter, tiny_policy

from mmgrpo.errors import UserError
from mmgrpo.fast_slow import fast_slow
from mmgrpo.optimizer import MMGRPO
from mmgrpo.settings import FastSlowSettings, GRPOSettings, MIPROSettings, SamplingSettings

EXAMPLES = [dspy.Example(question=f"question {n}", answer=str(n)).with_inputs("question") for n in range(6)]
SETTINGS = GRPOSettings(
    steps=2,
    inputs=2,
    rollouts=3,
    group_size=3,
    learning_rate=1e-2,
    warmup_steps=0,
    beta=0.0,
    max_grad_norm=1.0,
    validate_every=1,
)
MIPRO = MIPROSettings(trials=1, fewshot_candidates=2, instruction_candidates=2, bootstrapped_demos=1, labeled_demos=1)


@pytest.fixture(autouse=True)
def _scratch(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


class Lenient(dspy.Module):
    """A program that answers whatever the random model says, so that untrained tiny weights give rewards to compare."""

    def __init__(self):
        super().__init__()
        self.reply = dspy.Predict("question -> answer")

    def forward(self, question):
        with dspy.context(adapter=RawAdapter()):
            return self.reply(question=question)


def metric(example, prediction, trace=None):
    return float(len(prediction.answer) % 7) / 7


def optimizer(**changes):
    return MMGRPO(metric, settings=SETTINGS.model_copy(update=changes), sampling=SamplingSettings(temperature=1.0))


def replies(program, lm=None):
    with dspy.context(lm=lm):
        return [program(question=example.question).answer for example in EXAMPLES]


@pytest.mark.parametrize("strategy", ["p -> w", "w -> p", "p -> w -> p", "w -> p -> w"])
def test_better_together_runs_in_any_order(strategy):
    policy = tiny_policy()
    student = Lenient()
    student.set_lm(policy.lm())
    prompts = dspy.BootstrapFewShot(metric=metric, max_bootstrapped_demos=1, max_labeled_demos=1)
    together = dspy.BetterTogether(metric=metric, p=prompts, w=optimizer())
    with dspy.context(lm=policy.lm()):  # BootstrapFewShot takes the predictors' own away while it works
        best = together.compile(student, trainset=EXAMPLES, valset=EXAMPLES[:2], strategy=strategy, seed=1)
    assert not best.flag_compilation_error_occurred
    assert len(best.candidate_programs) == 1 + len(strategy.split(" -> "))


def test_a_trained_program_keeps_its_weights_when_the_policy_trains_on():
    policy = tiny_policy()
    first = Lenient()
    first.set_lm(policy.lm())
    first = optimizer().compile(first, trainset=EXAMPLES)
    before = replies(first)
    second = optimizer(learning_rate=5e-2).compile(first, trainset=EXAMPLES)
    assert replies(first) == before
    assert replies(second) != before


def test_training_goes_on_from_the_weights_of_the_students_language_model():
    policy = tiny_policy()
    first = Lenient()
    first.set_lm(policy.lm())
    first = optimizer().compile(first, trainset=EXAMPLES)
    again = optimizer(learning_rate=1e-12).compile(first, trainset=EXAMPLES)
    assert replies(again) == replies(first)


def test_fast_slow_spends_one_budget_on_prompts_and_weights(tmp_path):
    policy = tiny_policy()
    done = fast_slow(
        Lenient(), lm=policy.lm(), metric=metric, trainset=EXAMPLES[:4], valset=EXAMPLES[4:], grpo=SETTINGS.model_copy(update={"steps": 12}),
        settings=FastSlowSettings(rounds=2, trials=1), mipro_settings=MIPRO, sampling=SamplingSettings(temperature=1.0),
        seed=0, folder=tmp_path,
    )  # fmt: skip
    assert done.budget["allowed"] == 12 * 2 * 3
    assert done.budget["prompts"] > 0
    assert done.budget["prompts"] + done.budget["weights"] <= done.budget["allowed"]
    assert [entry["step"] for entry in done.curve] == list(range(1, len(done.curve) + 1))
    assert len(done.curve) == done.budget["weights"] / 6


def test_fast_slow_says_when_prompts_use_up_the_budget(tmp_path):
    with pytest.raises(UserError, match="budget of 12 program runs is used up in round 1"):
        fast_slow(
            Lenient(), lm=tiny_policy().lm(), metric=metric, trainset=EXAMPLES[:4], valset=EXAMPLES, grpo=SETTINGS,
            settings=FastSlowSettings(rounds=2, trials=3), mipro_settings=MIPRO, sampling=SamplingSettings(temperature=1.0),
            seed=0, folder=tmp_path,
        )  # fmt: skip
