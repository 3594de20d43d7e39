"""SHA256 of files, and the check of a download against its pin."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mmgrpo.errors import UserError


def sha256_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_hash(file: Path, expected: str, remedy: str) -> None:
    """Raise UserError unless `file` has the sha256 `expected`; `remedy` says what to do then."""
    found = sha256_of(file)
    if found != expected:
        raise UserError(
            f"{file.name} has sha256 {found}, expected {expected}: the file is damaged or not the pinned one; {remedy}."
        )
