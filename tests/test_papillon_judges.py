"""PAPILLON's judges: what counts as a leak, what a response is worth, and that no shortcut pays."""

import json
from statistics import fmean

import dspy
import pytest

from mmgrpo import paths
from mmgrpo.privacy import leaked, redact
from mmgrpo.tasks.papillon import judges, oracle, rows
from mmgrpo.tasks.papillon.judges import Comparison, Overlap, Quality

EXAMPLES = rows.read(paths.DATA / "papillon" / "queries.csv")
OTHER_FORM = (
    "Dear [name], I am writing to ask for your help. I would like to know if you could do this as soon as possible. "
    "Please let me know. Thank you for your help. Kind regards, [name]"
)


def example(
    query="Tell Ann Lee in Bath about it.", target="Dear Ann Lee, all is well in Bath.", units=("Ann Lee", "Bath")
):
    return dspy.Example(user_query=query, target_response=target, pii_units=list(units)).with_inputs("user_query")


def score(row, request, response, quality):
    prediction = dspy.Prediction(llm_request=request, response=response)
    return judges.judge(row, prediction, quality=quality)


def fixed(value, earned=1.0):
    return lambda row, request, response: Quality(value, earned, "Said.")


@pytest.mark.parametrize(
    "text",
    [
        "to Ann Lee",
        "ANN  LEE!",
        "ann-lee",
        "AnnLee",
        "Ann\nLee's",
        "Änn Lée",
        "A.n.n. L.e.e.",
        "ＡＮＮ Lee",
        "_Ann_Lee_",
    ],
)
def test_unit_is_found_whatever_its_case_accents_spacing_and_punctuation(text):
    assert leaked(["Ann Lee"], text) == ["Ann Lee"]
    assert leaked(["Ann Lee"], redact(["Ann Lee"], text)) == []


@pytest.mark.parametrize("text", ["", "Joann Lee", "Ann Leeds", "Ann", "Lee, Ann", "Ann B. Lee"])
def test_other_words_are_no_leak(text):
    assert leaked(["Ann Lee"], text) == []


@pytest.mark.parametrize(
    ("unit", "text"),
    [
        ("0151 496 0742", "call 01514960742 now"),
        ("刘", "通过刘的新闻采写"),
        ("d’amico", "The D'Amico Company"),
        ("<person>", "dear person,"),
        ("Zoë", "hello ZOE"),
        ("x", "x"),
    ],
)
def test_units_of_all_kinds_are_found(unit, text):
    assert leaked([unit], text) == [unit]


def test_longer_units_are_taken_out_before_their_parts():
    assert redact(["Ann", "Ann Lee"], "Ann Lee and Ann") == "[REDACTED] and [REDACTED]"


@pytest.mark.parametrize(
    ("request_", "leakage", "expected"),
    [("Tell somebody.", 0.0, 1.0), ("Tell ann lee.", 0.5, 0.75), ("Tell Ann Lee in Bath.", 1.0, 0.5)],
)
def test_score_is_the_papers_mean_of_quality_and_kept_privacy(request_, leakage, expected):
    judged = score(example(), request_, "Fine.", fixed(1.0))
    assert (judged.score, judged.details) == (expected, {"quality": 1.0, "leakage": leakage})
    assert score(example(), request_, "Fine.", fixed(0.0)).score == expected - 0.5


@pytest.mark.parametrize("blank", ["", "  \n", "...", "—", None])
def test_blank_request_or_response_earns_no_privacy(blank):
    assert score(example(), blank, blank, fixed(1.0)).score == 0.0
    assert score(example(), blank, "Fine.", fixed(1.0)).score == 0.5
    assert score(example(), "Tell somebody.", blank, fixed(1.0)).score == 0.0


def test_feedback_names_what_leaked_and_what_is_missing():
    judged = score(example(), "Tell Ann Lee.", "Dear friend, all is well in Bath.", Overlap())
    assert "gives away 'Ann Lee'" in judged.feedback and "should mention 'Ann Lee'" in judged.feedback
    assert "'Bath'" not in judged.feedback
    assert "nothing private" in score(example(), "Tell somebody.", "Hm.", Overlap()).feedback


def test_oracle_scores_one_on_every_embedded_row():
    judged = [judges.judge(row, oracle(row), quality=Overlap()) for row in EXAMPLES]
    assert {one.details["leakage"] for one in judged} == {0.0}
    assert min(one.score for one in judged) > 0.99


SHORTCUTS = {
    "nothing": lambda row: ("", ""),
    "nothing sent, query repeated": lambda row: ("", row.user_query),
    "query sent and repeated": lambda row: (row.user_query, row.user_query),
    "request repeated": lambda row: (oracle(row).llm_request,) * 2,
    "query repeated": lambda row: (oracle(row).llm_request, row.user_query),
    "query in a letter": lambda row: (oracle(row).llm_request, f"Dear Sir or Madam, {row.user_query} Kind regards"),
    "constant": lambda row: ("Please help me.", OTHER_FORM),
    "form letter": lambda row: ("Please help me.", judges.FORM_LETTER),
    "one row's target": lambda row: ("Please help me.", EXAMPLES[0].target_response),
}


@pytest.mark.parametrize("name", SHORTCUTS)
def test_no_shortcut_pays(name):
    """It pays less than the vanilla program of the embedded policy, and a modest run gets more than twice as much.

    That one has half of the target's words, and half of the units given away.
    """
    kept = json.loads((paths.DATA / "headroom.json").read_text(encoding="utf-8"))["tasks"]
    (vanilla,) = (task["vanilla"] for task in kept if task["task"] == "PAPILLON")
    assert fmean(score(row, *SHORTCUTS[name](row), Overlap()).score for row in EXAMPLES) < vanilla
    assert fmean(score(row, *modest(row), Overlap()).score for row in EXAMPLES) > 0.35


def modest(row):
    request = redact(row.pii_units[::2], row.user_query)
    target = row.target_response.split()
    return request, " ".join(word if place % 2 else "so" for place, word in enumerate(target))


def test_query_as_request_costs_the_privacy_half_even_with_the_best_answer():
    assert max(score(row, row.user_query, row.target_response, Overlap()).score for row in EXAMPLES) == 0.5


def test_placeholders_for_private_details_are_worth_less_than_the_details():
    for row in EXAMPLES[:24]:
        redacted = redact(row.pii_units, row.target_response)
        assert Overlap()(row, "Please.", redacted).value < Overlap()(row, "Please.", row.target_response).value


def test_overlap_reads_languages_without_spaces():
    row = example("请告诉刘。", "亲爱的刘，一切都好，请放心，我们下周见。", ["刘"])
    assert Overlap()(row, "请写信。", row.target_response).value > 0.95
    assert Overlap()(row, "请写信。", "no").value == 0.0


class Scripted:
    """A judging language model that answers by rule and keeps its questions."""

    def __init__(self, rule):
        self.rule, self.asked = rule, []

    def __call__(self, text):
        self.asked.append(text)
        return self.rule(text)


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        (lambda text: "First" if text.index("MINE") < text.index("THEIRS") else "Second", 1.0),  # a win
        (lambda text: "Second" if text.index("MINE") < text.index("THEIRS") else "First", 0.0),  # a defeat
        (lambda text: "First", 1.0),  # contradicts itself
        (lambda text: "**second.**", 1.0),
    ],
)
def test_comparison_asks_in_both_orders(rule, value):
    ask = Scripted(rule)
    found = Comparison(ask)(example(target="THEIRS"), "request", "MINE")
    assert (found.value, found.earned) == (value, 1.0)
    assert len(ask.asked) == 2 and ask.asked[0] != ask.asked[1]
    assert not any("request" in text for text in ask.asked)


@pytest.mark.parametrize("answer", ["", "Both", "First or Second", "{}"])
def test_judge_that_answers_neither_is_an_error_and_no_score(answer):
    with pytest.raises(ValueError, match="should have answered First or Second"):
        Comparison(lambda text: answer)(example(), "request", "response")


def test_comparison_is_not_asked_about_an_empty_response():
    ask = Scripted(lambda text: "First")
    assert score(example(), "Tell somebody.", "", Comparison(ask)).score == 0.0
    assert ask.asked == []
