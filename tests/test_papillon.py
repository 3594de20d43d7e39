"""PAPILLON: its program, and what reaches the untrusted language model: the request and nothing else."""

import dspy
import pytest
from papillon_setup import NASTY, Heard, Policy, load, local_task, run_of
from tiny_policy import fields, scripted_lm, tiny_policy

from mmgrpo import policy, profiles, prompt_optimization, rollout, tasks
from mmgrpo.errors import UserError
from mmgrpo.privacy import leaked
from mmgrpo.settings import MIPROSettings
from mmgrpo.tasks import papillon
from mmgrpo.tasks.papillon.program import Papillon

pytestmark = pytest.mark.usefixtures("embedded_rows_and_no_api")


def test_oracle_beats_chance_by_far():
    task = local_task()
    splits = load(8, 8, 24)
    assert task.metric(splits.test[0], task.oracle(splits.test[0])) > 0.99
    assert task.chance(splits) < 0.25
    assert tasks.get("papillon").chance(splits) == 0.5


@pytest.mark.parametrize("name", ["smoke", "laptop"])
def test_small_profiles_need_no_api(name):
    settings = profiles.load(name).tasks["papillon"]
    task = tasks.get("papillon", settings.options)
    splits = task.load(settings.splits)
    assert splits.source == "embedded"
    assert len(task.program(splits).named_predictors()) == 2


def test_paper_profile_asks_for_its_key_before_anything_starts():
    settings = profiles.load("paper").tasks["papillon"]
    assert (settings.splits.source, settings.splits.train, settings.splits.test) == ("hub", 111, 221)
    task = tasks.get("papillon", settings.options)
    assert papillon.Options().untrusted == papillon.Options().judge == "openai/gpt-4.1-mini-2025-04-14"
    with pytest.raises(UserError, match="OPENAI_API_KEY is not set, and the task asks openai/gpt-4.1-mini-2025-04-14"):
        task.program(load())


def test_unknown_option_is_refused():
    with pytest.raises(UserError, match="The option 'juge' of task papillon: .*did you mean 'judge'"):
        tasks.get("papillon", {"juge": "lexical"})


def test_modules_are_the_papers():
    named = dict(Papillon(Heard()).named_predictors())
    craft, respond = named["craft_redacted_request.predict"], named["respond_to_query"]
    assert (list(craft.signature.input_fields), list(craft.signature.output_fields)) == (
        ["user_query"], ["reasoning", "llm_request"],
    )  # fmt: skip
    assert list(respond.signature.input_fields) == ["related_llm_request", "related_llm_response", "user_query"]
    assert list(respond.signature.output_fields) == ["response"]


def test_only_the_request_reaches_the_untrusted_model_in_a_run():
    heard, scripted = Heard(), Policy()
    run = run_of(scripted, NASTY, heard)
    assert heard.texts == ["Please write a short note, number 0."] == list(scripted.requests)
    assert run.prediction.llm_response == "answer 1" and run.prediction.response.startswith("Dear friend")
    assert [call.module for call in run.calls] == ["craft_redacted_request.predict", "respond_to_query"]
    assert "answer 1" in scripted.prompts[1] and "Tell Ann Lee" in scripted.prompts[1]


def test_empty_request_is_not_sent():
    heard = Heard()
    run = run_of(lambda prompt, request: fields(reasoning="Hm.", llm_request="", response="Fine."), untrusted=heard)
    assert heard.texts == []
    assert run.outcome == "completed" and run.prediction.llm_response == ""


def private_units(examples):
    return [unit for row in examples for unit in row.pii_units]


def assert_heard_only_requests(heard, scripted, examples):
    assert heard.texts and set(heard.texts) <= scripted.requests
    units = private_units(examples)
    assert not any(leaked(units, text) for text in heard.texts)
    assert leaked(units, " ".join(scripted.prompts))  # the policy did see them


def test_mipro_tells_the_untrusted_model_nothing_else():
    heard, scripted, splits = Heard(), Policy(), load(6, 4, 4)
    settings = MIPROSettings(
        trials=2,
        fewshot_candidates=2,
        instruction_candidates=2,
        bootstrapped_demos=1,
        labeled_demos=1,
        proposal_tokens=64,
    )
    found = prompt_optimization.mipro(
        Papillon(heard), lm=scripted_lm(scripted, context=100_000), metric=lambda *arguments: 1.0,
        trainset=splits.train, valset=splits.valid, settings=settings, seed=0,
    )  # fmt: skip
    assert len(found.trials) >= 2
    assert_heard_only_requests(heard, scripted, (*splits.train, *splits.valid))


def test_gepa_tells_the_untrusted_model_nothing_else():
    heard, scripted, splits = Heard(), Policy(), load(4, 4, 4)
    lm, task = scripted_lm(scripted, context=100_000), local_task()

    def metric(gold, predicted, trace=None, pred_name=None, pred_trace=None):
        judged = task.judge(gold, predicted)
        return dspy.Prediction(score=judged.score, feedback=judged.feedback)

    program = Papillon(heard)
    program.set_lm(lm)
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
        dspy.GEPA(metric=metric, max_metric_calls=16, reflection_lm=lm, num_threads=1, seed=1).compile(
            program, trainset=list(splits.train), valset=list(splits.valid)
        )
    reflected = [prompt for prompt in scripted.prompts if "should mention" in prompt]
    assert reflected and leaked(private_units(splits.train), reflected[0])  # feedback goes to the policy
    assert_heard_only_requests(heard, scripted, (*splits.train, *splits.valid))


def test_local_model_is_loaded_once_when_first_asked_and_batched_with_the_policy(monkeypatch):
    loaded, asked = [], []

    def load_model(name, settings, seed):
        loaded.append((name, settings.max_tokens))
        model = tiny_policy(max_tokens=settings.max_tokens)
        model.engine.batcher.ask = lambda *arguments: pytest.fail("not batched with the policy")
        generate = model.sampler.generate
        model.sampler.generate = lambda requests: asked.append(len(requests)) or generate(requests)
        return model

    monkeypatch.setattr(policy, "load", load_model)
    task, scripted, splits = local_task(), Policy(), load(4, 4, 4)
    program = task.program(splits)
    assert loaded == []
    runs = rollout.evaluate(program, splits.test, policy=scripted_lm(scripted).policy, metric=task.judge)
    rollout.evaluate(task.program(splits), splits.train, policy=scripted_lm(scripted).policy, metric=task.judge)
    assert loaded == [("smollm2-135m-published", 16)]
    assert asked == [4, 4]
    assert {run.outcome for run in runs} == {"completed"}
    assert set(runs[0].details) == {"quality", "leakage"}
    assert task.spending() == {}
