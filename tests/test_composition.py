"""MMGRPO inside dspy.BetterTogether, and weights that stay with their program."""

import tempfile

import dspy
import pytest
from tiny_policy import RawAdapter, tiny_policy
from training_setup import QUESTIONS as EXAMPLES
from training_setup import Lenient, Spy, by_length

from mmgrpo import rollout, training_run
from mmgrpo.optimizer import MMGRPO
from mmgrpo.settings import GRPOSettings, SamplingSettings

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
INSTRUCTION = "Answer in one word."
TURN = "<|im_start|>assistant"


@pytest.fixture(autouse=True)
def _scratch(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def optimizer(**changes):
    return MMGRPO(by_length, settings=SETTINGS.model_copy(update=changes), sampling=SamplingSettings(temperature=1.0))


def replies(program, lm=None):
    with dspy.context(lm=lm):
        return [program(question=example.question).answer for example in EXAMPLES]


@pytest.mark.parametrize("strategy", ["p -> w", "w -> p", "p -> w -> p", "w -> p -> w"])
def test_better_together_runs_in_any_order(strategy):
    policy = tiny_policy()
    student = Lenient()
    student.set_lm(policy.lm())
    prompts = dspy.BootstrapFewShot(metric=by_length, max_bootstrapped_demos=1, max_labeled_demos=1)
    together = dspy.BetterTogether(metric=by_length, p=prompts, w=optimizer())
    with dspy.context(lm=policy.lm()):  # BootstrapFewShot takes the predictors' own away while it works
        best = together.compile(student, trainset=EXAMPLES, valset=EXAMPLES[:2], strategy=strategy, seed=1)
    assert not best.flag_compilation_error_occurred
    assert len(best.candidate_programs) == 1 + len(strategy.split(" -> "))


class Telling(Lenient):
    """Also says what its prompt has, so that a metric can want a better one."""

    def forward(self, question):
        with dspy.context(adapter=RawAdapter()):
            answer = self.reply(question=question).answer
        return dspy.Prediction(answer=answer, shown=len(self.reply.demos), told=self.reply.signature.instructions)


def wants_a_prompt(example, prediction, trace=None, module=None, own=None):
    """More for any demonstration, or for the one good instruction, than for any answer."""
    return (by_length(example, prediction) + (prediction.shown > 0 or prediction.told == INSTRUCTION)) / 2


def mipro_stage(lm):
    stage = dspy.MIPROv2(
        metric=wants_a_prompt, prompt_model=lm, task_model=lm, auto=None, num_candidates=4,
        max_bootstrapped_demos=1, max_labeled_demos=1, num_threads=2, seed=1,
    )  # fmt: skip
    return stage, {"num_trials": 4, "minibatch": False}


def gepa_stage(lm):
    def propose(candidate, reflective_dataset, components_to_update):
        return dict.fromkeys(components_to_update, INSTRUCTION)

    how = {"reflection_lm": lm, "reflection_minibatch_size": 2, "num_threads": 2, "seed": 1}
    return dspy.GEPA(metric=wants_a_prompt, max_metric_calls=12, instruction_proposer=propose, **how), {}


@pytest.mark.parametrize("stage", [mipro_stage, gepa_stage])
@pytest.mark.parametrize("strategy", ["p -> w", "w -> p", "p -> w -> p"])
def test_weights_and_prompts_are_optimized_on_top_of_each_other(monkeypatch, strategy, stage):
    policy = tiny_policy()
    runs, rows = Spy(monkeypatch, rollout, "run"), Spy(monkeypatch, training_run, "rows_of")
    student = Telling()
    student.set_lm(policy.lm())
    prompts, how = stage(policy.lm(temperature=1.0))
    weights = MMGRPO(wants_a_prompt, settings=SETTINGS, sampling=SamplingSettings(temperature=1.0))
    together = dspy.BetterTogether(metric=wants_a_prompt, p=prompts, w=weights)
    with dspy.context(lm=policy.lm(), adapter=RawAdapter()):
        best = together.compile(
            student, trainset=EXAMPLES, valset=EXAMPLES[:2], strategy=strategy, seed=1,
            optimizer_compile_args={"p": how},
        )  # fmt: skip
    assert not best.flag_compilation_error_occurred
    made = {each["strategy"]: each["program"].reply for each in best.candidate_programs}
    steps = strategy.split(" -> ")
    assert set(made) == {" -> ".join(steps[:count]) for count in range(len(steps) + 1)}
    assert made[strategy].demos or made[strategy].signature.instructions == INSTRUCTION
    assert made[strategy].lm.weights == made["w" if steps[0] == "w" else "p -> w"].lm.weights is not None

    under = made[strategy.partition("w")[0].removesuffix(" -> ")]  # the prompt that the weights were trained under
    sampled = [call.prompt_ids for _, _, result in runs.calls for run in result for call in run.calls]
    trained = [row.prompt_ids for _, _, result in rows.calls for row in result]
    assert trained and set(trained) <= set(sampled)
    for ids in set(sampled):
        text = policy.tokenizer.decode(ids)
        assert text.count(TURN) == len(under.demos) + 1
        assert (INSTRUCTION in text) == (under.signature.instructions == INSTRUCTION)


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
