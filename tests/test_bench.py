"""Every benchmark's path on a policy of random weights: its records, its table, and our gradient beside TRL's.

Times are never judged here.
"""

import importlib.util
import json
import time
from dataclasses import asdict, replace
from functools import partial

import dspy
import numpy as np
import pytest
import torch
from tiny_policy import RawAdapter, tiny_policy, tokenizer
from transformers import AutoModelForCausalLM

from mmgrpo import bench, prefix_tree
from mmgrpo.bench import memory, peak, record, rehearsal, report, sampling, shapes, training
from mmgrpo.bench.record import Comparison, Setup, Size, Skipped, Target
from mmgrpo.errors import UserError

SIZE = Size(
    rollouts=2, completion=5, sampled=3, token_budget=2500, groups=(2, 8), prompts=(8, 16), modules=(1, 2), matrix=32,
    runs=1,
)  # fmt: skip
SETUP = Setup(partial(tiny_policy, lora_rank=2), "a machine", SIZE)


@pytest.fixture(autouse=True)
def embedded_data(monkeypatch):
    monkeypatch.delenv("MMGRPO_DATA_DIR", raising=False)


def without_vllm(patch):
    find = importlib.util.find_spec
    patch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "vllm" else find(name, *rest))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The folder after a run of all benchmarks, and what was found."""
    folder = tmp_path_factory.mktemp("figures")
    with pytest.MonkeyPatch.context() as patch, dspy.context(adapter=RawAdapter()):
        patch.delenv("MMGRPO_DATA_DIR", raising=False)
        patch.setattr(training, "FULL", {"inputs": 1, "rollouts": 3, "runs": 1})
        without_vllm(patch)
        splits = replace(shapes.banking()[0], labels=("top_up", "lost_card"))
        patch.setattr(shapes, "banking", lambda: (splits, "two labels"))  # prompts a fifth as long
        bench.run(bench.chosen("", full=True), SETUP, folder)
    return folder, record.read(folder / "bench.json")


def comparison(**changes) -> Comparison:
    fields = {
        "benchmark": "peak", "what": "a | b", "ours": 2.0, "peer": 4.0, "peer_name": "them", "unit": "s", "ratio": 2.0,
        "target": "at least 6", "met": False, "runs": 3, "machine": "a machine",
    }  # fmt: skip
    return Comparison(**fields | changes)


# What is measured


def test_every_benchmark_but_the_skipped_one_leaves_records(measured):
    _, found = measured
    assert list(dict.fromkeys(one.benchmark for one in found)) == [n for n in bench.BENCHMARKS if n != "sampling_vllm"]


def test_records_have_what_a_reader_needs(measured):
    folder, found = measured
    entries = json.loads((folder / "bench.json").read_text())
    wanted = {"what", "ours", "peer", "peer_name", "unit", "ratio", "target", "runs", "machine"}
    assert all(wanted <= entry.keys() for entry in entries)
    for one in found:
        assert one.ours > 0 and one.peer > 0 and one.machine == "a machine" and one.runs == 1
        faster = one.unit == "s" and one.growth is None
        assert one.ratio == pytest.approx(one.peer / one.ours if faster else one.ours / one.peer)


def test_targets_are_those_that_were_set(measured):
    targets = {one.benchmark: one.target for one in measured[1] if one.target}
    assert targets == {
        "training": "at least 6", "training_full": "at least 10", "step": "at least 5", "sampling": "at least 2.5",
        "group_size": "at most 2", "memory": "at most 0.6", "peak": "at least 0.5",
    }  # fmt: skip


def test_gradients_agree_with_trls_on_every_shape(measured):
    errors = {one.benchmark: one.details["gradient_error"] for one in measured[1] if "gradient_error" in one.details}
    assert errors.keys() == {"training", "training_full", "training_modules", "training_hops"}
    assert all(0 < error < 1e-5 for error in errors.values()), errors


def test_gradients_are_compared_with_those_in_double_precision(measured):
    compared = {one.benchmark: one.details for one in measured[1] if "rounding" in one.details}
    assert list(compared) == ["training"]
    assert all(0 < compared["training"][name] < 1e-5 for name in ("rounding", "peer_rounding"))


def test_gradient_error_sees_another_advantage(tmp_path):
    policy = SETUP.make_policy()
    training.shake(policy)
    rows = shapes.random_prompts(tokenizer(), SIZE, length=8).rows
    changed = [replace(rows[0], advantage=rows[0].advantage + 0.1), *rows[1:]]
    peer = training.plain_copy(policy.trainable())
    training.our_step(policy, rows, SIZE, tmp_path)()
    training.trl_step(peer, tokenizer(), changed, SIZE, tmp_path)()
    assert training.relative_error(training.gradient(policy.trainable()), training.gradient(peer)) > 1e-3


def test_growth_is_measured_against_a_smaller_size(measured):
    curves = {}
    for one in measured[1]:
        if one.growth:
            curves.setdefault(one.growth[0], {})[one.growth[1]] = one
    assert {name: list(curve) for name, curve in curves.items()} == {
        "group size": [2, 8], "prompt length": [8, 16], "modules": [1, 2],
    }  # fmt: skip
    for curve in curves.values():
        smallest = curve[min(curve)]
        assert smallest.ratio == 1
        assert all(one.peer == smallest.ours for one in curve.values())


def hold_128_mib():
    held = torch.ones(2**25)
    time.sleep(0.2)
    del held


def test_memory_of_an_action_is_its_peak():
    # In a new process, as the benchmark does: this one has freed memory at hand, which it would use again.
    assert 100 < memory._in_new_process(memory.added_at_peak, hold_128_mib) / 2**20 < 400


def test_flops_follow_the_formula():
    policy = SETUP.make_policy()
    rows = shapes.random_prompts(tokenizer(), replace(SIZE, inputs=1, rollouts=2), length=8).rows
    flops, tokens = peak.step_flops(policy.trainable(), rows, 4096)
    hidden, middle, layers, kv = 32, 48, 2, 16
    shapes_of = [(hidden, hidden)] * 2 + [(hidden, kv)] * 2 + [(hidden, middle)] * 3
    frozen = layers * sum(a * b for a, b in shapes_of)
    lora = layers * sum(2 * (a + b) for a, b in shapes_of)
    assert tokens == 8 + 2 * 4  # the prompt once, and all but the last of five tokens twice
    attention = 12 * layers * hidden * (sum(range(1, 9)) + 2 * sum(range(9, 13)))
    head = 4 * len(tokenizer()) * hidden * (1 + 2 * 4)  # the prompt's end predicts for both
    assert flops == (4 * frozen + 6 * lora) * tokens + head + attention


# The rollouts


def test_prompts_of_one_module_list_77_labels_and_share_them():
    shape = shapes.one_module(tokenizer(), SIZE)
    assert "made-up labels" in shape.what and len(shape.rows) == 4
    texts = [tokenizer().decode(row.prompt_ids) for row in shape.rows]
    assert all(text.count(f"{verb}_{thing}") for text in texts for verb in shapes.VERBS for thing in shapes.OBJECTS)
    assert texts[0] == texts[1] != texts[2]
    tree = prefix_tree.build([row.prompt_ids for row in shape.rows])
    one, other = len(shape.rows[0].prompt_ids), len(shape.rows[2].prompt_ids)
    assert max(one, other) < len(tree) < one + other - 500  # the labels stand before the message too


def test_real_labels_are_used_where_there_are_77(tmp_path, monkeypatch):
    folder = tmp_path / "banking77"
    folder.mkdir()
    (folder / "categories.json").write_text(json.dumps([f"label_{place}" for place in range(77)]))
    for name in ("train", "test"):
        lines = [f"{name} message {place},label_{place % 77}" for place in range(90)]
        (folder / f"{name}.csv").write_text("\n".join(["text,category", *lines]))
    monkeypatch.setenv("MMGRPO_DATA_DIR", str(tmp_path))
    splits, source = shapes.banking()
    assert source == "Banking77" and splits.labels[76] == "label_76"


def test_hops_read_the_notes_of_those_before():
    rows = shapes.four_hops(tokenizer(), replace(SIZE, inputs=1)).rows
    first, second = ([row.prompt_ids for row in rows if row.module == f"hop{place}"] for place in (0, 3))
    assert {row.module for row in rows} == {f"hop{place}" for place in range(4)} and len(rows) == 8
    assert min(map(len, second)) > max(map(len, first)) + 50
    assert second[0] != second[1]  # each run has notes of its own


@pytest.mark.parametrize("make", [shapes.one_module, shapes.two_modules, shapes.four_hops])
def test_rollouts_are_the_same_each_time_and_weigh_one_together(make):
    rows = make(tokenizer(), SIZE).rows
    assert rows == make(tokenizer(), SIZE).rows
    assert sum(row.token_weight * len(row.completion_ids) for row in rows) == pytest.approx(1)
    assert all(len(row.completion_ids) == SIZE.completion and row.advantage for row in rows)


# Running


def counted(monkeypatch, **benchmarks):
    """Put `benchmarks` in the place of the real ones, and list which run."""
    ran = []

    def counting(name, function):
        def benchmark(setup):
            ran.append(name)
            return function(setup)

        return benchmark

    replaced = {name: (counting(name, function), 1) for name, function in benchmarks.items()}
    monkeypatch.setattr(bench, "BENCHMARKS", replaced)
    return ran


def test_interrupted_run_keeps_what_it_has_and_goes_on(monkeypatch, tmp_path):
    def stop(setup):
        raise KeyboardInterrupt

    counted(monkeypatch, a=lambda setup: [comparison(benchmark="a")], b=stop)
    with pytest.raises(KeyboardInterrupt):
        bench.run(["a", "b"], SETUP, tmp_path)
    assert [one.benchmark for one in record.read(tmp_path / "bench.json")] == ["a"]
    ran = counted(monkeypatch, a=lambda setup: [], b=lambda setup: [comparison(benchmark="b")])
    bench.run(["a", "b"], SETUP, tmp_path)
    assert ran == ["b"]
    assert [one.benchmark for one in record.read(tmp_path / "bench.json")] == ["a", "b"]


def test_one_benchmark_is_measured_again(monkeypatch, tmp_path):
    record.write([comparison(benchmark="a"), comparison(benchmark="b")], tmp_path / "bench.json")
    counted(monkeypatch, a=lambda setup: [comparison(benchmark="a", ours=9.0)], b=lambda setup: [])
    bench.run(["a"], SETUP, tmp_path, again=True)
    assert [(one.benchmark, one.ours) for one in record.read(tmp_path / "bench.json")] == [("a", 9.0), ("b", 2.0)]


def test_records_of_another_machine_or_version_are_measured_again(monkeypatch, tmp_path):
    others = [comparison(benchmark="a", machine="another"), comparison(benchmark="that there was once")]
    record.write(others, tmp_path / "bench.json")
    ran = counted(monkeypatch, a=lambda setup: [comparison(benchmark="a")])
    bench.run(["a"], SETUP, tmp_path)
    assert ran == ["a"]
    assert [one.machine for one in record.read(tmp_path / "bench.json")] == ["a machine"]


def test_names():
    assert "training_full" not in bench.chosen("", full=False)
    assert bench.chosen("training_full", full=False) == ["training_full"]
    with pytest.raises(UserError, match="Unknown benchmark 'trainin'; allowed: .*did you mean 'training'"):
        bench.chosen("trainin", full=False)


def test_missing_vllm_is_a_sentence_and_no_record(monkeypatch, tmp_path, capsys):
    without_vllm(monkeypatch)
    with pytest.raises(Skipped, match="vLLM is not installed"):
        sampling.against_vllm(SETUP)
    assert bench.run(["sampling_vllm"], SETUP, tmp_path) == [tmp_path / "bench.json"]
    assert "vLLM is not installed" in "".join(capsys.readouterr())


def test_damaged_file_is_a_sentence(tmp_path):
    file = tmp_path / "bench.json"
    for content in ("[", '[{"what": "x", "growth": null}]', '[{"what": "x"}]'):
        file.write_text(content)
        with pytest.raises(UserError, match="delete it and measure again"):
            record.read(file)


def test_records_survive_the_file(tmp_path):
    one = comparison(growth=("group size", 4), details={"gradient_error": 1e-7})
    assert record.read(record.write([one], tmp_path / "bench.json")) == [one]
    assert asdict(one)["details"] == {"gradient_error": 1e-7}


@pytest.mark.parametrize(
    ("target", "ratio", "met", "words"),
    [
        (Target(6), 6.0, True, "at least 6"),
        (Target(6), 5.9, False, "at least 6"),
        (Target(0.6, at_most=True), 0.6, True, "at most 0.6"),
        (Target(0.6, at_most=True), 0.61, False, "at most 0.6"),
    ],
)
def test_targets(target, ratio, met, words):
    assert (target.met(ratio), str(target)) == (met, words)


# The report


def test_table_and_figures_are_written(measured):
    folder, found = measured
    assert {file.name for file in folder.iterdir()} >= {
        "bench.md", "bench.pdf", "bench.png", "bench_growth.pdf", "bench_growth.png",
    }  # fmt: skip
    lines = (folder / "bench.md").read_text().splitlines()
    assert sum(line.startswith("| ") for line in lines) == len(found) + 2  # head and rule


def test_table_says_what_was_found():
    shown = report.table([comparison(details={"gradient_error": 2.04e-7})]).shown
    assert shown.iloc[0].tolist() == ["a | b", "2 s", "4 s (them)", "2×", "at least 6", "no", "2.0e-07", "3"]
    details = {"gradient_error": 1.4e-5, "rounding": 4.7e-6, "peer_rounding": 1.5e-5}
    shown = report.table([comparison(details=details)]).shown
    assert shown["Gradient error"].tolist() == ["1.4e-05 (off fp64: ours 4.7e-06, theirs 1.5e-05)"]


def test_bars_are_ratios_and_lines_targets():
    found = [comparison(ratio=7.0, met=True), comparison(target=None, met=None, growth=("G", 2)), comparison(ratio=3.0)]
    axis = report.ratios(found).axes[0]
    assert [bar.get_width() for bar in axis.patches] == [7.0, 3.0]  # growth without a target is in its own figure
    assert [float(np.mean(line.get_xdata())) for line in axis.lines if len(set(line.get_xdata())) == 1] == [6, 6, 1]


def test_growth_is_drawn_by_what_grows():
    found = [comparison(growth=("group size", g), ours=float(g)) for g in (4, 2)] + [comparison(growth=("modules", 1))]
    axes = report.growth(found).axes
    assert [axis.get_xlabel() for axis in axes] == ["Group size", "Modules"]
    assert axes[0].lines[0].get_xydata().tolist() == [[2, 2], [4, 4]]
    assert report.growth([comparison()]) is None


# The rehearsal


def test_rehearsal_counts_what_a_step_did():
    geometry = rehearsal.Geometry(inputs=2, rollouts=2, prompt=20, completion=4, steps=2)
    found = rehearsal.rehearse(tiny_policy(), geometry)
    assert 4 <= found.sampled_tokens <= 16
    assert found.trained_tokens == 4 * 20 + found.sampled_tokens
    assert 0 < found.sampling_seconds < found.step_seconds
    assert found.hours == pytest.approx(750 * found.step_seconds / 3600)
    assert "18.7 h" in str(found)


def test_rehearsal_without_a_gpu_is_left_out(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert rehearsal.on_gpu() is None


def test_rehearsed_model_has_the_size_of_qwen3_8b():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(rehearsal.qwen3_8b())
    assert sum(weight.numel() for weight in model.parameters()) == 8_190_735_360
