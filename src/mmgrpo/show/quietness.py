"""Silence for notebooks."""

from __future__ import annotations

import logging
import warnings

LOUD = ("dspy", "transformers", "datasets", "peft", "trl", "accelerate", "httpx", "papermill", "optuna")


def quiet() -> None:
    """Keep warnings and progress bars of the libraries below us out of the cells; errors still show."""
    for name in LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
