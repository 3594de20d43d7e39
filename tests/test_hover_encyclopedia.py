"""The embedded encyclopedia: large, the same everywhere, of hops that only reading finds, and apart from the lessons."""

import hashlib
import re
import statistics
import time

import pytest

from mmgrpo import paths
from mmgrpo.tasks.hover import encyclopedia
from mmgrpo.tasks.hover.retrievers import BM25
from mmgrpo.tasks.hover.wording import ENDS, STARTS

PUBLISHED = "c5b4a2bfec302505"  # of pages and claims; a change of it changes every embedded result


@pytest.fixture(scope="module")
def book():
    return encyclopedia.build()


@pytest.fixture(scope="module")
def index(book):
    return BM25.over(book.passages)


def titles(passages):
    return {passage.split(" | ")[0] for passage in passages}


def recall(claim, passages):
    return len(set(claim.titles) & titles(passages)) / len(claim.titles)


def followed(index, claim, k):
    """Passages of a program that searches for the next title once it has read it."""
    passages = index.search(claim.text, k)
    for title in claim.titles[1:]:
        if not any(title in passage for passage in passages):
            break
        passages += index.search(title, k)
    return passages


def test_every_python_makes_the_same(book):
    text = "\n".join([*book.passages, *(f"{claim.text} {claim.titles}" for claim in book.claims)])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == PUBLISHED
    assert encyclopedia.build(seed=encyclopedia.SEED + 1) != book


def test_is_made_in_a_moment():
    started = time.process_time()
    encyclopedia.build()
    assert time.process_time() - started < 2


def test_has_enough_pages_of_the_right_length(book):
    assert len(book.passages) >= 2000
    assert len(titles(book.passages)) == len(book.passages)
    lengths = [len(passage.split(" | ", 1)[1].split()) for passage in book.passages]
    assert 20 <= min(lengths) and max(lengths) <= 40
    assert not [passage for passage in book.passages if re.search(r"[{}]|None|  ", passage)]


def test_claims_have_two_to_four_hops_and_gold_pages_of_their_own(book):
    assert len(book.claims) == len({claim.text for claim in book.claims}) == 480
    for hops in (2, 3, 4):
        assert sum(len(claim.titles) == hops for claim in book.claims[:240]) == 80
    gold = [title for claim in book.claims for title in claim.titles]
    assert len(set(gold)) == len(gold)
    assert set(gold) <= titles(book.passages)


def test_each_page_of_a_chain_names_the_next_and_the_claim_only_the_first(book):
    page = {passage.split(" | ")[0]: passage.split(" | ")[1] for passage in book.passages}
    for claim in book.claims:
        assert claim.titles[0] in claim.text
        assert not any(title in claim.text for title in claim.titles[1:])
        for title, following in zip(claim.titles, claim.titles[1:], strict=False):
            assert following in page[title]


def test_pages_beside_the_chains_share_names_with_them(book):
    gold = {title for claim in book.claims for title in claim.titles}
    beside = titles(book.passages) - gold
    words = {word for title in beside for word in title.split()}
    assert len(beside) > 600
    assert sum(any(word in words for word in title.split()) for title in gold) > len(gold) / 2


@pytest.mark.parametrize("k", [3, 12])
def test_claim_alone_finds_under_sixty_percent(book, index, k):
    assert statistics.fmean(recall(claim, index.search(claim.text, k)) for claim in book.claims) < 0.6


def test_following_the_names_finds_over_95_percent(book, index):
    assert statistics.fmean(recall(claim, followed(index, claim, 3)) for claim in book.claims) > 0.95


def test_one_name_copied_finds_one_document_more(book, index):
    """What makes a weak policy's runs differ: each right query counts by itself."""
    for claim in book.claims[:60]:
        known = index.search(claim.text, 3)
        assert recall(claim, known + index.search(f"Who is {claim.titles[1]}?", 3)) > recall(claim, known) or (
            claim.titles[1] in titles(known)
        )


def test_nothing_of_it_is_in_the_lessons(book):
    lessons = "\n".join(
        file.read_text(encoding="utf-8") for file in (paths.DATA / "posttraining").glob("*.jsonl")
    ).casefold()
    assert [title for title in titles(book.passages) if title.casefold() in lessons] == []
    words = set(re.findall(r"\w+", lessons))
    invented = {f"{start}{end}".casefold() for start in STARTS for ends in ENDS.values() for end in ends}
    assert invented & words == set()
    assert [claim.text for claim in book.claims if claim.text.casefold() in lessons] == []
