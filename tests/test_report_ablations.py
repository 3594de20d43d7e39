"""Choices of the method: which committed runs are compared, and that their profiles differ in nothing else."""

import pytest
from record_factory import record

from mmgrpo import paths, profiles, records
from mmgrpo.report import ablations
from mmgrpo.report.ablations import ABLATIONS


@pytest.fixture
def committed(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "EVIDENCE", tmp_path)

    def commit(profile, scores, *, task="hover", strategy="module_grpo", seed=0):
        one = record(scores, profile=profile, task=task, strategy=strategy, seed=seed)
        records.write(one, tmp_path / "embedded" / profile / task / strategy / str(seed) / "record.json")

    return commit


def test_both_sides_are_compared_on_their_shared_seeds_and_examples(committed):
    for seed in (0, 1):
        committed("laptop", [1.0, 1.0, 1.0, 1.0], seed=seed)
    committed("laptop", [0.0, 0.0, 0.0, 0.0], seed=2)  # has no partner
    committed("laptop", [0.0, 0.0, 0.0, 0.0], strategy="vanilla")
    committed("ablation_truncate", [1.0, 0.0, 0.0, 0.0], seed=0)
    committed("ablation_truncate", [0.0, 0.0, 0.0, 0.0], seed=1)
    (row,) = ablations.build("embedded").shown.to_dict("records")
    assert row["Choice"] == "`fill` over `truncate`" and row["Ours on"] == "HoVer, SmolLM2 135M"
    assert row["Ours, points"].startswith("+87.5 [")  # of 75 and 100
    assert (row["Seeds"], row["Verdict"]) == ("2", "holds")


def test_a_side_that_is_missing_leaves_no_row(committed):
    committed("laptop", [1.0, 0.0])
    committed("ablation_cispo", [1.0, 0.0], task="banking77")
    assert ablations.build("embedded") is None
    committed("ablation_two_updates", [1.0, 0.0], task="banking77")
    table = ablations.build("embedded")
    assert table.shown["Ours, points"].tolist() == ["0.0 [0.0, 0.0]"]
    assert table.numbers[["new", "base", "verdict"]].values.tolist() == [
        ["ablation_cispo", "ablation_two_updates", "equal"]
    ]


@pytest.mark.parametrize(
    ("ablation", "changed"),
    list(zip(ABLATIONS, [{"objective"}, {"inputs", "rollouts"}, {"padding"}], strict=True)),
    ids=lambda value: getattr(value, "new", None),
)
def test_profiles_of_an_ablation_differ_in_their_choice_alone(ablation, changed):
    new, base = profiles.load(ablation.new), profiles.load(ablation.base)
    shared = set(new.tasks) & set(base.tasks)
    assert shared
    for task in shared:
        assert new.tasks[task] == base.tasks[task]
        mine, other = (each.grpo_for(task, "smollm2-135m", ablation.strategy).model_dump() for each in (new, base))
        assert {name for name in mine if mine[name] != other[name]} == changed
        assert mine["inputs"] * mine["rollouts"] == other["inputs"] * other["rollouts"]
        assert mine["group_size"] == other["group_size"]
        assert new.policy_for(task) == base.policy_for(task)
    assert new.sampling_for("smollm2-135m") == base.sampling_for("smollm2-135m")
