"""The grid: what it skips, what it runs again, what it says, and that a failure stays with its cell.

Cells are processes without a model (`cheap_cell.py`); one test runs real notebooks of a line each.
"""

import json
import subprocess
import sys

import cheap_cell
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from mmgrpo import cells, grid, notebook_run, paths, plan, profiles, progress, records
from mmgrpo.errors import UserError
from mmgrpo.local import LOG, Local, run_process
from mmgrpo.lock import only_one

MODEL = "smollm2-135m"


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("MMGRPO_RESULTS_DIR", str(tmp_path / "results"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def todo(strategies=("vanilla", "prompt_optimization", "composition"), seeds=(0,)):
    smoke = profiles.load("smoke").model_copy(update={"strategies": strategies, "seeds": seeds})
    return cells.expand(smoke, ["banking77"])


def run(listed, *, jobs=1, how=None, seconds=0.0):
    """Run cheap cells; `how` says by strategy what becomes of them."""

    def command(cell):
        return cheap_cell.command(cell, seconds=seconds, how=(how or {}).get(cell.strategy, ""))

    return grid.run(listed, Local(jobs, command))


def starts(cell):
    file = cell.folder / "starts.txt"
    return file.read_text().splitlines() if file.exists() else []


def test_every_cell_runs_once_and_a_finished_one_never_again(capsys):
    listed = todo()
    assert run(listed) == [] == run(listed)
    assert [len(starts(cell)) for cell in listed] == [1, 1, 1]
    said = capsys.readouterr().out
    assert "3 cells, 0 finished before. About 3 min 00 s to go." in said
    assert f"[1/3] {listed[0].name} (about 3 min 00 s left)" in said
    assert f"    {listed[0].name}: 50.0 points in 0 min" in said
    assert "3 cells, 3 finished before. About 0 min 00 s to go." in said


def test_a_cell_waits_for_those_that_it_needs_even_when_there_is_room():
    listed = todo()
    assert run(listed, jobs=3, seconds=0.2) == []
    needed, composed = (cell.folder / "starts.txt" for cell in listed[1:])
    assert composed.stat().st_mtime > listed[1].record.stat().st_mtime > needed.stat().st_mtime


def test_cells_beside_each_other_share_the_cores(monkeypatch):
    monkeypatch.setattr("mmgrpo.local.cores", lambda: 8)
    listed = todo(("vanilla",), seeds=(0, 1))
    run(listed[:1])
    assert starts(listed[0]) == ["None"]
    run(listed, jobs=2)
    assert starts(listed[1]) == ["4"]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    listed[1].record.unlink()
    run(listed, jobs=2)
    assert starts(listed[1]) == ["4", "3"]


def test_sets_have_one_order_in_all_cells(tmp_path, monkeypatch):
    """GEPA draws in the order of a set of module names."""
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    for place in ("one", "other"):
        run_process([sys.executable, "-c", "print(hash('name'))"], tmp_path / place, {})
    assert (tmp_path / "one" / LOG).read_text() == (tmp_path / "other" / LOG).read_text()


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("fails", "ValueError: no luck (partial notebook and error.txt in "),
        ("dies", "its process was killed by SIGKILL (log: "),
        ("writes nothing", "02_prompt_optimization.ipynb ran through but left no record at "),
    ],
)
def test_failure_stays_with_its_cell_and_those_that_need_it(how, reason, capsys):
    listed = todo()
    failed = run(listed, how={"prompt_optimization": how})
    assert [failure.cell for failure in failed] == listed[1:]
    assert failed[0].reason.startswith(reason)
    assert failed[1].reason == f"it needs {listed[1].name}, which has no record"
    assert listed[0].record.exists() and not starts(listed[2])
    assert f"{listed[1].name}: failed: {reason}" in capsys.readouterr().out
    assert run(listed) == []
    assert [len(starts(cell)) for cell in listed] == [1, 2, 1]


def test_damaged_record_is_set_aside_and_its_cell_runs_again(capsys):
    (cell,) = todo(("vanilla",))
    run([cell])
    cell.record.write_bytes(cell.record.read_bytes()[:-20])
    assert run([cell]) == []
    assert len(starts(cell)) == 2
    assert records.read(cell.record) and cell.record.with_suffix(".damaged").exists()
    assert "can't be read" in capsys.readouterr().out


def test_outdated_records_are_announced_and_kept(capsys):
    listed = todo()
    run(listed)
    assert "record.outdated" not in capsys.readouterr().out
    for cell in listed[1:]:
        records.write(cheap_cell.record(notes={"cell": "of another library"}), cell.record)
    assert run(listed) == []
    assert "Of 2 cells the record was made with other code, settings or data: they run again" in capsys.readouterr().out
    assert [cell.record.with_suffix(".outdated").exists() for cell in listed] == [False, True, True]
    assert [len(starts(cell)) for cell in listed] == [1, 2, 2]


def test_zero_jobs_are_refused():
    with pytest.raises(UserError, match="0 cells at a time were asked for: allowed is 1 or more"):
        Local(0)


# Real notebooks


def test_failed_notebook_stays_as_far_as_it_came_with_its_error(tmp_path):
    notebook = new_notebook(
        cells=[
            new_code_cell("seed = 0", metadata={"tags": ["parameters"]}),
            new_code_cell("print('reached with', seed)"),
            new_code_cell("raise ValueError('no such thing')"),
        ],
        metadata={"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}},
    )
    nbformat.write(notebook, tmp_path / "a.ipynb")
    folder = tmp_path / "cell"
    given = {"notebook": str(tmp_path / "a.ipynb"), "folder": str(folder), "parameters": {"seed": 7}}
    with pytest.raises(UserError, match="no such thing .partial notebook and error.txt in"):
        run_process([sys.executable, "-m", "mmgrpo.notebook_run", json.dumps(given)], folder, {})
    partial_notebook = (folder / "notebook.ipynb").read_text()
    assert "reached with 7" in partial_notebook and "no such thing" in partial_notebook
    assert "Traceback" in (folder / notebook_run.ERROR).read_text() and (folder / LOG).exists()


def test_notebook_without_a_parameters_cell_is_refused(tmp_path):
    nbformat.write(new_notebook(cells=[new_code_cell("1")]), tmp_path / "a.ipynb")
    with pytest.raises(UserError, match="a.ipynb has no cell tagged `parameters`: tag the one that"):
        notebook_run.run(tmp_path / "a.ipynb", tmp_path, {})
    assert (tmp_path / notebook_run.ERROR).read_text().startswith("a.ipynb has no cell tagged")


# One grid at a time


def test_second_grid_on_the_same_folder_is_refused():
    held = only_one("grid", paths.results(), "")
    with held, pytest.raises(UserError, match="Another grid is running in .*MMGRPO_RESULTS_DIR"):
        run(todo())
    assert run(todo()) == []


def test_lock_of_a_killed_process_is_free_at_once(tmp_path):
    code = (
        "import pathlib, sys, time; from mmgrpo.lock import only_one\n"
        "with only_one('grid', pathlib.Path(sys.argv[1]), ''): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError), only_one("grid", tmp_path, ""):
        pass
    holder.kill()
    holder.wait()
    with only_one("grid", tmp_path, ""):
        pass


def test_lock_is_given_back_while_a_forked_process_lives(tmp_path):
    code = (
        "import os, pathlib, signal, sys, time; from mmgrpo.lock import only_one\n"
        "with only_one('grid', pathlib.Path(sys.argv[1]), ''): child = os.fork() or time.sleep(60)\n"
        "with only_one('grid', pathlib.Path(sys.argv[1]), ''): os.kill(child, signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)


def test_process_of_a_cell_ends_when_the_grid_is_gone():
    code = (
        "from mmgrpo.notebook_run import end_with_parent; import time\n"
        "end_with_parent(); print('on', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "on\n" and process.poll() is None
    process.stdin.close()  # as the kernel does when its holder dies
    assert process.wait(timeout=10) == 1


# Thousands of cells


def test_thousands_of_finished_cells_are_skipped_after_one_look_at_each(monkeypatch, tmp_path):
    """Counts, as seconds depend on the machine; 10,000 small records took a second on one core."""
    (tmp_path / "data" / "banking77").mkdir(parents=True)
    (tmp_path / "data" / "banking77" / "train.csv").write_text("1")
    monkeypatch.setenv("MMGRPO_DATA_DIR", str(tmp_path / "data"))
    listed = todo(("vanilla", "prompt_optimization", "module_grpo", "composition"), seeds=tuple(range(50)))
    for cell in listed:
        made = cheap_cell.record(notes={"cell": cell.fingerprint()})
        records.write(made, cell.record)
    looked = {"profiles": 0, "notebooks": 0, "walks": 0, "data": 0, "records": 0}

    def count(what, place, name):
        original = getattr(place, name)

        def counted(*args, **kwargs):
            looked[what] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(place, name, counted)

    cells._code_hash.cache_clear()
    cells._content_hash.cache_clear()
    count("profiles", profiles, "load")
    count("notebooks", cells, "_code")
    count("walks", cells, "local_files")
    count("data", cells, "sha256_of")
    count("records", records, "read")
    assert grid.run(listed, Local(command=never)) == []
    assert looked == {"profiles": 1, "notebooks": 4, "walks": 1, "data": 1, "records": len(listed)}


def never(cell):
    raise AssertionError(f"{cell.name} was run")


# Live lines


class Terminal:
    """A stream that says it is a terminal and keeps what was written."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True


def test_a_terminal_shows_each_running_cell_and_the_whole():
    stream = Terminal()
    with progress.Progress(3, stream) as lines:
        lines.begin("first", 60, 100)
        lines.begin("second", 3700, 100)
        assert [one.place for one in lines.running.values()] == [1, 2]
        lines.tick(95)
        lines.end("first", "50.0 points")
        lines.begin("third", 60, 100)
        assert lines.running["third"].place == 1  # the line that is free again
        lines.tick(40)
    assert "first: 0 min 00 s of about 1 min 00 s" in stream.text
    assert "second: 0 min 00 s of about 1 h 01 min" in stream.text
    assert "0 of 3 cells, about 1 min 35 s left" in stream.text
    assert "1 of 3 cells, about 0 min 40 s left" in stream.text
    assert "first: 50.0 points in 0 min 00 s" in stream.text


def test_time_left_is_shared_by_those_that_run_beside_each_other():
    listed = todo(("vanilla",), seeds=(0, 1, 2, 3))
    schedule = grid._Schedule(listed, plan.survey(listed), Local(2), progress.Progress(0))
    assert schedule.left() == 4 * plan.SMOKE_SECONDS / 2
