"""HTML of text that may come from a model: whatever is not `Markup` is escaped on its way in; no scripts."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import dspy
from IPython.display import HTML

from mmgrpo.report import writers
from mmgrpo.report.figures.style import shade

PRE = '<pre style="white-space: pre-wrap; text-align: left; margin: 0">'


class Markup(str):
    """Text that is HTML already. All other text is escaped on its way into a table."""


def table(rows: Sequence[dict[str, Any]], title: str = "") -> HTML:
    heads = "".join(f"<th>{html.escape(head)}</th>" for head in (rows[0] if rows else ()))
    lines = [[v if isinstance(v, Markup) else html.escape(str(v)) for v in row.values()] for row in rows]
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>" for line in lines)
    above = f"<p>{html.escape(title)}</p>" if title else ""
    return HTML(f"{above}<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>")


def pre(text: str) -> Markup:
    return Markup(f"{PRE}{html.escape(text)}</pre>")


def folded(title: str, text: str) -> Markup:
    return unfolding(title, pre(text))


def fields(example: dspy.Example) -> Markup:
    """A line a field, as `name: value`."""
    return pre("\n".join(f"{name}: {value}" for name, value in dict(example).items()))


def unfolding(title: str, inside: Markup) -> Markup:
    """A title that unfolds what is inside."""
    return Markup(f"<details><summary>{html.escape(title)}</summary>{inside}</details>")


def number(value: float | None, *, sign: bool = False) -> str:
    return writers.number(value, 2, sign=sign)


def shaded(advantage: float | None) -> Markup:
    """An advantage on its colour: blue above zero, orange below."""
    style = f"color: #000000; background-color: {shade(advantage)}; padding: 2px 6px"
    return Markup(f'<span style="{style}">{number(advantage, sign=True)}</span>')
