"""The trie spells its rows, shares all that can be shared, and knows who is above whom."""

from itertools import pairwise

import numpy as np
import pytest
from factories import PROPERTY
from hypothesis import given
from hypothesis import strategies as st

from mmgrpo.prefix_tree import build, pack

ROW = st.lists(st.integers(0, 2), min_size=1, max_size=8)
ROWS = st.lists(ROW, min_size=1, max_size=8)


def prefixes(rows):
    return {tuple(row[:length]) for row in rows for length in range(1, len(row) + 1)}


def spelled(tree):
    """Node -> the tokens from the root down to it, found by depth alone."""
    words, path = [], []
    for token, depth in zip(tree.tokens, tree.positions, strict=True):
        path = path[:depth] + [int(token)]
        words.append(tuple(path))
    return words


def test_three_rows_by_hand():
    tree = build([[5, 6, 7], [5, 8], [5, 6, 7, 9]])
    #            5  6  7  9  8
    assert tree.tokens.tolist() == [5, 6, 7, 9, 8]
    assert tree.positions.tolist() == [0, 1, 2, 3, 1]
    assert tree.leave.tolist() == [5, 4, 4, 4, 5]
    assert [path.tolist() for path in tree.paths] == [[0, 1, 2], [0, 4], [0, 1, 2, 3]]
    nodes = np.arange(5)
    assert tree.ancestors(nodes, nodes).astype(int).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 0, 0, 0, 1],
    ]


def all_ancestors(tree):
    """[queries, keys]: is the key the query or above it?"""
    nodes = np.arange(len(tree))
    return tree.ancestors(nodes, nodes)


@PROPERTY
@given(ROWS)
def test_path_of_a_row_spells_it(rows):
    tree = build(rows)
    for row, path in zip(rows, tree.paths, strict=True):
        assert tree.tokens[path].tolist() == row
        assert tree.positions[path].tolist() == list(range(len(row)))


@PROPERTY
@given(ROWS)
def test_each_distinct_prefix_is_one_node(rows):
    tree = build(rows)
    assert len(tree) == len(prefixes(rows))
    assert set(spelled(tree)) == prefixes(rows)


@PROPERTY
@given(ROWS)
def test_ancestors_are_the_nodes_whose_prefix_begins_the_other(rows):
    tree = build(rows)
    words = spelled(tree)
    expected = [[query[: len(key)] == key for key in words] for query in words]
    assert all_ancestors(tree).tolist() == expected


@PROPERTY
@given(ROWS, st.integers(1, 9))
def test_blocks_cover_the_tree_and_show_each_query_all_its_ancestors(rows, size):
    tree = build(rows)
    above = all_ancestors(tree)
    blocks = tree.blocks(size)
    assert [query for queries, _ in blocks for query in queries] == list(range(len(tree)))
    for queries, visible in blocks:
        assert visible.tolist() == sorted(set(visible.tolist()))
        for query in queries:
            assert set(np.flatnonzero(above[query])) <= set(visible.tolist())


@PROPERTY
@given(ROWS, st.integers(1, 9))
def test_blocks_show_only_their_own_nodes_and_those_above_the_first(rows, size):
    for queries, visible in build(rows).blocks(size):
        before = visible[visible < queries.start]
        assert build(rows).ancestors(np.array([queries.start]), before).all()


@PROPERTY
@given(ROWS, st.integers(1, 9))
def test_tiles_say_whether_any_and_all_of_their_pairs_are_visible(rows, size):
    tree = build(rows)
    above = all_ancestors(tree)
    cut = range(size, len(tree), size)
    grid = [np.split(band, cut, axis=1) for band in np.split(above, cut)]
    some, every = tree.tiles(size)
    assert some.tolist() == [[tile.any() for tile in band] for band in grid]
    assert every.tolist() == [[tile.all() for tile in band] for band in grid]


@PROPERTY
@given(ROWS, st.integers(0, 9))
def test_padding_is_nodes_that_see_themselves_only(rows, more):
    tree = build(rows)
    padded = tree.padded(len(tree) + more)
    expected = np.eye(len(tree) + more, dtype=bool)
    expected[: len(tree), : len(tree)] = all_ancestors(tree)
    assert all_ancestors(padded).tolist() == expected.tolist()
    assert spelled(padded)[: len(tree)] == spelled(tree)
    assert padded.paths == tree.paths


@PROPERTY
@given(ROWS, st.integers(1, 30))
def test_packs_partition_the_rows_within_the_budget(rows, budget):
    packs = pack(rows, budget)
    assert sorted(index for some in packs for index in some) == list(range(len(rows)))
    for some in packs:
        assert len(build([rows[index] for index in some])) <= max(budget, 2 * len(rows[some[0]]))


@PROPERTY
@given(ROWS, st.integers(1, 30))
def test_pack_ends_only_where_the_next_row_does_not_fit(rows, budget):
    packs = pack(rows, budget)
    for some, following in pairwise(packs):
        assert len(build([rows[index] for index in [*some, following[0]]])) > budget


@pytest.mark.parametrize(("budget", "expected"), [(5, [[1, 3, 0, 2]]), (4, [[1, 3, 0], [2]]), (1, [[1, 3, 0], [2]])])
def test_packs_keep_neighbours_together_by_hand(budget, expected):
    rows = [[1, 2, 4], [1, 2], [7], [1, 2, 3]]  # five prefixes: 1, 12, 124, 123, 7
    assert pack(rows, budget) == expected


def test_prompt_that_fills_the_budget_is_computed_once_for_its_completions():
    prompt, other = list(range(100)), list(range(200, 300))
    rows = [prompt + [1000 + number] * 5 for number in range(12)]
    assert pack([*rows, other], 104) == [list(range(12)), [12]]
    assert pack([row + other for row in rows], 104) == [[number] for number in range(12)]  # each adds what it shares
