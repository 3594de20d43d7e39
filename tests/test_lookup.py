"""Guesses at what comes next in a text."""

from mmgrpo.policy.lookup import MOST, Lookup


def test_what_followed_the_last_two_tokens_is_guessed_again():
    assert Lookup([1, 2, 3, 4, 9, 1, 2]).guess(8) == [3, 4]


def test_the_latest_place_counts():
    assert Lookup([1, 2, 3, 0, 1, 2, 4, 0, 1, 2]).guess(1) == [4]


def test_tokens_that_were_added_are_found():
    text = Lookup([5, 6])
    for token in (7, 5, 6):
        text.add(token)
    assert text.guess(1) == [7]


def test_nothing_is_guessed_where_nothing_is_known():
    assert Lookup([1, 2, 3]).guess(8) == []
    assert Lookup([1]).guess(8) == []
    assert Lookup([1, 2, 1, 2]).guess(0) == []


def test_a_text_that_repeats_itself_goes_round():
    text = Lookup([1, 2, 1, 2])
    assert text.guess(8) == [1, 2]
    for token in (1, 2, 1):
        text.add(token)
    assert text.guess(8) == [2, 1, 2, 1]


def test_guesses_grow_as_they_come_true_and_shrink_as_they_fail():
    text, lengths = Lookup([1, 7, 2, 3, 4, 5, 1, 1, 1]), []
    for _ in range(5):
        lengths.append(len(text.guess(99)))
        for _ in range(lengths[-1] + 1):
            text.add(1)
    assert lengths == [2, 4, 8, MOST, MOST]
    assert text.guess(99) == [1] * MOST
    for token in (1, 1, 1, 7):  # three of them came true
        text.add(token)
    assert text.guess(99) == [2, 3, 4]
