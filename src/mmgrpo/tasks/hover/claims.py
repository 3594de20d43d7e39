"""HoVer's claims with the titles of their gold documents, from three sources under the same checks."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dspy

from mmgrpo import paths
from mmgrpo.errors import UserError
from mmgrpo.hashing import check_hash
from mmgrpo.settings import SplitSizes
from mmgrpo.tasks import SPLIT_SEED, Splits, cut
from mmgrpo.tasks.hover import encyclopedia
from mmgrpo.tasks.hover.fetching import fetch

# The hub's repository hover-nlp/hover holds a loading script, which `datasets` no longer runs; the script reads this file.
TRAIN, DEV = "hover_train_release_v1.1.json", "hover_dev_release_v1.1.json"
TRAIN_URL = (
    f"https://raw.githubusercontent.com/hover-nlp/hover/39b84697f196308f398a251a7aea9b82ae0f0562/data/hover/{TRAIN}"
)
TRAIN_SHA256 = "1f1cd57abd616fa00c70bdc575ce77c16fc6cf1a6cffd5ff87c208030a336bb6"

HOPS = 4  # gold documents of the real claims that the task takes
MAX_CHARACTERS = 2000  # a longer claim is cut there; the longest real one has about 500


def load(sizes: SplitSizes) -> Splits:
    """Claims from `MMGRPO_DATA_DIR`, or else from the profile's source."""
    if paths.local_data() is not None:
        source, sides = "local", _sides(_local_file(paths.local_data() / "hover"))
    elif sizes.source == "hub":
        source, sides = "hub", _sides(_hub_file())
    else:
        source, sides = "embedded", _embedded()
    train, valid, test = cut(*sides, sizes, name="hover")
    return Splits(train, valid, test, source)


def _embedded() -> tuple[list[dspy.Example], list[dspy.Example]]:
    """Halves of the embedded claims; no two claims share a gold page."""
    examples = [
        _example(claim.text, claim.titles, f"embedded claim {number}")
        for number, claim in enumerate(encyclopedia.build().claims)
    ]
    half = len(examples) // 2
    return examples[:half], examples[half:]


def _local_file(folder: Path) -> Path:
    """The training release, which the paper splits, or else the development release."""
    for name in (TRAIN, DEV):
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder / DEV} is missing: hover needs it or {TRAIN} there.")


def _hub_file() -> Path:
    file = paths.cache() / TRAIN
    if not file.is_file():
        return fetch(TRAIN_URL, file, TRAIN_SHA256)
    check_hash(file, TRAIN_SHA256, f"delete {file} and run the same command again")
    return file


def _sides(file: Path) -> tuple[list[dspy.Example], list[dspy.Example]]:
    """Training and test side, half of the questions each: claims made from one HotpotQA question stay together."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} can't be read as UTF-8 JSON ({error}): it may be cut short; fetch it again.") from None
    if not isinstance(rows, list):
        raise UserError(f"{file} is no list of claims: it is not a release of HoVer.")
    questions: dict[str, list[dspy.Example]] = {}
    for number, row in enumerate(rows):
        place = f"{file}, claim {number}"
        if _field(row, "num_hops", place) == HOPS:
            example = _example(_field(row, "claim", place), _gold(row, place), place)
            questions.setdefault(str(_field(row, "hpqa_id", place)), []).append(example)
    order = sorted(questions)
    random.Random(SPLIT_SEED).shuffle(order)
    half = len(order) // 2
    return tuple([example for name in part for example in questions[name]] for part in (order[:half], order[half:]))


def _field(row: Any, name: str, place: str) -> Any:
    if not isinstance(row, dict) or name not in row:
        raise UserError(f"{place} has no field {name!r}; needed are claim, supporting_facts, num_hops and hpqa_id.")
    return row[name]


def _gold(row: dict, place: str) -> Sequence[str]:
    """The titles of the supporting facts, each once."""
    facts = _field(row, "supporting_facts", place)
    try:
        return tuple(dict.fromkeys(title for title, _ in facts))
    except (TypeError, ValueError):
        raise UserError(f"{place}: supporting_facts is no list of pairs of title and sentence.") from None


def _example(claim: Any, titles: Sequence[str], place: str) -> dspy.Example:
    if not isinstance(claim, str) or not claim.strip():
        raise UserError(f"{place}: the claim is empty. Remove the row.")
    if not titles or not all(isinstance(title, str) and title.strip() for title in titles):
        raise UserError(f"{place}: a gold title is missing or empty. Remove the row.")
    return dspy.Example(claim=claim.strip()[:MAX_CHARACTERS], titles=list(titles)).with_inputs("claim")
