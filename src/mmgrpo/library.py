"""Which library made a result: a hash of its files, data and adapter."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from mmgrpo import paths

AROUND = (  # what no number of a record depends on
    "__main__", "bench", "changes", "cluster", "delegating", "grid", "headroom", "lessons", "local", "lock", "machine", "notebook_run",
    "plan", "posttraining", "progress", "report", "show",
)  # fmt: skip


@cache
def library_hash() -> str:
    """Hash of the library's files, its embedded data and adapter."""
    digest = hashlib.sha256()
    package = Path(__file__).parent
    files = [f for f in package.glob("**/*.py") if f.relative_to(package).parts[0].removesuffix(".py") not in AROUND]
    data = [f for kind in ("csv", "json", "yaml", "safetensors") for f in paths.DATA.glob(f"*/**/*.{kind}")]
    files += [f for f in data if paths.EVIDENCE not in f.parents]  # runs don't depend on what earlier ones measured
    for file in sorted(files):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]
