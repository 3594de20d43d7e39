"""The plan: numbers a reader can check, each marked with where it is from, and what is missing."""

import shutil
from collections import namedtuple

import pytest
import torch
from huggingface_hub import constants
from record_factory import record

from mmgrpo import cells, paths, plan, policy, profiles, records, tasks
from mmgrpo.tasks import Api

QWEN, LLAMA = "Qwen/Qwen3-8B", "meta-llama/Llama-3.1-8B-Instruct"


@pytest.fixture(autouse=True)
def bare_machine(tmp_path, monkeypatch):
    """No records, no models, no GPU, no data folder, and a hub that could be asked."""
    monkeypatch.setenv("MMGRPO_RESULTS_DIR", str(tmp_path / "results"))
    monkeypatch.setenv("MMGRPO_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("MMGRPO_DATA_DIR", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args, **kwargs: None)
    disk = namedtuple("disk", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: disk(10**13, 0, 10**13))


def expand(profile, **changes):
    return cells.expand(profiles.load(profile).model_copy(update=changes), ["banking77"])


def rows(todo):
    return {(row["model"], row["strategy"]): row for _, row in plan.table(todo).iterrows()}


def test_every_model_has_its_needs():
    assert set(plan.MODELS) == set(policy.names())


def test_the_papers_grid_takes_the_papers_hours():
    found = rows(expand("paper"))
    trained = found[QWEN, "module_grpo"]
    assert (trained["cells"], trained["to run"], trained["hours each"], trained["from"]) == (3, 3, 18.7, "paper")
    assert trained["hours"] == pytest.approx(56.1) and trained["GPU hours"] == pytest.approx(112.2)
    assert trained["disk GB"] == pytest.approx(3 * (0.002 + 7 * 0.175), abs=0.01)
    prompted = found[LLAMA, "prompt_optimization"]
    assert (prompted["hours each"], prompted["from"], prompted["GPU hours"]) == (1.4, "paper", pytest.approx(4.2))
    assert found[QWEN, "vanilla"]["from"] == "guess"
    total = found["", ""]
    assert total["cells"] == 2 * 5 * 3
    assert total["GPU hours"] == pytest.approx(sum(row["GPU hours"] for key, row in found.items() if key[0]))
    assert total["download GB"] == pytest.approx(16.4 + 16.1 + 0.01)


def test_fewer_samples_of_a_smaller_model_take_a_share():
    (cell,) = expand("gpu", strategies=("module_grpo",), seeds=(0,))
    grpo = profiles.load("gpu").grpo
    seconds, source = plan.unmeasured(cell)
    assert seconds == pytest.approx(18.7 * 3600 * grpo.steps * grpo.inputs * grpo.rollouts / 36000 * 0.6 / 8)
    assert source == "paper, scaled"


def test_records_of_this_machine_come_before_the_paper():
    todo = expand("paper", models=(QWEN,), strategies=("module_grpo",))
    done = todo[0]
    made = record(seconds={"optimize": 7200.0, "evaluate": 3600.0}, notes={"cell": done.fingerprint()})
    records.write(made, done.record)
    row = rows(todo)[QWEN, "module_grpo"]
    assert (row["cells"], row["to run"], row["hours each"], row["from"]) == (3, 2, 3.0, "measured")
    assert row["GPU hours"] == 2 * 3.0  # measured on the one GPU that a cell takes
    assert plan.survey(todo).finished == {done}


def test_before_the_first_run_here_uninterrupted_committed_runs_say_how_long_it_takes(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "EVIDENCE", tmp_path / "evidence")
    (cell,) = expand("laptop", strategies=("vanilla",))
    assert plan.survey([cell]).expected(cell) == (plan.GUESS_SECONDS["vanilla"], "guess")
    kept = (("embedded", 60.0, False), ("embedded", 80.0, False), ("embedded", 1.0, True), ("real", 300.0, False))
    for seed, (source, seconds, resumed) in enumerate(kept):
        file = paths.EVIDENCE / source / cell.folder.relative_to(paths.results()).with_name(f"seed-{seed}")
        made = record(seconds={"optimize": 0.0, "evaluate": seconds}, notes={"resumed": resumed})
        records.write(made, file / "record.json")
    assert plan.survey([cell]).expected(cell) == (70.0, "committed")
    (trained,) = expand("laptop", strategies=("module_grpo",))  # none is committed: from the runs of the program
    seconds, source = plan.survey([trained]).expected(trained)
    assert seconds == pytest.approx(1.5 * 70.0 * plan.program_runs(trained) / plan.program_runs(cell))
    assert source == "committed, scaled"
    monkeypatch.setenv("MMGRPO_DATA_DIR", str(tmp_path))
    assert plan.survey([cell]).expected(cell) == (300.0, "committed")


def test_outdated_and_damaged_records_are_to_run_and_nothing_is_moved():
    first, second = expand("smoke", strategies=("vanilla",), seeds=(0, 1))
    records.write(record(notes={"cell": "of another library"}), first.record)
    second.record.parent.mkdir(parents=True)
    second.record.write_text("{")
    found = plan.survey([first, second])
    assert (found.finished, set(found.damaged)) == (set(), {second})
    assert second.record.exists()
    assert rows([first, second])["smollm2-135m", "vanilla"]["to run"] == 2


def test_embedded_model_needs_no_gpu():
    found = rows(expand("laptop"))
    assert found["", ""]["GPU hours"] == 0
    assert found["smollm2-135m", "vanilla"]["download GB"] == 0.1
    assert found["smollm2-135m", "module_grpo"]["download GB"] == 0


def paid(monkeypatch, calls=3, dollars=0.01):
    real = tasks.get("banking77")
    task = tasks.Task(**{**vars(real), "api": Api(("SOME_API_KEY", "ANOTHER_API_KEY"), calls, dollars)})
    monkeypatch.setattr(tasks, "get", lambda name, options=None: task)


def test_calls_of_a_paid_api_are_counted_by_hand(monkeypatch):
    paid(monkeypatch)
    todo = expand("smoke", strategies=("vanilla", "module_grpo"))
    found = rows(todo)
    assert found["smollm2-135m", "vanilla"]["API calls"] == 4 * 3  # the test split
    # 2 steps of 1 x 4 runs, validation before the first and after the last on 4, and the test split
    assert found["smollm2-135m", "module_grpo"]["API calls"] == (8 + 2 * 4 + 4) * 3
    assert found["", ""]["dollars"] == pytest.approx(0.12 + 0.60)


@pytest.mark.parametrize(
    ("strategy", "runs"),
    [
        (
            "prompt_optimization",
            7 * 60 + 4 * 2 + 240,
        ),  # the program as it is and 6 trials, demonstrations, the test split
        ("module_grpo", 20 * 48 + 3 * 60 + 240),
        ("fast_slow", 20 * 48 + 4 * 60 + 240),  # two rounds, each validated before and after
    ],
)
def test_program_runs_are_counted_by_hand(strategy, runs):
    (cell,) = expand("laptop", strategies=(strategy,))
    assert plan.program_runs(cell) == runs


def test_what_is_missing_is_said(monkeypatch):
    said = plan.missing(expand("paper"))
    assert any(f"{QWEN} needs 1 GPU of 80 GB; torch sees 0 here." == line for line in said)
    assert any(line.startswith(f"{LLAMA} is gated") for line in said)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = plan.missing(expand("paper"))
    assert any(line.startswith(f"{QWEN} is not in the cache and HF_HUB_OFFLINE") for line in said)
    assert any(line.startswith("banking77 takes its rows from the hub and HF_HUB_OFFLINE") for line in said)


def test_missing_key_data_and_disk_are_said(monkeypatch, tmp_path):
    paid(monkeypatch)
    monkeypatch.setenv("MMGRPO_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("SOME_API_KEY", raising=False)
    disk = namedtuple("disk", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: disk(10**9, 10**9, 0))
    monkeypatch.delenv("ANOTHER_API_KEY", raising=False)
    key, _, data, room = plan.missing(expand("laptop"))
    assert "set SOME_API_KEY" in key and "MMGRPO_DATA_DIR has no folder banking77" in data
    assert "GB of disk are needed, 0.0 GB are free" in room
    monkeypatch.setenv("SOME_API_KEY", "secret")
    (another,) = [line for line in plan.missing(expand("laptop")) if "API" in line]
    assert "set ANOTHER_API_KEY" in another
    monkeypatch.setenv("ANOTHER_API_KEY", "secret")
    (tmp_path / "banking77").mkdir()
    assert plan.missing(expand("laptop")) == [room]


def test_nothing_is_missing_where_all_is_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "a token")
    assert plan.missing(expand("paper")) == plan.missing(expand("laptop")) == []
