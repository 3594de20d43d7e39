"""Private queries with their private units and target responses, from the hub, a local folder or the project itself."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import dspy

from mmgrpo import paths
from mmgrpo.errors import UserError
from mmgrpo.privacy import leaked
from mmgrpo.settings import SplitSizes
from mmgrpo.tasks import SPLIT_SEED, Splits, cut
from mmgrpo.tasks.papillon.judges import words

HUB = "Columbia-NLP/PUPA"
HUB_REVISION = "9981b49b6ced0033988a224b6712895ebf119294"
HUB_FILE = "PUPA_New.csv"
FOLDER = "pupa"  # below MMGRPO_DATA_DIR
COLUMNS = ("user_query", "target_response", "pii_units")
MAX_CHARACTERS = 12_000  # a longer query ends there; 1% of the real ones, and what fits a context of 8,192 tokens
SEPARATOR = "||"  # between private units


def load(sizes: SplitSizes) -> Splits:
    """Rows from `MMGRPO_DATA_DIR`, or else from the profile's source.

    All are one file: its queries, shuffled, half for each side. PUPA holds 202 of its 664 queries again with other
    annotations; a query is kept once, with the private units of all its rows.
    """
    if paths.local_data() is not None:
        source, file = "local", paths.local_data() / FOLDER / HUB_FILE
    elif sizes.source == "hub":
        source, file = "hub", _from_hub()
    else:
        source, file = "embedded", paths.DATA / "papillon" / "queries.csv"
    examples = read(file)
    random.Random(SPLIT_SEED).shuffle(examples)
    middle = len(examples) // 2
    return Splits(*cut(examples[:middle], examples[middle:], sizes, name="papillon"), source)


def read(file: Path) -> list[dspy.Example]:
    """All queries of a CSV file in PUPA's format; raises UserError for one that can't be used."""
    if not file.is_file():
        raise UserError(f"{file} is missing: papillon needs PUPA's {HUB_FILE} there.")
    csv.field_size_limit(10**9)  # a long query is no damage
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:  # spreadsheets begin a file with a byte-order mark
            reader = csv.DictReader(stream)
            missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise UserError(
                    f"{file} has no column {missing[0]!r}: its columns are {reader.fieldnames}, "
                    f"needed are {', '.join(COLUMNS)}."
                )
            rows = [(row, f"{file}, line {reader.line_num}") for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} can't be read as UTF-8 CSV ({error}): save it again in that encoding.") from None
    examples: dict[str, dspy.Example] = {}
    for row, place in rows:
        example = _example(row, place)
        same = examples.setdefault(example.user_query.casefold(), example)
        same.pii_units = _unique([*same.pii_units, *example.pii_units])
    return list(examples.values())


def _example(row: dict[str, str | None], place: str) -> dspy.Example:
    for column in COLUMNS:
        if not words(row[column] or ""):
            raise UserError(f"{place}: {column} is empty. Remove the row.")
    query = row["user_query"].strip()
    units = _unique(row["pii_units"].split(SEPARATOR))
    if len(query) > MAX_CHARACTERS:
        query = query[:MAX_CHARACTERS]
        units = leaked(units, query) or units  # those in the rest can no longer leak
    return dspy.Example(user_query=query, target_response=row["target_response"].strip(), pii_units=units).with_inputs(
        "user_query"
    )


def _unique(units: list[str]) -> list[str]:
    """Without blank ones and those that differ in case, accents or punctuation only."""
    return list({"".join(words(unit)): unit.strip() for unit in reversed(units) if words(unit)}.values())[::-1]


def _from_hub() -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(HUB, HUB_FILE, repo_type="dataset", revision=HUB_REVISION))
    except (OSError, ValueError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{HUB} could not be loaded ({first}): check the network, or set MMGRPO_DATA_DIR to a folder "
            f"with {FOLDER}/{HUB_FILE}."
        ) from None
