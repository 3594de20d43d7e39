"""Going on after a stop, and one optimizer for several compiles."""

import dspy
import pytest
import torch
from tiny_policy import RawAdapter, tiny_policy
from training_setup import TRAIN, VALID, Pair, compile_, fresh, noise, optimizer, same, weights

from mmgrpo import kept_runs, rollout
from mmgrpo.errors import UserError

pytestmark = pytest.mark.usefixtures("nothing_but_training", "temporary_folders_go")


class Stop:
    """A metric that interrupts at the given call."""

    def __init__(self, at):
        self.left = at

    def __call__(self, example, prediction, trace=None):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return noise(example, prediction)


RESUMED = [{}, {"adapters": "per_module"}, {"iterations": 2}, {"beta": 0.1, "warmup_steps": 3}]


@pytest.mark.parametrize("changes", RESUMED, ids=str)
def test_stopped_run_goes_on_to_the_very_same_weights(tmp_path, changes):
    settings = {"steps": 4, "validate_every": 2} | changes
    whole, again = tiny_policy(), tiny_policy()
    reference = compile_(whole, optimizer(folder=tmp_path / "whole", **settings)).training_log
    with pytest.raises(KeyboardInterrupt):
        compile_(tiny_policy(), optimizer(Stop(6 + 6 + 1), folder=tmp_path / "parts", **settings))
    resumed = compile_(again, optimizer(folder=tmp_path / "parts", **settings)).training_log
    assert same(weights(whole), weights(again))
    assert [entry["reward"] for entry in resumed.curve] == [entry["reward"] for entry in reference.curve]
    assert [entry["loss"] for entry in resumed.curve] == [entry["loss"] for entry in reference.curve]


def test_stopped_run_keeps_its_validation_scores_and_its_best(tmp_path):
    settings = {"steps": 4, "validate_every": 2}
    whole, again = tiny_policy(), tiny_policy()
    reference = compile_(whole, optimizer(folder=tmp_path / "whole", **settings), valset=VALID).training_log
    with pytest.raises(KeyboardInterrupt):
        compile_(tiny_policy(), optimizer(Stop(2 + 6 + 6 + 2 + 1), folder=tmp_path / "parts", **settings), valset=VALID)
    resumed = compile_(again, optimizer(folder=tmp_path / "parts", **settings), valset=VALID).training_log
    assert [entry["step"] for entry in resumed.validation] == [0, 2, 4]
    assert (resumed.validation, resumed.best) == (reference.validation, reference.best)
    assert same(weights(whole), weights(again))
    kept = {file.name for file in (tmp_path / "parts").glob("validation-*.json")}
    assert kept == {f"validation-{int(step)}.private.json" for step in {0, reference.best["step"]}}
    sampled = [kept_runs.read(kept_runs.sampled(tmp_path / folder)) for folder in ("parts", "whole")]
    assert sampled[0] == sampled[1] and len(sampled[0]) == reference.curve[0]["rollouts"]
    for step in (0, reference.best["step"]):
        runs = kept_runs.read(kept_runs.validated(tmp_path / "parts", step))
        assert rollout.mean_score(runs) == reference.validation[int(step) // 2]["score"]
        assert runs == kept_runs.read(kept_runs.validated(tmp_path / "whole", step))


def test_only_the_runs_of_the_first_and_of_the_best_validation_stay(tmp_path):
    asked = iter(range(1000))
    how = optimizer(lambda *judged: next(asked) / 1000, folder=tmp_path, steps=4, validate_every=2)
    assert compile_(tiny_policy(), how, valset=VALID).training_log.best["step"] == 4
    kept = {file.name for file in tmp_path.glob("validation-*")}
    assert kept == {"validation-0.private.json", "validation-4.private.json"}


def test_run_stopped_before_its_first_checkpoint_starts_anew(tmp_path):
    whole, again = tiny_policy(), tiny_policy()
    compile_(whole, optimizer(), valset=VALID)
    with pytest.raises(KeyboardInterrupt):
        compile_(tiny_policy(), optimizer(Stop(3), folder=tmp_path), valset=VALID)
    log = compile_(again, optimizer(folder=tmp_path), valset=VALID).training_log
    assert [entry["step"] for entry in log.validation] == [0, 2]
    assert same(weights(whole), weights(again))


def test_finished_run_is_not_trained_again(tmp_path, capsys):
    first, second = tiny_policy(), tiny_policy()
    done = compile_(first, optimizer(folder=tmp_path), valset=VALID).training_log
    again = compile_(second, optimizer(Stop(0), folder=tmp_path), valset=VALID).training_log  # no metric is asked
    assert again == done
    assert same(weights(first), weights(second))
    assert f"{tmp_path} holds this training, finished" in capsys.readouterr().out


def test_last_weights_of_a_finished_run_come_back_without_a_validation_set(tmp_path):
    first, second = tiny_policy(), tiny_policy()
    done = compile_(first, optimizer(folder=tmp_path)).training_log
    assert compile_(second, optimizer(Stop(0), folder=tmp_path)).training_log == done
    assert same(weights(first), weights(second))
    assert not same(weights(second), fresh())


@pytest.mark.parametrize("save_every", [1, 5])
def test_training_ends_where_validation_has_not_risen_for_so_long(save_every, tmp_path):
    settings = {"steps": 5, "validate_every": 1, "save_every": save_every, "patience": 2, "folder": tmp_path}
    done = compile_(tiny_policy(), optimizer(lambda *_: 0.5, **settings), valset=VALID).training_log
    assert [entry["step"] for entry in done.validation] == [0, 1, 2]
    assert (len(done.curve), done.best) == (2, {"step": 0.0, "score": 0.5})
    again = compile_(tiny_policy(), optimizer(Stop(0), **settings), valset=VALID).training_log
    assert again == done


def test_folder_of_another_run_is_refused(tmp_path):
    compile_(tiny_policy(), optimizer(folder=tmp_path))
    other = Pair()
    other.a.signature = other.a.signature.with_instructions("Say something else.")
    for attempt in (
        lambda: compile_(tiny_policy(), optimizer(folder=tmp_path), other),
        lambda: compile_(tiny_policy(), optimizer(folder=tmp_path), trainset=TRAIN[:4]),
        lambda: compile_(tiny_policy(), optimizer(folder=tmp_path, level="trajectory")),
        lambda: compile_(tiny_policy(), optimizer(folder=tmp_path, learning_rate=1e-3)),
        lambda: compile_(tiny_policy(), optimizer(folder=tmp_path, seed=1)),
        lambda: compile_(tiny_policy(max_tokens=5), optimizer(folder=tmp_path)),
    ):
        with pytest.raises(UserError, match="holds another run"):
            attempt()


# One optimizer, several compiles


def test_second_compile_of_an_optimizer_is_like_the_first():
    policy, how = tiny_policy(), optimizer()
    first = compile_(policy, how, valset=VALID).training_log
    after_first = weights(policy)
    second = compile_(policy, how, valset=VALID).training_log
    assert (second.validation, [entry["reward"] for entry in second.curve]) == (
        first.validation, [entry["reward"] for entry in first.curve],
    )  # fmt: skip
    assert same(after_first, weights(policy))
    assert first.adapter != second.adapter


@pytest.mark.parametrize("adapters", ["shared", "per_module"])
def test_weights_prompt_weights_goes_on_from_the_first_weights(adapters):
    policy, how = tiny_policy(), optimizer(adapters=adapters)
    first = compile_(policy, how)
    trained = weights(policy)
    first.b.signature = first.b.signature.with_instructions("Say it backwards.")
    first.b.demos = [dspy.Example(q="a", t="b")]
    how.settings = how.settings.model_copy(update={"steps": 1, "learning_rate": 1e-12})
    second = compile_(policy, how, first)
    assert not same(fresh(("a", "b") if adapters == "per_module" else ()), trained)
    for name, value in weights(policy).items():
        assert torch.allclose(value, trained[name], atol=1e-9)
    assert second.b.signature.instructions == "Say it backwards."
    assert len(second.b.demos) == 1


def test_first_program_keeps_its_weights_while_the_second_is_trained():
    policy, how = tiny_policy(max_tokens=12), optimizer(learning_rate=0.1)
    with dspy.context(adapter=RawAdapter()):
        first = compile_(policy, how)
        before = [first(q="How are you?").t, first(q="Where are you?").t]
        second = compile_(policy, how, first)
        assert [first(q="How are you?").t, first(q="Where are you?").t] == before
        assert [second(q="How are you?").t, second(q="Where are you?").t] != before


def test_seed_decides_rollouts_and_initial_adapter():
    found = []
    for seed in (0, 1, 1):
        policy = tiny_policy()
        compile_(policy, optimizer(seed=seed, steps=1, learning_rate=1e-12))
        found.append(weights(policy))
    assert same(found[1], found[2])
    assert not any(torch.equal(found[0][name], found[1][name]) for name in found[0] if "lora_A" in name)
