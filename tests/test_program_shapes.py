"""Programs that call their modules otherwise than one after the other: awaited, in threads, copied, elsewhere, in vain."""

import asyncio
import contextvars
from concurrent.futures import ThreadPoolExecutor

import dspy
import pytest
from dspy.utils.exceptions import AdapterParseError
from tiny_policy import fields, question, scripted_lm, tokenizer

from mmgrpo import rollout
from mmgrpo.errors import UserError

EXAMPLES = [dspy.Example(q=f"question {place}").with_inputs("q") for place in range(2)]


def yes(prompt, request):
    return fields(a="yes")


def run(program, reply=yes, rollouts=1, **settings):
    lm = scripted_lm(reply, **settings)
    jobs = rollout.jobs_for(EXAMPLES, rollouts, 0)
    return rollout.run(program, jobs, lm=lm, metric=lambda example, prediction, trace=None: 1.0), lm


def names(trajectory):
    return sorted((call.module, call.invocation) for call in trajectory.calls)


class Shape(dspy.Module):
    def __init__(self, signature="q -> a"):
        super().__init__()
        self.ask = dspy.Predict(signature)


class Asks(Shape):
    def forward(self, q):
        return self.ask(q=q)


class AwaitsInside(Shape):
    def forward(self, q):
        async def both():
            return await asyncio.gather(self.ask.acall(q=q), self.ask.acall(q=f"{q}, again"))

        return asyncio.run(both())[0]


class OnlyAwaits(Shape):
    async def aforward(self, q):
        await self.ask.acall(q=q)
        return await self.ask.acall(q=f"{q}, again")


@pytest.mark.parametrize("program", [AwaitsInside(), OnlyAwaits()])
def test_awaited_calls_are_recorded_in_the_programs_order(program):
    trajectories, _ = run(program)
    for place, one in enumerate(trajectories):
        assert one.prediction.a == "yes"
        calls = {call.invocation: question(tokenizer().decode(call.prompt_ids)).split("\n")[1] for call in one.calls}
        assert calls == {0: f"question {place}", 1: f"question {place}, again"}
        assert {(call.module, call.status) for call in one.calls} == {("ask", "ok")}


def test_reply_that_nobody_read_is_not_what_a_run_failed_of():
    program = AwaitsInside("q -> a, b")  # the reply that doesn't parse ends the run before the other is read
    for first, second in ((fields(a=1), fields(a=1, b=2)), (fields(a=1, b=2), fields(a=1))):
        trajectories, _ = run(program, lambda prompt, _, f=first, s=second: s if "again" in question(prompt) else f)
        assert [(one.outcome, one.reward) for one in trajectories] == [("interrupted", -0.5)] * 2


class Threads(Shape):
    """Its threads know of the run where they are told."""

    def __init__(self, told):
        super().__init__()
        self.told = told

    def forward(self, q):
        with ThreadPoolExecutor(2) as pool:
            start = contextvars.copy_context().run if self.told else lambda ask, **inputs: ask(**inputs)
            return pool.submit(start, self.ask, q=q).result()


@pytest.fixture
def configured():
    """A policy LM that all threads see."""
    before, lm = dspy.settings.lm, scripted_lm(yes)
    dspy.configure(lm=lm)
    yield lm
    dspy.configure(lm=before)


def test_threads_that_know_of_the_run_are_recorded_and_others_are_refused(configured):
    jobs = rollout.jobs_for(EXAMPLES, 1, 0)
    trajectories = rollout.run(Threads(told=True), jobs, lm=configured, metric=lambda *_: 1.0)
    assert [names(one) for one in trajectories] == [[("ask", 0)]] * 2
    with pytest.raises(UserError, match="start threads with dspy.Parallel"):
        rollout.run(Threads(told=False), jobs, lm=configured, metric=lambda *_: 1.0)


def test_metric_that_judges_in_threads_of_its_own_is_told_how(configured):
    def metric(example, prediction, trace=None):
        with ThreadPoolExecutor(1) as pool:
            return float(pool.submit(dspy.Predict("a -> b"), a=prediction.a).result().b == "yes")

    with pytest.raises(UserError, match="let program and metric start threads with dspy.Parallel"):
        rollout.run(Threads(told=True), rollout.jobs_for(EXAMPLES, 1, 0), lm=configured, metric=metric)


class AtOnce(Shape):
    """Asks twice in threads of DSPy's, which give None for a call that failed."""

    def forward(self, q):
        pairs = [(self.ask, dspy.Example(q=text).with_inputs("q")) for text in (q, "again")]
        first, second = dspy.Parallel(num_threads=2, disable_progress_bar=True, timeout=0)(pairs)
        return dspy.Prediction(a=first.a + second.a)


def test_format_failure_inside_parallel_interrupts_its_run():
    trajectories, _ = run(
        AtOnce(), lambda prompt, request: "nonsense" if "again" in question(prompt) else fields(a="yes")
    )
    for one in trajectories:
        assert (one.outcome, one.reward) == ("interrupted", -1.0)
        assert {call.status for call in one.calls} == {"ok", "format_failure"}
    trajectories, _ = run(AtOnce())
    assert [(one.outcome, one.prediction.a) for one in trajectories] == [("completed", "yesyes")] * 2


class Tries(dspy.Module):
    def __init__(self, kind):
        super().__init__()
        self.best = kind(dspy.Predict("q -> a"), N=2, reward_fn=lambda *_: 0.0, threshold=1.0)

    def forward(self, q):
        return self.best(q=q)


@pytest.mark.parametrize("kind", [dspy.BestOfN, dspy.Refine])
def test_calls_of_copies_belong_to_the_module_that_was_copied(kind):
    trajectories, _ = run(
        Tries(kind), lambda prompt, request: fields(a="yes", reasoning="None.", discussion="-", advice="{}")
    )
    assert [names(one) for one in trajectories] == [[("best.module", 0), ("best.module", 1)]] * 2
    assert [one.outcome for one in trajectories] == ["completed"] * 2


@pytest.mark.parametrize("kind", [dspy.BestOfN, dspy.Refine])
def test_tries_that_all_fail_are_a_format_failure(kind):
    program = Tries(kind)
    program.best.fail_count = 100
    trajectories, _ = run(program, lambda prompt, request: "nonsense")
    assert [(one.outcome, one.reward, len(one.calls)) for one in trajectories] == [("interrupted", -1.0, 2)] * 2


class Helped(dspy.Module):
    """Its second module asks another language model, whose replies are not the policy's fault."""

    def __init__(self, helper, first=True):
        super().__init__()
        self.ask, self.help, self.helper, self.first = dspy.Predict("q -> a"), dspy.Predict("a -> b"), helper, first

    def forward(self, q):
        found = self.ask(q=q).a if self.first else q
        with dspy.context(lm=self.helper):
            return self.help(a=found)


class Helper(dspy.LM):
    """Answers nonsense."""

    def __init__(self):
        super().__init__(model="local/helper", engine=self, cache=False, num_retries=0)

    def __deepcopy__(self, memo):
        return self

    def complete(self, request):
        from dspy.lm15 import Message, Response, TextPart, Usage

        message = Message.assistant([TextPart("nonsense")])
        return Response(id=None, model=request.model, message=message, finish_reason="stop", usage=Usage())


@pytest.mark.parametrize("first", [True, False])
def test_format_failure_of_another_language_model_is_no_reward_of_the_policy(first):
    with pytest.raises(UserError, match="2 of 2 runs failed, the first because the program raised AdapterParseError"):
        run(Helped(Helper(), first))


class Catches(Shape):
    def forward(self, q):
        try:
            return self.ask(q=q)
        except Exception:
            return dspy.Prediction(a="a guess")


class Hides(Shape):
    def forward(self, q):
        try:
            return self.ask(q=q)
        except Exception:
            raise ValueError("no answer") from None


def test_failure_of_the_sampler_that_the_program_catches_ends_everything():
    def broken(prompt, request):
        raise RuntimeError("out of memory")

    for program in (Catches(), Hides()):
        with pytest.raises(UserError, match=r"Sampling failed \(RuntimeError: out of memory\)"):
            run(program, broken)


class Talks(Shape):
    def forward(self, q):
        for _ in range(2):
            dspy.settings.lm("Just talk.")
        return self.ask(q=q)


def test_seeds_of_calls_outside_any_module_are_those_of_their_run():
    def seeds(rollouts):
        _, lm = run(Talks(), rollouts=rollouts)
        return sorted(request.seed for request in lm.policy.engine.sampler.requests)

    assert len(set(seeds(3))) == 2 * 3 * 3
    assert seeds(3) == seeds(3) and set(seeds(1)) < set(seeds(3))


class Inherits(dspy.ChatAdapter):
    """DSPy tells callbacks twice of each of its parses."""


class AsksItsBase(dspy.ChatAdapter):
    def parse(self, signature, completion):
        return super().parse(signature, completion)


class NamesThemOtherwise(dspy.ChatAdapter):
    def parse(self, sig, text):
        return super().parse(sig, text)


class Rescues(dspy.ChatAdapter):
    def parse(self, signature, completion):
        try:
            return super().parse(signature, completion)
        except AdapterParseError:
            return dict.fromkeys(signature.output_fields, completion)


@pytest.mark.parametrize("adapter", [dspy.ChatAdapter, dspy.JSONAdapter, Inherits, AsksItsBase, NamesThemOtherwise])
def test_reply_that_parses_in_part_costs_half_under_every_adapter(adapter):
    reply = '{"a": "yes"}' if adapter is dspy.JSONAdapter else fields(a="yes")
    with dspy.context(adapter=adapter()):
        trajectories, _ = run(Asks("q -> a, b"), lambda prompt, request: reply)
    assert [(one.outcome, one.reward, one.calls[0].status) for one in trajectories] == [
        ("interrupted", -0.5, "format_failure")
    ] * 2


def test_reply_that_an_adapter_rescues_is_fine():
    with dspy.context(adapter=Rescues()):
        trajectories, _ = run(Asks("q -> a, b"), lambda prompt, request: "plain talk")
    assert [(one.outcome, one.reward, one.calls[0].status) for one in trajectories] == [("completed", 1.0, "ok")] * 2
