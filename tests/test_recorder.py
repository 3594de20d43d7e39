"""What a run's recorder keeps of each language-model call."""

import dspy
import pytest
from tiny_policy import fields, question, scripted_lm, tokenizer

from mmgrpo import rollout
from mmgrpo.hashing import seed_of

EXAMPLE = dspy.Example(q="Where is Ulm?").with_inputs("q")


def run_once(program, reply, metric=lambda example, prediction, trace=None: 1.0, **settings):
    """One run of `program`, and the requests that the language model got."""
    lm = scripted_lm(reply, **settings)
    (trajectory,) = rollout.run(program, rollout.jobs_for([EXAMPLE], 1, 0), lm=lm, metric=metric)
    return trajectory, lm.policy.engine.sampler.requests


def names(trajectory):
    return [(call.module, call.invocation) for call in trajectory.calls]


def read(call):
    return tokenizer().decode(call.prompt_ids)


class Twins(dspy.Module):
    """Two modules that share one signature class."""

    def __init__(self):
        super().__init__()
        signature = dspy.Signature("q -> a")
        self.first = dspy.Predict(signature)
        self.second = dspy.Predict(signature)

    def forward(self, q):
        return self.second(q=self.first(q=q).a)


class Loop(dspy.Module):
    """Calls one module twice a round and the other once."""

    def __init__(self, rounds):
        super().__init__()
        self.rounds = rounds
        self.look = dspy.Predict("q -> a")
        self.note = dspy.ChainOfThought("q -> a")

    def forward(self, q):
        for _ in range(self.rounds):
            found = self.look(q=q)
            self.note(q=found.a)
            found = self.look(q=q)
        return found


def answer(prompt, request):
    return fields(reasoning="None.", a="here") if "`[[ ## reasoning ## ]]`" in prompt else fields(a="here")


def test_two_modules_with_one_signature_stay_two():
    trajectory, _ = run_once(Twins(), answer)
    assert names(trajectory) == [("first", 0), ("second", 0)]
    assert [call.status for call in trajectory.calls] == ["ok", "ok"]
    assert "Where is Ulm?" in read(trajectory.calls[0]) and "Where is Ulm?" not in read(trajectory.calls[1])


def test_calls_of_a_module_are_counted_in_their_order():
    trajectory, _ = run_once(Loop(2), answer)
    expected = [("look", 0), ("note.predict", 0), ("look", 1), ("look", 2), ("note.predict", 1), ("look", 3)]
    assert names(trajectory) == expected


def test_what_is_recorded_is_what_was_sampled():
    trajectory, requests = run_once(Loop(1), answer)
    assert [call.prompt_ids for call in trajectory.calls] == [request.prompt_ids for request in requests]
    for call in trajectory.calls:
        assert call.completion_ids[-1] == tokenizer().eos_token_id  # the end of turn is trained, too
        assert tokenizer().decode(call.completion_ids[:-1]) == call.text
        assert len(call.logprobs) == len(call.completion_ids)
        assert call.temperature == 1.0


def test_each_call_of_a_run_has_a_seed_of_its_own():
    _, requests = run_once(Loop(2), answer)
    assert len({request.seed for request in requests}) == 6


def test_seeds_are_the_same_in_every_process():
    assert seed_of(0, "a", 1) == 4757247737403457943
    assert len({seed_of(0), seed_of(1), seed_of("0"), seed_of(0, 0)}) == 4
    assert 0 <= seed_of("x") < 2**63


def test_demonstrations_are_inside_the_recorded_prompt():
    program = Twins()
    program.second.demos = [dspy.Example(q="Where is Riga?", a="In Latvia.")]
    trajectory, requests = run_once(program, answer)
    assert "Where is Riga?" not in read(trajectory.calls[0])
    assert "Where is Riga?" in read(trajectory.calls[1]) and "In Latvia." in read(trajectory.calls[1])
    assert trajectory.calls[1].prompt_ids == requests[1].prompt_ids


class Notes(dspy.Module):
    """As HoVer's program: notes grow in place after they were handed over."""

    def __init__(self):
        super().__init__()
        self.hop = dspy.Predict("q, notes: list[str] -> a")

    def forward(self, q):
        notes = []
        for _ in range(3):
            notes.append(self.hop(q=q, notes=notes).a)
        return dspy.Prediction(notes=notes)


def test_inputs_that_change_after_the_call_leave_its_prompt_alone():
    found = iter(["alpha", "beta", "gamma"])
    trajectory, requests = run_once(Notes(), lambda prompt, request: fields(a=next(found)))
    seen = [[note for note in ("alpha", "beta", "gamma") if note in read(call)] for call in trajectory.calls]
    assert seen == [[], ["alpha"], ["alpha", "beta"]]
    assert [call.prompt_ids for call in trajectory.calls] == [request.prompt_ids for request in requests]


class Parallel(dspy.Module):
    """Hands its calls to DSPy's own threads."""

    def __init__(self):
        super().__init__()
        self.part = dspy.Predict("q -> a")

    def forward(self, q):
        pairs = [(self.part, {"q": f"part {place}"}) for place in range(3)]
        found = dspy.Parallel(num_threads=3, disable_progress_bar=True, timeout=0)(pairs)
        return dspy.Prediction(parts=[one.a for one in found])


def test_calls_from_dspys_own_threads_are_recorded():
    trajectory, _ = run_once(Parallel(), lambda prompt, request: fields(a=question(prompt).split("\n")[1]))
    assert trajectory.outcome == "completed"
    assert trajectory.prediction.parts == ["part 0", "part 1", "part 2"]
    assert sorted(names(trajectory)) == [("part", 0), ("part", 1), ("part", 2)]
    assert [call.status for call in trajectory.calls] == ["ok"] * 3
    assert all(call.text.split("\n")[1] in read(call) for call in trajectory.calls)


class Wide(dspy.Module):
    """One module with four output fields, one of them typed."""

    def __init__(self):
        super().__init__()
        self.ask = dspy.Predict("q -> a, b, c, number: int")

    def forward(self, q):
        return self.ask(q=q)


@pytest.mark.parametrize(
    ("reply", "parsed"),
    [
        (fields(a=1, b=2, c=3, number=4), 1.0),
        (fields(a=1, b=2, c=3, number="four"), 0.75),
        (fields(a=1, b=2), 0.5),
        (fields(number=4), 0.25),
        ("No fields at all.", 0.0),
    ],
)
def test_parsed_is_the_share_of_fields_that_can_be_read(reply, parsed):
    trajectory, _ = run_once(Wide(), lambda prompt, request: reply)
    (call,) = trajectory.calls
    assert call.parsed == parsed
    assert call.status == ("ok" if parsed == 1 else "format_failure")
    assert trajectory.outcome == ("completed" if parsed == 1 else "interrupted")


def test_empty_reply_never_reaches_an_adapter_and_breaks_the_run_off():
    trajectory, _ = run_once(Wide(), lambda prompt, request: "")
    (call,) = trajectory.calls
    assert (call.status, call.parsed) == ("unread", 0.0)
    assert len(call.completion_ids) == 1  # the end of turn alone; it can be trained away
    assert (trajectory.outcome, trajectory.reward) == ("interrupted", -1.0)


def test_reply_cut_at_the_limit_is_truncated():
    trajectory, _ = run_once(Wide(), lambda prompt, request: fields(a=1, b="long " * 50), max_tokens=20)
    (call,) = trajectory.calls
    assert call.status == "truncated"
    assert call.parsed == 0.5
    assert len(call.completion_ids) == 20
    assert trajectory.outcome == "interrupted"


def test_reply_cut_after_its_fields_parsed_is_fine():
    reply = fields(a="x", b="y", c="z", number=3)
    length = len(tokenizer()(reply)["input_ids"])
    trajectory, _ = run_once(Wide(), lambda prompt, request: reply, max_tokens=length)  # no room for the end of turn
    (call,) = trajectory.calls
    assert call.status == "ok"
    assert trajectory.outcome == "completed"


def test_equal_replies_of_one_module_are_told_apart():
    trajectory, _ = run_once(Parallel(), lambda prompt, request: fields(a="same"))
    assert [call.status for call in trajectory.calls] == ["ok"] * 3


class Plain(dspy.Module):
    """Calls the language model without any module, as a tool might."""

    def __init__(self):
        super().__init__()
        self.ask = dspy.Predict("q -> a")

    def forward(self, q):
        dspy.settings.lm("Just talk.")
        return self.ask(q=q)


def test_calls_outside_any_module_are_not_trained():
    trajectory, requests = run_once(Plain(), answer)
    assert len(requests) == 2
    assert names(trajectory) == [("ask", 0)]
