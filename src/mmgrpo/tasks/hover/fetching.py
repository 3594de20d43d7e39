"""Download one file, checked against its hash: whole in its place, or not there at all."""

from __future__ import annotations

import http.client
import shutil
import tempfile
import urllib.request
from pathlib import Path

from tqdm.auto import tqdm

from mmgrpo.errors import UserError
from mmgrpo.hashing import check_hash

TIMEOUT = 60  # seconds without a byte


def fetch(url: str, target: Path, sha256: str) -> Path:
    """Download `url` to `target` with a progress bar; raises UserError where that fails or the hash differs."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        part = Path(scratch) / target.name
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as source, part.open("wb") as sink:
                size = int(source.headers.get("Content-Length") or 0) or None
                bar = {"total": size, "desc": target.name, "unit": "B", "unit_scale": True, "leave": False}
                with tqdm.wrapattr(sink, "write", **bar) as counted:
                    shutil.copyfileobj(source, counted)
        except (OSError, http.client.HTTPException) as error:
            raise UserError(
                f"{url} could not be fetched ({error}): check the network and run the same command again."
            ) from None
        check_hash(part, sha256, "run the same command again")
        part.replace(target)
    return target
