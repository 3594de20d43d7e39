"""Tables of known records, and the paper's numbers against what the paper says of them."""

import dataclasses

import pandas as pd
import pytest
from record_factory import curve, record

from mmgrpo.records import Score
from mmgrpo.report import claims, names, published, settings_table, summary, tables, writers
from mmgrpo.report.claims import Claim

QWEN = "Qwen/Qwen3-8B"
OURS = "Banking77", "Qwen3 8B", "reproduced"


def column(table, *head):
    """A column of a shown table, by strategy."""
    return dict(zip(table.shown.iloc[:, 0], table.shown[head if len(head) > 1 else head[0]], strict=True))


def row(table, claim):
    """The first row of the claims table that begins with `claim`."""
    return next(row for row in table.shown.to_dict("records") if row["Claim"] == claim)


# The paper's numbers


def test_published_means_agree_with_the_averages_that_the_paper_states():
    means = published.results().groupby("strategy")["mean"].agg(["mean", "size"])
    for strategy, average in published.averages().items():
        assert means.loc[strategy, "size"] == 6
        assert means.loc[strategy, "mean"] == pytest.approx(average, abs=0.06)


@pytest.mark.parametrize(
    ("claim", "percent"),
    [
        (Claim("module_grpo", "vanilla"), 7),
        (Claim("prompt_optimization", "vanilla"), 6),
        (Claim("composition", "vanilla"), 11),
        (Claim("composition", "prompt_optimization"), 5),
        (Claim("composition", "module_grpo"), 3),
    ],
)
def test_published_gains_are_those_that_the_paper_claims(claim, percent):
    gain, pairs = claims.published_gain(claim)
    assert round(gain) == percent
    assert pairs == 6


def test_neither_mmgrpo_nor_miprov2_dominates_in_the_paper():
    both = Claim("module_grpo", "prompt_optimization")
    rows = published.results().query("strategy == 'module_grpo'")
    gains = [claims.published_gain(both, row.task, row.model)[0] for row in rows.itertuples()]
    assert (sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains), len(gains)) == (3, 2, 6)


def test_every_published_number_names_its_source():
    assert published.results()["source"].str.startswith("arXiv 2508.04660 v2, ").all()
    assert published.results().query("strategy == 'trajectory_grpo'")["mean"].tolist() == [75.3]


# Scores


def test_scores_show_mean_deviation_and_seeds_beside_the_published():
    table = tables.scores([record([1.0, 1.0], seed=0, model=QWEN), record([1.0, 0.0], seed=1, model=QWEN)])
    # One replicate in 16 draws seed 1 and its second example twice each, and scores zero: more than 2.5%.
    assert column(table, *OURS)["Vanilla CoT"] == "75.0 ± 35.4 [0.0, 100.0]"
    assert column(table, "Banking77", "Qwen3 8B", "published")["Vanilla CoT"] == "64.6 ± 1.2"
    assert column(table, "Banking77", "Qwen3 8B", "seeds")["Vanilla CoT"] == "2"


def test_missing_cells_are_dashes_and_a_zero_is_a_zero():
    shown = column(tables.scores([record([0.0, 0.0], model=QWEN)]), *OURS)
    assert shown["Vanilla CoT"] == "0.0 [0.0, 0.0]"
    assert {shown[name] for name in shown if name != "Vanilla CoT"} == {names.MISSING}
    assert list(shown) == list(names.PAPER_STRATEGIES.values())


def test_published_trajectory_score_stands_without_deviation():
    table = tables.scores([record(task="hover", model=QWEN)])
    assert column(table, "HoVer", "Qwen3 8B", "published")["GRPO (trajectory)"] == "75.3"


def test_scores_say_that_seeds_of_greedy_replies_are_one_run():
    said = "all seeds of Vanilla CoT are one run"
    assert said in tables.scores([record(seed=0), record(seed=1)]).caption
    assert said in tables.scores((), [record(seed=0), record(seed=1)]).caption
    assert said not in tables.scores([record()]).caption
    assert said not in tables.scores([record([1.0, 0.0], seed=0), record([0.0, 1.0], seed=1)]).caption
    assert said not in tables.scores([record(strategy="gepa", seed=seed) for seed in (0, 1)]).caption


def test_scores_say_where_the_metric_is_another_one():
    lexical = record(task="papillon", settings={"task": {"judge": "lexical"}})
    assert "Our metric of PAPILLON is another one than the published" in tables.scores([record(), lexical]).caption
    assert "another one" not in tables.scores([record(), record(task="papillon")]).caption


def test_model_without_published_numbers_has_no_published_column():
    heads = list(tables.scores([record()]).shown.columns)
    assert ("Banking77", "SmolLM2 135M", "reproduced") in heads
    assert ("Banking77", "SmolLM2 135M", "published") not in heads
    assert ("Banking77", "Qwen3 8B", "reproduced") not in heads


def test_summary_is_missing_where_nothing_was_run():
    frame = summary.scores([record(model=QWEN)]).set_index(["model", "strategy"])
    assert frame.loc[(QWEN, "vanilla"), "mean"] == 50
    assert pd.isna(frame.loc[(QWEN, "composition"), "mean"])
    assert frame.loc[(QWEN, "composition"), "seeds"] == 0


# Claims


def test_claim_holds_where_every_example_gains():
    runs = [record([0.5] * 8, seed=seed) for seed in (0, 1)]
    table = claims.build([*runs, *(record([0.75] * 8, strategy="module_grpo", seed=seed) for seed in (0, 1))])
    found = row(table, "mmGRPO (module) over Vanilla CoT")
    assert found["Ours, points"] == "+25.0 [+25.0, +25.0]"
    assert found["Ours, %"] == "+50.0 [+50.0, +50.0]"
    assert found["Published, %"] == "+7.4 (6 pairs)"
    assert found["Verdict"] == "holds"


def test_claim_fails_where_every_example_loses_and_is_equal_where_none_changes():
    table = claims.build(
        [record([0.5] * 8), record([0.25] * 8, strategy="module_grpo"), record([0.5] * 8, strategy="composition")]
    )
    assert row(table, "mmGRPO (module) over Vanilla CoT")["Ours, points"] == "−25.0 [−25.0, −25.0]"
    assert row(table, "mmGRPO (module) over Vanilla CoT")["Verdict"] == "does not hold (one seed)"
    assert row(table, "BetterTogether(PO, mmGRPO) over Vanilla CoT")["Verdict"] == "equal"


def test_claim_about_a_strategy_that_was_not_run_says_so():
    found = row(claims.build([record()]), "MIPROv2 over Vanilla CoT")
    assert found["Verdict"] == "not run"
    assert found["Ours, points"] == found["Ours, %"] == found["Seeds"] == names.MISSING


def test_claim_compares_only_the_seeds_that_both_have():
    base = [record([0.5] * 4, seed=0), record([0.0] * 4, seed=1)]
    found = row(
        claims.build([*base, record([1.0] * 4, seed=0, strategy="module_grpo")]), "mmGRPO (module) over Vanilla CoT"
    )
    assert found["Ours, points"] == "+50.0 [+50.0, +50.0]"
    assert found["Seeds"] == "1"


def test_claim_over_two_tasks_has_their_average_first():
    new = [record([0.75] * 4, strategy="module_grpo"), record([0.625] * 4, strategy="module_grpo", task="hover")]
    second = [record([0.5] * 4, seed=1), record([0.75] * 4, strategy="module_grpo", seed=1)]
    table = claims.build([record([0.5] * 4), record([0.5] * 4, task="hover"), *new, *second])
    rows = table.shown[table.shown["Claim"] == "mmGRPO (module) over Vanilla CoT"]
    assert [text.split()[0] for text in rows["Ours, points"]] == ["+18.8", "+25.0", "+12.5"]
    assert rows["Ours on"].tolist() == [
        "average of 2 task and model pairs",
        "Banking77, SmolLM2 135M",
        "HoVer, SmolLM2 135M",
    ]
    assert rows["Seeds"].tolist() == ["1 to 2", "2", "1"]
    assert rows["Verdict"].tolist() == ["holds (one seed)", "holds", "holds (one seed)"]


def levels(**points):
    """Rows of the claim that trajectory level beats module level, where it gains so many points on each task."""
    runs = []
    for task, gained in points.items():
        runs += [
            record([0.5] * 4, task=task, strategy="module_grpo"),
            record([0.5 + gained / 100] * 4, task=task, strategy="trajectory_grpo"),
        ]
    found = claims.build(runs).shown
    found = found[found["Claim"] == "GRPO (trajectory) over mmGRPO (module)"]
    return found[["Ours on", "Ours, points", "Verdict"]].values.tolist()


def test_a_pair_that_is_equal_enters_no_average():
    average, *by_task = levels(banking77=0, papillon=10, hover=30)
    assert average == ["average of 2 task and model pairs", "+20.0 [+20.0, +20.0]", "holds (one seed)"]
    assert [row[0].split(",")[0] for row in by_task] == ["Banking77", "PAPILLON", "HoVer"]
    assert by_task[0][1:] == ["0.0 [0.0, 0.0]", "equal"]


def test_the_only_pair_that_differs_has_one_row():
    assert levels(banking77=0, papillon=10) == [
        ["PAPILLON, SmolLM2 135M", "+10.0 [+10.0, +10.0]", "holds (one seed)"],
        ["Banking77, SmolLM2 135M", "0.0 [0.0, 0.0]", "equal"],
    ]


def test_an_average_of_pairs_that_are_all_equal_is_equal():
    assert [row[0] for row in levels(banking77=0)] == ["Banking77, SmolLM2 135M"]
    average, *by_task = levels(banking77=0, papillon=0)
    assert average == ["average of 2 task and model pairs", "0.0 [0.0, 0.0]", "equal"]
    assert len(by_task) == 2


def test_smoke_run_gets_no_verdict():
    table = claims.build([record([0.0] * 4, smoke=True), record([1.0] * 4, strategy="module_grpo", smoke=True)])
    assert row(table, "mmGRPO (module) over Vanilla CoT")["Verdict"] == "not a result (smoke)"


# Cost, groups, outcomes, settings


def test_cost_is_the_mean_over_seeds():
    slow = record(seed=1, seconds={"optimize": 5400.0, "evaluate": 900.0})
    found = tables.cost([record(seed=0), slow]).shown.iloc[0]
    assert found["Optimize, min"] == "60.0"  # of 30 and 90
    assert found["In all, min"] == "75.0"
    assert found["Prompt, k tokens"] == "4.0"
    assert found["Seeds"] == "2"


def test_cost_is_in_hours_where_a_run_takes_three():
    table = tables.cost([record(), record(strategy="module_grpo", seconds={"optimize": 10000.0, "evaluate": 800.0})])
    assert table.shown["In all, h"].tolist() == ["0.75", "3.00"]
    assert table.numbers["hours"].tolist() == [0.75, 3.0]
    assert not [head for head in table.shown if head.endswith(", min")]


def test_the_csv_of_cost_has_hours_whatever_is_shown():
    table = tables.cost([record()])
    assert table.shown["In all, min"].tolist() == ["45.0"] and table.numbers["hours"].tolist() == [0.75]


def test_a_resumed_run_counts_in_no_mean_of_cost():
    slow = record(seed=1, seconds={"optimize": 9e3, "evaluate": 9e2}, tokens={"prompt": 1}, notes={"resumed": True})
    table = tables.cost([record(seed=0, notes={"resumed": False}), slow])
    found = table.shown.iloc[0]
    assert (found["In all, min"], found["Prompt, k tokens"], found["Seeds"]) == ("45.0", "4.0", "2")
    assert "(1 of 2)" in table.caption
    assert "interrupted" not in tables.cost([record()]).caption


def test_cost_of_resumed_runs_alone_is_missing():
    shown = tables.cost([record(notes={"resumed": True})]).shown.iloc[0]
    assert shown["Peak memory, GB"] == names.MISSING and not [head for head in shown.index if "tokens" in head]


def test_cost_has_the_budget_of_rollouts_and_calls():
    trained = record(strategy="module_grpo", curve=curve([0.1, 0.2], rollouts=48.0), tokens={"prompt": 9, "calls": 340})
    before = {"seconds": {"optimize": 1.0}, "tokens": {"calls": 500}}
    composed = dataclasses.replace(trained, strategy="composition", notes={"prompt_optimization": before})
    prompts = record(strategy="prompt_optimization", tokens={"prompt": 9, "calls": 500})
    shown = tables.cost([trained, composed, prompts]).shown.set_index("Strategy")[["Rollouts", "Policy calls"]]
    assert shown.T.to_dict("list") == {
        "MIPROv2": [names.MISSING, "500"],
        "mmGRPO (module)": ["96", "340"],
        "BetterTogether(PO, mmGRPO)": ["96", "840"],
    }


def test_cost_names_the_published_hours_and_their_hardware():
    assert tables.cost([record(strategy="module_grpo")]).shown["Published, h"].tolist() == ["18.7 on 2 x H100"]
    assert tables.cost([record()]).shown["Published, h"].tolist() == [names.MISSING]


def test_cost_has_calls_and_dollars_of_apis_and_dashes_where_there_are_none():
    def asked(calls, dollars, **changes):
        counted = {"calls": calls, "prompt": 9, "completion": 9, "dollars": dollars, "unpriced": 0}
        return record(task="papillon", notes={"spending": {"judge": counted}}, **changes)

    runs = [
        asked(6, 0.75, seed=0), asked(3, 0.2504, seed=1), asked(0, 0.0, strategy="module_grpo"),
        record(notes={"spending": {}}), record(task="papillon", strategy="gepa"),
    ]  # fmt: skip
    table = tables.cost(runs)
    shown = table.shown.set_index(["Task", "Strategy"])[["API calls", "API, $"]].T.to_dict("list")
    assert shown == {
        ("Banking77", "Vanilla CoT"): [names.MISSING, names.MISSING],
        ("PAPILLON", "Vanilla CoT"): ["4.5", "0.5002"],
        ("PAPILLON", "mmGRPO (module)"): ["0.0", "0.0000"],  # all answers were in the cache
        ("PAPILLON", "GEPA"): [names.MISSING, names.MISSING],
    }
    numbers = table.numbers.set_index(["task", "strategy"])["api_dollars"]
    assert numbers["papillon", "vanilla"] == pytest.approx(0.5002)
    assert pd.isna(numbers["banking77", "vanilla"]) and pd.isna(numbers["papillon", "gepa"])


def test_groups_average_steps_and_tolerate_what_was_not_logged():
    logged = record(strategy="module_grpo", curve=curve([0.1, 0.2], **{"groups/kept": 3.0, "calls/dropped": 1.0}))
    bare = record(strategy="trajectory_grpo", curve=({"step": 1, "reward": 0.5},))
    shown = tables.groups([logged, bare]).shown.set_index("Strategy")
    assert shown.loc["mmGRPO (module)", "Groups kept"] == "3.0"
    assert shown.loc["mmGRPO (module)", "Format failures, % of runs"] == "25.0"
    assert shown.loc["GRPO (trajectory)", "Groups kept"] == names.MISSING
    assert tables.groups([record()]) is None


def test_a_count_that_a_step_did_not_log_is_zero_in_that_step():
    steps = [{"step": 1, "reward": 0.5, "groups/kept": 2.0, "groups/dropped_no_variance": 4.0},
             {"step": 2, "reward": 0.5, "groups/kept": 6.0}]  # fmt: skip
    shown = tables.groups([record(strategy="module_grpo", curve=tuple(steps))]).shown.iloc[0]
    assert shown["Groups kept"] == "4.0"
    assert shown["Groups dropped, equal rewards"] == "2.0"  # not 4.0


def test_a_composition_pays_for_the_prompts_that_it_starts_from():
    before = {"seconds": {"optimize": 3600.0, "evaluate": 900.0}, "tokens": {"prompt": 6000}, "validation": []}
    composed = record(strategy="composition", notes={"prompt_optimization": before})
    table = tables.cost([record(), composed]).shown.set_index("Strategy")
    own, paid = table.loc["Vanilla CoT"], table.loc["BetterTogether(PO, mmGRPO)"]
    assert (own["Prompts before, min"], paid["Prompts before, min"]) == (names.MISSING, "60.0")
    assert (own["In all, min"], paid["In all, min"]) == ("45.0", "105.0")  # the earlier test run is not its own
    assert (own["Prompt, k tokens"], paid["Prompt, k tokens"]) == ("4.0", "10.0")


def test_parts_of_a_metric_are_means_of_the_examples_that_have_them():
    def run(task, seed, *details):
        scores = tuple(Score(f"e{place}", 0.5, "completed", each) for place, each in enumerate(details))
        return dataclasses.replace(record(task=task, seed=seed), scores=scores)

    records = [
        run("papillon", 0, {"quality": 1.0, "leakage": 0.5}, {"quality": 0.0, "leakage": 0.0}),
        run("papillon", 1, {"quality": 1.0, "leakage": 0.25}, {}),
        run("hover", 0, {"recall_hop_1": 0.5}, {}),
    ]
    shown = tables.parts(records).shown.set_index("Task")
    assert (shown.loc["PAPILLON", "Quality"], shown.loc["PAPILLON", "Leakage"]) == ("0.75", "0.25")
    assert (shown.loc["HoVer", "Recall hop 1"], shown.loc["HoVer", "Quality"]) == ("0.50", names.MISSING)
    assert tables.parts([record()]) is None


def test_outcomes_are_counted_over_seeds():
    ends = ["completed", "interrupted"]
    found = tables.outcomes([record(outcomes=ends, seed=0), record(outcomes=ends, seed=1)]).shown.iloc[0]
    assert (found["Test runs"], found["Completed"], found["Interrupted"], found["Unscorable"]) == ("4", "2", "2", "0")


def test_settings_show_who_used_which_value_beside_the_papers():
    records = [
        record(settings={"grpo": {"steps": 24}}),
        record(strategy="module_grpo", settings={"grpo": {"steps": 48, "beta": 0.0}}),
    ]
    found = {
        (entry["Setting"], entry["Value"]): entry for entry in settings_table.build(records).shown.to_dict("records")
    }
    assert found["grpo.steps", "24"]["Runs"] == "Vanilla CoT"
    assert found["grpo.steps", "48"]["Paper"] == "750"
    assert found["grpo.beta", "0"]["Paper"] == "0.01 (Qwen3 8B), 0.04 (Llama 3.1 8B)"
    assert found["origin.commit", "abc1234"]["Runs"] == "all"


def test_settings_are_displayed_plainly():
    flat = settings_table.flatten({"a": {"rate": 1e-5, "on": True, "none": None, "list": [1, 2.5]}})
    assert flat == {"a.rate": "1e-5", "a.on": "yes", "a.none": "none", "a.list": "1, 2.5"}


# Files


def test_smoke_is_said_in_file_names_titles_captions_and_rows(tmp_path):
    files = writers.write(tables.scores([record(), record(seed=1, smoke=True)]), tmp_path)
    assert [file.name for file in files] == [
        "table_scores_smoke.md",
        "table_scores_smoke.tex",
        "table_scores_smoke.csv",
    ]
    for file in files[:2]:
        assert file.read_text(encoding="utf-8").count(names.SMOKE_STAMP) == 2  # title and caption
    assert (pd.read_csv(files[2])["stamp"] == names.SMOKE_STAMP).all()


def test_table_of_a_real_run_says_nothing_of_smoke(tmp_path):
    for file in writers.write(tables.scores([record()]), tmp_path):
        assert "smoke" not in file.name
        assert "SMOKE" not in file.read_text(encoding="utf-8")


def test_csv_has_the_numbers_behind_the_text(tmp_path):
    frame = pd.read_csv(writers.write(tables.scores([record([1.0, 0.0, 0.0])]), tmp_path)[2])
    assert frame.loc[frame["model"] == "smollm2-135m", "mean"].tolist() == [33.3333]


def test_markdown_rows_have_as_many_cells_as_heads():
    lines = [line for line in writers.markdown(tables.scores([record()])).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 5
    assert len({line.count("|") for line in lines}) == 1


def test_latex_escapes_text_and_has_one_tabular_a_task():
    text = writers.latex(tables.scores([record(), record(task="hover")]))
    assert "95\\% bootstrap" in text and "$\\pm$" in text
    assert "±" not in text and "–" not in text
    assert text.count("\\begin{tabular}") == text.count("\\end{tabular}") == 2
    assert "\\multicolumn{4}{c}{Banking77}" in text


@pytest.mark.parametrize(
    ("value", "sign", "text"),
    [(1.25, False, "1.2"), (-0.04, True, "0.0"), (-3.0, True, "−3.0"), (2.0, True, "+2.0"), (float("nan"), True, "–")],
)
def test_numbers_are_written_for_readers(value, sign, text):
    assert writers.number(value, sign=sign) == text
