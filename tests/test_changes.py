"""Examples before and after: how runs are paired and ordered, what is told of replies, and where a run's program is."""

import dataclasses

import dspy
import numpy as np
import pytest
from factories import call
from record_factory import record
from test_show import study
from tiny_policy import fields, tiny_policy
from training_setup import QUESTIONS, Lenient

from mmgrpo import changes, checkpoints, profiles, records, rollout, strategies
from mmgrpo.errors import UserError
from mmgrpo.policy.merging import adapter_folder, adapter_name
from mmgrpo.study import Study
from mmgrpo.tasks import Judgement, Splits
from mmgrpo.trajectory import Trajectory, example_id

PROGRAM = dspy.Predict("question -> label")
HOPS = dspy.Module()
HOPS.note, HOPS.search = dspy.Predict("claim -> notes: list[str]"), dspy.Predict("claim -> query")


def run(place: int, reward: float | None, label: str = "", outcome: str = "completed", **details: float) -> Trajectory:
    """The run of one call on a question; it says `label`."""
    ends = "unscorable" if reward is None else outcome
    said = (call("self", text=fields(label=label)),) if label else ()
    return Trajectory(example_id(QUESTIONS[place]), 0, said, reward, ends, details=details)


def paired(*described: tuple[Trajectory, Trajectory]) -> list[changes.Change]:
    before, after = zip(*described, strict=True)
    return changes.pair(QUESTIONS[: len(described)], before, after)


def places(found: list[changes.Change]) -> list[int]:
    return [QUESTIONS.index(one.example) for one in found]


def moved(*rewards: tuple[float | None, float | None]) -> list[changes.Change]:
    return paired(*((run(place, was), run(place, now)) for place, (was, now) in enumerate(rewards)))


def test_the_largest_gain_comes_first_and_equal_ones_stay_in_order():
    found = moved((1.0, 0.0), (0.0, 0.5), (0.5, 0.5), (0.0, 1.0), (0.25, 0.25))
    assert places(found) == [3, 1, 2, 4, 0]
    assert [one.gain for one in found] == [1.0, 0.5, 0.0, 0.0, -1.0]


def test_runs_are_paired_by_example_and_not_by_place():
    before, after = [run(place, 0.0) for place in range(3)], [run(place, place / 2) for place in (2, 0, 1)]
    found = changes.pair(QUESTIONS[:3], before, after)
    assert all(one.before.example == one.after.example == example_id(one.example) for one in found)
    assert places(found) == [2, 1, 0]


def test_an_example_that_comes_twice_is_paired_run_by_run():
    before = [run(0, 0.0), dataclasses.replace(run(0, 1.0), rollout=1)]
    after = [dataclasses.replace(run(0, 0.5), rollout=1), run(0, 0.25)]
    assert [one.gain for one in changes.pair([QUESTIONS[0]] * 2, before, after)] == [0.25, -0.5]


def test_a_run_that_broke_off_counts_nothing_and_an_unscorable_one_is_left_out():
    broken = run(0, -1.0, outcome="interrupted")
    assert paired((broken, run(0, 1.0)))[0].gain == 1.0
    assert paired((run(0, 1.0), broken))[0].gain == -1.0
    assert places(moved((None, 1.0), (0.0, 1.0), (0.0, None))) == [1]


@pytest.mark.parametrize("found", [[run(0, 1.0)], [run(0, 1.0), run(2, 1.0)], []], ids=["fewer", "other", "none"])
def test_runs_of_other_examples_are_refused_on_either_side(found):
    whole = [run(0, 0.0), run(1, 0.0)]
    for before, after in ((whole, found), (found, whole)):
        with pytest.raises(UserError, match="not of the same 2 examples"):
            changes.pair(QUESTIONS[:2], before, after)


def test_runs_of_examples_that_are_not_given_are_refused():
    with pytest.raises(UserError, match="2 runs before and 2 after are not of the same 1 examples"):
        changes.pair(QUESTIONS[:1], [run(0, 0.0), run(1, 0.0)], [run(0, 0.0), run(1, 0.0)])


def test_improved_and_worsened_begin_with_the_most_and_leave_out_what_stayed():
    found = moved((1.0, 0.5), (0.0, 0.5), (0.5, 0.5), (0.0, 1.0), (1.0, 0.0))
    assert places(changes.improved(found)) == [3, 1]
    assert places(changes.worsened(found)) == [4, 0]


def test_a_habit_counts_words_capitals_and_the_runs_with_the_commonest_reply():
    said = ["Ask Ann Lee", "ask", "ask", ""]
    runs = [run(place, 0.0, label) for place, label in enumerate(said)]
    (name, habit), *others = changes.habits(PROGRAM, runs).items()
    assert name == "self: label" and others == []
    assert habit == changes.Habit(words=5 / 3, names=3 / 5, commonest="ask", runs=2, share=0.5)


def test_a_run_that_says_the_same_at_every_hop_counts_once():
    def searching(place: int, *queries: str) -> Trajectory:
        calls = [call("search", at, text=fields(query=query)) for at, query in enumerate(queries)]
        return dataclasses.replace(run(place, 0.0), calls=(call("note", text=fields(notes='["a b", "C"]')), *calls))

    found = changes.habits(HOPS, [searching(0, "x", "x", "x"), searching(1, "y"), searching(2, "y")])
    assert found["search: query"] == changes.Habit(words=1.0, names=0.0, commonest="y", runs=2, share=2 / 3)
    assert found["note: notes"] == changes.Habit(words=3.0, names=1 / 3, commonest="a b\nC", runs=3, share=1.0)


def test_a_reply_that_did_not_parse_has_no_habit():
    failed = dataclasses.replace(run(0, 0.0), calls=(call("self", text="no", status="format_failure"),))
    assert changes.habits(PROGRAM, [failed]) == {}
    assert changes.habits(PROGRAM, [failed, run(1, 0.0, "a")])["self: label"].share == 0.5


def test_a_collapse_is_what_went_over_to_the_commonest_reply_and_gained_nothing():
    found = paired(
        (run(0, 1.0, "b"), run(0, 0.0, "a")),  # lost
        (run(1, 0.0, "c"), run(1, 0.0, "a")),  # was wrong, and still is
        (run(2, 0.0, "c"), run(2, 1.0, "a")),  # here the safe label is right
        (run(3, 0.0, "a"), run(3, 0.0, "a")),  # said it before
        (run(4, 1.0, "d"), run(4, 0.0, "e")),  # lost to a reply of its own
    )
    assert places(changes.collapsed(PROGRAM, found)) == [0, 1]


def test_replies_that_all_differ_are_no_collapse():
    found = paired((run(0, 1.0, "b"), run(0, 0.0, "a")), (run(1, 1.0, "c"), run(1, 0.0, "d")))
    assert changes.collapsed(PROGRAM, found) == []


def test_a_reward_that_rose_against_a_part_of_it_is_found_the_largest_fall_first():
    found = paired(
        (run(0, 0.2, quality=0.5), run(0, 0.9, quality=0.4)),
        (run(1, 0.2, quality=0.5), run(1, 0.3, quality=0.1)),
        (run(2, 0.2, quality=0.5), run(2, 0.3, quality=0.6)),
        (run(3, 0.3, quality=0.5), run(3, 0.2, quality=0.1)),
        (run(4, -1.0, outcome="interrupted"), run(4, 0.3, quality=0.1)),
    )
    assert places(changes.against(found, "quality")) == [1, 0]
    assert changes.against(found, "leakage") == []


def test_a_missing_run_is_one_sentence_that_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setenv("MMGRPO_RESULTS_DIR", str(tmp_path))
    with pytest.raises(UserError) as caught:
        changes.trained_program(study())
    assert "run notebooks/04_module_grpo.ipynb" in str(caught.value)
    assert "`make reproduce PROFILE=smoke TASKS=banking77`" in str(caught.value)


def left(ready: Study, notes: dict, **changed) -> None:
    """Write the record that a run of the cell would have left."""
    found = record(
        strategy=ready.cell.strategy, profile="smoke", notes={"cell": ready.cell.fingerprint()} | notes, **changed
    )
    records.write(found, ready.cell.record)


def test_prompts_of_a_record_come_without_weights_where_none_were_trained(tmp_path, monkeypatch):
    monkeypatch.setenv("MMGRPO_RESULTS_DIR", str(tmp_path))
    ready = study("prompt_optimization")
    found = ready.program.deepcopy()
    found.predict.signature = found.predict.signature.with_instructions("Say the label.")
    left(ready, {}, program=found.dump_state())
    (trained,) = changes.trained_program(ready).predictors()
    assert trained.signature.instructions == "Say the label." and trained.lm is None


@pytest.mark.parametrize(
    ("strategy", "notes", "folder"),
    [
        ("module_grpo", {"best": {"step": 3.0, "score": 0.5}}, "best-3"),
        ("fast_slow", {"adapter": "round-1/best-2"}, "round-1/best-2"),
    ],
)
def test_an_adapter_that_is_gone_is_named(tmp_path, monkeypatch, strategy, notes, folder):
    monkeypatch.setenv("MMGRPO_RESULTS_DIR", str(tmp_path))
    ready = study(strategy)
    left(ready, notes, program=ready.program.dump_state())
    with pytest.raises(UserError) as caught:
        changes.trained_program(ready)
    assert str(ready.training_folder / folder) in str(caught.value) and "delete" in str(caught.value)


@pytest.mark.parametrize("content", [None, "", "[]", "{}", "[{}]", '[{"calls": [{}]}]'])
@pytest.mark.parametrize(
    ("kept", "name"),
    [(changes.validated, "validation-0.private.json"), (changes.sampled, "rollouts-0.private.json")],
)
def test_runs_that_are_gone_or_damaged_are_named(tmp_path, monkeypatch, kept, name, content):
    monkeypatch.setenv("MMGRPO_RESULTS_DIR", str(tmp_path))
    ready = study("module_grpo")
    file = ready.training_folder / name
    if content is not None:
        file.parent.mkdir(parents=True)
        file.write_text(content)
    with pytest.raises(UserError) as caught:
        kept(ready, record(notes={"best": {"step": 3.0, "score": 0.5}}))
    assert str(file) in str(caught.value) and "delete" in str(caught.value)


@pytest.mark.parametrize("strategy", ["prompt_optimization", "fast_slow"])
@pytest.mark.parametrize("kept", [changes.sampled, changes.validated])
def test_a_strategy_without_one_training_keeps_no_runs(strategy, kept):
    with pytest.raises(UserError, match="keeps no runs"):
        kept(study(strategy), record(notes={}))


def rising():
    """A judge who is the more content the more often it was asked: the last adapter scores best, and groups differ."""
    asked = iter(range(100))
    return lambda example, prediction, trace=None: Judgement(next(asked) / 100, "")


@pytest.mark.usefixtures("nothing_but_training")
@pytest.mark.parametrize("adapters", ["shared", "per_module"])
def test_the_program_of_a_finished_run_answers_as_it_did_when_it_was_trained(tmp_path, monkeypatch, adapters):
    monkeypatch.setenv("MMGRPO_RESULTS_DIR", str(tmp_path))
    profile = profiles.load("smoke")
    grpo = profile.grpo.model_copy(update={"adapters": adapters, "learning_rate": 1e-2})
    ready = dataclasses.replace(
        study(), profile=profile.model_copy(update={"grpo": grpo}), policy=tiny_policy(), program=Lenient(),
        splits=Splits(tuple(QUESTIONS[:2]), tuple(QUESTIONS[2:4]), tuple(QUESTIONS[4:]), "embedded"),
    )  # fmt: skip
    ready = dataclasses.replace(ready, task=dataclasses.replace(ready.task, judge=rising()))
    left_behind = strategies.run(ready)
    assert left_behind.notes["best"]["step"] == 2.0
    before, after = changes.validated(ready, left_behind)
    scored = [rollout.mean_score(runs) for runs in (before, after)]
    assert scored == [entry["score"] for entry in left_behind.validation]
    trained_on = changes.sampled(ready, left_behind)
    assert np.mean([run.reward for run in trained_on]) == pytest.approx(left_behind.curve[0]["reward"])
    tokens = sum(len(call.completion_ids) for run in trained_on for call in run.calls)
    assert tokens == left_behind.curve[0]["completion_tokens"]

    def texts(policy, program) -> list[str]:
        runs = rollout.evaluate(program, QUESTIONS, policy=policy, metric=ready.task.judge)
        return [one.calls[0].text for one in runs]

    later = dataclasses.replace(ready, policy=tiny_policy())  # another process, whose policy was never trained
    trained = changes.trained_program(later)
    folder = ready.training_folder / "best-2"
    assert checkpoints.is_whole(folder)
    expected = adapter_folder(folder, adapter_name("reply") if adapters == "per_module" else "default")
    assert set(later.policy.engine.folders.values()) == {expected}
    assert texts(later.policy, trained) == texts(ready.policy, ready.program)
    assert texts(later.policy, trained)[2:4] == [one.calls[0].text for one in after]
    assert texts(later.policy, trained) != texts(later.policy, ready.program)
