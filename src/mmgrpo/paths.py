"""Where things lie. Every other file asks here; none joins such a path by itself."""

from __future__ import annotations

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
NOTEBOOKS = PROJECT / "notebooks"
DATA = PROJECT / "data"
EVIDENCE = DATA / "evidence"  # records of our own runs: SOURCE/PROFILE/TASK/MODEL/STRATEGY/seed-N/record.json
PROFILES = Path(__file__).resolve().parent / "profiles"
POSTTRAINED_ADAPTER = DATA / "posttraining" / "adapter"


def cache() -> Path:
    """Folder for models and downloads; `MMGRPO_CACHE_DIR` moves it."""
    return _folder("MMGRPO_CACHE_DIR", "~/.cache/mmgrpo")


def results() -> Path:
    """Folder for records, checkpoints and executed notebooks; `MMGRPO_RESULTS_DIR` moves it."""
    return _folder("MMGRPO_RESULTS_DIR", "results")


def figures() -> Path:
    """Folder for tables and figures; `MMGRPO_FIGURES_DIR` moves it."""
    return _folder("MMGRPO_FIGURES_DIR", "figures")


def committed_figures() -> Path:
    """Folder for tables and figures of the committed records; git keeps it."""
    return figures() / "committed"


def readme() -> Path | None:
    """The page that links to `committed_figures`, or None where figures go elsewhere than into the project."""
    return PROJECT / "README.md" if figures() == PROJECT / "figures" else None


def servers() -> list[str]:
    """Addresses of vLLM servers to sample with, from `MMGRPO_VLLM_SERVERS` ("http://one:8000,http://two:8000")."""
    return [address.strip() for address in os.environ.get("MMGRPO_VLLM_SERVERS", "").split(",") if address.strip()]


def local_data() -> Path | None:
    """Folder with the tasks' public files (`MMGRPO_DATA_DIR`), or None where it isn't set."""
    return _folder("MMGRPO_DATA_DIR") if os.environ.get("MMGRPO_DATA_DIR") else None


def _folder(variable: str, default: str = "") -> Path:
    """The folder that a variable names. Relative to the project: notebooks run elsewhere than `make` does."""
    return (PROJECT / Path(os.environ.get(variable) or default).expanduser()).resolve()
