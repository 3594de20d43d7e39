"""Figures are written as PDF and PNG, equal for equal records, and stamped where they show a smoke run."""

import matplotlib.pyplot as plt
import pytest
from record_factory import curve, record

from mmgrpo import report
from mmgrpo.errors import UserError
from mmgrpo.report import figures, names

STEPS = [0.1, 0.3, 0.2, 0.4, 0.5, 0.4, 0.6, 0.5]


def trained(**changes):
    """A run with a curve and validations."""
    validation = ({"step": 4, "score": 0.25}, {"step": 8, "score": 0.5})
    return record([1.0, 0.0, 1.0], strategy="module_grpo", curve=curve(STEPS), validation=validation, **changes)


def texts(figure):
    """All text of a figure's axes."""
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def test_files_are_pdf_and_png_and_the_same_each_time(tmp_path):
    first = figures.save(figures.scores([record()]), tmp_path / "a", "scores")
    second = figures.save(figures.scores([record()]), tmp_path / "b", "scores")
    assert [file.name for file in first] == ["scores.pdf", "scores.png"]
    assert first[0].read_bytes().startswith(b"%PDF") and first[1].read_bytes().startswith(b"\x89PNG")
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


def test_bars_are_as_high_as_the_scores_and_a_cell_not_run_has_none():
    axis = figures.scores([record([1.0, 0.0, 1.0, 1.0], model="Qwen/Qwen3-8B")]).axes[0]
    assert [bar.get_height() for bar in axis.patches] == [75]
    assert [text.get_text() for text in axis.texts] == ["not run"] * 3  # the other strategies that are published for it


def test_score_of_zero_is_told_from_a_cell_not_run():
    assert "0" in texts(figures.scores([record([0.0, 0.0])]))


def test_every_mark_lies_within_its_panel():
    for axis in figures.scores([record(), record(task="papillon"), record(task="hover")]).axes:
        low, high = axis.get_ylim()
        marks = [line.get_ydata() for line in axis.lines] + [[bar.get_height()] for bar in axis.patches]
        assert low == 0
        assert all(low <= value <= high for values in marks for value in values)


def test_learning_curves_have_reward_and_validation_for_each_task():
    figure = figures.learning_curves([trained(), trained(task="hover"), record()])
    assert [axis.get_title() for axis in figure.axes] == ["Banking77", "HoVer", "", ""]
    assert figure.axes[2].lines[0].get_ydata().tolist() == [25, 50]


def test_training_reward_is_a_rolling_mean_of_three_steps():
    line = figures.learning_curves([trained()]).axes[0].lines[0].get_ydata()
    assert line[1] == pytest.approx((0.1 + 0.3 + 0.2) / 3)
    assert line[0] == pytest.approx((0.1 + 0.3) / 2)


def test_each_seed_has_a_thin_line_beside_their_mean():
    assert len(figures.learning_curves([trained(seed=0), trained(seed=1)]).axes[0].lines) == 3


def test_learning_curves_need_a_trained_run():
    assert figures.learning_curves([record()]) is None


@pytest.mark.parametrize("draw", [figures.scores, figures.learning_curves, figures.cost])
def test_smoke_is_said_in_the_figure(draw):
    assert draw([trained(smoke=True)]).get_suptitle() == names.SMOKE_STAMP
    assert draw([trained()]).get_suptitle() == ""


def test_figures_leave_nothing_open_and_no_style_behind():
    before = dict(plt.rcParams)
    figures.cost([trained()])
    assert plt.get_fignums() == []
    assert dict(plt.rcParams) == before


def test_build_writes_every_table_and_figure(tmp_path):
    files = report.build([record([1.0, 0.0, 0.0]), trained()], tmp_path)
    stems = {"scores", "claims", "cost", "groups", "outcomes", "settings"}
    expected = {f"table_{stem}.{suffix}" for stem in stems for suffix in ("md", "tex", "csv")}
    expected |= {
        f"figure_{stem}.{suffix}" for stem in ("scores", "learning_curves", "cost") for suffix in ("pdf", "png")
    }
    assert {file.name for file in files} == expected
    assert all(file.stat().st_size > 0 for file in files)


def test_build_of_a_smoke_run_marks_every_file(tmp_path):
    assert all(file.stem.endswith("_smoke") for file in report.build([trained(smoke=True)], tmp_path))


def test_build_without_training_leaves_out_curves_and_groups(tmp_path):
    written = {file.stem for file in report.build([record()], tmp_path)}
    assert not written & {"figure_learning_curves", "table_groups"}


def test_build_without_records_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="no records"):
        report.build([], tmp_path)
