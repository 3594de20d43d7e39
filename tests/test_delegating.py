"""The lessons in delegating: composed as they lie there, private values on the right side, and no copies."""

import json
import re
from collections import Counter
from statistics import median

import pytest
import yaml

from mmgrpo import delegating, paths
from mmgrpo.delegating import VOICES
from mmgrpo.privacy import leaked
from mmgrpo.tasks.papillon import embedded
from mmgrpo.tasks.papillon.judges import rouge, words

STOCK = 4  # so many words in a row may stand in a wording of the task too, such as "and ask them to"
STOCK_OF_A_REPLY = 8  # and in a reply, such as "Dear Sir or Madam, I would like to"
MOST_OF_A_QUERY = 0.7  # ROUGE-L of a response with its query; a copy has 1


@pytest.fixture(scope="module")
def made():
    return list(delegating.delegations())


@pytest.fixture(scope="module")
def source():
    return yaml.safe_load(delegating.SOURCE.read_text(encoding="utf-8"))


def all_texts(delegation):
    return [*delegation.inputs.values(), *delegation.outputs.values()]


def runs(text, length):
    """All runs of so many words in a text whose slots part it."""
    parts = [words(part) for part in re.split(r"{\w+}", text)]
    return {tuple(part[start : start + length]) for part in parts for start in range(len(part) - length + 1)}


def test_composer_gives_the_file_of_the_project():
    assert delegating.make() == delegating.FILE.read_text(encoding="utf-8")


def test_lessons_are_many_and_none_repeats(made):
    assert Counter(each.lesson for each in made) == {"redact": 320, "respond": 600}
    assert len({json.dumps(each.as_row()) for each in made}) == len(made)
    assert len({each.scenario.kind for each in made}) == 40


def test_fields_are_those_of_the_other_lessons(made):
    file = paths.DATA / "posttraining" / "rewriting.jsonl"
    others = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    shapes = {(row["lesson"], *row["inputs"], "->", *row["outputs"]) for row in others}
    assert {(each.lesson, *each.inputs, "->", *each.outputs) for each in made} < shapes


def test_names_and_places_are_many(source):
    pools = source["values"]
    assert len({*pools["woman"], *pools["man"]}) >= 120 and len(set(pools["surname"])) >= 120
    assert len(set(pools["town"])) >= 60 and len({*pools["company"], *pools["club"]}) >= 40


def test_private_values_stay_inside(made):
    for each in made:
        private = list(each.private.values())
        assert private and leaked(private, each.inputs["user_query"]) == private
        outside = each.outputs if each.lesson == "redact" else {**each.inputs, "user_query": ""}
        assert leaked(private, " ".join(outside.values())) == []


def test_response_has_every_private_value(made):
    for each in made:
        if each.lesson == "respond":
            private = list(each.private.values())
            assert leaked(private, each.outputs["response"]) == private


def test_request_is_no_copy_of_the_query(made):
    for each in made:
        request = each.outputs.get("llm_request") or each.inputs["related_llm_request"]
        assert words(request) and words(request) != words(each.inputs["user_query"])


def test_response_is_no_copy_of_query_or_request(made):
    for each in made:
        if each.lesson == "respond":
            response = each.outputs["response"]
            assert rouge(response, each.inputs["user_query"]) < MOST_OF_A_QUERY
            assert rouge(response, each.inputs["related_llm_request"]) < MOST_OF_A_QUERY


def test_response_takes_over_the_reply_unless_that_is_useless(made, source):
    useful = [each for each in made if each.lesson == "respond"][: -delegating.USELESS * 40]
    headed = 0
    for each in useful:
        response, said = each.outputs["response"], each.inputs["related_llm_response"]
        for head in source["letterheads"]:
            if said.startswith(head):  # little of the letter is left
                headed, said = headed + 1, said.removeprefix(head)
                response = " ".join(response.split()[: len(said.split())])
        assert rouge(response, said) > max(0.5, rouge(response, each.inputs["user_query"]))
    assert headed >= 50
    useless = [each for each in made if each.lesson == "respond"][len(useful) :]
    assert len(useless) == 120 and any(each.inputs["related_llm_response"] == "" for each in useless)
    for each in useless:
        said = {each.inputs["related_llm_request"], *source["useless"]}
        assert each.inputs["related_llm_response"] in said


def test_replies_are_short_and_some_are_cut_off(made):
    said = [each.inputs["related_llm_response"] for each in made if each.lesson == "respond"]
    assert max(len(text.split()) for text in said) <= 75  # about 96 tokens
    assert sum(text[-1:].isalnum() for text in said) > 100
    assert sum("[" in text for text in said) > 200 and sum(text.startswith("Here ") for text in said) > 30
    responses = [each.outputs["response"] for each in made if each.lesson == "respond"]
    assert 45 <= median(len(text.split()) for text in responses) and max(len(text.split()) for text in responses) <= 110


def test_no_mark_of_the_notation_is_left(made):
    for each in made:
        assert not any(re.search(r"[{}<>|~¶]|  | [,.;]", text) for text in all_texts(each))
        assert "[" not in each.inputs["user_query"] + "".join(each.outputs.values())


def test_words_are_not_doubled(made):
    for each in made:
        for text in all_texts(each):
            assert not re.search(r"\b([a-z]+) \1\b", text, re.IGNORECASE)


def test_wordings_are_none_of_the_tasks(source):
    tasks, replies = set(), set()
    for scenario in embedded.scenarios():
        replies |= runs(scenario.reply, STOCK_OF_A_REPLY + 1)
        for text in [*scenario.queries, *(choice for choices in scenario.public.values() for choice in choices)]:
            tasks |= runs(text, STOCK + 1)
    for scenario in source["scenarios"]:
        choices = [choice for choices in scenario.get("public", {}).values() for choice in choices]
        for voice in (r"\1", r"\2"):
            for text in [*scenario["queries"], *choices]:
                assert not runs(VOICES.sub(voice, text), STOCK + 1) & tasks
            for text in [scenario["plain"], *scenario["replies"]]:
                assert not runs(VOICES.sub(voice, text), STOCK_OF_A_REPLY + 1) & replies
