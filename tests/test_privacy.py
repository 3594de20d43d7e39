"""Private text of a task stays in the process: not in what a run writes, not in what a notebook shows."""

import base64
import dataclasses
import json
import random
import stat
from unittest.mock import Mock

import dspy
import pytest
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import HTML
from tiny_policy import RawAdapter, ScriptedSampler, tiny_policy, tokenizer

from mmgrpo import cells, privacy, profiles, strategies, tasks
from mmgrpo.show import protection
from mmgrpo.study import Study
from mmgrpo.tasks import Splits
from mmgrpo.tasks.papillon.program import Papillon

NAMES = ("Zebulon Quackenbush", "Wilhelmina Thistlethwaite", "Oxnarville")
pytestmark = pytest.mark.usefixtures("nothing_but_training")


def planted(number: int) -> dspy.Example:
    query = f"Query {number}: write to {NAMES[0]} and {NAMES[1]} of {NAMES[2]}, please."
    example = dspy.Example(user_query=query, target_response=f"Dear {NAMES[0]}, {number}", pii_units=list(NAMES))
    return example.with_inputs("user_query")


def study(strategy: str) -> Study:
    """PAPILLON's smoke cell on planted rows and a policy of random weights."""
    profile = profiles.load("smoke")
    small = profile.model_copy(update={"grpo": profile.grpo.model_copy(update={"inputs": 1})})
    rows = [planted(number) for number in range(6)]
    splits = Splits(tuple(rows[:2]), tuple(rows[2:4]), tuple(rows[4:]), "embedded")
    task = tasks.get("papillon", {"untrusted": "smollm2-135m-published", "judge": "lexical"})
    luck = random.Random(0)
    judge = lambda example, prediction, trace=None: dataclasses.replace(  # noqa: E731
        task.judge(example, prediction, trace), score=luck.random()
    )
    cell = cells.cell("smoke", "papillon", "smollm2-135m", strategy, 0)
    program = Papillon(lambda request: "certainly")
    return Study(cell, small, dataclasses.replace(task, judge=judge), splits, tiny_policy(), program)


@pytest.mark.parametrize(
    ("strategy", "owners"),
    [
        ("prompt_optimization", {"program.private.json"}),
        ("module_grpo", {"program.private.json", "rollouts-0.private.json", "validation-0.private.json"}),
    ],
)
def test_nothing_that_a_run_writes_has_private_text_but_the_owners_files(tmp_path, monkeypatch, strategy, owners):
    monkeypatch.setenv("MMGRPO_RESULTS_DIR", str(tmp_path))
    ready = study(strategy)
    with dspy.context(adapter=RawAdapter()):
        record = strategies.run(ready)
    assert record.scores and record.program == {}
    found, private = [], []
    for file in (file for file in tmp_path.rglob("*") if file.is_file()):
        if file.name.endswith(".private.json"):
            private.append(file)
        elif any(name.encode() in file.read_bytes() for name in (*NAMES, "Query 0", "Query 1")):
            found.append(file)
    assert found == []
    assert {file.name for file in private} == owners
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in private)


@pytest.mark.parametrize("strategy", ["prompt_optimization", "gepa"])
def test_nothing_that_a_killed_search_leaves_has_private_text(tmp_path, monkeypatch, strategy):
    monkeypatch.setenv("MMGRPO_RESULTS_DIR", str(tmp_path))
    ready = study(strategy)
    ready.policy.engine.sampler = ScriptedSampler(lambda prompt, request: NAMES[2])
    with dspy.context(adapter=RawAdapter()), monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Study, "evaluate", Mock(side_effect=KeyboardInterrupt))
        strategies.run(ready)
    (left,) = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert left.name == "replies.jsonl"
    lines = [json.loads(line) for line in left.read_text().split("\n")]
    assert len(lines) > 5
    texts = [left.read_bytes(), *(base64.b64decode(sealed) for _, sealed, _ in lines[1:])]
    ids = json.dumps(tokenizer()(NAMES[2])["input_ids"])[1:-1]
    assert not any(secret.encode() in text for text in texts for secret in (*NAMES, ids))
    assert stat.S_IMODE(left.stat().st_mode) == 0o600


def test_text_is_blacked_out_and_markup_is_not():
    shown = '<td class="may 5">Ann O&#x27;Neil, 5 May</td>'
    assert (
        privacy.black_out(["Ann O'Neil", "5 May", "may"], shown)
        == f'<td class="may 5">{privacy.BLACK}, {privacy.BLACK}</td>'
    )


@pytest.mark.parametrize("unit", ["。", "...", "—"])
def test_a_unit_of_punctuation_alone_is_found_nowhere(unit):
    assert privacy.leaked([unit], f"A text with {unit} in it.") == []
    assert privacy.redact([unit], "A text.") == "A text."


def test_a_protected_notebook_displays_no_private_text(monkeypatch):
    shell = InteractiveShell.instance()
    monkeypatch.setattr(protection, "get_ipython", lambda: shell)
    monkeypatch.setattr(shell.display_formatter, "format", shell.display_formatter.format)  # put back afterwards
    protection.protect(study("vanilla"))
    with monkeypatch.context() as patch:
        patch.setattr(shell, "display_pub", CapturingDisplayPublisher())
        for shown in (planted(0), HTML(f"<p>{NAMES[0].upper()} lives in <b>{NAMES[2]}</b></p>")):
            formats, _ = shell.display_formatter.format(shown)
            text = " ".join(str(content) for content in formats.values())
            assert privacy.BLACK in text and privacy.leaked(NAMES, text) == []
