"""What a notebook shows of programs, runs, groups, records and reports: pandas frames, HTML tables and figures.

Whatever comes from a model or from data is escaped, so that a reply stays text; no scripts.
"""

from mmgrpo.report.figures.style import shade
from mmgrpo.show.browsing import browser, browser_html
from mmgrpo.show.learning import changes, habits
from mmgrpo.show.programs import answers, lesson, metric, program, prompt, settings
from mmgrpo.show.protection import protect
from mmgrpo.show.quietness import LOUD, quiet
from mmgrpo.show.results import cells, losses, outcome, report
from mmgrpo.show.runs import groups, toy_run, trajectory
from mmgrpo.show.tasks import headroom, lengths, rows

__all__ = [
    "LOUD", "answers", "browser", "browser_html", "cells", "changes", "groups", "habits", "headroom", "lengths", "lesson",
    "losses", "metric", "outcome", "program", "prompt", "protect", "quiet", "report", "rows", "settings", "shade",
    "toy_run", "trajectory",
]  # fmt: skip
