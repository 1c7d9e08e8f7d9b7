"""Training sequences that are tokenized and packed while training, from a stream of documents.

The sequences are numbered from 0 over all passes over the stream. A *block* has `data.shuffle_buffer_size` consecutive
sequences, which are shuffled together. Only a few blocks are in memory. Reading continues at any block whose position
in the stream is known, by reading again only the shard that contains it.
"""

import atexit
import contextlib
import copy
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from typing import Any

import numpy as np
from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

from tf_mlm.config import DataConfig
from tf_mlm.data.sequences import RowPacker, document_start, encode
from tf_mlm.data.streams import DocumentStream
from tf_mlm.errors import Refused

_SHARD_ORDER, _BLOCK_ORDER = 9, 10  # separate these random numbers from others drawn with the same seed
_DOCUMENTS_PER_BATCH, _CHARACTERS_PER_BATCH = 1000, 2**22
_POSITIONS_KEPT = 100
_BLOCKS_KEPT = 3  # batches are prepared ahead, and a batch may contain rows of two blocks


_STREAMS: "weakref.WeakSet[StreamedSequences]" = weakref.WeakSet()


@atexit.register
def _end_all_calls() -> None:
    for stream in list(_STREAMS):
        stream.end_calls()


class StreamedRows:
    """The numbers of the sequences of each epoch, in the order of training.

    Args:
        num_sequences: sequences in an epoch.
        block_size: sequences that are shuffled together.
    """

    def __init__(self, num_sequences: int, block_size: int, seed: int):
        self._num_sequences, self._block_size, self._seed = num_sequences, block_size, seed

    def __len__(self) -> int:
        return self._num_sequences

    def of_epoch(self, epoch: int) -> np.ndarray:
        """int64 [len(self)]: the sequences of an epoch, counted from 1; a function of (seed, epoch)."""
        first, size = (epoch - 1) * self._num_sequences, self._block_size
        blocks = range(first // size, -(-(first + self._num_sequences) // size))
        rows = [
            block * size + np.random.default_rng([self._seed, _BLOCK_ORDER, block]).permutation(size)
            for block in blocks
        ]
        start = first - blocks.start * size
        return np.concatenate(rows)[start : start + self._num_sequences]


@dataclass(frozen=True)
class _Position:
    """Where a block begins: in the rows of a batch of documents.

    Attributes:
        passes: complete passes over the stream before it.
        shard: number of shards of this pass before it.
        document: number of documents of the shard before the batch.
        ids: tokens of earlier documents that do not fill a row; likewise `starts`, for `data.isolate_documents`.
        rows: rows of the batch that belong to earlier blocks.
    """

    passes: int = 0
    shard: int = 0
    document: int = 0
    ids: Sequence[int] | np.ndarray = ()
    starts: Sequence[int] | np.ndarray = ()
    rows: int = 0


class StreamedSequences:
    """Training sequences, indexed by their numbers and read from the stream on access.

    A sequence that is no longer in memory is read again, from the last known position before it.

    Attributes:
        input_ids: int32 [num_sequences, sequence_length].
        lengths: int32 [num_sequences]; no sequence is padded.
        document_starts: int32 [num_sequences, sequence_length], 1 at the first token of each document; None without
            `data.isolate_documents`.
        error: the error that ended the reading, if any. TensorFlow raises a separate error instead.
    """

    def __init__(self, stream: DocumentStream, tokenizer: PreTrainedTokenizerFast, config: DataConfig, seed: int):
        self._stream, self._config, self._seed = stream, config, seed
        # A copy, because other threads change the padding and truncation of the tokenizer.
        self._tokenizer = copy.deepcopy(tokenizer)
        self._tokenizer.backend_tokenizer.no_padding()
        self._tokenizer.backend_tokenizer.no_truncation()
        self._positions = {0: _Position()}
        self._blocks: dict[int, np.ndarray] = {}  # ids and document starts, see `block`
        self._next = 0
        self._reader: Iterator[tuple[np.ndarray, _Position]] | None = None
        self._ahead: Future[tuple[np.ndarray, _Position]] | None = None
        self._lock = threading.Lock()
        self._calls = threading.Condition()
        self._num_calls = 0
        self.error: Exception | None = None
        _STREAMS.add(self)
        self.input_ids: Any = _Rows(self, 0)
        self.lengths: Any = _Lengths(config.sequence_length)
        self.document_starts: Any = _Rows(self, 1) if config.isolate_documents else None

    def position_before(self, sequence: int) -> dict[str, Any]:
        """The last known position that is not after this sequence, as a JSON object for `continue_at`."""
        block = max(block for block in list(self._positions) if block * self._config.shuffle_buffer_size <= sequence)
        fields = {"block": block, **asdict(self._positions[block])}
        return {name: np.asarray(value).tolist() for name, value in fields.items()}

    def continue_at(self, position: dict[str, Any]) -> None:
        """Make the position of an earlier process known, so that nothing before it is read again."""
        fields = dict(position)
        block = fields.pop("block")
        self._positions[block] = _Position(**fields)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Count a call that reads sequences. Keep its error, and raise it again in later calls."""
        with self._calls:
            self._num_calls += 1
        try:
            if self.error is None:
                try:
                    yield
                    return
                except Exception as error:
                    self.error = error
            raise self.error
        finally:
            with self._calls:
                self._num_calls -= 1
                self._calls.notify_all()

    def end_calls(self) -> None:
        """Wait for the calls of TensorFlow's threads, and make later ones fail.

        Python aborts if it ends while such a thread runs Python code.
        """
        self.error = self.error or RuntimeError("the process is ending")
        with self._calls:
            was_idle = not self._num_calls
            self._calls.wait_for(lambda: not self._num_calls)
        if not was_idle:
            time.sleep(0.2)  # for the thread to return to TensorFlow

    def block(self, number: int) -> np.ndarray:
        """int32 [1 or 2, shuffle_buffer_size, sequence_length]: the ids of a block, and its document starts if used."""
        with self._lock:
            if number not in self._blocks:
                known = max(block for block in self._positions if block <= number)
                if self._reader is None or not known <= self._next <= number:
                    self._reader, self._next, self._ahead = self._read_blocks(self._positions[known]), known, None
                while self._next <= number:
                    self._read_next()
            return self._blocks[number]

    def _read_next(self) -> None:
        """Wait for the next block, and begin to read the block after it."""
        ahead = self._ahead or self._read_ahead()
        self._ahead = None
        self._blocks[self._next], self._positions[self._next + 1] = ahead.result()
        self._next += 1
        if len(self._positions) > _POSITIONS_KEPT:
            del self._positions[min(self._positions.keys() - {0})]  # a checkpoint has its own
        if len(self._blocks) > _BLOCKS_KEPT:
            del self._blocks[next(iter(self._blocks))]  # the one that was read first
        self._ahead = self._read_ahead()

    def _read_ahead(self) -> Future[tuple[np.ndarray, _Position]]:
        reader, future = self._reader, Future[tuple[np.ndarray, _Position]]()

        def read() -> None:
            try:
                assert reader is not None
                future.set_result(next(reader))
            except BaseException as error:
                future.set_exception(error)

        # TensorFlow's threads start daemon threads by default. This must not be one: Python aborts if it ends while a
        # daemon thread runs the tokenizer.
        threading.Thread(target=read, daemon=False).start()
        return future

    def _read_blocks(self, position: _Position) -> Iterator[tuple[np.ndarray, _Position]]:
        """Yield each block from `position` on, and the position after it."""
        size = missing = self._config.shuffle_buffer_size
        parts: list[np.ndarray] = []
        for batch, rows in self._read_batches(position):
            used = batch.rows
            while rows.shape[1] - used >= missing:
                parts.append(rows[:, used : used + missing])
                used += missing
                yield np.concatenate(parts, axis=1), replace(batch, rows=used)
                parts, missing = [], size
            parts.append(rows[:, used:])
            missing -= rows.shape[1] - used

    def _read_batches(self, position: _Position) -> Iterator[tuple[_Position, np.ndarray]]:
        """Yield the position of each batch of documents from `position` on, and the rows that it completes.

        Only the first batch has `rows` above 0.
        """
        length = self._config.sequence_length
        ids, starts = RowPacker(length, position.ids), RowPacker(length, position.starts)
        at = position
        for passes in count(position.passes):
            num_tokens = 0
            order = np.random.default_rng([self._seed, _SHARD_ORDER, passes]).permutation(len(self._stream.shards))
            for shard in range(at.shard, len(order)):
                at = replace(at, passes=passes, shard=shard)
                documents = self._stream.shards[order[shard]].read()
                for batch in _in_batches(islice(documents, at.document, None)):
                    encodings = [
                        encoding
                        for encodings in encode(list(filter(self._stream.is_training, batch)), self._tokenizer)
                        for encoding in encodings
                    ]
                    num_tokens += sum(map(len, encodings))
                    rows = [ids.add(encoding.ids for encoding in encodings)]
                    if self._config.isolate_documents:
                        rows.append(starts.add(document_start(len(encoding)) for encoding in encodings))
                    yield at, np.stack(rows)
                    at = _Position(passes, shard, at.document + len(batch), ids.remainder, starts.remainder)
                at = replace(at, document=0, rows=0)
            at = replace(at, shard=0)
            if not num_tokens and passes > position.passes:
                raise Refused("data.dataset: the training documents contain no text; pass a dataset with text")


class _Rows:
    """One of the two arrays of the blocks, indexed by the number of the sequence."""

    def __init__(self, sequences: StreamedSequences, array: int):
        self._sequences, self._array = sequences, array

    def __getitem__(self, index: Any) -> np.ndarray:
        with self._sequences.reading():
            rows = self._read(np.atleast_1d(index))
            return rows if np.ndim(index) else rows[0]

    def _read(self, index: np.ndarray) -> np.ndarray:
        config = self._sequences._config
        blocks, places = np.divmod(index, config.shuffle_buffer_size)
        rows = np.empty((len(index), config.sequence_length), np.int32)
        for block in np.unique(blocks):
            rows[blocks == block] = self._sequences.block(int(block))[self._array, places[blocks == block]]
        return rows


class _Lengths:
    """The lengths of sequences without padding, indexed by their numbers."""

    def __init__(self, length: int):
        self._length = length

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.full(np.shape(index), self._length, np.int32)


def _in_batches(documents: Iterable[str]) -> Iterator[list[str]]:
    """Consecutive documents, limited in number and in characters."""
    batch: list[str] = []
    num_characters = 0
    for document in documents:
        if not threading.main_thread().is_alive():  # Python waits for this thread before it ends
            raise RuntimeError("the process is ending")
        batch.append(document)
        num_characters += len(document)
        if len(batch) == _DOCUMENTS_PER_BATCH or num_characters >= _CHARACTERS_PER_BATCH:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch
