"""Bad use of the optimizer gets a sentence that says what to do, before anything is sampled."""

import tempfile

import dspy
import pytest
from pydantic import ValidationError
from tiny_policy import RawAdapter, scripted_lm, tiny_policy

from mmgrpo.errors import UserError
from mmgrpo.optimizer import MMGRPO
from mmgrpo.policy.lm import PolicyLM
from mmgrpo.settings import GRPOSettings, PolicySettings

TRAIN = [dspy.Example(q="one").with_inputs("q")]


@pytest.fixture(autouse=True)
def temporary_folders_go(tmp_path_factory, monkeypatch):
    """Runs without a folder of their own make one where pytest cleans up."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("runs")))


class Pair(dspy.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = dspy.Predict("q -> t"), dspy.Predict("q -> t")

    def forward(self, q):
        return self.b(q=self.a(q=q).t)


class Reordered(Pair):
    """The same modules and one more."""

    def __init__(self):
        super().__init__()
        self.c = dspy.Predict("q -> t")


class Empty(dspy.Module):
    def forward(self, q):
        return dspy.Prediction(t=q)


def one(example, prediction, trace=None):
    return 1.0


def never(prompt, request):
    raise AssertionError("the language model was asked")


def refused(sentence, student=None, *, lm="policy", how=None, **given):
    policy_lm = scripted_lm(never)
    with dspy.context(lm=policy_lm if lm == "policy" else lm), pytest.raises(UserError, match=sentence):
        (how or MMGRPO(one)).compile(student or Pair(), **{"trainset": TRAIN} | given)


def test_no_language_model():
    refused(r"no language model is set: set one with dspy.configure\(lm=", lm=None)


def test_language_model_that_is_no_policy():
    refused(r"LM\(openai/gpt-4.1-mini\) can't be trained here: set one with", lm=dspy.LM("openai/gpt-4.1-mini"))


def test_one_predictor_with_another_language_model():
    student = Pair()
    student.b.lm = dspy.LM("openai/gpt-4.1-mini")
    refused(
        r"b has a language model of its own, LM\(openai/gpt-4.1-mini\), which can't be trained here: set its", student
    )


def test_two_policies_in_one_program():
    student = Pair()
    student.b.lm = scripted_lm(never)
    refused("different policies", student)


def test_two_adapters_in_one_program(tmp_path):
    lm, student = scripted_lm(never), Pair()
    student.b.lm = lm.with_weights(tmp_path)
    refused("different policies or adapters", student, lm=lm)


def test_empty_trainset():
    refused("The trainset is empty: give at least one dspy.Example", trainset=[])


def test_program_without_predictors():
    refused("Empty has no predictors that can be trained: give it a dspy.Predict", Empty())


def test_program_whose_parts_are_frozen():
    class Frozen(dspy.Module):
        def __init__(self):
            super().__init__()
            self.part = Pair()
            self.part._compiled = True

    refused("parts that were compiled before are frozen", Frozen())


@pytest.mark.parametrize("student", [None, "Pair", Pair])
def test_student_that_is_no_program(student):
    with pytest.raises(UserError, match="must be a dspy.Module"):
        MMGRPO(one).compile(student, trainset=TRAIN)


def test_teacher_with_other_modules():
    refused(r"teacher has the modules \['a', 'b', 'c'\], the student \['a', 'b'\]", teacher=Reordered())


def test_teacher_with_a_language_model_of_its_own():
    teacher = Pair()
    teacher.b.lm = dspy.LM("openai/gpt-4.1-mini")
    refused(
        r"A teacher uses openai/gpt-4.1-mini, whose tokens can't be trained: call its set_lm\(None\)", teacher=teacher
    )


def test_rollouts_that_cannot_be_shared_equally():
    refused("12 rollouts can't be shared equally by 5 programs", teacher=[Pair() for _ in range(4)])


def test_unknown_level():
    with pytest.raises(UserError, match="Unknown level 'modul'; allowed: module, trajectory"):
        MMGRPO(one, level="modul")


def test_metric_that_is_no_function():
    with pytest.raises(UserError, match="must be a function metric"):
        MMGRPO("accuracy")


def test_context_without_room_for_a_prompt():
    with pytest.raises(ValidationError, match="max_tokens 2048 leaves no room for a prompt in the context of 2048"):
        PolicySettings(context=2048, max_tokens=2048)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"rollouts": 1, "group_size": 1}, "greater than or equal to 2"),
        ({"group_size": 1}, "greater than or equal to 2"),
        ({"rollouts": 4, "group_size": 5}, "group_size 5 is larger than rollouts 4"),
        ({"steps": 0}, "greater than 0"),
        ({"format_failure_reward": 0.5}, "less than 0"),
        ({"objective": "ppo"}, "'grpo' or 'cispo'"),
        ({"learning_rat": 1e-4}, "learning_rat"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused_when_they_are_made(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        GRPOSettings(**settings)


def test_defaults_can_be_used_as_they_are():
    how = MMGRPO(one)
    assert (how.level, how.settings, how.seed, how.folder) == ("module", GRPOSettings(), 0, None)


def test_seed_zero_stays_zero():
    assert MMGRPO(one, seed=0).seed == 0


def test_weights_of_separate_adapters_are_no_start_for_a_shared_one():
    policy = tiny_policy()
    settings = {"steps": 1, "inputs": 1, "rollouts": 2, "group_size": 2, "beta": 0.0}
    rewards = iter([0.0, 1.0] * 10)

    def metric(example, prediction, trace=None):
        return next(rewards)

    with dspy.context(lm=policy.lm(), adapter=RawAdapter()):
        separate = MMGRPO(metric, settings=GRPOSettings(**settings, adapters="per_module"))
        program = separate.compile(Pair(), trainset=TRAIN)
        assert isinstance(program.a.lm, PolicyLM) and program.a.lm.model != program.b.lm.model
        with pytest.raises(UserError, match="trained with another setting of `adapters`"):
            MMGRPO(metric, settings=GRPOSettings(**settings)).compile(program, trainset=TRAIN)
