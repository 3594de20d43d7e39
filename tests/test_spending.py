"""What paid APIs cost: counted where they are asked, kept in the record, and paid again by what starts from it."""

import dspy
import pytest
from api_double import ApiDouble
from dspy.clients.cache import Cache
from record_factory import record
from tiny_policy import RawAdapter, tiny_policy

from mmgrpo import cells, profiles, records, strategies, tasks
from mmgrpo.json_files import write_json
from mmgrpo.report import frames
from mmgrpo.settings import SplitSizes
from mmgrpo.study import Study
from mmgrpo.tasks.papillon import untrusted

DOLLARS = 0.4e-6 + 1.6e-6  # of a call: one prompt and one completion token, at the price of GPT-4.1 mini


pytestmark = pytest.mark.usefixtures("nothing_but_training")


@pytest.fixture
def api(monkeypatch, tmp_path):
    """The judge's and the untrusted model's API, which always says "First"; results lie in a folder of their own."""
    monkeypatch.setenv("MMGRPO_RESULTS_DIR", str(tmp_path))
    monkeypatch.setenv("OPENAI_API_KEY", "not-a-key")
    monkeypatch.delenv("MMGRPO_DATA_DIR", raising=False)
    monkeypatch.setattr(dspy, "cache", Cache(enable_disk_cache=False, enable_memory_cache=True, disk_cache_dir=""))
    with ApiDouble(["fine"], reply="First") as double:
        yield double


def study(api, strategy):
    """A smoke cell of PAPILLON with two test examples, under a policy of random weights."""
    task = tasks.get("papillon", {"api_base": api.address})
    splits = task.load(SplitSizes(train=2, valid=2, test=2))
    cell, profile = cells.cell("smoke", "papillon", "smollm2-135m", strategy, 0), profiles.load("smoke")
    small = profile.model_copy(update={"grpo": profile.grpo.model_copy(update={"inputs": 1})})
    return Study(cell, small, task, splits, tiny_policy(), task.program(splits))


def run(ready):
    with dspy.context(adapter=RawAdapter()):
        return strategies.run(ready)


def test_a_record_says_what_each_api_cost(api):
    ready = study(api, "vanilla")
    run(ready)
    spending = records.read(ready.cell.record).notes["spending"]
    asked = {"untrusted": 2, "judge": 4}  # of two runs: the untrusted model once each, the judge in both orders
    assert api.asked == 6
    assert {role: spent["calls"] for role, spent in spending.items()} == asked
    assert {role: spent["prompt"] for role, spent in spending.items()} == asked
    assert spending["judge"]["dollars"] == pytest.approx(4 * DOLLARS) and spending["judge"]["unpriced"] == 0


def test_a_composition_pays_for_the_apis_of_its_prompts_too(api):
    ready = study(api, "composition")
    (needed,) = ready.cell.needs
    before = {"judge": {"calls": 5, "prompt": 5, "completion": 5, "dollars": 0.5, "unpriced": 0}}
    notes = {"cell": needed.fingerprint(), "spending": before, "resumed": False}
    records.write(record(task="papillon", strategy="prompt_optimization", notes=notes), needed.record)
    write_json(ready.program.dump_state(), needed.private_program)
    made = run(ready)
    assert made.notes["prompt_optimization"]["spending"] == before
    assert api.asked > 6  # validations and rollouts, beside the test runs
    row = frames.runs([made]).iloc[0]
    assert row["api_calls"] == 5 + api.asked
    assert row["api_dollars"] == pytest.approx(0.5 + api.asked * DOLLARS)


def test_a_cached_answer_is_free_and_a_price_that_nobody_knows_is_no_zero(api):
    known, own = (
        untrusted.language_model(name, max_tokens=8, api_base=api.address)
        for name in ("openai/gpt-4.1-mini", "openai/of-my-own")
    )
    assert known.spent == {"calls": 0, "prompt": 0, "completion": 0, "dollars": 0.0, "unpriced": 0}
    for model in (known, known, own):
        model("Please.")
    assert (known.spent["calls"], known.spent["unpriced"]) == (1, 0)
    assert known.spent["dollars"] == pytest.approx(DOLLARS)
    assert (own.spent["calls"], own.spent["unpriced"], own.spent["dollars"]) == (1, 1, 0.0)
