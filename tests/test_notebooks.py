"""What every notebook keeps to, read from the files; nbval runs them (`make test`)."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat
import pytest

from mmgrpo import paths
from mmgrpo.cells import NOTEBOOK_OF

CELL = ["profile", "task", "model", "seed"]
PARAMETERS = dict.fromkeys(NOTEBOOK_OF.values(), CELL) | {
    "00_quickstart.ipynb": ["steps", "seed"],
    "06_grid.ipynb": ["profile", "tasks"],
    "07_posttraining.ipynb": ["train", "seed", "batch", "learning_rate"],
    "08_report.ipynb": ["profile"],
    "11_data.ipynb": ["profile", "model", "seed", "inputs", "rollouts", "keep"],
    "12_learning.ipynb": ["profile", "task", "model", "strategy", "seed", "shown"],
}
THE_READERS_OWN = {"00_quickstart.ipynb": {"PlantCare", "__init__", "forward", "metric"}}  # a program and its metric
MAX_LINES = 20  # of a code cell
MAX_CODE = 150  # lines of code in a notebook
MAX_BYTES = 300_000  # of a notebook with its outputs
ABSOLUTE = re.compile(r"(?<![\w.:/<])/(?:home|root|tmp|Users|work|usr|opt|mnt|var|private)/|\b[A-Z]:\\\\")
NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("*.ipynb"))

every_notebook = pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)


def code_cells(file: Path) -> list:
    return [cell for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "code"]


def tagged(file: Path, tag: str) -> list:
    return [cell for cell in code_cells(file) if tag in cell.metadata.get("tags", [])]


def test_the_notebooks_are_those_that_we_know():
    assert [file.name for file in NOTEBOOKS] == sorted(PARAMETERS)


def test_every_strategy_has_its_notebook():
    for strategy, name in NOTEBOOK_OF.items():
        assert f'"{strategy}", seed)' in (paths.NOTEBOOKS / name).read_text(encoding="utf-8").replace('\\"', '"')


@every_notebook
def test_one_cell_sets_the_parameters_and_nothing_else(file: Path):
    (cell,) = tagged(file, "parameters")
    body = ast.parse(cell.source).body
    assert all(isinstance(line, ast.Assign) and isinstance(line.value, ast.Constant) for line in body)
    assert [line.targets[0].id for line in body] == PARAMETERS[file.name]


@every_notebook
def test_parameters_come_before_any_other_code(file: Path):
    assert "parameters" in code_cells(file)[0].metadata.tags


@every_notebook
def test_cells_are_short(file: Path):
    lengths = [len(cell.source.splitlines()) for cell in code_cells(file)]
    assert max(lengths) <= MAX_LINES
    assert sum(lengths) <= MAX_CODE


@every_notebook
def test_no_cell_defines_what_a_test_could_not_reach(file: Path):
    nodes = [node for cell in code_cells(file) for node in ast.walk(ast.parse(cell.source))]
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert defined == THE_READERS_OWN.get(file.name, set())


@every_notebook
def test_neither_code_nor_outputs_name_a_place_on_a_machine(file: Path):
    assert ABSOLUTE.findall(file.read_text(encoding="utf-8")) == []


@every_notebook
def test_no_stored_output_is_an_error_or_a_warning(file: Path):
    outputs = [output for cell in code_cells(file) for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"] == []


@every_notebook
def test_stored_outputs_are_of_one_run_from_top_to_bottom(file: Path):
    """nbval takes a cell without a run count for one that was never run."""
    cells = code_cells(file)
    assert any(cell.outputs for cell in cells), "run the notebook and store its outputs"
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


@every_notebook
def test_a_notebook_stays_small(file: Path):
    assert file.stat().st_size < MAX_BYTES


def test_an_absolute_path_would_be_found():
    assert ABSOLUTE.findall('"/home/someone/x"') and ABSOLUTE.findall("in /tmp/y")
    assert not ABSOLUTE.findall("https://arxiv.org/home/x") and not ABSOLUTE.findall("results/tmp/x")
