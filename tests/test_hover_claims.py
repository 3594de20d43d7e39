"""HoVer's claims: the three sources, their splits, and a sentence for every way in which a file can be wrong."""

import hashlib
import json

import pytest

from mmgrpo.errors import UserError
from mmgrpo.settings import SplitSizes
from mmgrpo.tasks.hover import claims

ALL = SplitSizes(train=180, valid=60, test=240)
FEW = SplitSizes(train=3, valid=1, test=4)


@pytest.fixture(autouse=True)
def embedded_unless_told(monkeypatch):
    monkeypatch.delenv("MMGRPO_DATA_DIR", raising=False)


def row(number, **changes):
    facts = [[f"Page {number} {part}", sentence] for part in "ABCD" for sentence in (0, 1)]
    return {
        "claim": f"Claim {number}.", "supporting_facts": facts, "num_hops": 4, "hpqa_id": f"q{number // 2}", "uid": "u"
    } | changes  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A local data folder of 16 claims on 8 questions, and a function that writes its file again."""
    monkeypatch.setenv("MMGRPO_DATA_DIR", str(tmp_path))
    (tmp_path / "hover").mkdir()

    def write(content, name=claims.DEV):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "hover" / name).write_text(text, encoding="utf-8")

    write([row(number) for number in range(16)])
    return write


def texts(*splits):
    return [example.claim for split in splits for example in split]


def test_embedded_splits_have_disjoint_claims_and_gold_pages():
    splits = claims.load(ALL)
    assert splits.source == "embedded"
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (180, 60, 240)
    assert len(set(texts(splits.train, splits.valid, splits.test))) == 480
    gold = [
        {title for example in split for title in example.titles} for split in (splits.train, splits.valid, splits.test)
    ]
    assert gold[0].isdisjoint(gold[1]) and gold[0].isdisjoint(gold[2]) and gold[1].isdisjoint(gold[2])
    assert claims.load(ALL) == splits
    assert set(splits.train[0].inputs()) == {"claim"}


def test_local_claims_of_one_question_stay_on_one_side(folder):
    splits = claims.load(SplitSizes(train=6, valid=2, test=8))
    assert splits.source == "local"
    questions = [
        {int(text[6:-1]) // 2 for text in texts(*part)} for part in ((splits.train, splits.valid), (splits.test,))
    ]
    assert questions[0].isdisjoint(questions[1])
    assert len(questions[0]) == len(questions[1]) == 4


def test_gold_titles_are_those_of_the_facts_each_once(folder):
    example = claims.load(FEW).test[0]
    number = example.claim[6:-1]
    assert example.titles == [f"Page {number} {part}" for part in "ABCD"]


def test_only_claims_of_four_hops_are_taken(folder):
    folder([row(number, num_hops=4 if number < 8 else 3) for number in range(16)])
    splits = claims.load(FEW)
    assert all(int(text[6:-1]) < 8 for text in texts(splits.train, splits.valid, splits.test))


def test_training_release_goes_before_the_development_release(folder):
    folder([row(number, claim=f"Claim {100 + number}.") for number in range(16)], claims.TRAIN)
    assert all(int(text[6:-1]) >= 100 for text in texts(claims.load(FEW).test))


def test_claim_of_both_sides_is_kept_in_the_test_side_only(folder):
    rows = [row(number) for number in range(16)]
    folder([one | {"claim": "The same claim."} if one["hpqa_id"] in ("q0", "q7", "q3", "q4") else one for one in rows])
    splits = claims.load(SplitSizes(train=1, valid=1, test=1))
    assert len(set(texts(splits.train, splits.valid, splits.test))) == 3


def test_hub_file_is_fetched_once_and_checked(monkeypatch, tmp_path):
    published = tmp_path / "published.json"
    published.write_text(json.dumps([row(number) for number in range(16)]))
    monkeypatch.setenv("MMGRPO_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(claims, "TRAIN_URL", published.as_uri())
    monkeypatch.setattr(claims, "TRAIN_SHA256", hashlib.sha256(published.read_bytes()).hexdigest())
    hub = SplitSizes(source="hub", train=3, valid=1, test=4)
    splits = claims.load(hub)
    assert splits.source == "hub"
    published.unlink()
    assert claims.load(hub) == splits
    (tmp_path / "cache" / claims.TRAIN).write_text("[]")
    with pytest.raises(UserError, match=f"{claims.TRAIN} has sha256 4f53cda.*damaged or not the pinned one"):
        claims.load(hub)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('[{"claim": "cut', "can't be read as UTF-8 JSON .*cut short; fetch it again"),
        ("{}", "is no list of claims"),
        ([{"claim": "x"}], "claim 0 has no field 'num_hops'; needed are claim, supporting_facts"),
        (["text"], "claim 0 has no field"),
        ([row(0), row(1, claim="  ")], "claim 1: the claim is empty. Remove the row"),
        ([row(0, claim=None)], "claim 0: the claim is empty"),
        ([row(0, supporting_facts=[])], "claim 0: a gold title is missing or empty"),
        ([row(0, supporting_facts=[["", 1]])], "claim 0: a gold title is missing or empty"),
        ([row(0, supporting_facts=["Page"])], "claim 0: supporting_facts is no list of pairs"),
        ([row(0, supporting_facts=None)], "claim 0: supporting_facts is no list of pairs"),
        ([row(0), row(1)], "hover has 0 training and validation rows, the profile wants 4: lower its split sizes"),
    ],
)
def test_damaged_file_is_refused_in_a_sentence(folder, content, sentence):
    folder(content)
    with pytest.raises(UserError, match=sentence):
        claims.load(FEW)


def test_missing_file_is_named(folder, tmp_path):
    (tmp_path / "hover" / claims.DEV).unlink()
    with pytest.raises(UserError, match=f"{claims.DEV} is missing: hover needs it or {claims.TRAIN}"):
        claims.load(FEW)


def test_long_claim_is_cut(folder):
    folder([row(number, claim=f"{number} " + "x" * 50_000) for number in range(16)])
    assert {len(text) for text in texts(claims.load(FEW).test)} == {claims.MAX_CHARACTERS} == {2000}
