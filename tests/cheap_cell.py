"""A cell's process without a model: sleeps, then writes the record that its cell always has, or fails as it is told."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from record_factory import record

from mmgrpo import records
from mmgrpo.notebook_run import ERROR, end_with_parent

if TYPE_CHECKING:  # it imports torch, which such a process does without
    from mmgrpo.cells import Cell


def command(cell: Cell, *, seconds: float = 0.0, how: str = "") -> list[str]:
    """What a place runs instead of the cell's notebook."""
    given = {
        "fields": {name: getattr(cell, name) for name in ("profile", "task", "model", "strategy", "seed")},
        "file": str(cell.record), "fingerprint": cell.fingerprint(), "seconds": seconds, "how": how,
    }  # fmt: skip
    return [sys.executable, __file__, json.dumps(given)]


def main() -> None:
    end_with_parent()
    given = json.loads(sys.argv[1])
    file = Path(given["file"])
    with (file.parent / "starts.txt").open("a", encoding="utf-8") as starts:
        starts.write(f"{os.environ.get('OMP_NUM_THREADS')}\n")
    time.sleep(given["seconds"])
    if given["how"] == "fails":
        (file.parent / ERROR).write_text("ValueError: no luck\n\nand a traceback", encoding="utf-8")
        sys.exit(1)
    if given["how"] == "dies":
        os.kill(os.getpid(), 9)
    if given["how"] != "writes nothing":
        seed = given["fields"]["seed"]
        made = record([seed % 2, 1.0], notes={"cell": given["fingerprint"]}, **given["fields"])
        records.write(made, file)


if __name__ == "__main__":
    main()
