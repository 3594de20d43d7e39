"""Prompts and weights in turns: one budget, counted run by run, and going on after a stop."""

import json

import dspy
import pytest
from searches import Mortal, asked
from tiny_policy import fields, scripted_lm, tiny_policy
from training_setup import QUESTIONS as EXAMPLES
from training_setup import Lenient, by_length

from mmgrpo.errors import UserError
from mmgrpo.fast_slow import CountedRuns, fast_slow
from mmgrpo.settings import FastSlowSettings, GRPOSettings, MIPROSettings, SamplingSettings

STEP = 2 * 3  # program runs
SETTINGS = GRPOSettings(steps=12, inputs=2, rollouts=3, group_size=3, learning_rate=1e-2, warmup_steps=0, beta=0.0)
MIPRO = MIPROSettings(
    trials=1, fewshot_candidates=2, instruction_candidates=2, bootstrapped_demos=1, labeled_demos=1, proposal_tokens=8
)

pytestmark = pytest.mark.usefixtures("nothing_but_training")


def take_turns(folder, *, score=by_length, grpo=SETTINGS, sampler=Mortal, **settings):
    policy = tiny_policy()
    policy.engine.sampler = sampler(policy.sampler)
    return fast_slow(
        Lenient(), lm=policy.lm(), metric=score, trainset=EXAMPLES[:4], valset=EXAMPLES[4:], grpo=grpo,
        settings=FastSlowSettings(**{"rounds": 2, "trials": 1} | settings), mipro_settings=MIPRO,
        sampling=SamplingSettings(temperature=1.0), seed=0, folder=folder,
    )  # fmt: skip


def prompts(program):
    bare = program.deepcopy()
    bare.set_lm(None)
    return bare.dump_state()


def test_one_budget_pays_for_prompts_and_weights_and_a_stopped_run_goes_on(tmp_path):
    done = take_turns(tmp_path)
    assert done.budget["allowed"] == SETTINGS.steps * STEP
    assert done.budget["prompts"] >= 2 * 2 * 2  # rounds, the program as it is and one trial, validation examples
    assert done.budget["prompts"] + done.budget["weights"] <= done.budget["allowed"]
    assert [entry["step"] for entry in done.curve] == list(range(1, len(done.curve) + 1))
    assert len(done.curve) == done.budget["weights"] / STEP
    assert done.program.reply.lm.weights == done.adapter
    assert done.adapter.parent == tmp_path / "round-1"

    def never(example, prediction, trace=None):
        raise AssertionError("a finished round was run again")

    again = take_turns(tmp_path, score=never)
    assert (again.budget, again.curve, again.validation) == (done.budget, done.curve, done.validation)
    with pytest.raises(UserError, match="prompts.private.json was made with other settings of MIPROv2"):
        take_turns(tmp_path, trials=2)


def test_run_that_was_killed_in_a_later_search_goes_on_there(tmp_path):
    done = take_turns(tmp_path / "whole")
    samplers = []

    def mortal(sampler, batches=None):
        samplers.append(Mortal(sampler, batches, counts=lambda request: request.weights is not None))
        return samplers[-1]

    with pytest.raises(UserError, match="gone"):
        take_turns(tmp_path / "killed", sampler=lambda own: mortal(own, batches=3))
    again = take_turns(tmp_path / "killed", sampler=mortal)
    assert prompts(again.program) == prompts(done.program)
    assert (again.budget, again.validation) == (done.budget, done.validation)
    assert [entry["reward"] for entry in again.curve] == [entry["reward"] for entry in done.curve]
    before, after = ({asked(request) for request in one.requests if request.weights is not None} for one in samplers)
    assert before and after and not before & after


def test_every_round_keeps_runs_for_the_prompts_of_the_next(tmp_path):
    spent = take_turns(tmp_path / "first").budget["prompts"]
    runs = spent + 2 * STEP  # the least: one step a round
    done = take_turns(tmp_path / "second", runs=runs)
    assert done.budget == {"allowed": runs, "prompts": spent, "weights": 2 * STEP}
    assert [
        json.loads((tmp_path / "second" / f"round-{n}" / "prompts.private.json").read_text())["runs"] for n in (0, 1)
    ]


def test_budget_that_prompts_use_up_is_refused(tmp_path):
    with pytest.raises(UserError, match="budget of 7 program runs is used up in round 1 of 2 .* raise fast_slow.runs"):
        take_turns(tmp_path, runs=7)


def test_adapters_of_modules_are_refused_before_anything_is_run(tmp_path):
    with pytest.raises(UserError, match="grpo.adapters is per_module: .* set it to shared"):
        take_turns(tmp_path, grpo=SETTINGS.model_copy(update={"adapters": "per_module"}))
    assert list(tmp_path.iterdir()) == []


def test_runs_that_break_off_count_and_other_modules_do_not():
    program = dspy.ChainOfThought("question -> answer")
    counter = CountedRuns(program)
    lm = scripted_lm(
        lambda prompt, request: "nonsense" if "question 1" in prompt else fields(reasoning="-", answer="-")
    )
    adapter = dspy.ChatAdapter(use_json_adapter_fallback=False)
    with dspy.context(lm=lm, adapter=adapter, callbacks=[counter]):
        scored = dspy.Evaluate(devset=EXAMPLES, metric=lambda *_: 1.0, num_threads=2)(program.deepcopy())
        dspy.ChainOfThought("question, hint -> answer")(question="another", hint="program")
        dspy.Predict("question -> answer")(question="q")
    assert counter.runs == len(EXAMPLES)
    assert [score for _, _, score in scored.results].count(0.0) == 1  # it was never scored
