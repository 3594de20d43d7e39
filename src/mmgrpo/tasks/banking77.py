"""Banking77: the intent of a bank customer's message, one chain-of-thought module, exact match.

Real data: 77 intents (Casanueva et al. 2020, CC-BY-4.0), from the hub or from a local folder as PolyAI publishes it.
Embedded: 12 intents of our own in the same files (`data/banking77`), another domain's than the post-training.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Literal

import dspy

from mmgrpo import paths
from mmgrpo.errors import UserError
from mmgrpo.settings import Settings, SplitSizes
from mmgrpo.tasks import Judgement, Splits, Task, cut

HUB = "mteb/banking77"
HUB_REVISION = "0fd18e25b25c072e09e0d92ab615fda904d66300"
INSTRUCTION = "Read the message that a customer sends to a bank, and copy the one label from the list that fits it, letter by letter."
MAX_CHARACTERS = 2000  # a longer message is cut there; the longest real one has 433


def load(sizes: SplitSizes) -> Splits:
    """Rows from `MMGRPO_DATA_DIR`, or else from the profile's source."""
    if paths.local_data() is not None:
        source, rows = "local", _from_folder(paths.local_data() / "banking77")
    elif sizes.source == "hub":
        source, rows = "hub", _from_hub()
    else:
        source, rows = "embedded", _from_folder(paths.DATA / "banking77")
    train_side, test_side, labels = rows
    train, valid, test = cut(train_side, test_side, sizes, name="banking77")
    return Splits(train, valid, test, source, labels)


def program(splits: Splits) -> dspy.Module:
    """One module, `text -> label`, with the labels as a type."""
    fields = {
        "text": (str, dspy.InputField()),
        "label": (Literal[splits.labels], dspy.OutputField()),
    }
    return dspy.ChainOfThought(dspy.Signature(fields, INSTRUCTION))


def judge(example: dspy.Example, prediction: dspy.Prediction, trace=None) -> Judgement:
    """1 for the right label, else 0."""
    if prediction.label == example.label:
        return Judgement(1.0, f"{example.label} is right.")
    return Judgement(0.0, f"The label is {example.label}, not {prediction.label}.")


def _from_folder(folder: Path) -> tuple[list[dspy.Example], list[dspy.Example], tuple[str, ...]]:
    """Read `train.csv`, `test.csv` (columns text, category) and `categories.json`."""
    for name in ("train.csv", "test.csv", "categories.json"):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder / name} is missing: banking77 needs train.csv, test.csv and categories.json there."
            )
    labels = _labels(folder / "categories.json")
    return _read(folder / "train.csv", labels), _read(folder / "test.csv", labels), tuple(labels)


def _labels(file: Path) -> list[str]:
    try:
        labels = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} can't be read as UTF-8 JSON ({error}): it is a list of all labels.") from None
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise UserError(f"{file} is no list of labels: write all of them as one JSON list of strings.")
    return labels


def _read(file: Path, labels: list[str]) -> list[dspy.Example]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:  # spreadsheets begin a file with a byte-order mark
            reader = csv.DictReader(stream)
            missing = {"text", "category"} - set(reader.fieldnames or ())
            if missing:
                raise UserError(
                    f"{file} has no column {min(missing)!r}: its columns are {reader.fieldnames}, needed are text and category."
                )
            return [_example(row["text"], row["category"], labels, f"{file}, line {reader.line_num}") for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} can't be read as UTF-8 CSV ({error}): save it again in that encoding.") from None


def _from_hub() -> tuple[list[dspy.Example], list[dspy.Example], tuple[str, ...]]:
    import datasets

    try:
        rows = datasets.load_dataset(HUB, revision=HUB_REVISION)
    except (OSError, ConnectionError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise UserError(
            f"{HUB} could not be loaded ({first}): check the network, or set MMGRPO_DATA_DIR to a folder with banking77/train.csv, "
            "test.csv and categories.json."
        ) from None
    labels = sorted(set(rows["train"]["label_text"]))
    sides = [
        [_example(r["text"], r["label_text"], labels, f"{HUB}, {side}") for r in rows[side]]
        for side in ("train", "test")
    ]
    return sides[0], sides[1], tuple(labels)


def _example(text: str | None, label: str | None, labels: list[str], place: str) -> dspy.Example:
    if not text or not text.strip():
        raise UserError(f"{place}: the text is empty. Remove the row.")
    if label not in labels:
        raise UserError(f"{place}: unknown label {label!r}; the {len(labels)} known ones are in categories.json.")
    return dspy.Example(text=text.strip()[:MAX_CHARACTERS], label=label).with_inputs("text")


class Options(Settings):
    """None."""


def task(options: Options) -> Task:
    return Task(
        name="banking77",
        title="Banking77",
        load=load,
        program=program,
        judge=judge,
        oracle=lambda example: dspy.Prediction(label=example.label),
        chance=lambda splits: 1 / len(splits.labels),
        paper_sizes=(250, 500),
        citation="Casanueva et al. 2020, Efficient Intent Detection with Dual Sentence Encoders, arXiv 2003.04807",
        licence="CC-BY-4.0 (real rows), Apache-2.0 (embedded rows)",
        folder="banking77",
    )
