"""Fixtures of the tests that train, and of those that must see no real data and no key."""

import gc
import tempfile

import dspy
import pytest
from dspy.clients.cache import Cache


@pytest.fixture(scope="module")
def nothing_but_training():
    """Leave out what takes a third of a tiny run: model cards, and searching all libraries for garbage."""
    from peft import PeftModel
    from trl import GRPOTrainer

    gc.collect()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GRPOTrainer, "create_model_card", lambda *args, **kwargs: None)
        patch.setattr(PeftModel, "create_or_update_model_card", lambda *args, **kwargs: None)
        yield
    gc.unfreeze()


@pytest.fixture
def temporary_folders_go(tmp_path_factory, monkeypatch):
    """Runs without a folder of their own make one where pytest cleans up."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("runs")))


@pytest.fixture
def embedded_rows_and_no_api(monkeypatch):
    """Neither a folder of real data nor a key, and no reply kept from another test."""
    monkeypatch.delenv("MMGRPO_DATA_DIR", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(dspy, "cache", Cache(enable_disk_cache=False, enable_memory_cache=True, disk_cache_dir=""))
