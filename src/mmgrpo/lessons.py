"""What post-training teaches: rows that the project wrote, rendered as DSPy renders a program's calls.

The rows (`data/posttraining/*.jsonl`, none of a task's subjects) teach the shape of programs: typed labels, chain of
thought, several fields, demonstrations. DSPy's own adapter renders them, so what is learnt is the format that programs
really use.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import dspy

from mmgrpo import paths

HELD_OUT_SUBJECTS = ("astronomy club", "bicycle repair shop")  # validation of the format, never trained on
INTENT_ROUNDS, PROGRAM_ROUNDS = 2, 1  # how often each row is rendered: messages with new labels each time
SHEET = 4  # lessons that share their prompt up to the inputs
LABELS = (4, 14)  # fewest and most labels that a classification prompt offers, the right ones of its sheet included
BEGINNINGS = ("", "", "", "ask_", "about_", "my_")
ENDINGS = ("", "", "_request", "_query", "_question", "_issue", "_help", "_matter")
SEPARATORS = ("_", "_", "_", "_", "-", " ")  # between the words of a sheet's labels
SHARE_WITH_DEMOS = 0.3  # of the classification prompts
SHARE_WITHOUT_REASONING = 0.1  # of the classification prompts; the rest is chain of thought

INPUT_NAMES = ("text", "message", "query", "request", "utterance")
OUTPUT_NAMES = ("label", "intent", "category", "topic")
INTENT_INSTRUCTIONS = (
    None,  # DSPy's own sentence, made from the field names
    None,
    "Decide which label fits the message best.",
    "Read what the person wrote and name what they want.",
    "You sort the mail of a help desk. Pick the one label that matches the request.",
    "Choose exactly one label from the list. Think about what the writer needs, not about single words.",
    "Work out the purpose of the message, then copy the matching label letter by letter.",
)
LESSON_INSTRUCTIONS = {
    "redact": "Write a request for an outside assistant that keeps the user's private details to yourself.",
    "respond": "Answer the user with the help of the outside assistant's reply.",
    "extract": "Find who and where, and what is wished for.",
    "rephrase": "Say the sentence again in the given style.",
    "notes": "Collect new notes from the passages that help to check the claim.",
    "query": "Write the next search query that helps to check the claim.",
    "answer": "Answer the question from the context.",
    "judge": "Say whether the evidence supports the statement.",
    "describe_data": "Describe what the rows of a data set have in common.",
    "describe_program": "Describe the task that a program is meant to solve, and how it works.",
    "propose_instruction": "Write an instruction that makes a language model do the task well.",
}


@dataclass(frozen=True)
class Lesson:
    """One supervised example: the chat messages that come before, and the assistant's reply."""

    prompt: list[dict[str, str]]
    completion: str

    def as_row(self) -> dict[str, list[dict[str, str]]]:
        """The conversational prompt-completion form of TRL's SFTTrainer."""
        return {"prompt": self.prompt, "completion": [{"role": "assistant", "content": self.completion}]}


def draw(folder: Path = paths.DATA / "posttraining", *, seed: int) -> tuple[list[Lesson], list[Lesson]]:
    """Training and validation lessons; validation has the held-out subjects only, each row once.

    Lessons that share a sheet (signature, labels, demonstrations) are neighbours, so that a batch computes their
    common prompt once; sheets are shuffled. Every round draws its sheets anew.
    """
    rng = random.Random(seed)
    rows = [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.open(encoding="utf-8")]
    programs: dict[tuple, list[dict]] = {}
    subjects: dict[str, list[dict]] = {}
    for row in rows:
        if "lesson" in row:
            programs.setdefault((row["lesson"], *_fields(row)), []).append(row)
        else:
            subjects.setdefault(row["subject"], []).append(row)
    train, valid = [], []
    for _ in range(INTENT_ROUNDS):
        for subject, members in subjects.items():
            if subject not in HELD_OUT_SUBJECTS:
                train += [_intent_sheet(chunk, subjects, rng) for chunk in _chunks(members, rng)]
    for _ in range(PROGRAM_ROUNDS):
        for members in programs.values():
            train += [_program_sheet(chunk, rng) for chunk in _chunks(members, rng)]
    for subject in HELD_OUT_SUBJECTS:
        valid += [_intent_sheet(chunk, subjects, rng) for chunk in _chunks(subjects.get(subject, []), rng)]
    rng.shuffle(train)
    rng.shuffle(valid)
    return sum(train, []), sum(valid, [])


def _chunks(rows: list[dict], rng: random.Random) -> list[list[dict]]:
    """All rows in random order, a sheet's worth at a time."""
    order = rng.sample(rows, len(rows))
    return [order[start : start + SHEET] for start in range(0, len(order), SHEET)]


def _render(signature: type[dspy.Signature], demos: list[dict], inputs: dict, outputs: dict) -> Lesson:
    adapter = dspy.ChatAdapter()
    reply = adapter.format_assistant_message_content(signature, outputs).strip()
    return Lesson(prompt=adapter.format(signature, demos, inputs), completion=reply)


def _intent_sheet(rows: list[dict], subjects: dict[str, list[dict]], rng: random.Random) -> list[Lesson]:
    """Classification prompts of one random choice of labels, field names, instruction and demonstrations."""
    labels = _choose_labels(rows, subjects, rng)
    shown = _renamed(labels, rng)
    source, target = rng.choice(INPUT_NAMES), rng.choice(OUTPUT_NAMES)
    fields = {source: (str, dspy.InputField()), target: (Literal[tuple(shown.values())], dspy.OutputField())}
    signature = dspy.Signature(fields, rng.choice(INTENT_INSTRUCTIONS))
    reasoned = rng.random() >= SHARE_WITHOUT_REASONING
    if reasoned:
        signature = signature.prepend("reasoning", dspy.OutputField(desc="${reasoning}"), str)

    def outputs(example: dict, with_reasoning: bool) -> dict:
        label = shown[example["label"]]
        thought = f"{example['gist']} The {target} is {label}."
        return ({"reasoning": thought} if with_reasoning else {}) | {target: label}

    demos = []
    if rng.random() < SHARE_WITH_DEMOS:
        pool = [row for row in subjects[rows[0]["subject"]] if row["label"] in labels and row not in rows]
        for demo in rng.sample(pool, min(rng.randint(1, 3), len(pool))):
            bootstrapped = reasoned and rng.random() < 0.7  # labelled demonstrations come without reasoning
            demos.append({source: demo["text"], **outputs(demo, bootstrapped)})
    return [_render(signature, demos, {source: row["text"]}, outputs(row, reasoned)) for row in rows]


def _choose_labels(rows: list[dict], subjects: dict[str, list[dict]], rng: random.Random) -> list[str]:
    """The rows' labels among others of their subject, and of a second subject where more are wanted."""
    subject = rows[0]["subject"]
    right = {row["label"] for row in rows}
    own = sorted({row["label"] for row in subjects[subject]} - right)
    second = rng.choice(sorted(set(subjects) - {subject, *HELD_OUT_SUBJECTS}))
    more = sorted({row["label"] for row in subjects[second]} - {*right, *own})
    rng.shuffle(own)
    rng.shuffle(more)
    size = max(rng.randint(*LABELS), len(right))
    chosen = [*sorted(right), *own, *more][:size]
    rng.shuffle(chosen)
    return chosen


def _renamed(labels: list[str], rng: random.Random) -> dict[str, str]:
    """A new name for each label, so that the answer has to be read off the list and can't be known by heart."""
    separator = rng.choice(SEPARATORS)
    names: dict[str, str] = {}
    for label in labels:
        while label not in names:
            words = label.split("_")
            if rng.random() < 0.3:
                words.reverse()
            name = (rng.choice(BEGINNINGS) + "_".join(words) + rng.choice(ENDINGS)).replace("_", separator)
            if name not in names.values():
                names[label] = name
    return names


def _fields(row: dict) -> tuple[tuple[str, object], ...]:
    """Names and types of a program lesson's fields, read off its values."""

    def kind(name: str, value: object) -> object:
        if name == "verdict":
            return Literal["supported", "refuted", "unknown"]
        return list[str] if isinstance(value, list) else str

    return tuple((name, kind(name, value)) for part in ("inputs", "outputs") for name, value in row[part].items())


def _program_sheet(rows: list[dict], rng: random.Random) -> list[Lesson]:
    """Lessons with several fields, all of one signature."""
    inputs = set(rows[0]["inputs"])
    fields = {
        name: (kind, dspy.InputField() if name in inputs else dspy.OutputField()) for name, kind in _fields(rows[0])
    }
    instructions = LESSON_INSTRUCTIONS[rows[0]["lesson"]] if rng.random() < 0.7 else None
    signature = dspy.Signature(fields, instructions)
    return [_render(signature, [], row["inputs"], row["outputs"]) for row in rows]
