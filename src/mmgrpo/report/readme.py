"""The README's results: what the committed records say, between two marks and made by `make report` alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from mmgrpo.errors import UserError
from mmgrpo.records import Record
from mmgrpo.report import claims, evidence, names, summary, tables, writers

START = "<!-- results: `make report` writes these lines from data/evidence -->"
END = "<!-- end of results -->"
NOTHING = "No results are committed yet."
DATA = {"embedded": "the embedded data", "real": "the public data"}  # by source
CONTEXT = (
    "Mean test score in points of 100 ± standard deviation over seeds [95% bootstrap interval over seeds and test "
    "examples]. Where published and committed runs are of different models or data, the first are context, no target."
)


def update(file: Path) -> None:
    """Put the results of the committed records between the marks of `file`, and touch nothing else of it."""
    page = file.read_text(encoding="utf-8") if file.exists() else ""
    fresh = with_results(page, section(evidence.studies()), file.name)
    if fresh != page:
        file.write_text(fresh, encoding="utf-8")


def with_results(page: str, results: str, name: str) -> str:
    """`page` with `results` between its marks; raises UserError where it doesn't have each once, in order."""
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end) or START in rest or END in before + after:
        raise UserError(
            f"{name} must have the lines {START} and {END} once each, in this order, as the results go between them: "
            "put them back, then run `make report` again."
        )
    return f"{before}{START}\n\n{results}\n\n{END}{after}"


def section(studies: Mapping[str, Sequence[Record]]) -> str:
    """Scores, claims and figure of each source's records, as Markdown; one sentence where there are none."""
    return "\n\n".join(_study(source, records) for source, records in studies.items()) or NOTHING


def _study(source: str, records: Sequence[Record]) -> str:
    numbers, place = summary.scores((), records), Path("figures/committed", evidence.FOLDERS[source]).as_posix()
    return "\n".join([
        f"Our runs of the profile `{evidence.PROFILE}` on {DATA[source]}: all their tables and figures are in "
        f"[{place}]({place}), their records in [data/evidence](data/evidence). {CONTEXT}{summary.caveats((), records, numbers)}",
        "",
        *writers.markdown_rows(_scores(numbers)),
        "",
        f"Does each gain of the paper show? [The claims task by task]({place}/table_claims.md), and "
        "[why](data/evidence/README.md). Of mmGRPO and MIPROv2 the paper finds neither ahead throughout (of six pairs they win "
        "three and two): that row is for comparison.",
        "",
        *writers.markdown_rows(_claims(records)),
        "",
        f"![Test scores of the committed runs]({place}/figure_scores.png)",
    ])  # fmt: skip


def _scores(numbers: pd.DataFrame) -> pd.DataFrame:
    """A row a task and strategy; for each model what is published, committed, and over how many seeds."""
    tasks = list(dict.fromkeys(numbers["task"]))
    strategies = names.ordered({*names.PAPER_STRATEGIES, *numbers["strategy"]}, names.STRATEGIES)
    rows = pd.MultiIndex.from_product([tasks, strategies])
    shown = {"Task": [names.task(task) for task, _ in rows], "Strategy": [names.strategy(name) for _, name in rows]}
    for model in names.ordered(numbers["model"], names.MODELS):
        cells = numbers[numbers["model"] == model].set_index(["task", "strategy"]).reindex(rows)
        head = names.model(model)
        if cells["published_mean"].notna().any():
            published = cells[["published_mean", "published_sd"]].itertuples(index=False)
            shown[f"{head}, published"] = [writers.spread(*score) for score in published]
        if cells["committed_mean"].notna().any():
            shown[f"{head}, committed"] = tables.measured_scores(cells, "committed_")
            shown[f"{head}, seeds"] = [writers.count(n) for n in cells["committed_seeds"]]
    return pd.DataFrame(shown)


def _claims(records: Sequence[Record]) -> pd.DataFrame:
    """The averages over tasks and models alone."""
    table = claims.build(records)
    columns = ["Claim", "Published, %", "Ours on", "Ours, %", "Ours, points", "Seeds", "Verdict"]
    return table.shown.loc[table.numbers["average"], columns]
