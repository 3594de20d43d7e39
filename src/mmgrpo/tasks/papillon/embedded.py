"""The embedded private queries: `make` composes them again, and a test finds no difference to `data/papillon`.

Each scenario is a kind of message that people ask an assistant to write. Names, addresses, numbers and dates come from
Faker and are the private units; what the message is about is not private. All sentences were written for this project.
"""

from __future__ import annotations

import calendar
import csv
import hashlib
import io
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from faker import Faker

from mmgrpo import paths

SCENARIOS = paths.DATA / "papillon" / "scenarios.yaml"
FILE = paths.DATA / "papillon" / "queries.csv"
COLUMNS = ("conversation_hash", "predicted_category", "user_query", "target_response", "pii_units", "redacted_query")
ROWS_A_SCENARIO = 20
SEED = 20
MONTHS = calendar.month_name[1:]
SLOT = re.compile(r"{(\w+)}")


@dataclass(frozen=True)
class Scenario:
    """A kind of message; slots in braces are private but for those in `public`."""

    category: str
    queries: list[str]  # wordings; each names every private slot of the reply
    reply: str
    public: dict[str, list[str]]  # choices, taken in turns


def scenarios() -> list[Scenario]:
    """What `scenarios.yaml` holds."""
    return [Scenario(**entry) for entry in yaml.safe_load(SCENARIOS.read_text(encoding="utf-8"))]


def make() -> str:
    """The whole CSV file; the same text each time, for one version of Faker."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows())
    return stream.getvalue()


def rows() -> Iterator[dict[str, str]]:
    """All rows, the scenarios in turns, so that neighbours differ."""
    draw = random.Random(SEED)
    private = _Private(names_of(paths.DATA / "posttraining"))
    wanted = scenarios()
    for number in range(ROWS_A_SCENARIO):
        for scenario in wanted:
            yield _row(scenario, number, private, draw)


def names_of(folder: Path) -> frozenset[str]:
    """Words of the post-training's rows that are never written in lower case there: its names and entities."""
    text = " ".join(file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.jsonl")))
    words = set(re.findall(r"[^\W\d_]{3,}", text))
    return frozenset(word for word in words if word[0].isupper() and word.lower() not in words) - set(MONTHS)


def _row(scenario: Scenario, number: int, private: _Private, draw: random.Random) -> dict[str, str]:
    query = scenario.queries[number % len(scenario.queries)]
    public = {slot: choices[(number + draw.randrange(2)) % len(choices)] for slot, choices in scenario.public.items()}
    secret = private.values(slot for slot in dict.fromkeys(SLOT.findall(query)) if slot not in public)
    asked = query.format(**public, **secret)
    return {
        "conversation_hash": hashlib.sha256(asked.encode()).hexdigest()[:32],
        "predicted_category": scenario.category,
        "user_query": asked,
        "target_response": scenario.reply.format(**public, **secret),
        "pii_units": "||".join(secret.values()),
        "redacted_query": query.format(**public, **dict.fromkeys(secret, "[REDACTED]")),
    }


class _Private:
    """Draws private values by the name of their slot; none has a word of `taken`."""

    def __init__(self, taken: frozenset[str]):
        self._taken = taken
        people, british = Faker(["en_GB", "en_IN", "en_NG"]), Faker("en_GB")
        people.seed_instance(SEED)
        british.seed_instance(SEED)
        self._kinds: dict[str, Callable[[], str]] = {
            "name": lambda: f"{people.first_name()} {people.last_name()}",
            "first": people.first_name,
            "surname": people.last_name,
            "town": british.city,
            "street": lambda: f"{british.random_int(2, 98)} {british.street_name()}",
            "company": british.company,
            "phone": british.phone_number,
            "email": british.ascii_safe_email,
            "date": lambda: f"{british.random_int(1, 28)} {british.random_element(MONTHS)}",
            "number": lambda: british.bothify("??-#####").upper(),
        }

    def values(self, slots: Iterator[str]) -> dict[str, str]:
        """A value for each slot, all different; `name`, `name2` and `name3` are of one kind."""
        values: dict[str, str] = {}
        for slot in slots:
            value = self._draw(slot.rstrip("0123456789"))
            while value in values.values():
                value = self._draw(slot.rstrip("0123456789"))
            values[slot] = value
        return values

    def _draw(self, kind: str) -> str:
        while True:
            value = self._kinds[kind]()
            if self._taken.isdisjoint(re.findall(r"[^\W\d_]{3,}", value)):
                return value


if __name__ == "__main__":
    FILE.write_text(make(), encoding="utf-8")
