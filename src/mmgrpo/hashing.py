"""SHA256 of files and values: the check of a download against its pin, names by content, and seeds."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from mmgrpo.errors import UserError


def sha256_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def seed_of(*parts: object) -> int:
    """A 63-bit seed that depends on all parts, the same in every process."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def text_of(value: Any) -> str:
    """A value as JSON that is the same in every process: sets sorted, arrays and pydantic models spelt out.

    Raises UserError for objects whose only text is their place in memory, and for dictionaries that JSON can't have.
    """
    try:
        return json.dumps(value, sort_keys=True, default=_plain, ensure_ascii=False)
    except TypeError as error:
        raise UserError(
            f"An example or a program's state can't be named by its content ({error}): give it plain values."
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value, key=text_of)
    if isinstance(value, type):
        return str(value)
    for method in ("model_dump", "tolist"):  # of pydantic, of numpy and torch
        if hasattr(value, method):
            return getattr(value, method)()
    if " at 0x" in (text := str(value)):
        raise TypeError(f"the text of a {type(value).__name__} is its place in memory")
    return text


def check_hash(file: Path, expected: str, remedy: str) -> None:
    """Raise UserError unless `file` has the sha256 `expected`; `remedy` says what to do then."""
    found = sha256_of(file)
    if found != expected:
        raise UserError(
            f"{file.name} has sha256 {found}, expected {expected}: the file is damaged or not the pinned one; {remedy}."
        )
