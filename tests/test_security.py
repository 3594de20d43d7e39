"""Text from models and data stays text: no code of ours could run it. And no key is written anywhere."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import cheap_cell
import nbformat
import pytest
from api_double import ApiDouble

from mmgrpo import paths
from mmgrpo.cells import Cell
from mmgrpo.errors import UserError
from mmgrpo.local import Local, notebook_command

SOURCES = sorted((paths.PROJECT / "src").glob("**/*.py"))
NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("*.ipynb"))
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "yaml.load", "np.load"}
MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
SWITCHES = {"shell", "trust_remote_code", "allow_pickle"}
CANARY = "sk-canary-7f3a9d"


def dangers(code: str) -> list[str]:
    """Calls, imports and switches by which text or files could become code."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call):
            found += [name for name in [ast.unparse(node.func)] if name in CALLS]
            found += [key.arg for key in node.keywords if key.arg in SWITCHES and ast.unparse(key.value) != "False"]
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [name for name in names if name.split(".")[0] in MODULES]
    return found


@pytest.mark.parametrize(
    "code",
    [
        "eval(reply)", "exec(reply)", "import pickle", "from pickle import loads", "run(line, shell=True)",
        "torch.load(file)", "f(name, trust_remote_code=True)", "yaml.load(text)", "os.system(reply)",
    ],
)  # fmt: skip
def test_a_way_around_would_be_found(code):
    assert len(dangers(code)) == 1


def test_model_eval_and_safe_loading_are_no_dangers():
    assert dangers("model.eval(); yaml.safe_load(text); run(line, shell=False)") == []


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.stem)
def test_source_has_no_way_from_text_to_code(file: Path):
    assert dangers(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebook_has_no_way_from_text_to_code(file: Path):
    cells = nbformat.read(file, as_version=4).cells
    assert [danger for cell in cells if cell.cell_type == "code" for danger in dangers(cell.source)] == []


def test_only_commands_of_ours_are_started():
    """Each process is started from a list, so that no shell reads a word of it; a new one is to be looked at here."""
    starts, importing = set(), set()
    for file in SOURCES:
        name, text = file.relative_to(paths.PROJECT / "src" / "mmgrpo").as_posix(), file.read_text(encoding="utf-8")
        if "subprocess" in text:
            importing.add(name)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("subprocess."):
                starts.add(name)
                assert isinstance(node.args[0], ast.List) or ast.unparse(node.args[0]) == "command"
                assert not [key for key in node.keywords if key.arg in ("shell", "executable")]
    assert starts == {"policy/embedded.py", "local.py", "policy/orphans.py", "study.py"}
    assert importing == starts | {"policy/vllm.py"}  # which holds what orphans.py started


@pytest.fixture
def cell(tmp_path, monkeypatch):
    monkeypatch.setenv("MMGRPO_RESULTS_DIR", str(tmp_path / "results"))
    for name in ("OPENAI_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, CANARY)
    return Cell("smoke", "banking77", "smollm2-135m", "vanilla", 0)


@pytest.mark.parametrize("how", ["", "fails", "dies"])
def test_no_key_in_what_a_cell_leaves(cell, how):
    command = cheap_cell.command(cell, how=how)
    with Local(command=lambda _: command) as place:
        error = place.submit(cell).exception()
    left = [file for file in cell.folder.rglob("*") if file.is_file()]
    assert left and not any(CANARY in file.read_text(encoding="utf-8") for file in left)
    assert CANARY not in f"{error} {command} {notebook_command(cell)}"


def test_no_key_in_a_notebook_that_failed(cell, tmp_path):
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell("seed = 0", metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell("import os\nkey = os.environ['OPENAI_API_KEY']\nraise ValueError('refused')"),
        ],
        metadata={"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}},
    )
    nbformat.write(notebook, tmp_path / "a.ipynb")
    given = {"notebook": str(tmp_path / "a.ipynb"), "folder": str(cell.folder), "parameters": {"seed": 1}}
    with Local(command=lambda _: [sys.executable, "-m", "mmgrpo.notebook_run", json.dumps(given)]) as place:
        error = place.submit(cell).exception()
    assert isinstance(error, UserError) and "refused" in str(error)
    assert (cell.folder / "notebook.ipynb").exists()
    assert not any(CANARY in file.read_text(encoding="utf-8") for file in cell.folder.iterdir())


def test_no_key_in_the_error_of_a_run_whose_api_refused_it(monkeypatch):
    import dspy
    from tiny_policy import scripted_lm

    from mmgrpo import rollout

    with ApiDouble(["unauthorized"]) as api:
        outside = dspy.LM(
            "openai/gpt-4o-mini", api_base=api.address, api_key=CANARY, cache=False, num_retries=0, timeout=5
        )

        class Ask(dspy.Module):
            def forward(self, q):
                return dspy.Prediction(t=outside(q)[0])

        monkeypatch.setattr(rollout, "MAX_FAILED_SHARE", 1.0)
        job = rollout.jobs_for([dspy.Example(q="a").with_inputs("q")], 1, 0)
        (run,) = rollout.run(Ask(), job, lm=scripted_lm(lambda *_: ""), metric=lambda *_: 1.0)
    assert api.keys == [f"Bearer {CANARY}"]  # it was sent
    assert run.outcome == "crashed" and "Error" in run.error
    assert CANARY not in repr(run)
