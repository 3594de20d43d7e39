"""What notebooks show: escaped text, colours that mean something, and values that are missing."""

from __future__ import annotations

import dataclasses
import logging
import random
import warnings

import dspy
import pytest
from matplotlib.figure import Figure
from record_factory import curve, record

from mmgrpo import cells, profiles, show, tasks
from mmgrpo.grouping import Group, Member, module_groups, trajectory_groups
from mmgrpo.lessons import Lesson
from mmgrpo.report import figures, tables
from mmgrpo.settings import SplitSizes
from mmgrpo.study import Study

EVIL = "<script>alert(1)</script>"
ESCAPED = "&lt;script&gt;alert(1)&lt;/script&gt;"


class Tokenizer:
    """One token a character."""

    def decode(self, ids) -> str:
        return "".join(map(chr, ids))


class Policy:
    """A policy without a model, whose chat template has angle brackets, as many real ones have."""

    name, tokenizer = "fake", Tokenizer()
    settings = profiles.load("smoke").policy_for("banking77")

    @property
    def engine(self) -> Policy:
        return self

    def render(self, request) -> list[int]:
        turns = [("system", request.system), *((message.role, message.text) for message in request.messages)]
        return [ord(character) for role, text in turns for character in f"<|{role}|>{text}"]


def replying(text: str, reward: float | None = 1.0, prompt: str = "?"):
    """A run of one call with this reply."""
    run = show.toy_run(0, "answer", reward)
    call = dataclasses.replace(run.calls[0], text=text, prompt_ids=tuple(map(ord, prompt)))
    return dataclasses.replace(run, calls=(call,))


def study(strategy: str = "module_grpo") -> Study:
    """A prepared cell without a model."""
    profile, task = profiles.load("smoke"), tasks.get("banking77")
    splits = task.load(SplitSizes(train=8, valid=8, test=8))
    cell = cells.cell("smoke", "banking77", "smollm2-135m", strategy, 0)
    return Study(cell, profile, task, splits, Policy(), task.program(splits))


def test_a_reply_with_a_script_stays_text_wherever_it_is_shown():
    run = replying(EVIL, prompt=EVIL)
    example = dspy.Example(text=EVIL, label=EVIL).with_inputs("text")
    group = Group((EVIL,), (Member(run, run.calls, 1.0), Member(run, run.calls * 2, -1.0)))
    lesson = Lesson([{"role": "user", "content": EVIL}], EVIL)
    for shown, times in (
        (show.trajectory(run, Tokenizer()), 2),
        (show.groups([group]), 4),
        (show.answers([example], before=[run]), 3),
        (show.lesson(lesson), 2),
        (show.browser_html([run], [group], Tokenizer()), 2),
        (show.program(dspy.Predict(dspy.Signature("text -> label", EVIL))), 1),
        (show.prompt(dspy.Predict(dspy.Signature("text -> label", EVIL)), example, Policy()), 2),
    ):
        assert "<script" not in shown.data
        assert shown.data.count(ESCAPED) == times


def test_an_error_of_a_run_is_escaped_too():
    run = dataclasses.replace(replying("x"), error=EVIL, outcome="interrupted")
    assert "<script" not in show.trajectory(run).data and ESCAPED in show.trajectory(run).data


def test_a_prompt_is_folded_and_only_there_with_a_tokenizer():
    run = replying("yes", prompt="Is it?")
    assert "<details>" not in show.trajectory(run).data
    assert "<details><summary>prompt, 6 tokens</summary>" in show.trajectory(run, Tokenizer()).data


def test_a_run_without_reward_or_calls_is_shown_with_a_dash():
    run = dataclasses.replace(replying("x", reward=None), calls=())
    assert "reward –" in show.trajectory(run).data
    example = dspy.Example(text="a", label="b").with_inputs("text")
    assert "reward –, unscorable" in show.answers([example], before=[run]).data


@pytest.mark.parametrize(
    ("advantage", "colour"),
    [
        (0.0, "#ffffff"),
        (None, "#ffffff"),
        (float("nan"), "#ffffff"),
        (2.0, "#66aad1"),
        (9.0, "#66aad1"),
        (-2.0, "#f0c566"),
    ],
)
def test_advantages_go_from_blue_over_white_to_orange(advantage, colour):
    assert show.shade(advantage) == colour


def test_a_stronger_advantage_has_a_stronger_colour():
    reds = [int(show.shade(advantage)[1:3], 16) for advantage in (0.0, 0.5, 1.0, 2.0)]
    assert reds == sorted(reds, reverse=True) and len(set(reds)) == 4


def test_groups_show_each_member_once_under_its_key():
    runs = [show.toy_run(0, "plan search search", 1.0), show.toy_run(1, "plan search", 0.0)]
    groups = module_groups(runs, padding="fill", size=2, scale="group", rng=random.Random(0)).groups
    text = show.groups(groups).data
    assert [text.count(f"toy · {key}") for key in ("plan · 0", "search · 0", "search · 1")] == [1, 1, 1]
    assert text.count("+1.00") == text.count("−1.00") == 3
    assert text.count("#b3d5e8") == text.count("#f8e2b3") == 3


def test_a_trajectory_level_member_shows_all_its_calls():
    runs = [show.toy_run(0, "plan search search", 1.0), show.toy_run(1, "plan search", 0.0)]
    text = show.groups(trajectory_groups(runs, size=2, scale="group").groups).data
    assert "[plan 0] plan 0 of run 0\n[search 0] search 0 of run 0\n[search 1] search 1 of run 0" in text


def searched():
    """Two runs of one input and one of another, with their module-level groups, filled up."""
    runs = [show.toy_run(0, "plan search search", 1.0), show.toy_run(1, "plan search", 0.0)]
    other = dataclasses.replace(show.toy_run(0, "plan", 0.5), example="other")
    groups = module_groups(runs, padding="fill", size=2, scale="group", rng=random.Random(0)).groups
    return [*runs, other], groups


def test_the_browser_follows_its_menus():
    runs, groups = searched()
    example, run, call, view = show.browser(runs, groups, Tokenizer()).children
    assert example.options == ("toy", "other") and [place for _, place in run.options] == [0, 1]
    assert "plan 0 of run 0" in view.value and "+1.00" in view.value and "#b3d5e8" in view.value
    run.value = 1
    assert [place for _, place in call.options] == [(1, 0), (1, 1)]
    call.value = (1, 1)
    assert "search 0 of run 1" in view.value and "#f8e2b3" in view.value
    assert "in group search · 0" in view.value and "in group search · 1" in view.value  # its copy fills the second
    example.value = "other"
    assert "plan 0 of run 0" in view.value and "In no group that teaches" in view.value


def test_the_browser_stands_a_run_without_calls_and_no_run_at_all():
    quiet = dataclasses.replace(show.toy_run(0, "plan", None), calls=())
    for runs in ([quiet], []):
        assert "No call was made" in show.browser(runs).children[-1].value
    assert "reward –, 0 calls" in show.browser_html([quiet]).data
    assert "No run was made" in show.browser_html([]).data


def test_the_browser_without_widgets_unfolds_every_call_and_has_no_script():
    runs, groups = searched()
    text = show.browser_html(runs, groups, Tokenizer()).data
    assert text.count("<details>") == text.count("</details>") == 2 + 3 + 3 * 6  # inputs, runs; a call has three
    assert text.count("#b3d5e8") == 3 and text.count("#f8e2b3") == 3
    assert "<script" not in text and "onclick" not in text


def test_the_browser_shows_the_tokens_of_kept_runs_without_their_log_probabilities():
    run = replying("x")
    kept = dataclasses.replace(run, calls=tuple(dataclasses.replace(call, logprobs=()) for call in run.calls))
    assert "log-probabilities" in show.browser_html([run], (), Tokenizer()).data
    text = show.browser_html([kept], (), Tokenizer()).data
    assert "log-probabilities" not in text and "<summary>tokens</summary>" in text


def test_an_evil_reply_stays_text_in_the_browsers_menus():
    run = dataclasses.replace(replying(EVIL, prompt=EVIL), error=EVIL)
    view = show.browser([run], (), Tokenizer()).children[-1].value
    assert "<script" not in view and view.count(ESCAPED) == 3  # reply, prompt, error


def test_no_group_is_a_sentence():
    assert "nothing to learn" in show.groups([]).data


def test_a_toy_run_counts_invocations_and_grows():
    run = show.toy_run(3, "plan search search", 0.5)
    assert [(call.module, call.invocation, len(call.completion_ids)) for call in run.calls] == [
        ("plan", 0, 2), ("search", 0, 3), ("search", 1, 4),
    ]  # fmt: skip


def test_settings_stand_beside_the_papers(monkeypatch):
    monkeypatch.delenv("MMGRPO_DATA_DIR", raising=False)
    frame = show.settings(study())
    assert frame.loc["grpo.steps"].to_dict() == {"ours": "2", "paper": "750"}
    assert frame.loc["splits.train", "paper"] == "250"
    assert frame.loc["grpo.beta", "paper"] == "0.01 (Qwen3 8B), 0.04 (Llama 3.1 8B)"
    assert frame.loc["grpo.learning_rate", "paper"] == "1e-5"
    assert not [key for key in frame.index if key.startswith("mipro")]


@pytest.mark.parametrize(("strategy", "sections"), [
    ("vanilla", {"splits", "policy"}),
    ("prompt_optimization", {"splits", "policy", "mipro"}),
    ("trajectory_grpo", {"splits", "policy", "sampling", "grpo"}),
    ("composition", {"splits", "policy", "sampling", "grpo", "mipro"}),
    ("gepa", {"splits", "policy"}),
    ("fast_slow", {"splits", "policy", "sampling", "grpo", "mipro"}),
])  # fmt: skip
def test_settings_are_those_that_the_strategy_uses(strategy, sections):
    assert {key.partition(".")[0] for key in show.settings(study(strategy)).index} == sections


def test_the_metric_gives_gold_full_marks_and_another_answer_none():
    assert show.metric(study())["score"].tolist() == [1.0, 0.0]


def test_the_prompt_shown_is_the_rendered_one_with_its_length():
    ready = study()
    shown = show.prompt(ready.program, ready.splits.train[0], ready.policy).data
    assert "&lt;|system|&gt;" in shown and " tokens</p>" in shown


def test_an_outcome_has_its_standard_error_and_interrupted_runs():
    done = record((1.0, 0.0, 0.0, 1.0), outcomes=("completed", "interrupted", "completed", "completed"))
    row = show.outcome(done).iloc[0]
    assert row["test score ± standard error"] == "50.0 ± 28.9"  # 100 * sqrt(4/3 * 0.25) / sqrt(4)
    assert row["interrupted runs"] == 1
    assert row["optimize, s"] == 1800.0 and row["prompt tokens"] == 4000


@pytest.mark.parametrize(
    ("scores", "outcomes"), [((1.0, 0.0), ("completed", "unscorable")), ((1.0, 1.0, 1.0), ())], ids=["one", "equal"]
)
def test_one_score_has_no_standard_error_and_neither_have_equal_ones(scores, outcomes):
    assert show.outcome(record(scores, outcomes=outcomes))["test score ± standard error"].item() == "100.0 ± –"


def test_an_outcome_of_a_smoke_run_says_so():
    assert "SMOKE" in show.outcome(record(smoke=True)).index[0]
    assert "SMOKE" not in show.outcome(record()).index[0]


def test_cells_without_a_record_have_a_dash(monkeypatch, tmp_path):
    monkeypatch.setenv("MMGRPO_RESULTS_DIR", str(tmp_path))
    frame = show.cells([study("vanilla").cell])
    assert frame.loc[0, ["notebook", "test score"]].tolist() == ["01_vanilla.ipynb", "–"]


def test_a_report_without_records_says_what_to_run():
    assert "make reproduce" in show.report(tables.scores, []).data


def test_a_report_shows_tables_figures_and_what_has_nothing():
    trained = record(curve=curve([0.1, 0.2]), strategy="module_grpo")
    assert show.report(tables.scores, [record()]).data.startswith("## Scores")
    assert isinstance(show.report(figures.learning_curves, [trained]), Figure)
    assert "has what this shows" in show.report(figures.learning_curves, [record()]).data


def test_losses_are_drawn_where_there_are_any():
    figure = show.losses([{"step": 5, "loss": 2.0}, {"step": 10, "loss": "1.0"}, {"train_runtime": 3.0}])
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[5.0, 2.0], [10.0, 1.0]]
    assert "No log" in show.losses([]).data


@pytest.fixture
def levels():
    """Log levels as they were, put back after the test."""
    before = {name: logging.getLogger(name).level for name in show.LOUD}
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


def test_quiet_silences_the_warning_of_truncated_replies(levels):
    with warnings.catch_warnings():
        show.quiet()
    assert not logging.getLogger("dspy.clients.lm").isEnabledFor(logging.WARNING)
    assert logging.getLogger("dspy.clients.lm").isEnabledFor(logging.ERROR)
