"""Committed records: beside a reader's own, in the README, and never mistaken for either a zero or the reader's."""

import dataclasses
import json
import sys

import pandas as pd
import pytest
from record_factory import record
from test_notebooks import ABSOLUTE

from mmgrpo import __main__ as cli
from mmgrpo import paths, records, report
from mmgrpo.errors import UserError
from mmgrpo.json_files import write_json
from mmgrpo.report import evidence, names, readme, summary, tables

QWEN = "Qwen/Qwen3-8B"
HEAD = "Banking77", "Qwen3 8B"
PAGE = f"# Title\n\nBefore.\n\n{readme.START}\n\nold\n\n{readme.END}\n\nAfter, with a line end.\n"
TEXTS = {".md", ".tex", ".csv"}


@pytest.fixture
def commit(tmp_path, monkeypatch):
    """Put records below an evidence folder of the test's own."""
    monkeypatch.setattr(paths, "EVIDENCE", tmp_path / "evidence")

    def commit(*members, source="embedded"):
        for each in members:
            records.write(each, paths.EVIDENCE / source / place(each) / "record.json")

    return commit


@pytest.fixture
def own_project(tmp_path, monkeypatch, commit):
    """A project folder of the test's own, with a README."""
    for variable in ("MMGRPO_RESULTS_DIR", "MMGRPO_FIGURES_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(paths, "PROJECT", tmp_path)
    (tmp_path / "README.md").write_text(PAGE, encoding="utf-8")
    return tmp_path


def place(one):
    return f"{one.profile}/{one.task}/{one.model.replace('/', '--')}/{one.strategy}/seed-{one.seed}"


def of_other_examples(one):
    scores = tuple(dataclasses.replace(score, example=f"other-{score.example}") for score in one.scores)
    return dataclasses.replace(one, scores=scores)


def column(table, *head):
    """A column of a shown table, by strategy."""
    return dict(zip(table.shown.iloc[:, 0], table.shown[head], strict=True))


# Table 1


def test_committed_stands_between_published_and_reproduced():
    committed = [record([1.0, 1.0], model=QWEN, seed=0), record([1.0, 0.0], model=QWEN, seed=1)]
    table = tables.scores([record([1.0, 1.0], model=QWEN)], committed)
    heads = [head for *where, head in table.shown.columns if tuple(where) == HEAD]
    assert heads == ["published", "committed", "committed seeds", "reproduced", "seeds"]
    # One replicate in 16 draws seed 1 and its second example twice each, and scores zero: more than 2.5%.
    assert column(table, *HEAD, "committed")["Vanilla CoT"] == "75.0 ± 35.4 [0.0, 100.0]"
    assert column(table, *HEAD, "committed seeds")["Vanilla CoT"] == "2"
    assert column(table, *HEAD, "reproduced")["Vanilla CoT"] == "100.0 [100.0, 100.0]"
    assert column(table, *HEAD, "seeds")["Vanilla CoT"] == "1"


def test_a_cell_that_is_not_committed_is_a_dash_and_a_committed_zero_is_a_zero():
    ours = [record(model=QWEN), record(model=QWEN, strategy="module_grpo")]
    table = tables.scores(ours, [record([0.0, 0.0], model=QWEN, strategy="module_grpo")])
    assert column(table, *HEAD, "committed")["Vanilla CoT"] == names.MISSING
    assert column(table, *HEAD, "committed seeds")["Vanilla CoT"] == names.MISSING
    assert column(table, *HEAD, "committed")["mmGRPO (module)"] == "0.0 [0.0, 0.0]"
    numbers = table.numbers.set_index(["model", "strategy"])
    assert pd.isna(numbers.loc[(QWEN, "vanilla"), "committed_mean"])
    assert numbers.loc[(QWEN, "module_grpo"), "committed_mean"] == 0


def test_a_committed_cell_that_this_machine_did_not_run_is_shown():
    table = tables.scores([record()], [record([1.0, 1.0], strategy="module_grpo", seed=seed) for seed in (0, 1)])
    head = "Banking77", "SmolLM2 135M"
    assert column(table, *head, "committed")["mmGRPO (module)"] == "100.0 ± 0.0 [100.0, 100.0]"
    assert column(table, *head, "reproduced")["mmGRPO (module)"] == names.MISSING


def test_without_committed_records_there_is_neither_column_nor_word_of_them():
    table = tables.scores([record()])
    assert not [head for head in table.shown.columns if head[2].startswith("committed")]
    assert "ommitted" not in table.caption


def test_committed_records_alone_are_not_called_reproduced():
    table = tables.scores((), [record()])
    assert {head for *_, head in table.shown.columns} == {"Strategy", "published", "committed", "committed seeds"}
    assert "machine" not in table.caption
    assert "One seed has no deviation" in table.caption


def test_every_number_is_of_its_own_side():
    frame = summary.scores([record([1.0, 0.0, 0.0])], [record([1.0, 1.0, 0.0, 1.0])]).set_index("model")
    row = frame.loc["smollm2-135m"]
    assert (row["mean"].round(1), row["examples"], row["committed_mean"], row["committed_examples"]) == (33.3, 3, 75, 4)


@pytest.mark.parametrize("make", [tables.scores, tables.agreement])
def test_captions_say_where_rows_differ(make):
    ours = [record(), record(task="hover"), record(task="papillon")]
    theirs = [of_other_examples(record()), record(task="hover", fingerprint="beef"), record(task="papillon")]
    caption = make(ours, theirs).caption
    assert "runs of Banking77 were scored on other test examples" in caption
    assert "runs of HoVer had other training or validation rows" in caption
    assert caption.count("The committed runs of") == 2
    assert "The committed runs of" not in make(ours, ours).caption


# Which records are compared


def test_only_committed_runs_of_the_same_profile_task_and_source_are_taken(commit):
    commit(record(), record(task="hover"), record(profile="gpu"))
    commit(record(source="hub", seed=1), record(source="hub", task="papillon"), source="real")
    assert evidence.beside([record()], "laptop") == [record()]
    assert evidence.beside([record(source="local")], "laptop") == [record(source="hub", seed=1)]
    assert evidence.beside([record()], "paper") == []
    assert evidence.beside([record(), record(source="local", strategy="gepa")], "laptop") == []  # of two sources


def test_without_an_evidence_folder_nothing_is_committed(commit):
    assert evidence.read("embedded", "laptop") == []
    assert evidence.studies() == {}
    assert evidence.beside([record()], "laptop") == []


def test_committed_runs_of_other_data_are_in_no_file(commit, own_project):
    commit(record([1.0, 1.0], source="hub"), source="real")
    records.write(record([1.0, 0.0]), paths.results() / "laptop" / "record.json")
    files = report.write("laptop")
    assert not [file for file in files if "agreement" in file.name]
    assert "ommitted" not in (paths.figures() / "table_scores.md").read_text(encoding="utf-8")


# Agreement


def test_agreement_on_the_same_examples_is_paired():
    committed = [record([0.0, 0.25, 0.5, 0.75], seed=seed) for seed in (0, 1, 2)]
    table = tables.agreement([record([0.25, 0.5, 0.75, 1.0], seed=7)], committed)
    (shown,) = table.shown.to_dict("records")
    assert shown["This machine"] == "62.5"
    assert shown["Committed"].startswith("37.5 [") and shown["Committed seeds"] == "3" and shown["Seeds"] == "1"
    assert shown["Difference"] == "+25.0 [+25.0, +25.0]"  # each example gains 25 points, whichever are drawn
    assert table.numbers["same_examples"].tolist() == [True]


def test_agreement_on_other_examples_is_not_paired():
    one = record([0.0, 1.0] * 200)
    table = tables.agreement([one], [of_other_examples(one)])
    row = table.numbers.iloc[0]
    assert (row["difference"], row["same_examples"]) == (0, False)
    assert row["difference_low"] == pytest.approx(-6.9, abs=0.6)  # 1.96 times the root of two standard errors of 2.5
    assert row["difference_high"] == pytest.approx(6.9, abs=0.6)


@pytest.mark.parametrize(("score", "said"), [(0.5, "yes"), (0.625, "no"), (0.375, "no")])
def test_within_is_said_of_the_committed_interval(score, said):
    committed = [record([0.5] * 4, seed=seed) for seed in (0, 1)]  # [50, 50]
    assert tables.agreement([record([score] * 4)], committed).shown["Within"].tolist() == [said]


def test_agreement_has_the_cells_that_both_have_in_the_order_of_all_tables():
    ours = [record(strategy=name) for name in ("module_grpo", "vanilla", "gepa")]
    theirs = [record(strategy=name) for name in ("module_grpo", "vanilla", "composition")]
    assert tables.agreement(ours, theirs).shown["Strategy"].tolist() == ["Vanilla CoT", "mmGRPO (module)"]
    assert tables.agreement(ours, [record(strategy="composition")]) is None
    assert tables.agreement(ours, []) is None


def test_agreement_of_what_could_not_be_scored_is_missing():
    table = tables.agreement([record([0.0], outcomes=["unscorable"])], [record([1.0])])
    (shown,) = table.shown.to_dict("records")
    assert (shown["This machine"], shown["Within"]) == (names.MISSING, names.MISSING)
    assert shown["Difference"] == names.MISSING


# The README


def test_results_go_between_the_marks_and_nothing_else_changes(own_project):
    readme.update(own_project / "README.md")
    assert (own_project / "README.md").read_text(encoding="utf-8") == PAGE.replace("old", readme.NOTHING)
    readme.update(own_project / "README.md")
    assert (own_project / "README.md").read_text(encoding="utf-8") == PAGE.replace("old", readme.NOTHING)


@pytest.mark.parametrize(
    "page",
    [
        "", PAGE.replace(readme.START, ""), PAGE.replace(readme.END, ""), PAGE + readme.START, PAGE + readme.END,
        f"{readme.END} {readme.START}", f"{readme.END} {PAGE}",
    ],
)  # fmt: skip
def test_a_page_without_its_marks_is_one_sentence(own_project, page):
    file = own_project / "README.md"
    file.write_text(page, encoding="utf-8")
    with pytest.raises(UserError, match="once each, in this order.* then run `make report` again") as error:
        readme.update(file)
    assert str(error.value).count("\n") == 0
    assert file.read_text(encoding="utf-8") == page


def test_a_missing_page_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="README.md must have the lines"):
        readme.update(tmp_path / "README.md")


def test_section_has_scores_claims_and_figure():
    runs = [record([0.5] * 4, seed=seed) for seed in (0, 1)]
    runs += [record([0.75] * 4, seed=seed, strategy="module_grpo") for seed in (0, 1)]
    lines = readme.section({"embedded": runs}).splitlines()
    assert "| Task | Strategy | Llama 3.1 8B, published | Qwen3 8B, published | SmolLM2 135M, committed |" in lines[2]
    assert "| Banking77 | Vanilla CoT | 58.4 ± 1.4 | 64.6 ± 1.2 | 50.0 ± 0.0 [50.0, 50.0] | 2 |" in lines
    assert "| Banking77 | MIPROv2 | 59.4 ± 0.4 | 65.9 ± 1.1 | – | – |" in lines  # not committed, and no zero
    (claim,) = [line for line in lines if line.startswith("| mmGRPO (module) over Vanilla CoT |")]
    assert "+25.0 [+25.0, +25.0]" in claim and claim.endswith("| holds |")
    assert lines[-1].endswith("(figures/committed/figure_scores.png)")
    assert "One seed" not in lines[0] and "all seeds of Vanilla CoT are one run" in lines[0]
    assert any("and [why](data/evidence/README.md)." in line for line in lines)


def test_section_says_where_the_metric_is_another_one():
    lexical = record(task="papillon", settings={"task": {"judge": "lexical"}})
    text = readme.section({"embedded": [record(), lexical], "real": [record(task="papillon", source="hub")]})
    embedded, real = text.split("Our runs of")[1:]
    assert "Our metric of PAPILLON is another one than the published: a lexical judge" in embedded
    assert "another one" not in real


def test_section_says_how_many_passages_a_recall_is_among():
    few, many = (record(task="hover", settings={"task": {"hops": 4, "passages": each}}) for each in (3, 25))
    assert "Our metric of HoVer is the recall among at most 12 passages" in readme.section({"embedded": [few]})
    assert "passages" not in readme.section({"embedded": [many]})


def test_section_keeps_sources_apart():
    text = readme.section({"embedded": [record([1.0])], "real": [record([0.0], source="hub")]})
    embedded, real = text.split("Our runs of")[1:]
    assert "100.0 [100.0, 100.0]" in embedded and "figures/committed/figure_scores.png" in embedded
    assert "0.0 [0.0, 0.0]" in real and "figures/committed/real/figure_scores.png" in real
    assert "100.0 [" not in real and "the public data" in real and "the embedded data" in embedded


# `mmgrpo report`


def run_report(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["mmgrpo", "report", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code or 0, *capsys.readouterr()


def test_report_prints_agreement_after_table_1(own_project, commit, monkeypatch, capsys):
    commit(record([1.0, 1.0]))
    records.write(record([1.0, 0.0]), paths.results() / "laptop" / "record.json")
    code, out, err = run_report(monkeypatch, capsys)
    assert (code, err) == (0, "")
    assert 0 < out.index("## Scores by strategy") < out.index("## Agreement with the committed runs")
    assert "−50.0 [" in out
    assert {file.suffix for file in paths.figures().glob("table_agreement.*")} == TEXTS
    committed = (paths.committed_figures() / "table_scores.md").read_text(encoding="utf-8")
    assert "100.0 [100.0, 100.0]" in committed and "50.0 [" not in committed  # of the committed records alone
    page = (own_project / "README.md").read_text(encoding="utf-8")
    assert "100.0 [100.0, 100.0]" in page and page.startswith("# Title") and page.endswith("a line end.\n")


def test_report_without_own_records_is_of_the_committed_ones(own_project, commit, monkeypatch, capsys):
    commit(record())
    code, out, err = run_report(monkeypatch, capsys)
    assert (code, err) == (0, "")
    assert "no records of the profile laptop" in out and "of the committed records in" in out
    assert [file.name for file in paths.figures().iterdir()] == ["committed"]
    assert (paths.committed_figures() / "figure_scores.png").exists()


def test_report_of_nothing_at_all_is_one_sentence(own_project, monkeypatch, capsys):
    code, out, err = run_report(monkeypatch, capsys)
    assert code == 2 and err.startswith("mmgrpo: There are no records") and err.count("\n") == 1
    assert not paths.figures().exists()


def test_the_readme_stays_where_figures_go_elsewhere(own_project, commit, monkeypatch, capsys):
    commit(record())
    monkeypatch.setenv("MMGRPO_FIGURES_DIR", str(own_project / "elsewhere"))
    assert run_report(monkeypatch, capsys)[0] == 0
    assert (own_project / "elsewhere" / "committed" / "table_scores.md").exists()
    assert (own_project / "README.md").read_text(encoding="utf-8") == PAGE
    assert not (own_project / "figures").exists()


# Keeping one's own


def own_run(tmp_path, monkeypatch, *members):
    monkeypatch.setenv("MMGRPO_RESULTS_DIR", str(tmp_path / "results"))
    notebook = {"cells": [], "metadata": {"kernelspec": {}, "papermill": {"output_path": "/of/this/machine"}}}
    for each in members:
        folder = tmp_path / "results" / place(each)
        records.write(each, folder / "record.json")
        write_json(notebook, folder / "notebook.ipynb")


def test_own_records_are_kept_with_their_notebooks(commit, tmp_path, monkeypatch):
    one = record(program={"a": {"demos": ["a demonstration"]}}, notes={"proposals": ["an instruction"]})
    own_run(tmp_path, monkeypatch, one)
    kept, notebook = evidence.keep(one.profile)
    assert kept == paths.EVIDENCE / "embedded" / place(one) / "record.json"
    assert records.read(kept) == one
    assert json.loads(notebook.read_text()) == {"cells": [], "metadata": {"kernelspec": {}}}


def test_texts_of_real_rows_are_not_kept(commit, tmp_path, monkeypatch):
    told = {"proposals": ["an instruction"], "best": {"step": 2.0, "score": 0.5}}
    one = record(source="local", program={"a": {"demos": ["a row"]}}, notes=told)
    own_run(tmp_path, monkeypatch, one)
    (kept,) = evidence.keep(one.profile)
    assert kept == paths.EVIDENCE / "real" / place(one) / "record.json"
    assert records.read(kept) == dataclasses.replace(one, program={}, notes={"best": told["best"]})
    assert "a row" not in kept.read_text() and "an instruction" not in kept.read_text()


def test_nothing_to_keep_is_one_sentence(commit, tmp_path, monkeypatch):
    own_run(tmp_path, monkeypatch, record(profile="smoke", smoke=True))
    with pytest.raises(UserError, match="There are no records of the profile laptop"):
        evidence.keep("laptop")
    with pytest.raises(UserError, match="smoke is a smoke profile, whose scores mean nothing"):
        evidence.keep("smoke")
    assert not paths.EVIDENCE.exists()


# What is committed in this repository


def test_each_committed_record_lies_where_it_says():
    found = {file: records.read(file) for file in paths.EVIDENCE.glob("**/record.json")}
    for file, one in found.items():
        assert file.parent == paths.EVIDENCE / evidence.source_of(one) / place(one)
        assert not one.smoke


def test_committed_notebooks_name_no_folder_of_a_machine():
    for file in paths.EVIDENCE.glob("**/notebook.ipynb"):
        assert not ABSOLUTE.findall(file.read_text(encoding="utf-8")), file


def test_committed_tables_and_figures_are_those_of_the_committed_records(tmp_path):
    """Where this fails, run `make report` and commit what it changes; delete files that it no longer makes."""
    stored = paths.PROJECT / "figures" / "committed"
    made = {file.relative_to(tmp_path): file for file in report.build_committed(tmp_path)}
    kept = {file.relative_to(stored): file for file in stored.rglob("*") if file.is_file()}
    assert {name for name in made if name.suffix != ".pdf"} == {name for name in kept if name.suffix != ".pdf"}
    for name, file in made.items():
        if file.suffix in TEXTS:
            assert file.read_bytes() == kept[name].read_bytes(), name


def test_results_in_the_readme_are_those_of_the_committed_records():
    page = (paths.PROJECT / "README.md").read_text(encoding="utf-8")
    assert readme.with_results(page, readme.section(evidence.studies()), "README.md") == page
