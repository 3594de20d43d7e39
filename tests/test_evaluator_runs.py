"""A search's evaluations ask in the same batches however slow a run is, and nothing waits for runs that have ended."""

import threading
import time

import dspy
import pytest
from tiny_policy import fields, question, scripted_lm

from mmgrpo.policy.batcher import QUIET_SECONDS
from mmgrpo.policy.evaluator_runs import EvaluatorRuns
from mmgrpo.prompt_optimization import FirstFault
from mmgrpo.rollout import strict_adapter

EXAMPLES = [dspy.Example(question=f"{place}", answer="right").with_inputs("question") for place in range(5)]


class Slow(dspy.Module):
    """Two calls, each after a pause of its own that is long beside what calls from elsewhere wait."""

    def __init__(self, ends_early=()):
        super().__init__()
        self.first, self.second = dspy.Predict("question -> note"), dspy.Predict("question, note -> answer")
        self.ends_early = ends_early

    def forward(self, question):
        pause(question)
        note = self.first(question=question).note
        if question in self.ends_early:
            raise ValueError("no second call")
        pause(question)
        return self.second(question=question, note=note)


def pause(question):
    time.sleep(3 * QUIET_SECONDS * int(question))


@pytest.fixture
def lm():
    """Answers everything at once; `batches` has how many requests came together."""
    lm = scripted_lm(lambda prompt, request: reply(question(prompt)), temperature=0.0)
    sampler = lm.policy.engine.sampler
    lm.batches, alone = [], sampler.generate

    def generate(requests):
        lm.batches.append(len(requests))
        return alone(requests)

    sampler.generate = generate
    return lm


def reply(asked):
    return fields(answer="right") if "[[ ## note ## ]]\nseen" in asked else fields(note="seen")


def evaluated(lm, program, *, threads, examples=EXAMPLES):
    """The score of the program, by DSPy's evaluator in a search."""
    evaluator = dspy.Evaluate(devset=examples, metric=right, num_threads=threads, max_errors=100)
    with FirstFault().search(lm, strict_adapter(), None):
        return evaluator(program).score


def right(example, prediction, trace=None):
    return float(prediction.answer == example.answer)


@pytest.mark.parametrize(
    ("threads", "batches"),
    [(8, [5, 5]), (5, [5, 5]), (2, [2, 2, 2, 2, 1, 1]), (1, [1] * 10)],
)
def test_runs_that_can_ask_together_do(lm, threads, batches):
    assert evaluated(lm, Slow(), threads=threads) == 100.0
    assert lm.batches == batches


def test_runs_that_fail_are_not_waited_for(lm):
    assert evaluated(lm, Slow(ends_early={"0", "3"}), threads=3) == 60.0
    # 0, 1 and 2 begin; 3 begins in the place of 0, and 4 in that of 3, 1 or 2, whichever ends first.
    assert lm.batches[:2] == [3, 3] and sum(lm.batches) == 8


def test_next_evaluation_and_calls_after_it_wait_for_nothing_of_the_last(lm):
    def interrupted(example, prediction, trace=None):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), FirstFault().search(lm, strict_adapter(), None):
        dspy.Evaluate(devset=EXAMPLES[:1], metric=interrupted, num_threads=1)(Slow())
    assert evaluated(lm, Slow(), threads=4, examples=EXAMPLES[:2]) == 100.0
    assert lm.batches == [1, 1, 2, 2]
    before = time.monotonic()
    with dspy.context(lm=lm, adapter=strict_adapter()):
        assert Slow()(question="0").answer == "right"
    assert time.monotonic() - before < 10.0


def test_modules_of_the_program_and_other_programs_are_no_runs_of_it():
    class Heard:
        def __init__(self):
            self.calls = []

        def expect(self, calls):
            self.calls.append(calls)

    heard, program = Heard(), Slow()
    runs = EvaluatorRuns(heard)
    runs.on_evaluate_start("a", dspy.Evaluate(devset=EXAMPLES), {"program": program, "num_threads": 2, "devset": None})
    for call, instance in (("b", program), ("c", program.first), ("d", Slow())):
        runs.on_module_start(call, instance, {})
    for call in ("c", "d", "b"):
        runs.on_module_end(call, None)
    assert heard.calls == [2, 2] and runs._left == 4
    runs.on_evaluate_end("a", None)
    assert heard.calls[-1] == 0


def test_a_call_from_elsewhere_during_an_evaluation_is_answered_with_it(lm):
    answers = []

    def elsewhere():
        with dspy.context(lm=lm, adapter=strict_adapter()):
            answers.append(dspy.Predict("question -> note")(question="9").note)

    class Curious(Slow):
        def forward(self, question):
            thread = threading.Thread(target=elsewhere)
            thread.start()
            found = super().forward(question)
            thread.join()
            return found

    assert evaluated(lm, Curious(), threads=5, examples=EXAMPLES[:1]) == 100.0
    assert answers == ["seen"]
