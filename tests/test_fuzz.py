"""Whatever comes from a model or a file: our readers answer with a result or a sentence, with nothing else."""

import hashlib
import json
from typing import Literal

import dspy
import pytest
from factories import PROPERTY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from record_factory import record
from tiny_policy import scripted_lm

from mmgrpo import records, rollout
from mmgrpo.errors import UserError
from mmgrpo.tasks import banking77

SHARED = settings(PROPERTY, suppress_health_check=[HealthCheck.function_scoped_fixture])

# Replies


class Typed(dspy.Module):
    """Fields of every kind that a reply can miss, the second module fed by the first."""

    def __init__(self):
        super().__init__()
        kinds = {"q": (str, dspy.InputField())}
        outputs = {
            "label": Literal["a", "b c"],
            "count": int,
            "items": list[str],
            "sure": bool,
            "table": dict[str, float],
        }
        self.first = dspy.Predict(dspy.Signature(kinds | {k: (t, dspy.OutputField()) for k, t in outputs.items()}))
        self.second = dspy.ChainOfThought("q, items -> answer: float")

    def forward(self, q):
        found = self.first(q=q)
        return self.second(q=q, items=str(found.items))


NAMES = ["label", "count", "items", "sure", "table", "reasoning", "answer", "completed", "nothing"]
GOOD = {
    "label": "a", "count": "3", "items": '["x"]', "sure": "True", "table": '{"y": 1.5}',
    "reasoning": "because", "answer": "0.5", "completed": "",
}  # fmt: skip
PIECES = st.one_of(
    st.sampled_from([f"[[ ## {name} ## ]]" for name in NAMES]),
    st.sampled_from([f"[[ ## {name} ## ]]\n{value}\n\n" for name, value in GOOD.items()]),
    st.sampled_from(
        ["{", "}", "[" * 300, '{"a":' * 200, '"', "\n", "null", "NaN", "1e999", "<|im_end|>", "```json", "'", "\\"]
    ),
    st.sampled_from(['{"label": "a", "count": 1}', "9" * 300, "__import__('os').system('true')", "\x00", "\u202e"]),
    st.text(max_size=20),
)
REPLIES = st.lists(PIECES, max_size=12).map("".join)


@PROPERTY
@given(st.lists(REPLIES, min_size=1, max_size=6))
def test_no_reply_does_more_than_end_its_run(replies):
    said = iter(replies)
    lm = scripted_lm(lambda prompt, request: next(said, replies[-1]), batch=16, max_tokens=400)
    jobs = rollout.jobs_for([dspy.Example(q=str(n)).with_inputs("q") for n in range(len(replies))], 2, 0)
    runs = rollout.run(Typed(), jobs, lm=lm, metric=lambda *_: 1.0)
    assert len(runs) == len(jobs)
    for run in runs:
        assert run.outcome in ("completed", "interrupted"), run.error
        assert -1 <= run.reward <= 1 and len(run.calls) in (1, 2)
        assert (run.outcome == "completed") == all(call.status == "ok" for call in run.calls)


def test_the_fuzzed_program_can_complete():
    good = "".join(f"[[ ## {name} ## ]]\n{value}\n\n" for name, value in GOOD.items())
    lm = scripted_lm(lambda prompt, request: good, max_tokens=400)
    (run,) = rollout.run(
        Typed(), rollout.jobs_for([dspy.Example(q="x").with_inputs("q")], 1, 0), lm=lm, metric=lambda *_: 1.0
    )
    assert run.outcome == "completed" and len(run.calls) == 2


# Records

JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def read(file, content):
    """A record, or None where a sentence says why not."""
    file.write_bytes(content)
    try:
        return records.read(file)
    except UserError as error:
        assert str(file) in str(error)
        return None


@SHARED
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7), kept=st.floats(0, 1))
def test_no_flipped_bit_and_no_cut_passes_for_a_record(tmp_path, place, bit, kept):
    whole = record([1.0, 0.25], notes={"text": "Zürich ±"})
    content = bytearray(records.write(whole, tmp_path / "record.json").read_bytes())
    assert read(tmp_path / "cut.json", bytes(content[: int(kept * (len(content) - 1))])) is None
    content[place % len(content)] ^= 1 << bit
    assert read(tmp_path / "flipped.json", bytes(content)) in (None, whole)


@SHARED
@given(st.binary(max_size=60) | JSON.map(lambda content: json.dumps(content).encode()))
def test_what_is_no_record_is_refused(tmp_path, content):
    assert read(tmp_path / "record.json", content) is None


@SHARED
@given(body=JSON, schema=st.booleans())
def test_record_of_other_fields_is_refused_though_its_checksum_is_right(tmp_path, body, schema):
    if schema and isinstance(body, dict):
        body |= {"schema": records.SCHEMA, "scores": [{"score": 1}]}
    body = json.loads(json.dumps(body))
    checksum = hashlib.sha256(
        json.dumps(body, sort_keys=True, ensure_ascii=False).encode("utf-8", "replace")
    ).hexdigest()
    assert read(tmp_path / "record.json", json.dumps({"sha256": checksum, "record": body}).encode()) is None


@pytest.mark.parametrize("missing", ["scores", "curve", "task", "notes"])
def test_record_without_a_field_is_refused(tmp_path, missing):
    file = records.write(record(), tmp_path / "record.json")
    body = json.loads(file.read_text())["record"]
    del body[missing]
    assert read(file, json.dumps({"sha256": records._checksum(body), "record": body}).encode()) is None


def test_deeply_nested_file_is_refused(tmp_path):
    assert read(tmp_path / "record.json", b"[" * 200_000) is None


# Banking77's files

LABELS = ["lost card", "top up"]
CELL = st.one_of(
    st.sampled_from([*LABELS, "", " ", '"', '""', "a,b", "\n", "\r", "\x00", "text", "category", "x" * 140_000]),
    st.text(max_size=8),
)
CSV = st.lists(st.lists(CELL, max_size=4).map(",".join), max_size=6).map("\n".join)
HEADER = st.sampled_from(["text,category\n", "category,text\n", "\ufefftext,category\n", "text;category\n", ""])


def load(folder, train, labels):
    (folder / "categories.json").write_bytes(labels)
    (folder / "train.csv").write_bytes(train)
    (folder / "test.csv").write_bytes(b"text,category\nWhere is it?,top up\n")
    try:
        return banking77._from_folder(folder)
    except UserError as error:
        assert str(folder) in str(error)
        return None


@SHARED
@given(HEADER, CSV)
def test_any_csv_is_read_or_refused(tmp_path, header, body):
    train = (header + body).encode("utf-8", "replace")
    found = load(tmp_path, train, json.dumps(LABELS).encode())
    assert found is None or all(row.label in LABELS and row.text.strip() for row in found[0])


@SHARED
@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(tmp_path, content):
    load(tmp_path, content, json.dumps(LABELS).encode())
    load(tmp_path, b"text,category\n", content)


@SHARED
@given(JSON)
def test_any_list_of_labels_is_read_or_refused(tmp_path, labels):
    found = load(tmp_path, b"text,category\n", json.dumps(labels).encode())
    assert found is None or found[2] == tuple(labels)


def test_deeply_nested_labels_are_refused(tmp_path):
    assert load(tmp_path, b"text,category\n", b"[" * 200_000) is None
