"""What runs left: records, cells, losses and the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure

from mmgrpo import study as studies
from mmgrpo.cells import Cell, fingerprints
from mmgrpo.records import Record
from mmgrpo.report import frames, names, writers
from mmgrpo.report.figures import style
from mmgrpo.report.writers import Table


def outcome(record: Record) -> pd.DataFrame:
    """Test score ± standard error over examples in points of 100, interrupted runs, seconds by stage and tokens."""
    scores = 100 * frames.examples([record])["score"]
    error = scores.sem() if scores.nunique() > 1 else float("nan")
    row = {
        "test score ± standard error": f"{writers.number(scores.mean())} ± {writers.number(error)}",
        "test examples": len(scores),
        "interrupted runs": sum(score.outcome == "interrupted" for score in record.scores),
        **{f"{stage}, s": round(seconds, 1) for stage, seconds in record.seconds.items()},
        **{f"{kind} tokens": record.tokens[kind] for kind in ("prompt", "completion") if kind in record.tokens},
    }
    stamp = f" ({names.SMOKE_STAMP})" if record.smoke else ""
    return pd.DataFrame([row], index=[names.strategy(record.strategy) + stamp])


def cells(listed: Sequence[Cell]) -> pd.DataFrame:
    """A row a cell of the grid: what it is, the notebook that runs it, and its test score once it has a record."""
    rows = []
    for cell, fingerprint in fingerprints(listed).items():
        record = studies.finished(cell, fingerprint)
        row = {
            "task": cell.task,
            "model": cell.model,
            "strategy": cell.strategy,
            "seed": cell.seed,
            "notebook": cell.notebook.name,
        }
        rows.append(row | {"test score": names.MISSING if record is None else writers.number(record.mean)})
    return pd.DataFrame(rows)


def losses(log: Sequence[dict[str, Any]]) -> HTML | Figure:
    """The loss curve of a trainer's log, or a sentence where it has no losses."""
    entries = [(float(entry["step"]), float(entry["loss"])) for entry in log if "loss" in entry]
    if not entries:
        return HTML("<p>No log of a training yet.</p>")
    with matplotlib.rc_context(style.STYLE):
        figure, axis = plt.subplots(figsize=(style.NARROWEST, style.INCHES[1]), layout="constrained")
        plt.close(figure)  # pyplot forgets it; it can still be shown
        axis.plot(*zip(*entries, strict=True), color=style.OTHER_COLOUR)
        axis.set_xlabel("Update")
        axis.set_ylabel("Loss of the replies")
    return figure


def report(
    make: Callable[[Sequence[Record]], Table | Figure | None], found: Sequence[Record]
) -> HTML | Markdown | Figure:
    """A table or figure of the report, or a sentence where the records have nothing for it."""
    if not found:
        return HTML("<p>No records of this profile yet: run <code>make reproduce PROFILE=…</code>, or notebook 06.</p>")
    made = make(found)
    if made is None:
        return HTML("<p>None of these records has what this shows.</p>")
    return made if isinstance(made, Figure) else Markdown(writers.markdown(made))
