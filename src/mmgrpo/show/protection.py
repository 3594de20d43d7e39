"""Private text stays out of notebooks, whose outputs are files that people pass on."""

from __future__ import annotations

from typing import Any

from IPython import get_ipython

from mmgrpo import privacy
from mmgrpo.study import Study


def protect(ready: Study) -> None:
    """Black out the private parts of the task's rows in all that this notebook displays from now on.

    Does nothing for a task without private parts. To see them, run the notebook without this line. What `print` writes is
    not looked at.
    """
    units = ready.task.private_units(ready.splits)
    shell = get_ipython()
    if not units or shell is None:
        return
    whole = shell.display_formatter.format

    def without_private_parts(shown: Any, *arguments: Any, **options: Any) -> tuple[dict, dict]:
        formats, metadata = whole(shown, *arguments, **options)
        return {
            kind: _text_of(kind, content, units) if isinstance(content, str) else content
            for kind, content in formats.items()
        }, metadata

    def redacted(kind: type, error: BaseException, lines: list[str]) -> None:
        show_lines(kind, RuntimeError(privacy.redact(units, str(error), privacy.BLACK)), [
            privacy.redact(units, line, privacy.BLACK) for line in lines
        ])  # fmt: skip

    show_lines = shell._showtraceback
    shell.display_formatter.format = without_private_parts
    shell._showtraceback = redacted


def _text_of(kind: str, content: str, units: frozenset[str]) -> str:
    if kind == "text/html":
        return privacy.black_out(units, content)
    return privacy.redact(units, content, privacy.BLACK) if kind.startswith("text/") else content
