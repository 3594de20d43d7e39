"""A damaged checkpoint is never gone on from: the last whole one is, and training ends with the same weights."""

import random
import shutil

import pytest
from tiny_policy import tiny_policy
from training_setup import compile_, optimizer, same, weights

from mmgrpo import checkpoints

pytestmark = pytest.mark.usefixtures("nothing_but_training")

STEPS = {"steps": 6, "validate_every": 2}  # checkpoints after 2, 4 and 6, of which the trainer keeps two


def cut_short(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def remove(file):
    file.unlink()


DAMAGES = [cut_short, flip_a_bit, remove]


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoint-2"
    (folder / "a").mkdir(parents=True)
    (folder / "weights").write_bytes(bytes(range(200)))
    (folder / "a" / "state").write_text("state")
    checkpoints.seal(folder)
    return folder


def test_sealed_folder_is_whole(checkpoint):
    assert checkpoints.is_whole(checkpoint)
    assert checkpoints.last_good(checkpoint.parent) == checkpoint


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["weights", "a/state", checkpoints.MANIFEST])
def test_any_damage_to_any_file_is_seen(checkpoint, damage, name):
    damage(checkpoint / name)
    assert not checkpoints.is_whole(checkpoint)
    assert checkpoints.last_good(checkpoint.parent) is None


def test_a_file_too_many_is_seen(checkpoint):
    (checkpoint / "more").write_text("")
    assert not checkpoints.is_whole(checkpoint)


def test_newest_is_told_by_its_number(checkpoint, capsys):
    for step in (10, 9):
        other = checkpoint.parent / f"checkpoint-{step}"
        other.mkdir()
        checkpoints.seal(other)
    assert checkpoints.last_good(checkpoint.parent).name == "checkpoint-10"
    remove(checkpoint.parent / "checkpoint-10" / checkpoints.MANIFEST)
    assert checkpoints.last_good(checkpoint.parent).name == "checkpoint-9"
    assert not (checkpoint.parent / "checkpoint-10").exists() and "checkpoint-10 is damaged" in capsys.readouterr().out


def test_folder_without_checkpoints_has_none(tmp_path):
    assert checkpoints.last_good(tmp_path) is checkpoints.last_good(tmp_path / "nowhere") is None


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run's folder, and its final weights."""
    policy, folder = tiny_policy(), tmp_path_factory.mktemp("reference")
    compile_(policy, optimizer(folder=folder, **STEPS))
    return folder, weights(policy)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("damaged", [(6,), (6, 4)], ids=str)
def test_training_goes_on_from_the_last_whole_checkpoint(reference, tmp_path, damage, damaged):
    folder, expected = reference
    copy = shutil.copytree(folder, tmp_path / "run")
    assert all(checkpoints.is_whole(copy / f"checkpoint-{step}") for step in (4, 6))
    for step in damaged:
        files = sorted(file for file in (copy / f"checkpoint-{step}").iterdir() if file.stat().st_size > 1)
        damage(random.Random(step).choice(files))
    again, asked = tiny_policy(), []

    def metric(example, prediction, trace=None):
        asked.append(example)
        return sum(map(ord, prediction.t)) % 11 / 10

    compile_(again, optimizer(metric, folder=copy, **STEPS))
    assert len(asked) == (6 - (4 if damaged == (6,) else 0)) * 6  # two inputs, three runs each, in each step
    assert same(weights(again), expected)
    assert checkpoints.is_whole(copy / "checkpoint-6")
