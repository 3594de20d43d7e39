"""What notebooks show of a task: its rows, how long its prompts are, and whether there is something to learn."""

from __future__ import annotations

from collections.abc import Sequence

import dspy
import pandas as pd
from IPython.display import HTML

from mmgrpo.headroom import Headroom
from mmgrpo.report import writers
from mmgrpo.show.markup import pre, table
from mmgrpo.trajectory import Trajectory


def rows(examples: Sequence[dspy.Example]) -> HTML:
    """Examples as they are, a column a field."""
    return table([{name: pre(_text(value)) for name, value in dict(example).items()} for example in examples])


def lengths(runs: Sequence[Trajectory]) -> pd.DataFrame:
    """For each module: calls, tokens of its prompts and completions, and the share of the replies that parsed."""
    calls = pd.DataFrame(
        {
            "module": call.module,
            "prompt": len(call.prompt_ids),
            "completion": len(call.completion_ids),
            "parsed": call.status == "ok",
        }
        for run in runs
        for call in run.calls
    )
    by_module = calls.groupby("module", sort=False)
    return pd.DataFrame(
        {
            "calls": by_module.size(),
            "prompt tokens, mean": by_module["prompt"].mean().round(),
            "prompt tokens, most": by_module["prompt"].max(),
            "completion tokens, mean": by_module["completion"].mean().round(),
            "parsed, %": (100 * by_module["parsed"].mean()).round(1),
        }
    )


def headroom(measured: Sequence[Headroom]) -> pd.DataFrame:
    """A row a task, scores in points of 100."""
    lines = [
        {
            "task": each.task,
            "examples": each.examples,
            "chance": writers.number(100 * each.chance),
            "vanilla ± standard error": writers.spread(100 * each.vanilla, 100 * each.standard_error),
            "oracle": writers.number(100 * each.oracle),
            "parsed, %": ", ".join(f"{module} {100 * share:.0f}" for module, share in each.parsed.items()),
            "inputs whose runs differ in reward, %": round(100 * each.informative),
        }
        for each in measured
    ]
    return pd.DataFrame(lines).set_index("task")


def _text(value: object) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
