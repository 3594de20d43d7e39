"""Cells: their order, what their fingerprint depends on, and sentences for names that don't exist."""

import os
import shutil

import pytest
import yaml

from mmgrpo import cells, library, paths, profiles, strategies
from mmgrpo.errors import UserError
from mmgrpo.report import names

MODEL = "smollm2-135m"


def cell(strategy="module_grpo", *, profile="smoke", seed=0):
    return cells.cell(profile, "banking77", MODEL, strategy, seed)


@pytest.fixture
def own_profiles(tmp_path, monkeypatch):
    """A copy of the profiles, and a function that changes one of them."""
    folder = shutil.copytree(paths.PROFILES, tmp_path / "profiles")
    monkeypatch.setattr(paths, "PROFILES", folder)

    def change(name, **changes):
        file = folder / f"{name}.yaml"
        content = yaml.safe_load(file.read_text())
        for key, value in changes.items():
            content[key] = content.get(key, {}) | value if isinstance(value, dict) else value
        file.write_text(yaml.safe_dump(content))

    return change


def test_cell_comes_after_those_it_needs():
    paper = profiles.load("paper")
    chosen = ("composition", "module_grpo", "prompt_optimization", "vanilla")
    todo = cells.expand(paper.model_copy(update={"strategies": chosen}), ["banking77"])
    assert len(todo) == len(set(todo)) == 2 * 3 * 4
    for place, one in enumerate(todo):
        assert set(one.needs) <= set(todo[:place])
    assert [one.strategy for one in todo[:4]] == ["vanilla", "prompt_optimization", "module_grpo", "composition"]


def test_composition_needs_prompt_optimization_of_the_same_seed():
    (needed,) = cell("composition", seed=3).needs
    assert needed == cell("prompt_optimization", seed=3)
    assert cell("vanilla").needs == ()


def test_every_strategy_is_known_wherever_strategies_are_listed():
    assert set(cells.NOTEBOOK_OF) == set(strategies.STRATEGIES) == set(names.STRATEGIES) == set(cells.SETTINGS_OF)


def test_every_cell_has_a_folder_and_a_name_of_its_own():
    todo = cells.expand(profiles.load("paper"), ["banking77"]) + cells.expand(profiles.load("gpu"), ["banking77"])
    assert len({one.folder for one in todo}) == len(todo)
    assert len({one.name for one in cells.expand(profiles.load("paper"), ["banking77"])}) == len(todo) - 5
    assert all(one.folder.is_relative_to(paths.results()) for one in todo)


def test_results_folder_can_be_moved(tmp_path, monkeypatch):
    monkeypatch.setenv("MMGRPO_RESULTS_DIR", str(tmp_path))
    assert cell().record == tmp_path / "smoke" / "banking77" / MODEL / "module_grpo" / "seed-0" / "record.json"


def test_fingerprint_stays_the_same():
    assert cell().fingerprint() == cell().fingerprint()
    assert len(cell().fingerprint()) == 16


def test_fingerprint_depends_on_strategy_seed_and_profile():
    kinds = [cell(), cell("trajectory_grpo"), cell("composition"), cell(seed=1), cell(profile="laptop")]
    assert len({one.fingerprint() for one in kinds}) == 5


@pytest.mark.parametrize(
    "changes",
    [
        {"grpo": {"steps": 3}},
        {"grpo": {"learning_rate": 2e-4}},
        {"policy": {"max_tokens": 65}},
        {"sampling": {"temperature": 0.9}},
        {"models_grpo": {MODEL: {"beta": 0.5}}},
        {"models_sampling": {MODEL: {"top_k": 5}}},
        {"tasks": {"banking77": {"splits": {"source": "embedded", "train": 8, "valid": 8, "test": 9}}}},
    ],
    ids=str,
)
def test_fingerprint_changes_with_the_settings_of_its_profile_only(own_profiles, changes):
    before = cell().fingerprint()
    own_profiles("laptop", **changes)
    assert cell().fingerprint() == before
    own_profiles("smoke", **changes)
    assert cell().fingerprint() != before


@pytest.mark.parametrize(
    ("strategy", "used"),
    {
        "vanilla": set(),
        "prompt_optimization": {"mipro"},
        "trajectory_grpo": {"sampling", "grpo", "policy"},
        "module_grpo": {"sampling", "grpo", "policy"},
        "composition": {"sampling", "grpo", "policy", "mipro"},
        "gepa": {"gepa"},
        "fast_slow": {"sampling", "grpo", "policy", "mipro", "fast_slow"},
    }.items(),
)
def test_fingerprint_depends_on_the_settings_that_its_strategy_uses_only(own_profiles, strategy, used):
    changes = {
        "sampling": {"temperature": 0.8}, "grpo": {"steps": 3}, "policy": {"lora_rank": 8}, "mipro": {"trials": 3},
        "gepa": {"metric_calls": 30}, "fast_slow": {"trials": 2},
    }  # fmt: skip
    found = set()
    for section, change in changes.items():
        before = cell(strategy).fingerprint()
        own_profiles("smoke", **{section: change})
        found |= {section} if cell(strategy).fingerprint() != before else set()
    assert found == used


def test_a_record_is_told_the_settings_of_its_strategy():
    smoke = profiles.load("smoke")
    vanilla, trained = (cell(strategy).settings(smoke) for strategy in ("vanilla", "module_grpo"))
    assert list(vanilla) == ["splits", "task", "policy"]
    assert list(trained) == ["splits", "task", "policy", "sampling", "grpo"]
    assert trained["grpo"] == smoke.grpo.model_dump()
    assert set(trained["policy"]) - set(vanilla["policy"]) == {"lora_rank", "lora_alpha", "lora_dropout"}


def test_fingerprints_of_many_cells_are_those_of_each(monkeypatch, tmp_path):
    local_rows(tmp_path, "1")
    monkeypatch.setenv("MMGRPO_DATA_DIR", str(tmp_path))
    todo = [cell(strategy, seed=seed) for strategy in cells.NOTEBOOK_OF for seed in (0, 1)]
    found = cells.fingerprints(todo)
    assert found == {one: one.fingerprint() for one in todo}
    assert len(set(found.values())) == len(todo)


def test_fingerprint_of_a_cell_changes_with_the_cells_it_needs(own_profiles):
    before = cell("composition").fingerprint()
    own_profiles("smoke", mipro={"trials": 3})
    assert cell("composition").fingerprint() != before


def test_what_only_describes_a_profile_does_not_count(own_profiles):
    before = cell().fingerprint()
    own_profiles("smoke", purpose="Something else.", seeds=[0, 1, 2])
    assert cell().fingerprint() == before


def test_fingerprint_changes_with_the_library(monkeypatch):
    before = cell().fingerprint()
    monkeypatch.setattr(cells, "library_hash", lambda: "another")
    assert cell().fingerprint() != before


def test_the_library_is_the_same_whatever_records_are_committed(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path)
    monkeypatch.setattr(paths, "EVIDENCE", tmp_path / "evidence")

    def hash_with(name):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
        return library.library_hash.__wrapped__()

    before = hash_with("banking77/categories.json")
    assert hash_with("evidence/embedded/laptop/record.json") == before
    assert hash_with("banking77/more.json") != before


def test_fingerprint_changes_with_the_rows_of_its_task_below_the_data_folder(monkeypatch, tmp_path):
    before = cell().fingerprint()
    file = local_rows(tmp_path / "data", "1")
    monkeypatch.setenv("MMGRPO_DATA_DIR", str(tmp_path / "data"))
    first = cell().fingerprint()
    file.write_text("2")
    assert len({before, first, cell().fingerprint()}) == 3


def test_fingerprint_is_the_same_for_a_copy_of_the_data_and_whatever_other_tasks_have(monkeypatch, tmp_path):
    file = local_rows(tmp_path / "data", "1")
    monkeypatch.setenv("MMGRPO_DATA_DIR", str(tmp_path / "data"))
    before = cell().fingerprint()
    os.utime(file, (0, 0))
    assert cell().fingerprint() == before
    copy = local_rows(tmp_path / "copy", "1")
    os.utime(copy, (1, 1))
    (tmp_path / "copy" / "README.md").write_text("Of all tasks.")
    (tmp_path / "copy" / "pupa").mkdir()
    (tmp_path / "copy" / "pupa" / "PUPA_New.csv").write_text("3")
    monkeypatch.setenv("MMGRPO_DATA_DIR", str(tmp_path / "copy"))
    assert cell().fingerprint() == before


def local_rows(folder, text):
    """A file of Banking77 below a data folder."""
    file = folder / "banking77" / "train.csv"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    return file


def test_outputs_of_a_notebook_are_no_part_of_the_library(tmp_path):
    import nbformat
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

    code = new_code_cell("1 + 1")
    notebook = new_notebook(cells=[new_markdown_cell("Some prose."), code])
    file = tmp_path / "a.ipynb"
    nbformat.write(notebook, file)
    bare = cells._code(file)
    code.outputs = [new_output("stream", text="2")]
    nbformat.write(notebook, file)
    assert cells._code(file) == bare
    code.source = "1 + 2"
    nbformat.write(notebook, file)
    assert cells._code(file) != bare


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("smoke", "banking", MODEL, "vanilla"), "Unknown task 'banking'; allowed: .*did you mean 'banking77'"),
        (
            ("smoke", "banking77", "smolm2-135m", "vanilla"),
            "Unknown model 'smolm2-135m'; allowed: .*did you mean 'smollm2-135m'",
        ),
        (
            ("smoke", "banking77", MODEL, "modul_grpo"),
            "Unknown strategy 'modul_grpo'; allowed: .*did you mean 'module_grpo'",
        ),
        (("smok", "banking77", MODEL, "vanilla"), "Unknown profile 'smok'; allowed: .*did you mean 'smoke'"),
    ],
)
def test_unknown_name_is_answered_with_the_likeliest(given, sentence):
    with pytest.raises(UserError, match=sentence):
        cells.cell(*given, seed=0)


def test_model_of_a_profile_is_checked_when_it_is_expanded():
    with pytest.raises(UserError, match="Unknown model 'gpt-2'"):
        cells.expand(profiles.load("smoke").model_copy(update={"models": ("gpt-2",)}), ["banking77"])


def test_tasks_are_chosen_by_name_or_all():
    smoke = profiles.load("smoke")
    assert cells.chosen_tasks(smoke, "all") == list(smoke.tasks)
    assert cells.chosen_tasks(smoke, "banking77") == ["banking77"]
    assert cells.chosen_tasks(smoke, " banking77 , ") == ["banking77"]


def test_seeds_are_chosen_by_number_or_left_to_the_profile():
    smoke = profiles.load("smoke")
    assert cells.chosen_seeds("") == []
    assert cells.chosen_seeds(" 2, 0,2") == [2, 0]
    assert {one.seed for one in cells.expand(smoke, ["banking77"], cells.chosen_seeds("3,1"))} == {1, 3}
    assert {one.seed for one in cells.expand(smoke, ["banking77"])} == set(smoke.seeds)
    with pytest.raises(UserError, match="Not a seed: '-1'; allowed are whole numbers"):
        cells.chosen_seeds("0,-1")


@pytest.mark.parametrize("wanted", ["banking77,hoover", "hoover", "ALL"])
def test_unknown_task_is_named(wanted):
    with pytest.raises(UserError, match="has no task '(hoover|ALL)'; allowed: all, banking77"):
        cells.chosen_tasks(profiles.load("smoke"), wanted)


@pytest.mark.parametrize("wanted", ["", " , "])
def test_no_task_at_all_is_refused(wanted):
    with pytest.raises(UserError, match="No task was named; allowed: all, banking77"):
        cells.chosen_tasks(profiles.load("smoke"), wanted)


def test_task_named_twice_is_run_once():
    assert cells.chosen_tasks(profiles.load("smoke"), "banking77,banking77") == ["banking77"]
