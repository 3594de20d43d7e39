"""Figures are written as PDF and PNG, equal for equal records, and stamped where they show a smoke run."""

import dataclasses

import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure
from record_factory import curve, outline, record

from mmgrpo import report
from mmgrpo.errors import UserError
from mmgrpo.records import Score
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


def test_each_file_is_drawn_once(tmp_path, monkeypatch):
    drawn, draw = [], Figure.draw
    monkeypatch.setattr(Figure, "draw", lambda figure, renderer: drawn.append(renderer) or draw(figure, renderer))
    files = figures.save(figures.scores([record()]), tmp_path, "scores")
    assert len(drawn) == len(files) == 2


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
    assert [axis.get_title() for axis in figure.axes] == ["Banking77, 1 seed", "HoVer, 1 seed", "", ""]
    assert figure.axes[2].lines[0].get_ydata().tolist() == [25, 50]


def test_training_reward_is_a_rolling_mean_of_three_updates():
    line = figures.learning_curves([trained()]).axes[0].lines[0].get_ydata()
    assert line[1] == pytest.approx((0.1 + 0.3 + 0.2) / 3)
    assert line[0] == pytest.approx((0.1 + 0.3) / 2)


def test_each_seed_has_a_thin_line_beside_their_mean():
    assert len(figures.learning_curves([trained(seed=0), trained(seed=1)]).axes[0].lines) == 3


def test_learning_curves_need_a_trained_run():
    assert figures.learning_curves([record()]) is None


def test_rollouts_and_groups_are_drawn_as_they_were():
    figure = figures.rollout_groups([record(), trained(notes={"rollouts": outline()})])
    left, right = figure.axes
    assert [(box.get_x(), box.get_width()) for box in left.patches] == [(0, 4), (4, 4), (8, 4), (0, 4), (4, 4)]
    assert [text.get_text() for text in left.texts] == ["1.00", "0.00"]
    assert [text.get_text() for text in right.texts] == ["+1.0", "−1.0"] * 3
    labels = [label.get_text() for label in right.get_xticklabels()]
    assert labels == ["plan\ncall 0", "search\ncall 0", "search\ncall 1"]
    assert [bool(box.get_hatch()) for box in left.patches] == [False] * 4 + [True]  # the call that did not parse
    assert [bool(box.get_hatch()) for box in right.patches] == [False] * 5 + [True]  # the copy
    assert {text.get_text() for text in figure.legends[0].texts} >= {"plan", "search", "did not parse"}


def test_a_trajectory_level_group_is_one_column_and_gives_way_to_module_level():
    whole = outline() | {"groups": [{"key": [], "members": [{"rollout": 0, "places": [0, 1, 2], "advantage": 1.0}]}]}
    by_run = record(strategy="trajectory_grpo", notes={"rollouts": whole})
    right = figures.rollout_groups([by_run]).axes[1]
    assert [label.get_text() for label in right.get_xticklabels()] == ["whole runs"]
    both = figures.rollout_groups([by_run, trained(notes={"rollouts": outline()})])
    assert len(both.axes[1].get_xticklabels()) == 3


def test_reward_variance_compares_the_chosen_members_with_all():
    logged = {"group_std": 0.5, "group_std_all": 0.4, "members/dropped_k_diverse": 4.0}
    steps = [*curve([0.1, 0.2], **logged, **{"groups/kept": 2.0}), {"step": 3, "reward": 0.0} | logged]
    axis = figures.reward_variance([record(strategy="module_grpo", curve=tuple(steps))]).axes[0]
    assert [line.get_ydata().tolist() for line in axis.lines] == [[0.5, 0.5], [0.4, 0.4]]  # update 3 kept no group


@pytest.mark.parametrize("cut", [{}, {"members/dropped_k_diverse": 0.0}])
def test_reward_variance_needs_a_group_that_was_cut(cut):
    steps = curve([0.1], group_std=0.5, group_std_all=0.5, **{"groups/kept": 2.0}, **cut)
    assert figures.reward_variance([record(strategy="module_grpo", curve=steps)]) is None


def scored(*details, outcomes=("completed", "completed"), **changes):
    """A run whose test examples have these parts."""
    scores = tuple(Score(f"e{i}", 0.5, end, each) for i, (each, end) in enumerate(zip(details, outcomes, strict=False)))
    return dataclasses.replace(record(**changes), scores=scores)


def test_quality_stands_against_leakage_by_seed_and_mean():
    first = scored({"quality": 1.0, "leakage": 0.5}, {"quality": 0.0, "leakage": 0.0}, task="papillon", seed=0)
    second = scored({"quality": 1.0, "leakage": 0.25}, {}, task="papillon", seed=1)  # the other was not judged
    seeds, mean = figures.quality_leakage([first, second, record()]).axes[0].collections
    assert seeds.get_offsets().tolist() == [[0.25, 0.5], [0.25, 1]]
    assert mean.get_offsets().tolist() == [[0.25, 0.75]]


def test_what_is_measured_by_hop_has_a_line_over_the_hops_that_were_reached():
    run = scored(
        {"recall_hop_1": 0.25, "recall_hop_2": 1.0, "query_tokens_hop_2": 7.0},
        {"recall_hop_1": 0.75},
        outcomes=("completed", "interrupted"), task="hover",
    )  # fmt: skip
    lengths, recall = figures.by_hop([run]).axes
    assert (lengths.get_ylabel(), recall.get_ylabel()) == ("Query tokens", "Recall")
    assert recall.lines[0].get_xydata().tolist() == [[1, 0.5], [2, 1.0]]


def test_cost_has_time_and_tokens_and_a_composition_pays_for_its_prompts():
    before = {"seconds": {"optimize": 3600.0, "evaluate": 900.0}, "tokens": {"completion": 1000}}
    composed = record(strategy="composition", notes={"prompt_optimization": before})
    time, tokens = figures.cost([composed]).axes
    assert time.get_xlabel() == "Time of one run, min"
    assert time.collections[0].get_offsets()[0, 0] == 105  # 45 of its own
    assert tokens.collections[0].get_offsets()[0, 0] == 3  # thousands


def test_cost_of_runs_that_differ_much_has_plain_ticks_that_do_not_collide():
    figure = figures.cost([record(), record(strategy="module_grpo", seconds={"optimize": 108000.0})])
    axis = figure.axes[0]
    low, high = axis.get_xlim()
    labels = {value: axis.xaxis.get_major_formatter()(value) for value in axis.get_xticks() if low <= value <= high}
    assert labels == {0.5: "0.5", 1: "1", 2: "2", 5: "5", 10: "10", 20: "20"}
    assert not any(axis.xaxis.get_minor_formatter().format_ticks(axis.xaxis.get_minorticklocs()))


def test_points_of_both_levels_that_coincide_are_both_seen():
    levels = [record(strategy=name) for name in ("trajectory_grpo", "module_grpo")]
    ring, dot = sorted(figures.cost(levels).axes[0].collections, key=lambda points: len(points.get_facecolor()))
    assert len(ring.get_facecolor()) == 0 and len(dot.get_facecolor()) == 1
    assert ring.get_sizes() > dot.get_sizes()


def test_cost_leaves_out_what_is_not_known_of_a_resumed_run():
    resumed = record(notes={"resumed": True})
    points = figures.cost([resumed, record(seed=1)]).axes[0].collections[0].get_offsets()
    assert points.compressed().tolist() == [45, 50]
    assert figures.cost([resumed]) is None


def test_legends_tell_seeds_from_their_mean_and_intervals_from_deviations():
    def said(figure):
        return {text.get_text() for text in figure.legends[0].texts}

    assert {"one seed", "mean of seeds"} <= said(figures.learning_curves([trained(seed=0), trained(seed=1)]))
    assert "one seed" not in said(figures.learning_curves([trained()]))
    judged = [scored({"quality": 1.0, "leakage": 0.5}, task="papillon", seed=seed) for seed in (0, 1)]
    assert {"one seed", "mean of seeds"} <= said(figures.quality_leakage(judged))
    assert "one seed" not in said(figures.quality_leakage(judged[:1]))
    assert {"95% bootstrap interval", "published, mean ± sd"} <= said(figures.scores([record()]))


def test_a_legend_is_no_wider_than_its_figure():
    for figure in (figures.scores([record(), record(task="papillon")]), figures.cost([trained(), record()])):
        box = figure.legends[0].get_window_extent()
        assert 0 <= box.x0 and box.x1 <= figure.bbox.x1


def test_strategies_beyond_the_papers_are_in_every_figure_and_table(tmp_path):
    names_ = ["gepa", "fast_slow", "one_of_mine"]
    runs = [trained(), *(record(strategy=name, curve=curve(STEPS)) for name in names_)]
    written = {file.name: file for file in report.build(runs, tmp_path)}
    for name in ("table_scores.md", "table_cost.md", "table_groups.md", "table_outcomes.md"):
        text = written[name].read_text(encoding="utf-8")
        assert all(names.strategy(each) in text for each in names_)
    for draw in (figures.scores, figures.cost, figures.learning_curves):
        assert {names.strategy(each) for each in names_} <= {text.get_text() for text in draw(runs).legends[0].texts}


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
    assert {stem for stem in written if stem.startswith("figure")} == {"figure_scores", "figure_cost"}
    assert "table_groups" not in written


def test_build_without_records_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="no records"):
        report.build([], tmp_path)
