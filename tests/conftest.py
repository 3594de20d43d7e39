"""Fixtures of the tests that train."""

import gc
import tempfile

import pytest


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
