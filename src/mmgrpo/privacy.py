"""Finding private text, and taking it out of what people are shown."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache

CJK = "\u2e80-\u9fff"  # written without spaces: each character counts as a word
BLACK = "█████"

_TAG = re.compile(r"(<[^>]*>)")


def leaked(units: Sequence[str], text: str) -> list[str]:
    """The units that stand in a text, whatever its case, accents, spacing and punctuation."""
    decomposed = unicodedata.normalize("NFKD", text)
    return [unit for unit in units if _pattern(unit).search(decomposed)]


def redact(units: Iterable[str], text: str, mark: str = "[REDACTED]") -> str:
    """The text with each unit replaced; `leaked` then finds none."""
    text = unicodedata.normalize("NFKD", text)
    for unit in sorted(units, key=len, reverse=True):  # a name before its parts
        text = _pattern(unit).sub(mark, text)
    return unicodedata.normalize("NFKC", text)


def black_out(units: Iterable[str], markup: str) -> str:
    """HTML or plain text with the units blacked out; tags stay as they are."""
    parts = _TAG.split(markup)
    shown = [
        part if _TAG.fullmatch(part) else html.escape(redact(units, html.unescape(part), BLACK), quote=False)
        for part in parts
    ]
    return "".join(shown)


@lru_cache(maxsize=4096)
def _pattern(unit: str) -> re.Pattern[str]:
    """Finds the letters and digits of a unit in order, with anything but letters and digits between them."""
    letters = [char for char in unicodedata.normalize("NFKD", unit) if char.isalnum()]
    if not letters:
        return re.compile("(?!)")  # punctuation alone is nothing to find
    before = "" if re.match(f"[{CJK}]", letters[0]) else r"(?<![^\W_])"
    after = "" if re.match(f"[{CJK}]", letters[-1]) else r"[\u0300-\u036f]*(?![^\W_])"
    return re.compile(before + r"[\W_]*".join(map(re.escape, letters)) + after, re.IGNORECASE)
