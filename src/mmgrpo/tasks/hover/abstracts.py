"""The abstracts of the 5 million Wikipedia pages of 2017, as DSPy's tutorial publishes them, indexed once for BM25."""

from __future__ import annotations

import json
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from mmgrpo import paths
from mmgrpo.errors import UserError
from mmgrpo.tasks.hover.fetching import check_hash, fetch, sha256_of
from mmgrpo.tasks.hover.retrievers import BM25

ARCHIVE = "wiki.abstracts.2017.tar.gz"
MEMBER = "wiki.abstracts.2017.jsonl"  # a line a page: title, and text as a list of sentences
URL = f"https://huggingface.co/dspy/cache/resolve/main/{ARCHIVE}"


def retriever(sha256: str | None) -> BM25:
    """BM25 over the abstracts, indexed on first use.

    The archive is `hover/wiki.abstracts.2017.tar.gz` below `MMGRPO_DATA_DIR` where that is, or is fetched into the cache
    folder. Its `sha256` is checked where given, and must be given for fetching: its publisher states none that
    could be pinned here. Raises UserError where the archive can't be had or is damaged.
    """
    if sha256 is not None and _folder(sha256).is_dir():
        return BM25.load(_folder(sha256))
    archive = _archive(sha256)
    if sha256 is not None:
        check_hash(archive, sha256)
    folder = _folder(sha256 or sha256_of(archive))
    if not folder.is_dir():
        _build(archive, folder)
    return BM25.load(folder)


def passages(archive: Path) -> Iterator[str]:
    """The archive's pages, each as "title | text"; only its one member is read, nothing is unpacked."""
    number = 0
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for number, line in enumerate(tar.extractfile(MEMBER), start=1):
                page = json.loads(line)
                yield f"{page['title']} | {' '.join(page['text'])}"
    except (tarfile.TarError, EOFError, zlib.error, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{archive} can't be read after {number} lines of {MEMBER} ({type(error).__name__}: {error}): the file is cut "
            "short or another one; delete it and fetch it again."
        ) from None


def _archive(sha256: str | None) -> Path:
    local = paths.local_data()
    if local is not None and (local / "hover" / ARCHIVE).is_file():
        return local / "hover" / ARCHIVE
    cached = paths.cache() / ARCHIVE
    if cached.is_file() and sha256 is not None:
        return cached
    if sha256 is None:
        raise UserError(
            f"The Wikipedia abstracts are not at hand and have no pinned hash: put {URL} below MMGRPO_DATA_DIR as "
            f"hover/{ARCHIVE}, or set the task's option abstracts_sha256 to that file's SHA256, which its page on the hub shows."
        )
    print(
        f"Fetching {URL} (about 500 MB) and indexing 5 million pages: once, about 5 GB below {paths.cache()}, "
        "several minutes each, with several GB of memory.",
        flush=True,
    )
    return fetch(URL, cached, sha256)


def _folder(sha256: str) -> Path:
    return paths.cache() / f"wiki-abstracts-2017-bm25-{sha256[:12]}"


def _build(archive: Path, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / "index"
        made.mkdir()
        BM25.over(list(passages(archive)), progress=True).save(made)
        try:
            os.rename(made, folder)
        except OSError:
            if not folder.is_dir():  # another process was faster
                raise
