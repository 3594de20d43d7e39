"""HoVer, 4 hops: find all documents that a claim rests on, two modules called at every hop after the first, Recall@100.

Real data: claims with 4 gold documents (Jiang et al. 2020, CC-BY-SA-4.0), searched for in the 2017 Wikipedia abstracts.
Embedded: claims of 2 to 4 hops over a fictional encyclopedia that is made from a seed (`encyclopedia.py`).
"""

from __future__ import annotations

import functools
import html
import statistics
import unicodedata
from collections.abc import Iterable

import dspy
from pydantic import Field

from mmgrpo.settings import Settings
from mmgrpo.tasks import Judgement, Splits, Task
from mmgrpo.tasks.hover import abstracts, claims, encyclopedia
from mmgrpo.tasks.hover.retrievers import BM25, ColBERT, Retriever

CUTOFF = 100  # passages that count for the score

NOTES = "Collect new notes from the passages that help to check the claim."
QUERY = "Write the next search query that helps to check the claim."


class Options(Settings):
    """How the program searches."""

    hops: int = Field(4, ge=1)  # searches of one run
    passages: int = Field(25, gt=0, le=100)  # of each search; 4 x 25 make the 100 of the metric, our reading
    passage_characters: int = Field(400, gt=0)  # shown to the modules of each passage; our choice
    colbert_url: str | None = None  # of a ColBERTv2 server over the abstracts, as in the paper; None: BM25 here
    abstracts_sha256: str | None = None  # of the abstracts' archive; nothing is fetched without it


class Search(dspy.Module):
    """Search with the claim; then, at every further hop, note what the passages say and search for what is missing."""

    def __init__(self, retriever: Retriever, options: Options):
        super().__init__()
        self.append_notes = dspy.ChainOfThought(
            dspy.Signature("claim, notes: list[str], passages: list[str] -> new_notes: list[str]", NOTES)
        )
        self.generate_query = dspy.ChainOfThought(dspy.Signature("claim, notes: list[str] -> query", QUERY))
        self.retriever = retriever
        self.options = options

    def forward(self, claim: str) -> dspy.Prediction:
        """All passages, first found first and each once; `queries` and `hops`, the passages, of each search."""
        notes: list[str] = []
        queries = [claim]
        hops = [self._search(claim)]
        while len(hops) < self.options.hops:
            shown = [passage[: self.options.passage_characters] for passage in hops[-1]]
            new_notes = self.append_notes(claim=claim, notes=notes, passages=shown).new_notes
            notes = [*notes, *new_notes]  # a new list: the calls before keep the notes that they were given
            queries.append(self.generate_query(claim=claim, notes=notes).query)
            hops.append(self._search(queries[-1]))
        passages = list(dict.fromkeys(passage for hop in hops for passage in hop))
        return dspy.Prediction(passages=passages, hops=hops, queries=queries)

    def _search(self, query: str) -> list[str]:
        return self.retriever.search(query, self.options.passages)


def judge(example: dspy.Example, prediction: dspy.Prediction, trace=None) -> Judgement:
    """Share of the gold titles among the first 100 passages.

    Details: the same after each hop, and of each query the words and the share of them that are names.
    """
    found = _titles(prediction.passages[:CUTOFF])
    missing = [title for title in example.titles if _normal(title) not in found]
    recall = _recall(example, prediction.passages[:CUTOFF])
    seen: list[str] = []
    details = {}
    for number, hop in enumerate(prediction.hops, start=1):
        seen += hop
        details[f"recall_hop_{number}"] = _recall(example, list(dict.fromkeys(seen))[:CUTOFF])
    for number, query in enumerate(prediction.get("queries", []), start=1):
        words = query.split()
        details[f"query_words_hop_{number}"] = float(len(words))
        details[f"query_names_hop_{number}"] = sum(word[0].isupper() for word in words) / max(1, len(words))
    if not missing:
        return Judgement(recall, "All documents of the claim were found.", details)
    feedback = (
        f"Missing: {'; '.join(missing)}. Notes should keep every name that leads there, "
        "and each query should ask for the next name."
    )
    return Judgement(recall, feedback, details)


def _recall(example: dspy.Example, passages: Iterable[str]) -> float:
    gold = {_normal(title) for title in example.titles}
    return len(gold & _titles(passages)) / len(gold)


def _titles(passages: Iterable[str]) -> set[str]:
    return {_normal(passage.split(" | ", 1)[0]) for passage in passages}


def _normal(title: str) -> str:
    """Claims and abstracts differ in HTML entities and in how they compose accents."""
    return " ".join(unicodedata.normalize("NFD", html.unescape(title)).casefold().split())


def oracle(example: dspy.Example) -> dspy.Prediction:
    """All gold documents, found at once."""
    return dspy.Prediction(passages=list(example.titles), hops=[list(example.titles)])


def task(options: Options) -> Task:
    @functools.cache
    def retriever(source: str) -> Retriever:
        if source == "embedded":
            return BM25.over(encyclopedia.build().passages)
        if options.colbert_url is not None:
            return ColBERT(options.colbert_url)
        return abstracts.retriever(options.abstracts_sha256)

    def claim_alone(splits: Splits) -> float:
        """Recall on the validation split of one search with the claim: what a run has before its first call."""
        search = retriever(splits.source).search
        return statistics.fmean(_recall(row, search(row.claim, options.passages)) for row in splits.valid)

    return Task(
        name="hover",
        title="HoVer",
        load=claims.load,
        program=lambda splits: Search(retriever(splits.source), options),
        judge=judge,
        oracle=oracle,
        chance=claim_alone,
        paper_sizes=(500, 500),
        citation="Jiang et al. 2020, HoVer: A Dataset for Many-Hop Fact Extraction And Claim Verification, arXiv 2011.03088",
        licence="CC-BY-SA-4.0 (real claims and abstracts), Apache-2.0 (embedded)",
        folder="hover",
        lacking=lambda source: (
            None if source == "embedded" or options.colbert_url else abstracts.lacking(options.abstracts_sha256)
        ),
    )
