"""The text of a value: the same in every process, or a sentence."""

import subprocess
import sys

import dspy
import numpy as np
import pydantic
import pytest

from mmgrpo.errors import UserError
from mmgrpo.hashing import text_of
from mmgrpo.trajectory import example_id


class Point(pydantic.BaseModel):
    x: int


def named(**inputs):
    return example_id(dspy.Example(**inputs).with_inputs(*inputs))


def test_order_of_keys_and_of_sets_makes_no_difference():
    assert named(a=1, b={"x", "y"}) == named(b={"y", "x"}, a=1) != named(a=1, b={"x"})
    program = 'from mmgrpo.hashing import text_of; print(text_of({"gold": {"alpha", "beta", "gamma", "delta"}}))'
    texts = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(texts) == 1


def test_arrays_are_told_apart_in_the_middle_and_models_by_their_fields():
    long = np.zeros(5000)
    other = long.copy()
    other[2500] = 1.0
    assert str(long) == str(other) and named(q=long) != named(q=other)
    assert named(q=Point) == named(q=Point) != named(q=int)
    assert named(q=Point(x=1)) == named(q=Point(x=1)) != named(q=Point(x=2))


@pytest.mark.parametrize(
    ("value", "reason"), [(object(), "its place in memory"), ({("a", "b"): 1}, "keys must be str")], ids=str
)
def test_value_without_a_lasting_text_is_refused(value, reason):
    with pytest.raises(UserError, match=f"can't be named by its content .*{reason}"):
        text_of(value)
