"""Runs one cell's notebook with papermill: `python -m mmgrpo.notebook_run '{"notebook": …}'`, a process of its own.

Imports nothing heavy: the notebook's kernel does. Ends when the process that started it is gone.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from pathlib import Path

from mmgrpo.errors import UserError

ERROR = "error.txt"  # in the cell's folder where it failed: the reason, then all that is known of it


def run(notebook: Path, folder: Path, parameters: dict[str, object]) -> None:
    """One papermill run; the executed notebook stays in `folder`, whole or partial, with `error.txt` where it failed."""
    error_file = folder / ERROR
    error_file.unlink(missing_ok=True)
    try:
        _refuse_without_parameters(notebook)
        _execute(notebook, folder / "notebook.ipynb", parameters)
    except BaseException as error:
        error_file.write_text(f"{_reason(error)}\n\n{traceback.format_exc()}", encoding="utf-8")
        raise


def _execute(notebook: Path, executed: Path, parameters: dict[str, object]) -> None:
    import papermill

    papermill.execute_notebook(
        notebook, executed, parameters=parameters, kernel_name="python3", progress_bar=False, cwd=str(notebook.parent)
    )


def _refuse_without_parameters(notebook: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    if not any("parameters" in cell["metadata"].get("tags", []) for cell in cells):
        raise UserError(
            f"{notebook.name} has no cell tagged `parameters`: tag the one that sets profile, task, model and seed."
        )


def _reason(error: BaseException) -> str:
    """The last line of what went wrong in the notebook, or outside of it."""
    said = (getattr(error, "evalue", "") or str(error)).strip()
    return said.splitlines()[-1] if said else type(error).__name__


def end_with_parent() -> None:
    """End this process when its stdin is closed, which the kernel does when whoever started it is gone.

    The notebook's own kernel watches this process and ends within a second.
    """

    def watch() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    end_with_parent()
    given = json.loads(sys.argv[1])
    try:
        run(Path(given["notebook"]), Path(given["folder"]), given["parameters"])
    except Exception:
        sys.exit(1)
