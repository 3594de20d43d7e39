"""Lessons in delegating to an outside assistant: `make` composes `data/posttraining/delegating.jsonl` from the YAML there.

A text of `delegating.yaml` is written once for two voices. `<outside|inside>` says one thing to the outside and another
at home, and a slot in braces is a private value unless the scenario's `public` has it: a query's outside voice is the
redacted request, a reply's is what the outside assistant wrote, with placeholders, chatter or an end in mid-sentence,
and its inside voice is the response that the user should get. All sentences and values were made up for this project.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import yaml

from mmgrpo import paths

SOURCE = paths.DATA / "posttraining" / "delegating.yaml"
FILE = paths.DATA / "posttraining" / "delegating.jsonl"
SEED = 7
REDACT, RESPOND, USELESS = 8, 12, 3  # lessons of each sort a scenario; in the last, the outside reply helps nobody
VOICES = re.compile(r"<([^|>]*)\|([^>]*)>")
SLOT = re.compile(r"{(\w+)}")
CHOICE = "/"  # between the alternatives of an outside voice
HEADED = (12, 30)  # words that are left for a letter under a letterhead
BREAK = re.compile(r"\s*¶\s*")  # a blank line outside; inside, a message is one paragraph
CUT = "~"  # outside, the reply ends somewhere behind it


@dataclass(frozen=True)
class Scenario:
    """A kind of message; the lists are drawn from in turns or at random."""

    kind: str
    queries: list[str]  # in two voices; each names all private slots
    reasoning: list[str]  # what is private in the query
    plain: str  # a reply in two voices that hardly goes beyond the query
    replies: list[str]  # more of them
    public: dict[str, list[str]] = field(default_factory=dict)  # choices of what isn't private


@dataclass(frozen=True)
class Delegation:
    """A lesson, and the private values of its query."""

    lesson: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    private: dict[str, str]  # slot to value
    scenario: Scenario

    def as_row(self) -> dict[str, object]:
        """The form of all lessons in `data/posttraining`."""
        return {"lesson": self.lesson, "inputs": self.inputs, "outputs": self.outputs}


def make() -> str:
    """The whole JSONL file; the same text each time."""
    return "".join(json.dumps(each.as_row(), ensure_ascii=False) + "\n" for each in delegations())


def delegations() -> Iterator[Delegation]:
    """All lessons, the scenarios in turns, so that neighbours differ."""
    source = yaml.safe_load(SOURCE.read_text(encoding="utf-8"))
    scenarios = [Scenario(**entry) for entry in source["scenarios"]]
    draw = random.Random(SEED)
    private = _Private(source["values"], draw)
    for number in range(REDACT):
        for scenario in scenarios:
            yield _Teller(scenario, number, private, draw).redact(number)
    for number in range(RESPOND):
        for scenario in scenarios:
            teller = _Teller(scenario, number, private, draw)
            plain_again = number and number % (1 + len(scenario.replies)) == 0
            headed = plain_again and scenario.plain.startswith("Dear <")
            yield teller.respond_headed(draw.choice(source["letterheads"])) if headed else teller.respond(number)
    for number in range(USELESS):
        for place, scenario in enumerate(scenarios):
            useless = source["useless"][(place + number * len(scenarios)) % len(source["useless"])]
            yield _Teller(scenario, number + 1, private, draw).respond_alone(useless)


class _Teller:
    """One query of a scenario with its values, and the lessons to be made of it."""

    def __init__(self, scenario: Scenario, number: int, private: _Private, draw: random.Random):
        self._scenario, self._draw = scenario, draw
        query = scenario.queries[number % len(scenario.queries)]
        self._public = {slot: draw.choice(choices) for slot, choices in scenario.public.items()}
        slots = (slot for slot in dict.fromkeys(SLOT.findall(query)) if slot not in scenario.public)
        self._private = private.values(slots)
        self._query, self._request = self._inside(query), self._outside(query[0].upper() + query[1:])

    def redact(self, number: int) -> Delegation:
        thought = self._scenario.reasoning[number % len(self._scenario.reasoning)].format(**self._public)
        return self._lesson("redact", {"user_query": self._query}, {"reasoning": thought, "llm_request": self._request})

    def respond(self, number: int) -> Delegation:
        replies = [self._scenario.plain, *self._scenario.replies]
        reply = replies[number % len(replies)]
        return self._respond(self._outside(reply), reply)

    def respond_headed(self, letterhead: str) -> Delegation:
        words = self._outside(self._scenario.plain).split(" ")
        said = f"{letterhead}\n\n{' '.join(words[: self._draw.randint(*HEADED)])}"
        return self._respond(said, self._scenario.plain)

    def respond_alone(self, useless: str) -> Delegation:
        return self._respond(useless.replace("{request}", self._request), self._scenario.plain)

    def _respond(self, said: str, reply: str) -> Delegation:
        inputs = {"related_llm_request": self._request, "related_llm_response": said, "user_query": self._query}
        return self._lesson("respond", inputs, {"response": self._inside(reply)})

    def _lesson(self, lesson: str, inputs: dict[str, str], outputs: dict[str, str]) -> Delegation:
        return Delegation(lesson, inputs, outputs, self._private, self._scenario)

    def _inside(self, text: str) -> str:
        told = BREAK.sub(" ", VOICES.sub(r"\2", text).replace(CUT, ""))
        return _tidy(told.format(**self._public, **self._private))

    def _outside(self, text: str) -> str:
        told = VOICES.sub(lambda match: self._draw.choice(match[1].split(CHOICE)), text).format(**self._public)
        head, cut, tail = told.partition(CUT)
        if cut:
            words = tail.split(" ")
            told = head + " ".join(words[: self._draw.randint(1, len(words) - 2)])
        return BREAK.sub("\n\n", _tidy(told)).strip()


class _Private:
    """Draws private values by the name of their slot; `name`, `name2` and `name3` are of one kind."""

    def __init__(self, pools: dict[str, list[str]], draw: random.Random):
        def one_of(*names: str) -> Callable[[], str]:
            pool = [value for name in names for value in pools[name]]
            return lambda: draw.choice(pool)

        first, surname, street, word = one_of("woman", "man"), one_of("surname"), one_of("street"), one_of("address")
        self._kinds: dict[str, Callable[[], str]] = {
            **{name: one_of(name) for name in pools},
            "first": first,
            "name": lambda: f"{first()} {surname()}",
            "road": street,
            "street": lambda: f"{draw.randint(2, 98)} {street()}",
            "phone": lambda: f"{draw.choice(('01632 960', '07700 900'))}{draw.randint(100, 999)}",
            "email": lambda: f"{word()}{draw.randint(2, 99)}@{draw.choice(pools['domain'])}",
            "date": lambda: f"{draw.randint(1, 28)} {draw.choice(pools['month'])}",
            "price": lambda: str(draw.randint(12, 95)),
            "number": lambda: f"{draw.randint(1000, 9999)}/{draw.choice('BDGKMPRTVX')}{draw.randint(10, 99)}",
        }

    def values(self, slots: Iterator[str]) -> dict[str, str]:
        """A value for each slot; no two share a word."""
        values: dict[str, str] = {}
        for slot in slots:
            kind = self._kinds[slot.rstrip("0123456789")]
            value = kind()
            while set(value.split()) & set(" ".join(values.values()).split()):
                value = kind()
            values[slot] = value
        return values


def _tidy(text: str) -> str:
    """Without spare spaces; where a writer cares for capital letters, every sentence has one."""
    text = re.sub(r" +(?=[ ,.;])", "", text).strip()
    return text if text[:1].islower() else re.sub(r"(?<=[.!?]\s)[a-z]", lambda match: match[0].upper(), text)


if __name__ == "__main__":
    FILE.write_text(make(), encoding="utf-8")
