"""A fictional encyclopedia and claims about it, made in memory from a seed: the same in every version of Python.

Each claim rests on a chain of pages. It names the first one only, and each page names the next:

    "The birthplace of the author of the novel Silent Compass keeps a market for salt."
    Silent Compass -> its author -> the author's birthplace

So retrieval with the claim finds the beginning, a query with the name that was read finds one page more, and
recall tells how far a run came. Every page names a page beside the chain too, and pages beside it share its names.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmgrpo.tasks.hover import wording
from mmgrpo.tasks.hover.wording import Relation

SEED = 1
CLAIMS = 480
HOPS = (2, 3, 4)  # gold pages of a claim, in turns
SHARE_WITH_NAMESAKE = 0.6  # of the gold pages have one page beside them that shares a name


@dataclass(frozen=True)
class Claim:
    text: str
    titles: tuple[str, ...]  # of the gold pages in the order of the chain


@dataclass(frozen=True)
class Encyclopedia:
    passages: tuple[str, ...]  # "title | text", 20 to 40 words of text
    claims: tuple[Claim, ...]  # no two share a gold page


@dataclass(frozen=True)
class Entity:
    """What a page is about."""

    title: str
    kind: str  # work, person, town, school or river
    form: str  # what works and schools are called
    fact: str  # shared by many pages


Beside = Mapping[str, Sequence[Entity]]  # entities beside the chains, by kind


def build(seed: int = SEED) -> Encyclopedia:
    return _Author(seed).write()


class _Author:
    """Draws everything from `random()` alone, the one method whose sequence Python promises to keep."""

    def __init__(self, seed: int):
        self._random = random.Random(seed).random
        self._names = {kind: iter(self._shuffled(_names(kind))) for kind in wording.ENDS}
        self._names["work"] = iter(self._shuffled([f"{a} {n}" for a in wording.ADJECTIVES for n in wording.NOUNS]))

    def write(self) -> Encyclopedia:
        chains = [self._chain(HOPS[number % len(HOPS)]) for number in range(CLAIMS)]
        gold = [entity for entities, _ in chains for entity in entities]
        namesakes = [self._namesake(entity) for entity in gold if self._random() < SHARE_WITH_NAMESAKE]
        beside = {kind: [entity for entity in namesakes if entity.kind == kind] for kind in wording.OPENINGS}
        passages, claims = [], []
        for entities, relations in chains:
            claims.append(Claim(self._claim(entities, relations), tuple(entity.title for entity in entities)))
            for place, relation in enumerate(relations):
                passages.append(self._passage(entities[place], relation, entities[place + 1], beside))
            passages.append(self._passage_beside(entities[-1], beside))
        passages += [self._passage_beside(entity, beside) for entity in namesakes]
        return Encyclopedia(tuple(self._shuffled(passages)), tuple(claims))

    def _pick(self, options: Sequence):
        return options[int(self._random() * len(options))]

    def _shuffled(self, items: Sequence) -> list:
        return sorted(items, key=lambda item: self._random())

    def _entity(self, kind: str) -> Entity:
        name = next(self._names[kind])
        form = self._pick(wording.FORMS.get(kind, (kind,)))
        if kind == "person":
            name = f"{self._pick(wording.FIRST_NAMES)} {name}"
        elif kind == "school":
            name = f"{name} {form.title()}"
        elif kind == "river":
            name = f"River {name}"
        return Entity(name, kind, form, self._pick(wording.FACTS[kind]))

    def _namesake(self, entity: Entity) -> Entity:
        """Another entity of the same kind that shares a word of the title."""
        if entity.kind == "work":
            return self._entity("work")  # titles of works share their words anyhow
        name = entity.title.replace("River ", "").split()
        if entity.kind == "person":
            title = f"{self._pick([first for first in wording.FIRST_NAMES if first != name[0]])} {name[1]}"
            form = entity.form
        elif entity.kind == "school":
            form = self._pick([form for form in wording.FORMS["school"] if form != entity.form])
            title = f"{name[0]} {form.title()}"
        else:
            form = entity.form
            title = f"{self._pick(wording.BESIDE[entity.kind])} {name[0]}"
        return Entity(title, entity.kind, form, self._pick(wording.FACTS[entity.kind]))

    def _chain(self, hops: int) -> tuple[list[Entity], list[Relation]]:
        entities, relations = [self._entity("work")], []
        while len(entities) < hops:
            allowed = [
                relation
                for relation in wording.RELATIONS
                if relation.source == entities[-1].kind and relation not in relations[-1:]
            ]
            relations.append(self._pick(allowed))
            entities.append(self._entity(relations[-1].target))
        return entities, relations

    def _claim(self, entities: list[Entity], relations: list[Relation]) -> str:
        phrase = f"the {entities[0].form} {entities[0].title}"
        for entity, relation in zip(entities, relations, strict=False):
            phrase = self._pick(relation.phrases).format(phrase, role=wording.ROLES.get(entity.form))
        return f"{phrase[0].upper()}{phrase[1:]} {entities[-1].fact}."

    def _passage_beside(self, entity: Entity, beside: Beside) -> str:
        """A page whose link leads to a page beside the chains."""
        relation = self._pick([relation for relation in wording.RELATIONS if relation.source == entity.kind])
        others = [other for other in beside[relation.target] if other is not entity]
        return self._passage(entity, relation, self._pick(others), beside)

    def _passage(self, entity: Entity, relation: Relation, linked: Entity, beside: Beside) -> str:
        names = {
            "name": entity.title,
            "form": entity.form,
            "fact": entity.fact,
            "role": wording.ROLES.get(entity.form),
            "linked": linked.title,
            "person": self._pick(beside["person"]).title,
            "town": self._pick(beside["town"]).title,
        }
        rest = self._shuffled([self._pick(relation.sentences), self._pick(wording.ASIDES[entity.kind])])
        text = " ".join(part.format(**names) for part in [self._pick(wording.OPENINGS[entity.kind]), *rest])
        return f"{entity.title} | {text}"


def _names(kind: str) -> list[str]:
    return [start + end for start in wording.STARTS for end in wording.ENDS[kind]]
