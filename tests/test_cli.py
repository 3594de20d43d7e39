"""The command line: a mistake of the user's is one sentence and exit code 2, never a traceback."""

import os
import subprocess
import sys

import pytest
from record_factory import record

from mmgrpo import __main__ as cli
from mmgrpo import grid, paths, policy, records, report
from mmgrpo.cells import Cell
from mmgrpo.errors import UserError


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MMGRPO_RESULTS_DIR", str(tmp_path / "results"))
    monkeypatch.setenv("MMGRPO_FIGURES_DIR", str(tmp_path / "figures"))
    monkeypatch.setattr(paths, "EVIDENCE", tmp_path / "evidence")
    monkeypatch.setitem(policy.EMBEDDED, "smollm2-135m", lambda: "a folder")  # needs no model
    for name in ("HF_HUB_DISABLE_TELEMETRY", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))  # main() sets them; put back afterwards


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the command line here: exit code, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["mmgrpo", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return call


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["grid", "--profile", "nope"], "mmgrpo: Unknown profile 'nope'; allowed: "),
        (["report", "--profile", "smokee"], "did you mean 'smoke'?"),
        (
            ["grid", "--profile", "smoke", "--tasks", "banking"],
            "has no task 'banking'; allowed: all, banking77, hover, papillon; did you mean",
        ),
        (["grid", "--profile", "smoke", "--tasks", ""], "mmgrpo: No task was named; allowed: all, banking77"),
    ],
)
def test_unknown_name_is_one_sentence(call, arguments, sentence):
    code, out, err = call(*arguments)
    assert code == 2
    assert sentence in err
    assert err.count("\n") == 1 and "Traceback" not in out + err


def test_report_without_records_is_one_sentence(call):
    code, out, err = call("report", "--profile", "smoke")
    assert code == 2
    assert err.startswith("mmgrpo: ") and err.count("\n") == 1 and "Traceback" not in err
    assert not paths.figures().exists()


@pytest.mark.parametrize("arguments", [["gird"], ["grid", "--profil", "smoke"], ["report", "smoke"]])
def test_unknown_command_or_option_is_a_usage_error(call, arguments):
    code, out, err = call(*arguments)
    assert code == 2
    assert "Traceback" not in out + err


def test_help_names_the_commands(call):
    code, out, err = call("--help")
    assert code == 0
    assert "grid" in out and "report" in out


def test_report_writes_tables_from_records(call):
    for strategy in ("vanilla", "module_grpo"):
        one = record(strategy=strategy, profile="smoke", smoke=True)
        records.write(one, paths.results() / "smoke" / strategy / "record.json")
    code, out, err = call("report", "--profile", "smoke")
    assert (code, err) == (0, "")
    assert "tables and figures in" in out
    assert any(paths.figures().iterdir())


def test_missing_adapter_of_the_embedded_model_is_one_sentence(call, monkeypatch):
    def missing():
        raise UserError("The post-trained adapter is missing.")

    monkeypatch.setitem(policy.EMBEDDED, "smollm2-135m", missing)
    code, _, err = call("grid", "--profile", "smoke")
    assert (code, err) == (2, "mmgrpo: The post-trained adapter is missing.\n")


def test_failed_cells_are_listed_and_the_others_reported(call, monkeypatch):
    cell = Cell("smoke", "banking77", "smollm2-135m", "module_grpo", 0)
    monkeypatch.setattr(grid, "run", lambda todo, place: [grid.Failure(cell, "out of memory")])
    monkeypatch.setattr(report, "write", lambda profile: [])
    code, out, err = call("grid", "--profile", "smoke")
    assert code == 2
    assert "1 of" in err and "cells failed; the same command runs them again:" in err
    assert "module_grpo · seed 0: out of memory" in err
    assert "0 tables and figures" in out


def test_interrupt_says_that_the_same_command_goes_on(call, monkeypatch):
    def interrupted(todo, place):
        raise KeyboardInterrupt

    monkeypatch.setattr(grid, "run", interrupted)
    code, _, err = call("grid", "--profile", "smoke")
    assert code == 130
    assert "the same command goes on where this one stopped" in err
    assert "Traceback" not in err


def test_module_runs_from_the_shell(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mmgrpo", "report", "--profile", "smokee"], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("mmgrpo: Unknown profile 'smokee'") and done.stderr.count("\n") == 1


def test_a_report_waits_for_no_library_that_it_does_not_use(tmp_path):
    code = (
        "import sys\nfrom mmgrpo.__main__ import main\ntry:\n    main()\n"
        "finally:\n    print(sorted({'torch', 'dspy', 'transformers'} & set(sys.modules)))"
    )
    for strategy in ("vanilla", "module_grpo"):
        records.write(record(strategy=strategy), paths.results() / "laptop" / strategy / "record.json")
    done = subprocess.run([sys.executable, "-c", code, "report"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "tables and figures in" in done.stdout and done.stdout.endswith("\n[]\n")


def test_plan_is_one_table_and_what_is_missing(call):
    code, out, err = call("plan", "--profile", "paper")
    assert (code, err) == (0, "")
    assert "GPU hours" in out and "paper" in out and "total" in out
    assert "missing: " in out
    assert not paths.results().exists()  # nothing was started


def test_zero_jobs_are_one_sentence(call):
    code, _, err = call("grid", "--profile", "smoke", "--jobs", "0")
    assert (code, err) == (2, "mmgrpo: 0 cells at a time were asked for: allowed is 1 or more.\n")


def test_cells_that_would_share_a_gpu_are_refused(call):
    code, _, err = call("grid", "--profile", "gpu", "--tasks", "banking77", "--jobs", "2")
    assert code == 2 and err.startswith(
        "mmgrpo: 2 cells at a time would share one GPU, and Qwen/Qwen3-0.6B takes a whole"
    )


def test_missing_ray_is_one_sentence(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = call("grid", "--profile", "smoke", "--ray", "local")
    assert code == 2 and err.startswith("mmgrpo: Ray is not installed") and err.count("\n") == 1
