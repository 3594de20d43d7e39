"""When things go wrong: metrics that raise, equal rewards, losses that are not finite."""

from dataclasses import replace

import dspy
import pytest
import torch
from safetensors.torch import load_file
from tiny_policy import RawAdapter, tiny_policy
from training_setup import TRAIN, VALID, Pair, Spy, compile_, fresh, noise, optimizer, same, weights
from trl import GRPOTrainer

from mmgrpo import trainer
from mmgrpo.errors import UserError
from mmgrpo.lock import only_one
from mmgrpo.objective import policy_loss
from mmgrpo.trainer import MAX_BAD_STEPS, check_trl

pytestmark = pytest.mark.usefixtures("nothing_but_training", "temporary_folders_go")


def test_error_in_the_metric_leaves_everything_as_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    policy, student, teacher = tiny_policy(), Pair(), Pair()
    own, adapter = policy.lm(temperature=0.5), RawAdapter()
    student.a.lm = teacher.b.lm = own

    def broken(example, prediction, trace=None):
        raise ValueError("no gold label")

    with dspy.context(lm=policy.lm(), adapter=adapter):
        before = dict(dspy.settings.config)
        with pytest.raises(UserError, match="no gold label"):
            optimizer(broken, rollouts=4).compile(student, trainset=TRAIN, valset=VALID, teacher=teacher)
        assert dict(dspy.settings.config) == before
    assert (student.a.lm, student.b.lm, teacher.a.lm, teacher.b.lm) == (own, None, None, own)
    assert list(tmp_path.iterdir()) == []
    assert not getattr(student, "_compiled", False)
    compile_(policy, optimizer(steps=1))  # and it can be trained after all


def test_error_halfway_leaves_the_folder_ready_to_go_on(tmp_path):
    with pytest.raises(UserError):
        compile_(tiny_policy(), optimizer(lambda *_: float("nan"), folder=tmp_path))
    assert len(compile_(tiny_policy(), optimizer(folder=tmp_path)).training_log.curve) == 2


@pytest.mark.parametrize("name", ["checkpoint-500", "best-models"])
def test_folder_with_checkpoints_of_another_trainer_is_refused_and_left_alone(name, tmp_path):
    (tmp_path / name).mkdir()
    (tmp_path / name / "model.safetensors").write_text("precious")
    with pytest.raises(UserError, match=f"holds {name}, which is of no run of ours: choose another folder"):
        compile_(tiny_policy(), optimizer(folder=tmp_path))
    assert sorted(file.name for file in tmp_path.rglob("*") if file.is_file()) == [".lock", "model.safetensors"]


def test_folder_in_which_another_training_runs_is_refused(tmp_path):
    held = only_one("training", tmp_path, "")
    with held, pytest.raises(UserError, match="Another training is running in .*`folder`"):
        compile_(tiny_policy(), optimizer(folder=tmp_path))
    assert len(compile_(tiny_policy(), optimizer(folder=tmp_path)).training_log.curve) == 2


def test_several_processes_without_a_folder_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="Several processes train together: give MMGRPO a `folder`"):
        compile_(tiny_policy(), optimizer())


@pytest.mark.parametrize(("reward", "valset"), [(-3.0, None), (-0.5, VALID)])
def test_rewards_that_pay_failure_are_refused(reward, valset):
    with pytest.raises(UserError, match=f"A run that completed earned {reward:g}, where one whose reply doesn't parse"):
        compile_(tiny_policy(), optimizer(lambda *_: reward), valset=valset)


def test_student_itself_is_not_changed():
    policy, student = tiny_policy(), Pair()
    program = compile_(policy, optimizer(steps=1), student)
    assert program is not student
    assert (student.a.lm, student.b.lm) == (None, None)
    assert not hasattr(student, "training_log")


def test_equal_rewards_update_nothing():
    policy = tiny_policy()
    log = compile_(policy, optimizer(lambda *_: 0.5)).training_log
    assert same(fresh(), weights(policy))
    assert [entry["reward"] for entry in log.curve] == [0.5, 0.5]
    assert [entry.get("groups/kept", 0) for entry in log.curve] == [0, 0]
    assert all(entry["groups/dropped_no_variance"] > 0 for entry in log.curve)


def test_step_without_a_group_between_others_moves_nothing(tmp_path):
    steps = iter([noise] * 6 + [lambda *_: 0.5] * 6 + [noise] * 6)
    policy = tiny_policy()
    compile_(policy, optimizer(lambda *args: next(steps)(*args), steps=3, validate_every=1, folder=tmp_path))
    stored = [load_file(tmp_path / f"checkpoint-{step}" / "adapter_model.safetensors") for step in (2, 3)]
    before = load_file(tmp_path / "best-3" / "adapter_model.safetensors")
    assert same(before, stored[1]) and not same(*stored)


def broken_at(*steps):
    """policy_loss that is NaN in these updates."""
    made = iter(range(10**6))

    def loss(*args, **kwargs):
        terms = policy_loss(*args, **kwargs)
        return replace(terms, loss=terms.loss * float("nan")) if next(made) in steps else terms

    return loss


def test_step_whose_loss_is_not_finite_is_skipped_and_counted(monkeypatch, tmp_path):
    monkeypatch.setattr(trainer, "policy_loss", broken_at(1))
    log = compile_(tiny_policy(), optimizer(steps=3, folder=tmp_path, validate_every=1)).training_log
    assert [entry["skipped"] for entry in log.curve] == [0, 1, 0]
    monkeypatch.setattr(trainer, "policy_loss", policy_loss)
    one_step = tiny_policy()
    compile_(one_step, optimizer(steps=1))
    stored = load_file(tmp_path / "checkpoint-2" / "adapter_model.safetensors")
    assert same({f"default/{name}": value for name, value in stored.items()}, weights(one_step))


def test_passes_go_on_after_a_loss_that_is_not_finite(monkeypatch):
    """Processes that share the frozen weights would wait for them for ever."""
    passes = []
    for broken in ((), (0,)):
        monkeypatch.setattr(trainer, "policy_loss", broken_at(*broken))
        spy = Spy(monkeypatch, trainer, "policy_loss")
        compile_(tiny_policy(), optimizer(steps=1, token_budget=200))
        passes.append(len(spy.calls))
    assert passes[0] == passes[1] > 1


def test_gradient_that_is_not_finite_is_skipped_too(monkeypatch):
    class Poison(torch.autograd.Function):
        @staticmethod
        def forward(ctx, loss):
            return loss.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float("nan")

    def loss(*args, **kwargs):
        terms = policy_loss(*args, **kwargs)
        return replace(terms, loss=Poison.apply(terms.loss))

    monkeypatch.setattr(trainer, "policy_loss", loss)
    policy = tiny_policy()
    log = compile_(policy, optimizer()).training_log
    assert [entry["skipped"] for entry in log.curve] == [1, 1]
    assert same(fresh(), weights(policy))


def test_loss_that_stays_broken_stops_the_run(monkeypatch):
    monkeypatch.setattr(trainer, "policy_loss", broken_at(*range(100)))
    with pytest.raises(UserError, match=f"not finite in {MAX_BAD_STEPS} steps in a row"):
        compile_(tiny_policy(), optimizer(steps=MAX_BAD_STEPS + 2))


@pytest.mark.parametrize("hook", ["training_step", "_load_from_checkpoint"])
def test_trl_without_the_expected_hook_is_refused_in_a_sentence(monkeypatch, hook):
    check_trl()
    monkeypatch.setattr(GRPOTrainer, hook, lambda self, other: None)
    with pytest.raises(UserError, match=rf"{hook}\(self, other\), expected .* install the version"):
        check_trl()
