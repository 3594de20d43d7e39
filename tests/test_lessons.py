"""The post-training lessons: rendered as DSPy would, and nothing of a task or of the validation among them."""

import json
import re
from typing import get_args

import dspy
import pytest

from mmgrpo import lessons, paths
from mmgrpo.lessons import HELD_OUT_SUBJECTS, INTENT_ROUNDS, LABELS, PROGRAM_ROUNDS
from mmgrpo.tasks import banking77

FOLDER = paths.DATA / "posttraining"
ROWS = [
    json.loads(line)
    for file in sorted(FOLDER.glob("*.jsonl"))
    for line in file.read_text(encoding="utf-8").splitlines()
]
MARKER = re.compile(r"\[\[ ## (\w+) ## \]\]")


@pytest.fixture(scope="module")
def made():
    """The lessons, and for each the signature, demonstrations and outputs that it was rendered from."""
    kept = []
    original = lessons._render

    def render(signature, demos, inputs, outputs):
        lesson = original(signature, demos, inputs, outputs)
        kept.append((signature, demos, outputs, lesson))
        return lesson

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lessons, "_render", render)
        return lessons.draw(seed=0), kept


@pytest.fixture
def both(made):
    return made[0]


@pytest.fixture
def rendered(made):
    return made[1]


def words(text):
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()


def test_every_row_becomes_a_lesson(both):
    train, valid = both
    held_out = sum(row.get("subject") in HELD_OUT_SUBJECTS for row in ROWS)
    programs = sum("lesson" in row for row in ROWS)
    assert len(ROWS) == 2400 and len(valid) == held_out > 50
    assert len(train) == INTENT_ROUNDS * (len(ROWS) - programs - held_out) + PROGRAM_ROUNDS * programs


def test_lessons_of_a_sheet_are_neighbours_with_one_prompt_up_to_the_inputs(both):
    train, _ = both
    alike = [one.prompt[:-1] == other.prompt[:-1] for one, other in zip(train, train[1:], strict=False)]
    assert sum(alike) / len(alike) > 0.7  # three of four neighbours in a sheet of four


def test_lessons_are_the_same_for_a_seed_and_differ_for_another(tmp_path):
    few = [json.dumps(row) for row in ROWS[::4]]
    (tmp_path / "few.jsonl").write_text("\n".join(few), encoding="utf-8")
    assert lessons.draw(tmp_path, seed=0) == lessons.draw(tmp_path, seed=0)
    assert lessons.draw(tmp_path, seed=1)[0] != lessons.draw(tmp_path, seed=0)[0]


def test_prompts_are_chat_messages_that_end_with_the_user(both):
    for lesson in (*both[0], *both[1]):
        roles = [message["role"] for message in lesson.prompt]
        assert roles[0] == "system" and roles[-1] == "user"
        assert roles[1:] == ["user", "assistant"] * ((len(roles) - 2) // 2) + ["user"]
        assert lesson.completion.rstrip().endswith("[[ ## completed ## ]]")
        assert lesson.as_row()["completion"] == [{"role": "assistant", "content": lesson.completion}]


def test_replies_parse_with_dspys_adapter_to_what_was_meant(rendered):
    adapter = dspy.ChatAdapter(use_json_adapter_fallback=False)
    assert len(rendered) > len(ROWS)
    for signature, _, outputs, lesson in rendered:
        assert adapter.parse(signature, lesson.completion) == outputs


def test_reply_has_the_fields_in_the_order_of_the_prompt(rendered):
    for signature, _, _, lesson in rendered:
        assert MARKER.findall(lesson.completion) == [*signature.output_fields, "completed"]


def test_classification_prompts_offer_several_labels_with_the_right_one_anywhere(rendered):
    places, sizes = set(), set()
    for signature, _, outputs, _ in rendered:
        (name,) = [n for n in signature.output_fields if n in lessons.OUTPUT_NAMES] or [None]
        if name is None:
            continue
        labels = get_args(signature.output_fields[name].annotation)
        assert outputs[name] in labels and len(set(labels)) == len(labels)
        places.add(labels.index(outputs[name]))
        sizes.add(len(labels))
    assert min(sizes) >= min(LABELS) and max(sizes) <= max(LABELS)
    assert len(places) == max(sizes)


def test_no_demonstration_is_the_question_itself(rendered):
    for _, demos, _, lesson in rendered:
        shown = [value for demo in demos for name, value in demo.items() if name in lessons.INPUT_NAMES]
        assert all(text not in lesson.prompt[-1]["content"] for text in shown)


def test_no_held_out_subject_is_trained_on(both):
    train, _ = both
    held = [row for row in ROWS if row.get("subject") in HELD_OUT_SUBJECTS]
    texts = {row["text"] for row in held}
    own = {row["label"] for row in held} - {
        row["label"] for row in ROWS if row.get("subject") not in (None, *HELD_OUT_SUBJECTS)
    }
    assert len(texts) > 50 and len(own) > 5
    trained = "\n".join(message["content"] for lesson in train for message in lesson.prompt) + "\n".join(
        lesson.completion for lesson in train
    )
    assert [text for text in texts if text in trained] == []
    assert [label for label in own if f"\n{label}\n" in trained or f"{label};" in trained] == []


def test_nothing_of_the_banks_task_is_in_the_lessons():
    train, test, labels = banking77._from_folder(paths.DATA / "banking77")
    raw = "\n".join(file.read_text(encoding="utf-8") for file in FOLDER.glob("*.jsonl"))
    text = f" {words(raw)} "
    assert [label for label in labels if label in raw or f" {words(label)} " in text] == []
    assert [example.text for example in (*train, *test) if f" {words(example.text)} " in text] == []


def test_label_names_are_unlike_those_of_the_banks_task():
    labels = banking77._from_folder(paths.DATA / "banking77")[2]
    assert {row["label"] for row in ROWS if "label" in row}.isdisjoint(labels)


def test_labels_are_shown_under_many_names_and_none_of_the_banks(rendered):
    banks = set(banking77._from_folder(paths.DATA / "banking77")[2])
    offered = {
        label
        for signature, *_ in rendered
        for name, field in signature.output_fields.items()
        if name in lessons.OUTPUT_NAMES
        for label in get_args(field.annotation)
    }
    assert len(offered) > 5 * len({row["label"] for row in ROWS if "label" in row})
    assert offered.isdisjoint(banks)


def test_every_row_is_whole():
    for row in ROWS:
        if "lesson" in row:
            assert row["lesson"] in lessons.LESSON_INSTRUCTIONS
            assert row["inputs"] and row["outputs"]
            assert all(value not in ("", None) for value in row["outputs"].values())
        else:
            assert set(row) == {"subject", "text", "gist", "label"}
            assert all(value.strip() for value in row.values())


def test_field_markers_are_in_no_row():  # they would end a field inside a reply
    assert not any(MARKER.search(json.dumps(row)) for row in ROWS)
