"""Joined rows are the rows of one concatenated matrix."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tf_mlm.data.joined_rows import JoinedRows, join_rows


@given(st.lists(st.integers(0, 7), min_size=1, max_size=6).filter(any), st.data())
def test_every_kind_of_index_gives_the_rows_of_the_concatenated_matrix(sizes: list[int], data: st.DataObject) -> None:
    whole = np.arange(sum(sizes) * 3, dtype=np.int32).reshape(-1, 3)
    joined = JoinedRows(np.split(whole, np.cumsum(sizes)[:-1]))
    assert len(joined) == len(whole) and joined.shape == whole.shape
    bounds = st.integers(-2, len(whole) + 2)
    start, stop = data.draw(bounds), data.draw(bounds)
    row = data.draw(st.integers(-len(whole), len(whole) - 1))
    rows = np.array(data.draw(st.lists(st.integers(-len(whole), len(whole) - 1), max_size=9)), np.int64)
    positions = np.arange(len(rows)) % 3
    keys: list[Any] = [slice(start, stop), slice(None), row, (row, slice(1, 3)), rows, (rows, positions)]
    for key in keys:
        np.testing.assert_array_equal(joined[key], whole[key], strict=True)


def test_lengths_are_joined_like_matrices() -> None:
    joined = JoinedRows([np.array([3, 4], np.int32), np.array([5], np.int32)])
    assert joined[np.array([2, 0, -1])].tolist() == [5, 3, 5] and joined[1:].tolist() == [4, 5] and joined[2] == 5


def test_a_row_that_does_not_exist_raises() -> None:
    with pytest.raises(IndexError):
        JoinedRows([np.zeros((2, 3)), np.zeros((1, 3))])[np.array([3])]


def test_a_single_part_is_returned_unchanged() -> None:
    part = np.zeros((2, 3))
    assert join_rows([part]) is part
