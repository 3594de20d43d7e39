"""Training from the first rollout to the adapter that comes back, on a policy of random weights."""

import gc
import json
import tempfile
from dataclasses import replace
from types import SimpleNamespace

import dspy
import pytest
import torch
from factories import shake
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from tiny_policy import RawAdapter, tiny_model, tiny_policy
from trl import GRPOTrainer

from mmgrpo import rollout, study, trainer, training_run
from mmgrpo.errors import UserError
from mmgrpo.logprobs import completion_logprobs
from mmgrpo.objective import policy_loss
from mmgrpo.optimizer import MMGRPO
from mmgrpo.policy.sampler import TreeSampler
from mmgrpo.rollout import jobs_for
from mmgrpo.settings import GRPOSettings, SamplingSettings
from mmgrpo.trainer import MAX_BAD_STEPS, Batch, check_trl
from mmgrpo.training_run import TrainingRun, inputs_of_step


@pytest.fixture(scope="module", autouse=True)
def nothing_but_training():
    """Leave out what takes a third of a tiny run: model cards, and searching all libraries for garbage."""
    gc.collect()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GRPOTrainer, "create_model_card", lambda *args, **kwargs: None)
        patch.setattr(PeftModel, "create_or_update_model_card", lambda *args, **kwargs: None)
        yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def temporary_folders_go(tmp_path_factory, monkeypatch):
    """Runs without a folder of their own make one where pytest cleans up."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("runs")))


TRAIN = [dspy.Example(q=f"question {place}").with_inputs("q") for place in range(5)]
VALID = TRAIN[:2]


class Pair(dspy.Module):
    """Two modules of one signature, the second called twice."""

    def __init__(self):
        super().__init__()
        signature = dspy.Signature("q -> t")
        self.a, self.b = dspy.Predict(signature), dspy.Predict(signature)

    def forward(self, q):
        first = self.a(q=q)
        return dspy.Prediction(t=first.t + self.b(q=q).t + self.b(q="again").t)


class Single(dspy.Module):
    def __init__(self):
        super().__init__()
        self.a = dspy.Predict("q -> t")

    def forward(self, q):
        return self.a(q=q)


def noise(example, prediction, trace=None):
    """A reward that differs between runs and means nothing."""
    return sum(map(ord, prediction.t)) % 11 / 10


def optimizer(metric=noise, *, level="module", seed=0, folder=None, **settings):
    chosen = {
        "steps": 2, "inputs": 2, "rollouts": 3, "group_size": 3, "learning_rate": 1e-2, "warmup_steps": 0,
        "beta": 0.0, "validate_every": 2, "max_grad_norm": 1.0,
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


# What is trained is what was sampled


def some(text):
    """Which replies are refused: about half, whatever they say."""
    return sum(map(ord, text)) % 2 == 0


@pytest.mark.parametrize("level", ["module", "trajectory"])
def test_loss_covers_the_sampled_tokens_and_no_other(monkeypatch, level):
    losses, runs = Spy(monkeypatch, trainer, "policy_loss"), Spy(monkeypatch, rollout, "run")
    program = Pair()
    program.b.demos = [dspy.Example(q="a demonstration", t="its answer")]
    log = compile_(tiny_policy(), optimizer(level=level, steps=1, padding="ragged"), program, refuse=some).training_log
    calls = [call for run in runs.calls[0][2] for call in run.calls]
    assert {call.status for call in calls} == {"ok", "truncated"}  # unparsed replies are among them
    assert log.curve[0]["groups/kept"] == (2 if level == "trajectory" else 6)  # of 2 inputs; of a once, of b twice
    weights_given = torch.cat([args[4] for args, _, _ in losses.calls])
    assert len(weights_given) == sum(len(call.completion_ids) for call in calls)
    assert float(weights_given.sum()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("modules", [(), ("a", "b")])
def test_trainer_and_sampler_agree_on_every_token(modules):
    program = Pair()
    program.b.demos = [dspy.Example(q="a demonstration", t="its answer"), dspy.Example(q="another", t="[[ ## t ## ]]")]
    policy = tiny_policy()
    policy.attach_adapters(modules)
    shake(policy.trainable(), seed=1)  # as if trained for a while
    policy.sync()
    with dspy.context(adapter=RawAdapter(some)):
        lm = policy.lm(temperature=0.7, top_p=0.9, top_k=50)
        runs = rollout.run(program, jobs_for(TRAIN, 3, 0), lm=lm, metric=noise)
    for module in ("a", "b"):
        calls = [call for run in runs for call in run.calls if call.module == module]
        policy.activate(module)
        trained = completion_logprobs(policy.trainable(), calls)
        sampled = torch.tensor([value for call in calls for value in call.logprobs])
        assert (trained - sampled).abs().max() < 1e-3
    assert any(run.outcome == "interrupted" for run in runs) and any(run.outcome == "completed" for run in runs)


def test_log_says_how_far_trainer_and_sampler_are_apart():
    log = compile_(tiny_policy(), optimizer(), refuse=some).training_log
    assert all(entry["sampler_mismatch"] < 1e-3 for entry in log.curve)


def test_tokens_that_the_sampler_found_less_likely_count_more_up_to_the_cap(monkeypatch):
    """A sampler that reports every log-probability by 1 too low: the ratio e is capped at 2."""
    honest = TreeSampler._generate_batch

    def low(sampler, requests):
        return [replace(one, logprobs=tuple(p - 1 for p in one.logprobs)) for one in honest(sampler, requests)]

    monkeypatch.setattr(TreeSampler, "_generate_batch", low)
    off, on, high = (
        compile_(tiny_policy(), optimizer(steps=1, importance_cap=cap)).training_log.curve[0]
        for cap in (None, 2.0, 9.0)
    )
    assert on["grad_norm"] / off["grad_norm"] == pytest.approx(2.0, rel=1e-4)
    assert high["grad_norm"] / off["grad_norm"] == pytest.approx(2.7183, rel=1e-3)
    assert [entry["truncated"] for entry in (off, on, high)] == pytest.approx([0, 1, 0])
    assert off["sampler_mismatch"] == pytest.approx(1, abs=1e-3)


def test_kl_is_zero_before_the_first_update_and_positive_after():
    for adapters in ("shared", "per_module"):
        log = compile_(tiny_policy(), optimizer(beta=0.1, adapters=adapters)).training_log
        assert log.curve[0]["kl"] == 0.0
        assert log.curve[1]["kl"] > 1e-6


def test_module_and_trajectory_level_are_one_for_a_program_of_one_call():
    found = []
    for level in ("module", "trajectory"):
        policy = tiny_policy()
        compile_(policy, optimizer(level=level), Single())
        found.append(weights(policy))
    assert same(*found)
    assert not same(found[0], fresh())


def test_cispo_is_grpo_in_the_first_step_on_new_rollouts():
    found = []
    for objective in ("grpo", "cispo"):
        policy = tiny_policy()
        compile_(policy, optimizer(objective=objective, steps=1))
        found.append(weights(policy))
    for name, value in found[0].items():
        assert torch.allclose(value, found[1][name], atol=1e-6)
    assert not same(found[0], fresh())


def test_second_iteration_compares_with_the_policy_that_sampled(monkeypatch):
    losses, collected = Spy(monkeypatch, trainer, "policy_loss"), Spy(monkeypatch, TrainingRun, "collect")
    monkeypatch.setattr(TrainingRun, "collect", lambda run, step: collected(run, step))
    log = compile_(tiny_policy(), optimizer(iterations=2)).training_log
    assert [args[1] for args, _, _ in collected.calls] == [0, 1]
    assert [entry["step"] for entry in log.curve] == [1, 2, 3, 4]
    (now, before), (then, old) = ((args[0].detach(), args[1]) for args, _, _ in losses.calls[:2])
    assert torch.allclose(now, before, atol=1e-6)
    assert torch.equal(before, old)
    assert (then - old).abs().max() > 1e-4


# Going on after a stop


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


def test_run_stopped_before_its_first_checkpoint_starts_anew(tmp_path):
    whole, again = tiny_policy(), tiny_policy()
    compile_(whole, optimizer(), valset=VALID)
    with pytest.raises(KeyboardInterrupt):
        compile_(tiny_policy(), optimizer(Stop(3), folder=tmp_path), valset=VALID)
    log = compile_(again, optimizer(folder=tmp_path), valset=VALID).training_log
    assert [entry["step"] for entry in log.validation] == [0, 2]
    assert same(weights(whole), weights(again))


def test_finished_run_is_not_trained_again(tmp_path):
    first, second = tiny_policy(), tiny_policy()
    done = compile_(first, optimizer(folder=tmp_path), valset=VALID).training_log
    again = compile_(second, optimizer(Stop(0), folder=tmp_path), valset=VALID).training_log  # no metric is asked
    assert again == done
    assert same(weights(first), weights(second))


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


# Validation and what comes back


def test_validation_scores_the_weights_after_its_step(monkeypatch, tmp_path):
    policy, seen = tiny_policy(), []
    original = rollout.evaluate

    def evaluate(*args, **kwargs):
        runs = original(*args, **kwargs)
        name = "model.layers.1.mlp.up_proj"
        layer = policy.trainable().get_base_model().get_submodule(name)
        merged = layer.get_base_layer().weight + layer.get_delta_weight("default")
        assert torch.allclose(policy.sampler.model.get_submodule(name).weight, merged, atol=1e-6)
        seen.append(weights(policy))
        return runs

    monkeypatch.setattr(rollout, "evaluate", evaluate)
    compile_(policy, optimizer(folder=tmp_path, validate_every=1), valset=VALID)
    assert len(seen) == 3
    assert same(seen[0], fresh())
    for step in (1, 2):
        stored = load_file(tmp_path / f"checkpoint-{step}" / "adapter_model.safetensors")
        assert same({f"default/{name}": value for name, value in stored.items()}, seen[step])
        assert not same(seen[step - 1], seen[step])


@pytest.mark.parametrize("scores", [(0.1, 0.9, 0.2), (0.5, 0.1, 0.2), (0.3, 0.3, 0.3), (0.1, 0.2, 0.3)])
def test_adapter_with_the_best_score_comes_back(monkeypatch, scores):
    policy, seen, left = tiny_policy(), [], iter(scores)

    def mean_score(runs):
        seen.append(weights(policy))
        return next(left)

    monkeypatch.setattr(rollout, "mean_score", mean_score)
    program = compile_(policy, optimizer(validate_every=1), valset=VALID)
    best = scores.index(max(scores))  # the earliest of equals
    assert program.training_log.best == {"step": best, "score": scores[best]}
    assert [entry["score"] for entry in program.training_log.validation] == list(scores)
    assert same(seen[best], weights(policy))


def test_without_a_validation_set_the_last_adapter_comes_back(tmp_path):
    policy = tiny_policy()
    log = compile_(policy, optimizer(folder=tmp_path)).training_log
    stored = load_file(tmp_path / "checkpoint-2" / "adapter_model.safetensors")
    assert same({f"default/{name}": value for name, value in stored.items()}, weights(policy))
    assert (log.best, log.validation) == ({"step": 2.0}, ())


@pytest.mark.parametrize("adapters", ["shared", "per_module"])
def test_adapters_are_peft_folders_that_a_fresh_model_loads(adapters):
    policy = tiny_policy()
    log = compile_(policy, optimizer(adapters=adapters)).training_log
    ids = torch.tensor([[5, 6, 7, 8]])
    for module in ("a", "b"):
        folder = log.adapter / module if adapters == "per_module" else log.adapter
        loaded = PeftModel.from_pretrained(tiny_model(), folder).eval()
        policy.activate(module)
        ours = policy.trainable().eval()
        assert torch.allclose(loaded(input_ids=ids).logits, ours(input_ids=ids).logits, atol=1e-5)


@pytest.mark.parametrize("adapters", ["shared", "per_module"])
def test_returned_program_answers_with_its_adapter_in_plain_dspy(adapters):
    policy = tiny_policy()
    with dspy.context(adapter=RawAdapter()):
        program = compile_(policy, optimizer(adapters=adapters, learning_rate=0.1))
        plain = [program(q=example.q).t for example in VALID]
        runs = rollout.evaluate(program, VALID, policy=policy, metric=noise)
        assert [run.prediction.t for run in runs] == plain
        with dspy.context(lm=tiny_policy().lm()):
            assert [Pair()(q=example.q).t for example in VALID] != plain


def test_state_of_the_returned_program_can_be_stored():
    program = compile_(tiny_policy(), optimizer(steps=1))
    state = json.loads(json.dumps(study._state(program)))
    again = Pair()
    again.load_state(state)
    assert again.a.signature.instructions == program.a.signature.instructions


# Separate adapters


def test_group_updates_the_adapter_of_its_module_alone(monkeypatch):
    original = TrainingRun.collect

    def only_a(run, step):
        batch = original(run, step)
        return Batch(tuple(row for row in batch.rows if row.module == "a"), batch.metrics)

    monkeypatch.setattr(TrainingRun, "collect", only_a)
    policy = tiny_policy()
    compile_(policy, optimizer(adapters="per_module", beta=0.1))
    before, after = fresh(("a", "b")), weights(policy)
    assert same({n: v for n, v in before.items() if n.startswith("b/")}, weights(policy, "b"))
    assert not any(torch.equal(before[name], after[name]) for name in before if name.startswith("a/"))


def test_every_module_with_a_group_is_trained():
    policy = tiny_policy()
    compile_(policy, optimizer(adapters="per_module"))
    before, after = fresh(("a", "b")), weights(policy)
    assert not any(torch.equal(before[name], after[name]) for name in before)


# When things go wrong


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
    before = load_file(tmp_path / "best" / "adapter_model.safetensors")
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


def test_trl_without_the_expected_hook_is_refused_in_a_sentence(monkeypatch):
    monkeypatch.setattr(GRPOTrainer, "training_step", lambda self, model, inputs: None)
    with pytest.raises(UserError, match=r"training_step\(self, model, inputs\), expected .* install the version"):
        check_trl()


# Inputs and teachers


def test_every_example_comes_once_an_epoch_whatever_was_before():
    shown = [example.q for step in range(5) for example in inputs_of_step(TRAIN, step, 2, seed=0)]
    assert sorted(shown[:5]) == sorted(shown[5:]) == [example.q for example in TRAIN]
    assert shown[:5] != shown[5:]
    again = [example.q for step in reversed(range(5)) for example in reversed(inputs_of_step(TRAIN, step, 2, seed=0))]
    assert again[::-1] == shown  # any step can be asked for at any time
    assert shown != [example.q for step in range(5) for example in inputs_of_step(TRAIN, step, 2, seed=1)]


def test_step_may_want_more_inputs_than_there_are():
    assert [example.q for example in inputs_of_step(TRAIN[:1], 0, 3, seed=0)] == ["question 0"] * 3
    log = compile_(tiny_policy(), optimizer(steps=1, inputs=3), trainset=TRAIN[:1]).training_log
    assert log.curve[0]["rollouts"] == 9


def test_no_two_runs_of_a_step_are_the_same(monkeypatch):
    runs = Spy(monkeypatch, rollout, "run")
    compile_(tiny_policy(), optimizer(steps=1, inputs=3), trainset=TRAIN[:1])
    assert len({run.calls[0].text for run in runs.calls[0][2]}) == 9


def test_teacher_shares_the_groups_of_the_student(monkeypatch):
    runs = Spy(monkeypatch, rollout, "run")
    teacher = Pair()
    teacher.a.signature = teacher.a.signature.with_instructions("TEACH ME")
    log = compile_(tiny_policy(), optimizer(steps=1, rollouts=4, group_size=4), teacher=teacher).training_log
    assert log.curve[0]["rollouts"] == 8
    (student_runs, teacher_runs) = (result for _, _, result in runs.calls)
    assert [run.rollout for run in student_runs] == [0, 2, 0, 2] and [run.rollout for run in teacher_runs] == [
        1,
        3,
        1,
        3,
    ]
    policy = tiny_policy()
    for run, expected in ((student_runs[0], False), (teacher_runs[0], True)):
        assert ("TEACH ME" in policy.tokenizer.decode(run.calls[0].prompt_ids)) is expected
    groups = TrainingRun._group(_plan(), [*student_runs, *teacher_runs], 0).groups
    sizes = {len(group.members) for group in groups}
    assert sizes == {4}


def _plan():
    """What grouping asks of a run."""
    how = optimizer(rollouts=4, group_size=4)
    return SimpleNamespace(plan=training_run.Plan(noise, "module", how.settings, how.sampling, 0, "none"))
