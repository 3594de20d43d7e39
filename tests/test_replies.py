"""Kept replies: asked for once, told again after a kill, and of no use to whoever lacks their prompts."""

import base64
import stat
from dataclasses import replace

import pytest

from mmgrpo.policy.replies import Replies, remove
from mmgrpo.policy.sampler import Completion, SamplingRequest

CONDITIONS = {"model": "tiny", "precision": "fp32", "library": "1"}
REQUEST = SamplingRequest((11, 12, 13), max_tokens=4, temperature=1.0, seed=5, stop="end")
REQUESTS = [replace(REQUEST, prompt_ids=(11, number)) for number in range(5)]


class Numbers:
    """Replies that differ from call to call, so that a kept one can be told from a new one."""

    def __init__(self, first=0):
        self.requests = []
        self.first = first

    def generate(self, requests):
        self.requests += requests
        start = self.first + len(self.requests) - len(requests)
        return [Completion((start + n, 7001), (-0.1234567890123, -1e-9), "stop") for n in range(len(requests))]


def kept(folder, sampler, **conditions):
    return Replies(folder, CONDITIONS | conditions).before(sampler, "tiny")


@pytest.fixture
def first(tmp_path):
    """What a process that was killed was told."""
    return kept(tmp_path, Numbers()).generate(REQUESTS)


def test_known_requests_are_told_what_they_were_told_before(tmp_path, first, capsys):
    capsys.readouterr()
    sampler = Numbers(first=100)
    new = replace(REQUEST, prompt_ids=(99,))
    assert kept(tmp_path, sampler).generate([REQUESTS[3], new, REQUESTS[0]])[::2] == [first[3], first[0]]
    assert sampler.requests == [new]
    assert capsys.readouterr().out.startswith(f"5 replies are found in {tmp_path / 'replies.jsonl'}: ")
    assert len(Replies(tmp_path, CONDITIONS)._sealed) == 6


def test_equal_requests_are_sampled_once(tmp_path):
    sampler = Numbers()
    told = kept(tmp_path, sampler).generate([REQUEST, REQUESTS[0], REQUEST])
    assert sampler.requests == [REQUEST, REQUESTS[0]]
    assert told[0] == told[2] != told[1]


OTHERS = {
    "prompt_ids": (11, 12), "max_tokens": 5, "temperature": 0.9, "top_p": 0.8, "top_k": 3, "seed": 6, "adapter": "a",
    "stop": None,
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_request_that_differs_in_anything_is_another(tmp_path, name):
    sampler = Numbers()
    kept(tmp_path, sampler).generate([REQUEST, replace(REQUEST, **{name: OTHERS[name]})])
    assert len(sampler.requests) == 2


def test_greedy_requests_do_not_differ_in_their_seed(tmp_path):
    sampler = Numbers()
    kept(tmp_path, sampler).generate([replace(REQUEST, temperature=0.0, seed=seed) for seed in range(3)])
    assert len(sampler.requests) == 1


def test_adapter_is_known_by_its_weights_and_not_by_its_folder(tmp_path):
    sampler = Numbers()
    for folder, weights in (("one", b"1"), ("same", b"1"), ("other", b"2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "adapter_model.safetensors").write_bytes(weights)
        kept(tmp_path, sampler).generate([replace(REQUEST, weights=tmp_path / folder)])
    assert [request.weights.name for request in sampler.requests] == ["one", "other"]


def test_models_of_one_search_do_not_answer_for_each_other(tmp_path):
    replies, policy, helper = Replies(tmp_path, CONDITIONS), Numbers(), Numbers()
    assert replies.before(policy, "tiny") is replies.before(policy, "tiny")
    for sampler, model in ((policy, "tiny"), (helper, "helper")):
        replies.before(sampler, model).generate([REQUEST])
    assert len(policy.requests) == len(helper.requests) == 1


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_line_that_a_kill_cut_short_is_left_out_and_spoils_no_other(tmp_path, first, cut):
    file = tmp_path / "replies.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    for round_ in range(2):
        sampler = Numbers(first=100)
        told = kept(tmp_path, sampler).generate(REQUESTS)
        assert told[:4] == first[:4] and told[4].ids[0] == 100
        assert sampler.requests == ([REQUESTS[4]] if round_ == 0 else [])


@pytest.mark.parametrize("part", range(3))
def test_line_that_was_changed_is_left_out(tmp_path, first, part):
    """`part`: of the request's name, of the sealed reply, of the checksum."""
    file = tmp_path / "replies.jsonl"
    lines = file.read_text().split("\n")
    fields = lines[2].split('"')
    text = fields[2 * part + 1]
    fields[2 * part + 1] = text[:9] + ("0" if text[9] != "0" else "1") + text[10:]
    file.write_text("\n".join([*lines[:2], '"'.join(fields), *lines[3:]]))
    sampler = Numbers(first=100)
    told = kept(tmp_path, sampler).generate(REQUESTS)
    assert sampler.requests == [REQUESTS[1]]
    assert [told[0], *told[2:]] == [first[0], *first[2:]]


@pytest.mark.parametrize("changes", [{"model": "other"}, {"library": "2"}, {"torch": "9.9"}], ids=str)
def test_file_of_other_conditions_is_set_aside(tmp_path, first, capsys, changes):
    capsys.readouterr()
    before = (tmp_path / "replies.jsonl").read_bytes()
    sampler = Numbers(first=100)
    assert kept(tmp_path, sampler, **changes).generate(REQUESTS)[0].ids[0] == 100
    assert (tmp_path / "replies.outdated").read_bytes() == before
    assert f"kept under other conditions ({next(iter(changes))}): set aside" in capsys.readouterr().out
    assert sampler.requests == REQUESTS


@pytest.mark.parametrize("content", [b"", b"\x00" * 400, b"[1]", b'{"model": "ti', b"\xff\xfe\n\n[]"])
def test_file_whose_beginning_is_damaged_is_set_aside(tmp_path, content):
    (tmp_path / "replies.jsonl").write_bytes(content)
    sampler = Numbers()
    kept(tmp_path, sampler).generate(REQUESTS)
    kept(tmp_path, sampler).generate(REQUESTS)
    assert sampler.requests == REQUESTS
    assert (tmp_path / "replies.outdated").read_bytes() == content


def test_file_tells_nothing_to_who_lacks_the_prompts(tmp_path, first):
    file = tmp_path / "replies.jsonl"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    sealed = [line.split('"')[3] for line in file.read_text().split("\n")[1:]]
    assert not any(word in base64.b64decode(one) for one in sealed for word in (b"7001", b"0.12345", b"stop"))
    again = kept(tmp_path / "again", Numbers()).generate(REQUESTS)  # the same replies to the same requests
    assert again == first
    others = [line.split('"')[3] for line in (tmp_path / "again" / "replies.jsonl").read_text().split("\n")[1:]]
    assert not set(sealed) & set(others)  # no two texts under one key


def test_removal_takes_all_kept_replies_and_nothing_else(tmp_path):
    for folder, conditions in (("round-0", {}), ("round-0", {"library": "2"}), ("round-1", {})):
        kept(tmp_path / "run" / folder, Numbers(), **conditions)
    (tmp_path / "run" / "round-0" / "run.json").write_text("{}")
    remove(tmp_path / "run")
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["run.json"]
    kept(tmp_path / "alone", Numbers())
    (tmp_path / "alone" / ".replies.jsonl.77").write_text("{")  # a kill while the file was begun
    remove(tmp_path / "alone")
    remove(tmp_path / "alone")
    assert not (tmp_path / "alone").exists()
