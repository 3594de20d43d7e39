"""A search that was killed goes on where it was: the same result, and no reply sampled twice."""

import dataclasses

import pytest
from searches import MIPRO, Mortal, asked, search
from tiny_policy import tiny_policy
from training_setup import QUESTIONS, Lenient, by_length

from mmgrpo import cells, profiles, strategies, tasks
from mmgrpo.errors import UserError
from mmgrpo.prompt_optimization import mipro
from mmgrpo.study import Study
from mmgrpo.tasks import Judgement, Splits

KINDS = ["mipro", "gepa"]


def result(found):
    return found.program.dump_state(), found.trials, found.proposals


@pytest.fixture(scope="module", params=KINDS)
def reference(request, tmp_path_factory):
    """A search that nothing disturbs."""
    return request.param, *search(request.param, tmp_path_factory.mktemp("reference"))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_resumed_search_is_as_one_that_was_never_killed(reference, tmp_path, capsys, share):
    kind, found, sampler, tokens = reference
    batches = len(sampler.requests)
    dead, before, _ = search(kind, tmp_path, batches=max(1, int(share * batches / 2)))
    assert dead is None and before.requests
    resumed, after, counted = search(kind, tmp_path)
    assert result(resumed) == result(found)
    assert counted == tokens
    both = [asked(request) for request in before.requests + after.requests]
    assert sorted(both, key=repr) == sorted((asked(request) for request in sampler.requests), key=repr)
    assert f"{len(before.requests)} replies are found in" in capsys.readouterr().out


def test_search_that_was_finished_is_told_everything(reference, tmp_path):
    kind, found, sampler, tokens = reference
    search(kind, tmp_path)
    again, after, counted = search(kind, tmp_path)
    assert after.requests == [] and (result(again), counted) == (result(found), tokens)


def test_replies_that_are_kept_change_nothing(reference):
    kind, found, sampler, tokens = reference
    alone, without, counted = search(kind, None)
    assert (result(alone), counted) == (result(found), tokens)
    assert {asked(request) for request in without.requests} == {asked(request) for request in sampler.requests}


def test_search_draws_the_same_whatever_was_asked_before():
    policy = tiny_policy()
    sampler = policy.engine.sampler = Mortal(policy.sampler)
    how = {
        "lm": policy.lm(),
        "metric": by_length,
        "trainset": QUESTIONS[:4],
        "valset": QUESTIONS[4:],
        "settings": MIPRO,
    }
    drawn = []
    for _ in range(2):
        sampler.requests.clear()
        mipro(Lenient(), seed=1, **how)
        drawn.append({request.seed for request in sampler.requests if request.temperature})
    assert drawn[0] and drawn[0] == drawn[1]


def test_weights_in_training_are_refused(tmp_path):
    policy = tiny_policy()
    policy.attach_adapters([])
    with pytest.raises(UserError, match="in training, so that no replies of theirs can be kept"):
        mipro(
            Lenient(), lm=policy.lm(), metric=by_length, trainset=QUESTIONS, valset=QUESTIONS, settings=MIPRO, seed=0,
            folder=tmp_path / "search",
        )  # fmt: skip
    assert not (tmp_path / "search").exists()


def study(strategy, batches=None):
    """A smoke cell on a policy of random weights, whose answers are worth their length."""
    task = dataclasses.replace(
        tasks.get("banking77"), judge=lambda example, said, trace=None: Judgement(by_length(example, said), "Longer.")
    )
    policy = tiny_policy()
    policy.engine.sampler = Mortal(policy.sampler, batches)
    cell = cells.cell("smoke", "banking77", "smollm2-135m", strategy, 0)
    splits = Splits(tuple(QUESTIONS[:3]), tuple(QUESTIONS[3:5]), tuple(QUESTIONS[5:]), "embedded")
    return Study(cell, profiles.load("smoke"), task, splits, policy, Lenient())


def files_below(folder):
    return sorted(file.name for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("strategy", ["prompt_optimization", "gepa"])
def test_record_of_a_resumed_cell_is_that_of_an_undisturbed_one(strategy, tmp_path, monkeypatch):
    def run(folder, batches=None):
        monkeypatch.setenv("MMGRPO_RESULTS_DIR", str(tmp_path / folder))
        ready = study(strategy, batches)
        record = strategies.run(ready)
        notes = {name: note for name, note in record.notes.items() if name != "resumed"}
        same = dataclasses.replace(record, seconds={}, peak_memory_gb=0.0, notes=notes)
        return same, record.notes["resumed"], ready.policy.engine.sampler.requests

    undisturbed, was_resumed, requests = run("undisturbed")
    assert not was_resumed
    assert undisturbed.tokens["calls"] >= len(requests) > 10
    with pytest.raises(UserError, match="gone"):
        run("killed", batches=4)
    assert files_below(tmp_path / "killed") == ["replies.jsonl"]
    resumed, was_resumed, missing = run("killed")
    assert was_resumed and resumed == undisturbed
    assert 0 < len(missing) < len(requests)
    assert files_below(tmp_path / "killed") == ["record.json"] == files_below(tmp_path / "undisturbed")
