"""A table as Markdown and LaTeX for people, and as CSV for programs.

The LaTeX needs the packages `booktabs` and `adjustbox` (which narrows a table that is wider than the page).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pandas as pd

from mmgrpo.report import names

LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$", "–": "--", "×": r"$\times$",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Table:
    """One table, ready to write."""

    name: str  # of its files
    title: str
    caption: str
    shown: pd.DataFrame  # of text, as printed; columns of one level or, for Table 1, three
    numbers: pd.DataFrame  # the same content, tidy and unrounded, for the CSV
    smoke: bool


def write(table: Table, folder: Path) -> list[Path]:
    """Write `table` below `folder` as .md, .tex and .csv; the names and contents of a smoke run's files say so."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = table.numbers
    if table.smoke:
        numbers = numbers.assign(stamp=names.SMOKE_STAMP)
    contents = {
        "md": markdown(table),
        "tex": latex(table),
        "csv": numbers.to_csv(index=False, lineterminator="\n", float_format="%.6g"),
    }
    files = []
    for suffix, content in contents.items():
        file = folder / f"{names.file_stem(table.name, table.smoke)}.{suffix}"
        file.write_text(content, encoding="utf-8")
        files.append(file)
    return files


def markdown(table: Table) -> str:
    """`table` as a Markdown section: heading, caption, rows."""
    return "\n".join([f"## {_title(table)}", "", _caption(table), "", *markdown_rows(table.shown), ""])


def markdown_rows(shown: pd.DataFrame) -> list[str]:
    """The lines of a table alone: heads, rule, rows."""
    heads = [", ".join(filter(None, levels)) for levels in _levels(shown)]
    rows = [heads, ["---"] * len(heads), *shown.to_numpy().tolist()]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]


def latex(table: Table) -> str:
    """`table` as a LaTeX float with booktabs rules, a tabular for each top head; first column left, others centred."""
    lines = [
        r"% needs \usepackage{booktabs,adjustbox}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escape(_title(table))}. {_escape(_caption(table))}}}",
        rf"\label{{tab:{names.file_stem(table.name, table.smoke)}}}",
        "\n\n\\medskip\n".join(_tabular(panel) for panel in _panels(table.shown)),
        r"\end{table}",
    ]
    return "\n".join([*lines, ""])


def number(value: float, digits: int = 1, *, sign: bool = False) -> str:
    """`value` rounded, with a real minus; "–" where it is missing."""
    if value is None or math.isnan(value):
        return names.MISSING
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if float(text) == 0:  # neither -0.0 nor +0.0
        text = f"{0:.{digits}f}"
    return text.replace("-", "−")


def spread(mean: float, sd: float) -> str:
    """`mean ± sd`; the mean alone where there is no deviation."""
    return number(mean) if math.isnan(mean) or math.isnan(sd) else f"{number(mean)} ± {number(sd)}"


def bounds(low: float, high: float, *, sign: bool = False) -> str:
    """`[low, high]`; "–" where there is no interval."""
    if math.isnan(low) or math.isnan(high):
        return names.MISSING
    return f"[{number(low, sign=sign)}, {number(high, sign=sign)}]"


def estimate(value: float, low: float, high: float, *, sign: bool = False) -> str:
    """`value [low, high]`; the value alone where it has no interval."""
    text = number(value, sign=sign)
    return text if math.isnan(low) or math.isnan(high) else f"{text} {bounds(low, high, sign=sign)}"


def count(amount: float) -> str:
    """A whole number; "–" where there is nothing to count."""
    return str(int(amount)) if amount > 0 else names.MISSING


def _levels(shown: pd.DataFrame) -> list[tuple[str, ...]]:
    return [column if isinstance(column, tuple) else (column,) for column in shown.columns]


def _title(table: Table) -> str:
    return f"{table.title} ({names.SMOKE_STAMP})" if table.smoke else table.title


def _caption(table: Table) -> str:
    return f"{names.SMOKE_STAMP}. {table.caption}" if table.smoke else table.caption


def _panels(shown: pd.DataFrame) -> list[pd.DataFrame]:
    """The first column with the columns of each top head, as all of them beside each other don't fit a page."""
    first, *others = shown.columns
    if not isinstance(first, tuple):
        return [shown]
    return [shown[[first, *members]] for _, members in groupby(others, key=lambda column: column[0])]


def _tabular(shown: pd.DataFrame) -> str:
    levels = _levels(shown)
    lines = [
        r"\begin{adjustbox}{max width=\textwidth}",
        rf"\begin{{tabular}}{{{'l' + 'c' * (len(levels) - 1)}}}",
        r"\toprule",
        *_latex_heads(levels),
        r"\midrule",
        *(_latex_row(row) for row in shown.to_numpy().tolist()),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{adjustbox}",
    ]
    return "\n".join(lines)


def _latex_heads(levels: list[tuple[str, ...]]) -> list[str]:
    """Header rows; columns with the same upper heads share them, over a rule of their own."""
    lines = []
    for depth in range(1, len(levels[0])):
        row, rules, start = [], [], 1
        for heads, members in groupby(levels, key=lambda level: level[:depth]):
            width = len(list(members))
            row.append(rf"\multicolumn{{{width}}}{{c}}{{{_escape(heads[-1])}}}" if heads[-1] else "")
            rules += [rf"\cmidrule(lr){{{start}-{start + width - 1}}}"] if heads[-1] else []
            start += width
        lines += [" & ".join(row) + r" \\", " ".join(rules)]
    return [*lines, _latex_row([level[-1] for level in levels])]


def _latex_row(row: list[str]) -> str:
    return " & ".join(_escape(cell) for cell in row) + r" \\"


def _escape(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)
