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
from mmgrpo.hashing import check_hash, sha256_of
from mmgrpo.tasks.hover.fetching import fetch
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
        check_hash(archive, sha256, f"delete {archive} and run the same command again")
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


def lacking(sha256: str | None) -> str | None:
    """Why the abstracts can't be had, in a sentence; None where they can."""
    if sha256 is not None or _local() is not None:
        return None
    return (
        f"The Wikipedia abstracts are not at hand and have no pinned hash: put {URL} below MMGRPO_DATA_DIR as "
        f"hover/{ARCHIVE}, or set the task's option abstracts_sha256 to that file's SHA256, which its page on the hub shows."
    )


def _local() -> Path | None:
    folder = paths.local_data()
    return folder / "hover" / ARCHIVE if folder is not None and (folder / "hover" / ARCHIVE).is_file() else None


def _archive(sha256: str | None) -> Path:
    reason = lacking(sha256)
    if reason is not None:
        raise UserError(reason)
    cached = paths.cache() / ARCHIVE
    if _local() is not None or cached.is_file():
        return _local() or cached
    print(f"Fetching {URL} (about 500 MB, several minutes).", flush=True)
    return fetch(URL, cached, sha256)


def _folder(sha256: str) -> Path:
    return paths.cache() / f"wiki-abstracts-2017-bm25-{sha256[:12]}"


def _build(archive: Path, folder: Path) -> None:
    print(
        f"Indexing 5 million pages: once, several minutes with several GB of memory, about 5 GB below {folder.parent}.",
        flush=True,
    )
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
