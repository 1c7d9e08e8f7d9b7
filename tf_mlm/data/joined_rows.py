"""Several matrices read as one, without copying them."""

from typing import Any

import numpy as np

from tf_mlm.data.sequences import Sequences


class JoinedRows:
    """The rows of all `parts`, one part after the other, as one read-only array.

    It supports `len`, `shape`, a slice of rows, one row, and int64 [n] rows. One row or [n] rows can have further
    indices, as in `rows[index, position]`. A negative row counts from the end.
    """

    def __init__(self, parts: list[np.ndarray]):
        self._parts = parts
        self._starts = np.cumsum([0, *map(len, parts)])
        self.shape: tuple[int, ...] = (int(self._starts[-1]), *parts[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            assert step == 1
            spans = zip(self._parts, self._starts.tolist(), strict=False)
            found = [
                part[max(start - first, 0) : stop - first]
                for part, first in spans
                if first < stop and start < first + len(part)
            ]
            return np.concatenate(found or [self._parts[0][:0]])
        rows, *others = key if isinstance(key, tuple) else (key,)
        if not isinstance(rows, np.ndarray):
            row = int(rows) + (len(self) if rows < 0 else 0)
            number = int(np.searchsorted(self._starts, row, "right")) - 1
            return self._parts[number][(row - int(self._starts[number]), *others)]
        rows = np.where(rows < 0, rows + len(self), rows)
        numbers = np.searchsorted(self._starts, rows, "right") - 1
        shape = rows.shape if others else rows.shape + self.shape[1:]
        gathered = np.empty(shape, self._parts[0].dtype)
        for number in np.unique(numbers):
            chosen = numbers == number
            local = rows[chosen] - self._starts[number]
            gathered[chosen] = self._parts[number][(local, *(other[chosen] for other in others))]
        return gathered


def join_rows(parts: list[np.ndarray]) -> Any:
    """`parts` as one array; a single part is returned unchanged."""
    return parts[0] if len(parts) == 1 else JoinedRows(parts)


def join_sequences(parts: list[Sequences]) -> Sequences:
    """`parts` as one; either all or none of them have `document_starts`."""
    starts = [part.document_starts for part in parts if part.document_starts is not None]
    return Sequences(
        input_ids=join_rows([part.input_ids for part in parts]),
        lengths=join_rows([part.lengths for part in parts]),
        document_starts=join_rows(starts) if starts else None,
        num_documents=sum(part.num_documents for part in parts),
        num_empty=sum(part.num_empty for part in parts),
        num_tokens=sum(part.num_tokens for part in parts),
    )
