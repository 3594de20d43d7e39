"""Examples before and after as HTML: escaped, complete, and without private text where the notebook is protected."""

import dataclasses
import re

import dspy
import pytest
from factories import call, run
from IPython.core.interactiveshell import InteractiveShell
from test_privacy import NAMES, planted
from test_privacy import study as papillon
from test_show import ESCAPED, EVIL, replying

from mmgrpo import privacy, show
from mmgrpo.changes import Change, Habit
from mmgrpo.show import protection
from mmgrpo.trajectory import Trajectory

EXAMPLE = dspy.Example(text="a question", label="a label").with_inputs("text")


def habit(commonest: str, **changed) -> Habit:
    return dataclasses.replace(Habit(words=2.0, names=0.5, commonest=commonest, runs=3, share=0.75), **changed)


def rows(shown) -> list[str]:
    return shown.data.split("<tbody>")[1].split("</tr>")[:-1]


def test_a_script_stays_text_in_examples_replies_errors_parts_and_habits():
    example = dspy.Example(text=EVIL, label=EVIL).with_inputs("text")
    evil = dataclasses.replace(replying(EVIL), example=EVIL, error=EVIL, details={EVIL: 1.0})
    evil = dataclasses.replace(evil, calls=(dataclasses.replace(evil.calls[0], module=EVIL),))
    for shown, times in (
        (show.changes([Change(example, evil, evil)]), 1 + 2 + 2 * 2 + 1 + 2),  # id, example, runs, module, replies
        (show.habits({EVIL: habit(EVIL)}, {EVIL: habit(EVIL)}), 3),
    ):
        assert "<script" not in shown.data
        assert shown.data.count(ESCAPED) == times


def test_before_and_after_stand_side_by_side_with_what_each_earned():
    before = dataclasses.replace(replying("old", 0.25), details={"quality": 0.5, "leakage": 1.0})
    after = dataclasses.replace(replying("new", 1.0), details={"quality": 0.75, "leakage": 0.0})
    shown = show.changes([Change(EXAMPLE, before, after)])
    assert "Example toy, gain +0.75" in shown.data and "text: a question" in shown.data
    assert "label: a label" in shown.data
    run_row, reply_row = rows(shown)
    told = ["reward 0.25, completed, quality 0.50, leakage 1.00", "reward 1.00, completed, quality 0.75, leakage 0.00"]
    assert run_row.index(told[0]) < run_row.index(told[1])
    assert "answer 0" in reply_row and reply_row.index("old") < reply_row.index("new")


def test_a_call_that_one_run_lacks_has_a_dash_and_one_that_did_not_parse_says_so():
    before = dataclasses.replace(run("ab", -1.0), outcome="interrupted", error="no label")
    failed = dataclasses.replace(before.calls[1], status="format_failure")
    before = dataclasses.replace(before, calls=(before.calls[0], failed))
    ended, first, second, third = rows(show.changes([Change(EXAMPLE, before, run("aab", 1.0))]))
    assert "reward 0.00, interrupted (no label)" in ended
    assert "a 0" in first and "x/0/a0" in first and "–" not in first
    assert "b 0" in second and "(format_failure)\nx/0/b0" in second
    assert "a 1" in third and third.index("<td>–</td>") < third.index("x/0/a1")


def test_no_change_is_a_sentence():
    assert "No example changed" in show.changes([]).data


def test_habits_go_from_before_to_after_and_a_missing_one_is_a_dash():
    was, now = habit("yes"), habit("no", words=3.0, names=0.25, share=1.0)
    both, only_after = rows(show.habits({"a: x": was}, {"a: x": now, "b: y": now}))
    assert [text in both for text in ("2.0 → 3.0", "50 → 25", "75 → 100")] == [True] * 3
    assert both.index("yes") < both.index("no</pre>")
    assert [text in only_after for text in ("– → 3.0", "– → 25", "– → 100", "<td>–</td>")] == [True] * 4


@pytest.mark.usefixtures("nothing_but_training")
def test_private_units_are_blacked_out_before_and_after(monkeypatch):
    shell = InteractiveShell.instance()
    monkeypatch.setattr(protection, "get_ipython", lambda: shell)
    monkeypatch.setattr(shell.display_formatter, "format", shell.display_formatter.format)  # put back afterwards
    protection.protect(papillon("vanilla"))
    letter = "\n".join(["Dear", *NAMES])
    said = Trajectory("x", 0, (call("craft", text=letter),), 0.5, "completed", error=NAMES[0])
    for shown in (
        show.changes([Change(planted(0), said, said)]),
        show.habits({"craft: llm_request": habit(letter)}, {"craft: llm_request": habit(letter)}),
    ):
        assert privacy.leaked(NAMES, shown.data) == list(NAMES)
        formats, _ = shell.display_formatter.format(shown)
        text = re.sub("<[^>]*>", "", " ".join(map(str, formats.values())))  # no unit hides between tags either
        assert "Dear" in text and privacy.BLACK in text and privacy.leaked(NAMES, text) == []
