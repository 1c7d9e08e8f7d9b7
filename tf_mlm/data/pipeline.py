"""Sequences to batches: the order of each epoch, and the `tf.data` pipeline for `model.fit`."""

import copy
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Dataset
from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

from tf_mlm.config import MaskingConfig
from tf_mlm.data.masking import VALIDATION_PROBABILITY, MaskingCollator
from tf_mlm.data.mixture import MixedRows
from tf_mlm.data.sequences import Sequences
from tf_mlm.data.streamed_sequences import StreamedRows, StreamedSequences

TrainRows = np.ndarray | MixedRows | StreamedRows
"""The rows to train on in each epoch: the same ones, or others."""

Collator = Callable[[list[dict[str, int]]], dict[str, np.ndarray]]
"""Maps rows of (epoch, index) to a batch with `labels`; an index of -1 gives a filler row without labels."""

_SHUFFLE_STREAM = 1  # separates these random numbers from others drawn with the same seed


class Share(NamedTuple):
    """The rows of each batch that one worker reads.

    Attributes:
        first: position of the first row in the batch of all workers.
        end: position after the last row.
        batch_size: rows of each replica of the worker; divides `num_rows`.
    """

    first: int
    end: int
    batch_size: int

    @property
    def num_rows(self) -> int:
        return self.end - self.first


def steps_per_epoch(num_sequences: int, batch_size: int) -> int:
    """Batches in one epoch; filler rows complete the last one."""
    return -(-num_sequences // batch_size)


def epoch_order(num_sequences: int, seed: int, epoch: int) -> np.ndarray:
    """int64 [num_sequences]: the order of the examples in one epoch, a function of (seed, epoch)."""
    return np.random.default_rng([seed, _SHUFFLE_STREAM, epoch]).permutation(num_sequences)


def rows_of_epoch(rows: TrainRows, epoch: int) -> np.ndarray:
    """int64 [len(rows)]: the rows that an epoch, counted from 1, reads, in any order."""
    return rows if isinstance(rows, np.ndarray) else rows.of_epoch(epoch)


def rows_in_order(rows: TrainRows, seed: int, epoch: int) -> np.ndarray:
    """int64 [len(rows)]: the rows of one epoch, counted from 1, in the order of training."""
    in_epoch = rows_of_epoch(rows, epoch)
    if isinstance(rows, StreamedRows):  # these are shuffled in parts that fit in memory
        return in_epoch
    return in_epoch[epoch_order(len(rows), seed, epoch)]


def build_collator(
    sequences: Sequences | StreamedSequences,
    tokenizer: PreTrainedTokenizerFast,
    masking: MaskingConfig,
    seed: int,
    *,
    validation: bool = False,
) -> MaskingCollator:
    """The collator over `sequences`; validation always masks 15 % and uses the same masks in every epoch."""
    special = np.unique(np.array(tokenizer.all_special_ids, np.int32))
    return MaskingCollator(
        input_ids=sequences.input_ids,
        lengths=sequences.lengths,
        document_starts=sequences.document_starts,
        seed=seed,
        epoch_masks=not validation,
        mlm_probability=VALIDATION_PROBABILITY if validation else masking.mlm_probability,
        mask_replace_prob=masking.mask_replace_prob,
        random_replace_prob=masking.random_replace_prob,
        mask_token_id=tokenizer.mask_token_id,
        pad_token_id=tokenizer.pad_token_id,
        special_token_ids=special,
        random_token_ids=np.setdiff1d(np.arange(len(tokenizer), dtype=np.int32), special),
    )


def rows_of_batch(rows: TrainRows, batch_size: int, seed: int, batch: int) -> np.ndarray:
    """The part of `rows` in batch `batch`, counted from 0 over all epochs."""
    epoch, number = divmod(batch, steps_per_epoch(len(rows), batch_size))
    return rows_in_order(rows, seed, epoch + 1)[number * batch_size : (number + 1) * batch_size]


def build_train_dataset(
    collator: Collator,
    rows: TrainRows,
    *,
    batch_size: int,
    seed: int,
    epochs: int,
    first_batch: int = 0,
    share: Share | None = None,
) -> Any:
    """Batches of all epochs, shuffled within each epoch, starting at `first_batch`; earlier batches are never read.

    Args:
        rows: int64 [num_sequences], the rows of the collator's matrix to train on, or those of each epoch.
        share: the rows of each batch to read; None for all.

    Returns:
        `tf.data.Dataset` of ({input_ids, attention_mask, ...}, labels), each int32 [batch_size, length]. It repeats
        forever, because Keras restarts a finite dataset whose size equals `steps_per_epoch`.
    """
    in_order = lru_cache(1)(partial(rows_in_order, rows, seed))
    examples = _Examples(in_order, len(rows), batch_size, 1, epochs, first_batch, share)
    return _to_tf_dataset(collator, examples, batch_size, share).repeat()


def build_validation_dataset(
    collator: Collator, rows: np.ndarray, *, batch_size: int, share: Share | None = None
) -> Any:
    """One pass over `rows` in order; shapes and dtypes as in `build_train_dataset`."""
    examples = _Examples(lambda epoch: rows, len(rows), batch_size, 0, 1, share=share)
    return _to_tf_dataset(collator, examples, batch_size, share)


class _Examples(Dataset):
    """A table with columns `epoch` and `index`: one row per example of all epochs, including filler rows.

    A row is computed when it is read, because a stored table would need memory for epochs x sequences.
    """

    def __init__(
        self,
        in_order: Callable[[int], np.ndarray],
        num_rows: int,
        batch_size: int,
        first_epoch: int,
        epochs: int,
        first_batch: int = 0,
        share: Share | None = None,
    ):
        """
        Args:
            in_order: maps an epoch to its rows in the order of the examples, int64 [num_rows].
            share: the rows of each batch to include; None for all.
        """
        self._in_order, self._num_rows, self._first_epoch = in_order, num_rows, first_epoch
        self._per_epoch = steps_per_epoch(num_rows, batch_size) * batch_size
        self._first = first_batch * batch_size
        self._batch_size, self._share = batch_size, share or Share(0, batch_size, batch_size)
        num_batches = (epochs * self._per_epoch - self._first) // batch_size
        nothing = pa.nulls(num_batches * self._share.num_rows)  # has a length, and needs no memory
        super().__init__(pa.table({"index": nothing}), fingerprint="examples")
        self.set_format("numpy")

    @staticmethod
    def _get_output_signature(dataset: "_Examples", *arguments: Any, **options: Any) -> Any:
        # The library collates a random row to find the dtypes. A stream would be read up to that row, so offer only the
        # first batch.
        first = copy.copy(dataset)
        first._data = dataset._data.slice(0, dataset._share.num_rows)
        return Dataset._get_output_signature(first, *arguments, **options)

    def __getitem__(self, key: Any) -> Any:
        """The rows at a slice or at int64 [n]: `epoch` and `index`, each int64 [n]."""
        numbers = np.arange(*key.indices(len(self))) if isinstance(key, slice) else np.asarray(key)
        batch, row = np.divmod(numbers, self._share.num_rows)
        numbers = self._first + batch * self._batch_size + self._share.first + row
        epoch, place = np.divmod(numbers, self._per_epoch)
        epoch += self._first_epoch
        index = np.full(len(numbers), -1)
        for each in np.unique(epoch):
            real = (epoch == each) & (place < self._num_rows)
            index[real] = self._in_order(int(each))[place[real]]
        return {"epoch": epoch, "index": index}


def _to_tf_dataset(collator: Collator, examples: Dataset, batch_size: int, share: Share | None) -> Any:
    import tensorflow as tf

    batches = examples.to_tf_dataset(
        batch_size=share.batch_size if share else batch_size,
        collate_fn=collator,
        drop_remainder=True,  # all batches are full; this makes the batch dimension static
        prefetch=False,
        num_test_batches=1,
    )

    def split(batch: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        features = {name: tf.cast(value, tf.int32) for name, value in batch.items()}  # to_tf_dataset widens to int64
        labels = features.pop("labels")
        return features, labels

    return batches.map(split).prefetch(tf.data.AUTOTUNE)
