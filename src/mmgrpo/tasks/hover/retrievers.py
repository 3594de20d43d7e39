"""Retrievers: the best passages for a query, each as "title | text". Safe to call from many threads."""

from __future__ import annotations

import mmap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import dspy
import numpy as np
import requests

from mmgrpo.errors import UserError

K1, B = 0.9, 0.4  # as in DSPy's public tutorial
ATTEMPTS = 3  # for a server that does not answer
PAUSE = 2.0  # seconds before the next attempt, doubled each time


class Retriever(Protocol):
    def search(self, query: str, k: int) -> list[str]:
        """At most `k` passages, the best first."""


class BM25:
    """BM25 (Lucene's form) over English stems, stop words left out. Ties stand in the order of the passages."""

    def __init__(self, index, passages: Sequence[str]):
        self._index = index
        self._passages = passages

    def __deepcopy__(self, memo: dict) -> BM25:
        return self  # read only, and too large to copy with every copy of a program

    @classmethod
    def over(cls, passages: Sequence[str], *, progress: bool = False) -> BM25:
        """Index `passages` in memory."""
        import bm25s

        index = bm25s.BM25(k1=K1, b=B)
        index.index(_tokenize(passages, progress=progress), show_progress=progress)
        return cls(index, passages)

    def save(self, folder: Path) -> None:
        self._index.save(folder, show_progress=False)
        StoredPassages.write(self._passages, folder)

    @classmethod
    def load(cls, folder: Path) -> BM25:
        """A saved index, mapped into memory rather than read."""
        import bm25s

        return cls(bm25s.BM25.load(folder, mmap=True, show_progress=False), StoredPassages(folder))

    def search(self, query: str, k: int) -> list[str]:
        """At most `k` passages; fewer where fewer share a word with the query."""
        (tokens,) = _tokenize([query], return_ids=False)
        if not tokens:
            return []
        scores = self._index.get_scores(tokens)
        k = min(k, len(scores))
        least = np.partition(scores, -k)[-k]
        found = np.flatnonzero((scores >= least) & (scores > 0))
        best = found[np.argsort(-scores[found], kind="stable")][:k]
        return [self._passages[place] for place in best.tolist()]


def _tokenize(texts: Sequence[str], *, progress: bool = False, return_ids: bool = True):
    import bm25s
    import Stemmer

    stemmer = Stemmer.Stemmer("english")  # one a call: it keeps a cache that threads can't share
    return bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, return_ids=return_ids, show_progress=progress)


class StoredPassages(Sequence[str]):
    """Passages in one file and the places where each begins, both mapped into memory."""

    TEXT, STARTS = "passages.txt", "starts.npy"

    def __init__(self, folder: Path):
        self._starts = np.lib.format.open_memmap(folder / self.STARTS, mode="r")
        with (folder / self.TEXT).open("rb") as file:
            self._text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    @classmethod
    def write(cls, passages: Sequence[str], folder: Path) -> None:
        starts = np.zeros(len(passages) + 1, dtype=np.int64)
        with (folder / cls.TEXT).open("wb") as file:
            for place, passage in enumerate(passages):
                starts[place + 1] = starts[place] + file.write(passage.encode())
        np.save(folder / cls.STARTS, starts)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, place: int) -> str:
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self._text[self._starts[place] : self._starts[place + 1]].decode()


class ColBERT:
    """A ColBERTv2 server, by the HTTP interface of `dspy.ColBERTv2`, which gives at most 100 passages."""

    def __init__(self, url: str):
        self.url = url
        self._server = dspy.ColBERTv2(url=url)

    def search(self, query: str, k: int) -> list[str]:
        """At most `k` passages; raises UserError where the server doesn't answer, or answers something else."""
        for attempt in range(ATTEMPTS):
            try:
                return [passage["long_text"] for passage in self._server(query, k)]
            except (requests.ConnectionError, requests.Timeout) as error:
                reason = type(error).__name__
                if attempt + 1 < ATTEMPTS:
                    time.sleep(PAUSE * 2**attempt)
            except (requests.RequestException, ValueError, KeyError) as error:
                raise UserError(
                    f"The ColBERTv2 server at {self.url} gave no passages ({error}): check the option colbert_url."
                ) from None
        raise UserError(
            f"The ColBERTv2 server at {self.url} did not answer {ATTEMPTS} times in a row ({reason}): start it, correct "
            "the option colbert_url, or leave that out to search with BM25."
        )
