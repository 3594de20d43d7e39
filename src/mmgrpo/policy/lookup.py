"""Guesses at the next tokens of a text, looked up in what was read and written so far.

Programs copy: names of fields, labels, passages and queries of a prompt come back in replies. A decode pass reads all
weights whether it carries one token of a row or five, so that a guess costs little, and one that the sampler then
chooses itself saves a pass (prompt lookup decoding; Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

MOST = 12  # tokens of a guess


class Lookup:
    """Guesses that what followed the last two tokens when they came together before follows again."""

    def __init__(self, ids: Sequence[int]):
        self._ids = list(ids)
        self._after = {pair: place for place, pair in enumerate(pairwise(ids[:-1]), start=2)}  # the latest place stays
        self._reach = 2  # tokens to guess: more as guesses come true
        self._guessed = 0
        self._length = len(self._ids)  # at the last guess

    def add(self, token: int) -> None:
        """The text goes on with `token`."""
        self._after[tuple(self._ids[-2:])] = len(self._ids)
        self._ids.append(token)

    def guess(self, most: int) -> list[int]:
        """Up to `most` next tokens; fewer, or none, where earlier guesses failed or nothing was found."""
        if self._guessed:
            right = len(self._ids) - self._length - 1  # the first token after a guess that failed was the sampler's own
            self._reach = min(2 * self._reach, MOST) if right >= self._guessed else max(1, right)
        place = self._after.get(tuple(self._ids[-2:]), len(self._ids))
        found = self._ids[place : place + self._reach]
        # A text that repeats itself is found shortly before its end: it then goes round.
        guess = [found[i % len(found)] for i in range(min(most, self._reach))] if found else []
        self._guessed, self._length = len(guess), len(self._ids)
        return guess
