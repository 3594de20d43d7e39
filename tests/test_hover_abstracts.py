"""The Wikipedia abstracts: fetched only with a hash, indexed once, and a sentence for a damaged archive."""

import hashlib
import io
import json
import tarfile

import pytest

from mmgrpo.errors import UserError
from mmgrpo.tasks.hover import abstracts

PAGES = [("Tower", ["A tower of stone.", "It is tall."]), ("Ulm", ["A town on a river."]), ("Köln", ["A city."])]


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.delenv("MMGRPO_DATA_DIR", raising=False)
    monkeypatch.setenv("MMGRPO_CACHE_DIR", str(tmp_path / "cache"))


def packed(file, content, name=abstracts.MEMBER):
    """An archive of one member; returns its sha256."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w:gz") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return hashlib.sha256(file.read_bytes()).hexdigest()


def lines(pages=PAGES):
    return "".join(json.dumps({"id": 1, "title": title, "text": text}) + "\n" for title, text in pages).encode()


@pytest.fixture
def local(tmp_path, monkeypatch):
    monkeypatch.setenv("MMGRPO_DATA_DIR", str(tmp_path))
    return tmp_path / "hover" / abstracts.ARCHIVE


def test_pages_are_title_and_text(local):
    packed(local, lines())
    assert list(abstracts.passages(local)) == [
        "Tower | A tower of stone. It is tall.", "Ulm | A town on a river.", "Köln | A city."
    ]  # fmt: skip


def test_local_archive_is_indexed_once(local, monkeypatch):
    packed(local, lines())
    assert abstracts.retriever(None).search("city of Köln", 1) == ["Köln | A city."]
    monkeypatch.setattr(abstracts, "_build", None)
    assert abstracts.retriever(None).search("tower", 5) == ["Tower | A tower of stone. It is tall."]


def test_other_archive_gets_another_index(local):
    packed(local, lines())
    abstracts.retriever(None)
    packed(local, lines([("Only", ["A tower too."])]))
    assert abstracts.retriever(None).search("tower", 5) == ["Only | A tower too."]


def test_nothing_is_fetched_without_a_hash(monkeypatch):
    monkeypatch.setattr(abstracts, "fetch", None)
    with pytest.raises(UserError, match="no pinned hash: put https.* or set the task's option abstracts_sha256"):
        abstracts.retriever(None)


def test_archive_is_fetched_with_its_hash_after_a_word_on_size_and_time(monkeypatch, tmp_path, capsys):
    published = tmp_path / "published" / abstracts.ARCHIVE
    sha256 = packed(published, lines())
    monkeypatch.setattr(abstracts, "URL", published.as_uri())
    assert abstracts.retriever(sha256).search("river town", 1) == ["Ulm | A town on a river."]
    assert "500 MB" in capsys.readouterr().out
    published.unlink()
    (tmp_path / "cache" / abstracts.ARCHIVE).unlink()
    assert len(abstracts.retriever(sha256).search("tower", 1)) == 1  # the index is all that is needed
    assert capsys.readouterr().out == ""


def test_other_file_than_the_pinned_one_is_refused_and_not_kept(monkeypatch, tmp_path):
    published = tmp_path / "published" / abstracts.ARCHIVE
    packed(published, lines())
    monkeypatch.setattr(abstracts, "URL", published.as_uri())
    with pytest.raises(UserError, match=f"expected {'0' * 64}: the file is damaged or not the pinned one"):
        abstracts.retriever("0" * 64)
    assert list((tmp_path / "cache").iterdir()) == []


def test_network_failure_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(abstracts, "URL", (tmp_path / "nowhere").as_uri())
    with pytest.raises(UserError, match="could not be fetched .*check the network and run the same command again"):
        abstracts.retriever("0" * 64)


def test_archive_cut_short_is_one_sentence_and_leaves_no_index(local, tmp_path):
    packed(local, lines([(f"Page {n}", [hashlib.sha256(b"%d" % n).hexdigest()]) for n in range(5000)]))
    local.write_bytes(local.read_bytes()[:100_000])
    with pytest.raises(UserError, match=r"can't be read after \d+ lines .*cut short or another one; delete it"):
        abstracts.retriever(None)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    "content", [lines()[:-20], b'{"title": "No text"}\n', b"[1]\n", b'{"title": "T", "text": [1]}\n']
)
def test_damaged_line_is_one_sentence(local, content):
    packed(local, content)
    with pytest.raises(UserError, match=r"can't be read after \d lines"):
        abstracts.retriever(None)


def test_archive_can_write_nowhere(local, tmp_path):
    packed(local, b"harm", name="../../escaped.txt")
    with pytest.raises(UserError, match="can't be read after 0 lines"):
        abstracts.retriever(None)
    assert not list(tmp_path.rglob("escaped.txt")) and not (tmp_path.parent / "escaped.txt").exists()
