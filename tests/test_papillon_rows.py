"""PAPILLON's rows: those of the project, and a file in PUPA's form, whatever is wrong with it."""

import os
import re

import pytest
from papillon_setup import everything, load, local_task

from mmgrpo import paths, profiles
from mmgrpo.errors import UserError
from mmgrpo.privacy import leaked
from mmgrpo.settings import SplitSizes
from mmgrpo.tasks import papillon
from mmgrpo.tasks.papillon import embedded, rows

REAL = os.environ.get("MMGRPO_DATA_DIR")
PUPA_QUERIES = 462  # of PUPA_New.csv, each counted once
HEADER = "user_query,target_response,pii_units\n"
pytestmark = pytest.mark.usefixtures("embedded_rows_and_no_api")


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes PUPA's file of a local data folder."""
    monkeypatch.setenv("MMGRPO_DATA_DIR", str(tmp_path))
    (tmp_path / "pupa").mkdir()

    def write(content):
        file = tmp_path / "pupa" / "PUPA_New.csv"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def test_embedded_rows_are_made_again_without_a_difference():
    assert embedded.make() == embedded.FILE.read_text(encoding="utf-8")


def test_embedded_rows_are_varied_private_and_short():
    examples = rows.read(embedded.FILE)
    assert len(examples) == 480 and len(embedded.scenarios()) == 24
    for row in examples:
        assert 20 <= len(row.user_query.split()) <= 60
        assert leaked(row.pii_units, row.user_query) == row.pii_units
        assert len(row.pii_units) >= 3
        assert "{" not in row.user_query + row.target_response
    openings = {" ".join(row.user_query.split()[:3]) for row in examples}
    assert len(openings) >= 24


def test_reply_of_a_scenario_needs_nothing_that_its_queries_do_not_say():
    for scenario in embedded.scenarios():
        for query in scenario.queries:
            known = set(embedded.SLOT.findall(query)) | set(scenario.public)
            assert set(embedded.SLOT.findall(scenario.reply)) <= known


def test_no_name_of_the_post_training_is_private_here():
    taken = embedded.names_of(paths.DATA / "posttraining")
    assert len(taken) > 200
    units = " ".join(unit for row in rows.read(embedded.FILE) for unit in row.pii_units)
    assert taken.isdisjoint(re.findall(r"[^\W\d_]{3,}", units))


def test_splits_are_disjoint_steady_and_of_the_asked_for_sizes():
    one, again = load(180, 60, 240), load(180, 60, 240)
    assert (len(one.train), len(one.valid), len(one.test), one.source) == (180, 60, 240, "embedded")
    assert len(everything(one)) == 480
    assert one == again and one.fingerprint == again.fingerprint
    assert load(8, 8, 8).test == one.test[:8]
    assert all(set(row.inputs()) == {"user_query"} for row in one.train)


@pytest.mark.parametrize("name", profiles.names())
def test_every_profile_asks_for_no_more_rows_than_the_real_pupa_has(name):
    if settings := profiles.load(name).tasks.get("papillon"):
        sizes = settings.splits
        assert max(sizes.train + sizes.valid, sizes.test) <= PUPA_QUERIES // 2


def test_query_that_comes_again_is_kept_once_with_all_its_units(write):
    write(HEADER + "tell Ann,ok,ann||ANN||\nTell Ann,ok,<ann>||Bo\n" + "".join(f"q{n},t,u\n" for n in range(5)))
    assert [row.pii_units for row in everything(load()).values() if "Ann" in row.user_query] in ([["ann", "Bo"]], [])
    assert rows.read(paths.local_data() / "pupa" / "PUPA_New.csv")[0].pii_units == ["ann", "Bo"]


def test_long_query_is_cut_and_units_of_the_rest_no_longer_count(write):
    write(HEADER + f"Ann {'x ' * 25000} Bo,ok,Ann||Bo\n")
    (row,) = rows.read(paths.local_data() / "pupa" / "PUPA_New.csv")
    assert (len(row.user_query), row.pii_units) == (rows.MAX_CHARACTERS, ["Ann"])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("user_query,pii_units\na,b\n", r"PUPA_New.csv has no column 'target_response': its columns are"),
        ("user_query;target_response;pii_units\na;b;c\n", "has no column 'user_query'"),
        ("", "has no column 'user_query'"),
        ((HEADER + "Zürich,a,b\n").encode("latin-1"), "can't be read as UTF-8 CSV"),
        (HEADER + "a,b,c\n  ,b,c\n", "line 3: user_query is empty. Remove the row."),
        (HEADER + "a,b\n", "line 2: pii_units is empty"),
        (HEADER + "a,b,||\n", "line 2: pii_units is empty"),
        (
            HEADER + "a,b,c\nd,e,f\n",
            "papillon has 1 training and validation rows, the profile wants 2: lower its split sizes",
        ),
    ],
    ids=range(8),
)
def test_damaged_file_is_refused_in_a_sentence(write, content, sentence):
    write(content)
    with pytest.raises(UserError, match=sentence):
        load()


def test_missing_file_is_named(write):
    with pytest.raises(UserError, match="PUPA_New.csv is missing: papillon needs PUPA's"):
        load()


def test_hub_that_cannot_be_reached_is_a_sentence(monkeypatch):
    import huggingface_hub

    def fail(*arguments, **options):
        assert options["revision"] == rows.HUB_REVISION and len(rows.HUB_REVISION) == 40
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(
        UserError, match=r"PUPA could not be loaded \(no route\): check the network, or set MMGRPO_DATA_DIR"
    ):
        rows.load(SplitSizes(source="hub", train=1, valid=1, test=1))


@pytest.mark.skipif(not REAL, reason="MMGRPO_DATA_DIR is not set: the real PUPA is not at hand")
def test_real_data_can_be_read_redacted_and_split_as_in_the_paper(monkeypatch):
    monkeypatch.setenv("MMGRPO_DATA_DIR", REAL)
    splits = load(111, 100, 221)
    found = everything(splits)
    assert (splits.source, len(found)) == ("local", 432)
    assert len(rows.read(paths.local_data() / "pupa" / rows.HUB_FILE)) == PUPA_QUERIES
    for row in found.values():
        assert row.pii_units and not leaked(row.pii_units, papillon.oracle(row).llm_request)
    assert found.keys().isdisjoint(row.user_query for row in rows.read(embedded.FILE))
    example = splits.test[0]
    assert local_task().metric(example, papillon.oracle(example)) > 0.99
