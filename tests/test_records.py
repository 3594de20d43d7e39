"""Records come back as they were written, and damaged ones are refused."""

import dataclasses
import os

import pytest
from record_factory import curve, record

from mmgrpo import records
from mmgrpo.errors import UserError


def test_round_trip_keeps_every_field(tmp_path):
    written = record(
        [1.0, 0.25], curve=curve([0.1, 0.2]), validation=({"step": 1, "score": 0.5},), notes={"text": "Zürich ±"}
    )
    assert records.read(records.write(written, tmp_path / "a" / "record.json")) == written


def test_mean_is_in_points_of_100():
    assert record([1.0, 0.0, 0.5, 0.0]).mean == 37.5


def test_file_cut_short_is_refused(tmp_path):
    file = records.write(record(), tmp_path / "record.json")
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match="can't be read"):
        records.read(file)


@pytest.mark.parametrize(
    ("old", "new"), [(b'"score": 1.0', b'"score": 0.0'), (b'"seed": 0', b'"seed": 1'), (b"vanilla", b"vanillb")]
)
def test_changed_byte_is_refused(tmp_path, old, new):
    file = records.write(record(), tmp_path / "record.json")
    content = file.read_bytes()
    assert old in content
    file.write_bytes(content.replace(old, new, 1))
    with pytest.raises(UserError, match="doesn't match its checksum"):
        records.read(file)


def test_byte_that_is_no_text_is_refused(tmp_path):
    file = records.write(record(), tmp_path / "record.json")
    file.write_bytes(file.read_bytes()[:50] + b"\xff" + file.read_bytes()[51:])
    with pytest.raises(UserError):
        records.read(file)


def test_other_schema_is_refused_by_name(tmp_path):
    file = records.write(dataclasses.replace(record(), schema=99), tmp_path / "record.json")
    with pytest.raises(UserError, match="schema 99"):
        records.read(file)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="can't be read"):
        records.read(tmp_path / "record.json")


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch, broken):
    file = records.write(record(seed=1), tmp_path / "record.json")

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, broken, interrupt)
        records.write(record(seed=2), file)
    assert records.read(file).seed == 1
    assert list(tmp_path.iterdir()) == [file]


def test_number_that_json_lacks_leaves_the_old_file(tmp_path):
    file = records.write(record(seed=1), tmp_path / "record.json")
    with pytest.raises(ValueError):
        records.write(record([float("nan")]), file)
    assert records.read(file).seed == 1
    assert list(tmp_path.iterdir()) == [file]


def test_read_all_finds_records_in_the_order_of_their_paths(tmp_path):
    for seed in (2, 0, 1):
        records.write(record(seed=seed), tmp_path / f"seed-{seed}" / "record.json")
    (tmp_path / "seed-0" / "other.json").write_text("{}")
    assert [found.seed for found in records.read_all(tmp_path)] == [0, 1, 2]
    assert records.read_all(tmp_path / "nowhere") == []
