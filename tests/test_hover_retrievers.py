"""Retrievers: what BM25 finds in a small corpus, that a stored index finds the same, and a ColBERTv2 server that fails."""

import copy
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
import requests

from mmgrpo.errors import UserError
from mmgrpo.tasks.hover import retrievers
from mmgrpo.tasks.hover.retrievers import BM25, ColBERT

CORPUS = (
    "Harbour | The harbour of the town is deep.",
    "Harbours of Ulm | Many harbours, and one harbour of stone.",
    "Café Öre | Coffee is served in the café.",
    "Tower | A tower\nof two lines.",
    "Twin one | identical words here",
    "Twin two | identical words here",
)


@pytest.fixture(scope="module")
def index():
    return BM25.over(CORPUS)


def test_best_passage_comes_first(index):
    assert index.search("the harbours of stone", 3) == [CORPUS[1], CORPUS[0]]
    assert index.search("where is coffee served?", 1) == [CORPUS[2]]


def test_words_are_compared_by_their_stems(index):
    assert index.search("tower", 1) == index.search("TOWERS", 1) == [CORPUS[3]]


@pytest.mark.parametrize("query", ["", "the of and", "zeppelin", "?!", "[[ ## query ## ]]"])
def test_query_without_a_known_word_finds_nothing(index, query):
    assert index.search(query, 3) == []


def test_no_more_passages_than_there_are(index):
    assert len(index.search("harbour café tower identical", 1000)) == len(CORPUS)


def test_ties_stand_in_the_order_of_the_corpus(index):
    assert index.search("identical words", 1) == [CORPUS[4]]
    assert index.search("identical words", 2) == [*CORPUS[4:]]


def test_scores_are_those_of_the_formula(index):
    """Two documents, one word: k1 0.9 and b 0.4, so that the shorter one wins by the hand-computed ratio."""
    small = BM25.over(["short | lamp", "long | lamp oak elm ash fir yew"])
    short, long = small._index.get_scores(["lamp"])
    mean = (2 + 7) / 2
    expected = [1 / (1 + 0.9 * (1 - 0.4 + 0.4 * length / mean)) for length in (2, 7)]
    assert short / long == pytest.approx(expected[0] / expected[1], rel=1e-4)


def test_stored_index_finds_the_same(index, tmp_path):
    index.save(tmp_path)
    stored = BM25.load(tmp_path)
    for query in ("harbours of stone", "café", "towers", "identical words", "nothing"):
        assert stored.search(query, 3) == index.search(query, 3)
    with pytest.raises(IndexError):
        stored._passages[len(CORPUS)]


def test_threads_do_not_disturb_each_other(index, tmp_path):
    index.save(tmp_path)
    stored = BM25.load(tmp_path)
    queries = ["harbours of stone", "coffee", "tower lines", "identical words"] * 50
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda query: stored.search(query, 2), queries))
    assert found == [index.search(query, 2) for query in queries]


def test_index_is_never_copied(index):
    assert copy.deepcopy(index) is index


class Server:
    """Stands in for `requests.get`: raises what it is given, then answers."""

    def __init__(self, monkeypatch, *events):
        self.events, self.calls = list(events), []
        monkeypatch.setattr(requests, "get", self)
        monkeypatch.setattr(retrievers, "PAUSE", 0.0)

    def __call__(self, url, params, timeout):
        self.calls.append((url, params))
        event = self.events.pop(0)
        if isinstance(event, Exception):
            raise event
        response = requests.Response()
        response.status_code, response._content = event
        return response


ANSWER = (200, b'{"topk": [{"text": "Tower | A tower.", "score": 1.5}, {"text": "Ulm | A town.", "score": 1.0}]}')


# DSPy keeps answers on disk: an address that no earlier run of the tests has asked.
ONE, TWO = (f"http://{uuid4().hex}.invalid/api" for _ in range(2))


def test_colbert_server_is_asked_by_its_interface(monkeypatch):
    server = Server(monkeypatch, ANSWER)
    assert ColBERT(ONE).search("a tower", 2) == ["Tower | A tower.", "Ulm | A town."]
    assert server.calls == [(ONE, {"query": "a tower", "k": 2})]


def test_timeout_is_tried_again(monkeypatch):
    server = Server(monkeypatch, requests.ReadTimeout("slow"), requests.ConnectionError("gone"), ANSWER)
    assert len(ColBERT(TWO).search("a tower", 2)) == 2
    assert len(server.calls) == 3


def test_server_that_never_answers_is_one_sentence(monkeypatch):
    server = Server(monkeypatch, *[requests.ReadTimeout("slow")] * 9)
    with pytest.raises(UserError, match=r"server at http://three.invalid/api did not answer 3 times in a row \(ReadT"):
        ColBERT("http://three.invalid/api").search("a tower", 2)
    assert len(server.calls) == retrievers.ATTEMPTS


@pytest.mark.parametrize("answer", [(200, b'{"error": true, "message": "no index"}'), (500, b""), (200, b"<html>")])
def test_other_answer_is_one_sentence(monkeypatch, answer):
    Server(monkeypatch, answer)
    with pytest.raises(UserError, match="gave no passages .*check the option colbert_url"):
        ColBERT("http://four.invalid/api").search(f"query {answer}", 2)
