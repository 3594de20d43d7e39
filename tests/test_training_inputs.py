"""Which inputs a step has, and how teachers share its groups."""

import dspy
import pytest
from tiny_policy import tiny_policy
from training_setup import TRAIN, Pair, Spy, compile_, noise, optimizer

from mmgrpo import rollout
from mmgrpo.errors import UserError
from mmgrpo.training_run import Recipe, grouped, inputs_of_step

pytestmark = pytest.mark.usefixtures("nothing_but_training", "temporary_folders_go")


def shown(trainset, steps, inputs, seed=0):
    return [[example.q for example in inputs_of_step(trainset, step, inputs, seed)] for step in range(steps)]


def test_every_example_comes_once_an_epoch_whatever_was_before():
    first, second = (sum(shown(TRAIN[:4], 4, 2)[epoch : epoch + 2], []) for epoch in (0, 2))
    assert sorted(first) == sorted(second) == [example.q for example in TRAIN[:4]]
    assert first != second
    again = [[example.q for example in inputs_of_step(TRAIN[:4], step, 2, seed=0)] for step in reversed(range(4))]
    assert again[::-1] == shown(TRAIN[:4], 4, 2)  # any step can be asked for at any time
    assert shown(TRAIN[:4], 4, 2, seed=1) != shown(TRAIN[:4], 4, 2)


@pytest.mark.parametrize("inputs", [2, 3, 5])
def test_inputs_of_a_step_are_all_different_and_none_is_left_out_for_good(inputs):
    steps = shown(TRAIN, 40, inputs)
    assert {len(set(step)) for step in steps} == {inputs}
    assert set(sum(steps, [])) == {example.q for example in TRAIN}


def test_step_that_wants_more_inputs_than_there_are_is_refused():
    with pytest.raises(UserError, match="A step takes 6 inputs, and the trainset has 5: give more examples"):
        compile_(tiny_policy(), optimizer(inputs=6))


def test_no_two_runs_of_a_step_are_the_same(monkeypatch):
    runs = Spy(monkeypatch, rollout, "run")
    compile_(tiny_policy(), optimizer(steps=1, inputs=3), trainset=TRAIN[:1] * 3)
    assert len({run.calls[0].text for run in runs.calls[0][2]}) == 9


def test_teacher_shares_the_groups_of_the_student(monkeypatch):
    runs = Spy(monkeypatch, rollout, "run")
    teacher = Pair()
    teacher.a.signature = teacher.a.signature.with_instructions("TEACH ME")
    log = compile_(tiny_policy(), optimizer(steps=1, rollouts=4, group_size=4), teacher=teacher).training_log
    assert log.curve[0]["rollouts"] == 8
    (student_runs, teacher_runs) = (result for _, _, result in runs.calls)
    assert [run.rollout for run in student_runs] == [0, 2, 0, 2]
    assert [run.rollout for run in teacher_runs] == [1, 3, 1, 3]
    policy = tiny_policy()
    for run, expected in ((student_runs[0], False), (teacher_runs[0], True)):
        assert ("TEACH ME" in policy.tokenizer.decode(run.calls[0].prompt_ids)) is expected
    how = optimizer(rollouts=4, group_size=4)
    recipe = Recipe(noise, "module", how.settings, how.sampling, 0, "none")
    groups = grouped([*student_runs, *teacher_runs], recipe, 0).groups
    sizes = {len(group.members) for group in groups}
    assert sizes == {4}


class Idle(Pair):
    """Has modules that it doesn't ask: one of its two, or both."""

    def __init__(self, asked=()):
        super().__init__()
        self.asked = asked

    def forward(self, q):
        return dspy.Prediction(t="".join(getattr(self, name)(q=q).t for name in self.asked))


@pytest.mark.parametrize("adapters", ["shared", "per_module"])
def test_module_that_no_run_called_is_named(adapters):
    with pytest.warns(UserWarning, match="No run called b: nothing was learnt there"):
        program = compile_(tiny_policy(), optimizer(adapters=adapters), Idle(["a"]))
    assert program.training_log.curve[0]["groups/kept"] == 2
    assert program.training_log.elsewhere == ()
    assert program.a.lm.weights == program.b.lm.weights == program.training_log.adapter  # it may be called one day
    compile_(program.b.lm.policy, optimizer(adapters=adapters), program)


class Helped(Pair):
    """Its second module asks another policy."""

    def __init__(self, helper):
        super().__init__()
        self.helper = helper

    def forward(self, q):
        first = self.a(q=q).t
        with dspy.context(lm=self.helper):
            return dspy.Prediction(t=first + self.b(q=q).t)


def test_module_that_asks_another_policy_keeps_it_and_is_not_trained(monkeypatch, recwarn):
    runs, helper = Spy(monkeypatch, rollout, "run"), tiny_policy(seed=1).lm(temperature=1.0)
    program = compile_(tiny_policy(), optimizer(), Helped(helper))
    assert {call.module for _, _, made in runs.calls for run in made for call in run.calls} == {"a"}
    assert program.training_log.elsewhere == ("b",)
    assert not [each for each in recwarn if "No run called" in str(each.message)]
    assert program.a.lm.weights == program.training_log.adapter and program.b.lm is None
    again = compile_(program.a.lm.policy, optimizer(), program)  # it can be trained once more
    assert again.training_log.elsewhere == ("b",)


def test_program_that_calls_no_module_is_refused():
    with pytest.raises(UserError, match="None of the program's modules was called in 6 runs"):
        compile_(tiny_policy(), optimizer(), Idle())
