"""Claims about order and batches: a function of (seed, epoch), begun at any step, every batch of one shape."""

import tracemalloc
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

from tests.data.conftest import CLS, MASK, PAD, SEP, SPECIAL
from tf_mlm.config import MaskingConfig
from tf_mlm.data.masking import IGNORE_INDEX, MaskingCollator
from tf_mlm.data.pipeline import (
    build_collator,
    build_train_dataset,
    build_validation_dataset,
    epoch_order,
    rows_of_batch,
    steps_per_epoch,
)
from tf_mlm.data.sequences import Sequences

LENGTH = 8
BATCH = 4


def collator(num_sequences: int = 30, **changes: Any) -> MaskingCollator:
    """Row `n` is [CLS] 100+n and six words [SEP]; 100+n is treated as special, so that masking leaves it in place."""
    input_ids = np.tile(np.array([CLS, 0, 10, 11, 12, 13, 14, SEP], np.int32), (num_sequences, 1))
    input_ids[:, 1] = 100 + np.arange(num_sequences)
    settings: dict[str, Any] = {
        "input_ids": input_ids,
        "lengths": np.full(num_sequences, LENGTH, np.int32),
        "seed": 42,
        "epoch_masks": True,
        "mlm_probability": 0.5,
        "mask_replace_prob": 0.8,
        "random_replace_prob": 0.1,
        "mask_token_id": MASK,
        "pad_token_id": PAD,
        "special_token_ids": np.array([*SPECIAL, *range(100, 100 + num_sequences)], np.int32),
        "random_token_ids": np.arange(5, 100, dtype=np.int32),
    }
    return MaskingCollator(**settings | changes)


@dataclass
class Recorder:
    """A collator that records the rows it is called with."""

    collator: MaskingCollator
    asked: set[tuple[int, int]] = field(default_factory=set)

    def __call__(self, rows: Any) -> Any:
        self.asked |= {(int(row["epoch"]), int(row["index"])) for row in rows}
        return self.collator(rows)


ROWS = np.array([3, 4, 5, 8, 9, 12, 20, 21, 22, 29])  # 10 of 30: 3 batches of 4 an epoch, 2 filler rows


def train_batches(
    num_batches: int, first_batch: int = 0, seed: int = 42, epochs: int = 3, source: Any = None
) -> list[Any]:
    dataset = build_train_dataset(
        source or collator(), ROWS, batch_size=BATCH, seed=seed, epochs=epochs, first_batch=first_batch
    )
    return list(dataset.take(num_batches).as_numpy_iterator())


def indices(batches: list[Any]) -> list[int]:
    """The rows of the matrix in the batches, -1 for a filler row."""
    ids = np.concatenate([features["input_ids"] for features, _ in batches])
    return [int(row[1]) - 100 if row[0] == CLS else -1 for row in ids]


def assert_equal(batches: list[Any], others: list[Any]) -> None:
    assert len(batches) == len(others)
    for (features, labels), (other_features, other_labels) in zip(batches, others, strict=True):
        np.testing.assert_array_equal(features["input_ids"], other_features["input_ids"])
        np.testing.assert_array_equal(features["attention_mask"], other_features["attention_mask"])
        np.testing.assert_array_equal(labels, other_labels)


# --- the order


@pytest.mark.parametrize("num_sequences, batch_size, steps", [(10, 4, 3), (12, 4, 3), (1, 4, 1), (3000, 32, 94)])
def test_steps_in_an_epoch(num_sequences: int, batch_size: int, steps: int) -> None:
    assert steps_per_epoch(num_sequences, batch_size) == steps


def test_each_seed_and_epoch_has_a_different_order() -> None:
    orders = {(seed, epoch): epoch_order(100, seed, epoch) for seed in (0, 1, 42) for epoch in (1, 2, 3)}
    for order in orders.values():
        assert sorted(order) == list(range(100))
    assert len({tuple(order) for order in orders.values()}) == 9
    assert tuple(range(100)) not in {tuple(order) for order in orders.values()}
    np.testing.assert_array_equal(epoch_order(100, 42, 2), orders[42, 2])


# --- training batches


def test_every_example_occurs_once_per_epoch_in_the_order_of_seed_and_epoch(tensorflow: Any) -> None:
    found = indices(train_batches(9))
    for epoch in (1, 2, 3):
        one = found[(epoch - 1) * 12 : epoch * 12]
        assert one == [*ROWS[epoch_order(10, 42, epoch)].tolist(), -1, -1]
    assert indices(train_batches(3, seed=7)) == [*ROWS[epoch_order(10, 7, 1)].tolist(), -1, -1]


def test_two_passes_are_bit_equal_and_two_epochs_are_not(tensorflow: Any) -> None:
    first, second = train_batches(9), train_batches(9)
    assert_equal(first, second)
    masks = []
    for epoch in (0, 1, 2):
        batches = first[epoch * 3 : epoch * 3 + 3]
        labels = np.concatenate([labels for _, labels in batches])[:10]
        masks.append((labels != IGNORE_INDEX)[np.argsort(indices(batches)[:10])])
    for one, other in [(0, 1), (0, 2), (1, 2)]:
        assert (masks[one] != masks[other]).any(
            axis=1
        ).sum() >= 5  # of 10 examples, each with 10 choices of 2 or 3 in 5


def test_the_masks_of_an_example_do_not_depend_on_the_batch(tensorflow: Any) -> None:
    source = collator()
    batches = train_batches(9, source=source)
    for number, index in enumerate(indices(batches)):
        alone = source([{"epoch": 1 + number // 12, "index": index}])
        features, labels = batches[number // 4]
        np.testing.assert_array_equal(features["input_ids"][number % 4], alone["input_ids"][0])
        np.testing.assert_array_equal(features["attention_mask"][number % 4], alone["attention_mask"][0])
        np.testing.assert_array_equal(labels[number % 4], alone["labels"][0])


def test_a_start_at_any_step_gives_the_batches_of_an_uninterrupted_run(tensorflow: Any) -> None:
    whole = train_batches(9)
    for first_batch in (1, 3, 5, 8):
        assert_equal(train_batches(9 - first_batch, first_batch), whole[first_batch:])


def test_a_start_at_a_step_does_not_read_earlier_batches(tensorflow: Any) -> None:
    """Trap 22: the resume of Keras restarts the data."""
    whole = Recorder(collator())
    train_batches(9, source=whole)
    in_order = [(epoch, int(index)) for epoch in (1, 2, 3) for index in ROWS[epoch_order(10, 42, epoch)]]
    assert whole.asked == {*in_order, (1, -1), (2, -1), (3, -1)}
    late = Recorder(collator())
    train_batches(4, first_batch=5, source=late)  # the third batch of epoch 2: its last 2 examples, 2 filler rows
    assert late.asked == {*in_order[18:], (2, -1), (3, -1)}


def test_every_batch_has_one_static_shape_and_int32(tensorflow: Any) -> None:
    import tensorflow as tf

    for dataset in (
        build_train_dataset(collator(), ROWS, batch_size=BATCH, seed=42, epochs=2),
        build_validation_dataset(collator(), ROWS, batch_size=BATCH),
    ):
        spec = tf.TensorSpec((BATCH, LENGTH), tf.int32)
        assert dataset.element_spec == ({"input_ids": spec, "attention_mask": spec}, spec)
        for features, labels in dataset.take(3):
            assert features["input_ids"].shape == features["attention_mask"].shape == labels.shape == (BATCH, LENGTH)


def test_filler_rows_are_at_the_end_of_an_epoch_and_have_no_labels(tensorflow: Any) -> None:
    batches = train_batches(9)
    for number, (features, labels) in enumerate(batches):
        fillers = 2 if number % 3 == 2 else 0
        assert (features["attention_mask"].sum(axis=1) == 1).tolist() == [False] * (4 - fillers) + [True] * fillers
        assert (labels != IGNORE_INDEX).any(axis=1).tolist() == [True] * (4 - fillers) + [False] * fillers


def test_without_a_remainder_there_are_no_filler_rows(tensorflow: Any) -> None:
    dataset = build_train_dataset(collator(), ROWS[:8], batch_size=BATCH, seed=42, epochs=1)
    assert sorted(indices(list(dataset.take(2).as_numpy_iterator()))) == sorted(ROWS[:8])


def test_the_training_dataset_does_not_end(tensorflow: Any) -> None:
    import tensorflow as tf

    dataset = build_train_dataset(collator(), ROWS, batch_size=BATCH, seed=42, epochs=1)
    assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    batches = train_batches(7, epochs=1)
    assert_equal(batches[3:6], batches[:3])


def test_filler_rows_complete_a_batch_larger_than_the_data(tensorflow: Any) -> None:
    dataset = build_train_dataset(collator(), ROWS[:3], batch_size=16, seed=42, epochs=1)
    found = indices(list(dataset.take(1).as_numpy_iterator()))
    assert sorted(found[:3]) == [3, 4, 5] and found[3:] == [-1] * 13


def test_memory_does_not_grow_with_the_number_of_epochs() -> None:
    """A table of these epochs would have 10^11 rows."""
    rows = np.arange(100_000)
    tracemalloc.start()
    try:
        dataset = build_train_dataset(collator(), rows % 30, batch_size=BATCH, seed=42, epochs=10**6, first_batch=10**9)
        found = indices(list(dataset.take(2).as_numpy_iterator()))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == (epoch_order(100_000, 42, 40_001)[:8] % 30).tolist()
    assert peak < 10 * rows.nbytes


# --- validation batches


def test_validation_is_one_pass_in_order_with_the_same_masks_every_time(tensorflow: Any) -> None:
    dataset = build_validation_dataset(replace(collator(), epoch_masks=False), ROWS, batch_size=BATCH)
    first, second = list(dataset.as_numpy_iterator()), list(dataset.as_numpy_iterator())
    assert indices(first) == [*ROWS.tolist(), -1, -1]
    assert_equal(first, second)
    again = build_validation_dataset(replace(collator(), epoch_masks=False), ROWS, batch_size=BATCH)
    assert_equal(first, list(again.as_numpy_iterator()))


# --- the collator of a run


def sequences() -> Sequences:
    ids = np.tile(np.array([CLS, *range(10, 16), SEP], np.int32), (3, 1))
    return Sequences(ids, np.full(3, 8, np.int32), 3, 0, 24)


def test_the_collator_has_the_rates_of_the_settings_and_the_ids_of_the_tokenizer(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    built = build_collator(sequences(), tokenizer, MaskingConfig(0.3, 0.5, 0.25), seed=9)
    assert (built.mlm_probability, built.mask_replace_prob, built.random_replace_prob) == (0.3, 0.5, 0.25)
    assert (built.seed, built.epoch_masks, built.mask_token_id, built.pad_token_id) == (9, True, MASK, PAD)
    assert built.special_token_ids.tolist() == sorted(SPECIAL)
    assert built.random_token_ids.tolist() == list(range(5, 100))
    assert built.random_token_ids.dtype == built.special_token_ids.dtype == np.int32


def test_validation_masks_15_percent_at_any_training_ratio_in_every_epoch(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    built = build_collator(sequences(), tokenizer, MaskingConfig(0.3, 0.5, 0.25), seed=9, validation=True)
    assert (built.mlm_probability, built.epoch_masks) == (0.15, False)
    assert (built.mask_replace_prob, built.random_replace_prob) == (0.5, 0.25)


def test_random_tokens_include_added_tokens_but_not_special_ones(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer.add_tokens(["film"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["[BREAK]"]})
    built = build_collator(sequences(), tokenizer, MaskingConfig(), seed=9)
    assert built.random_token_ids.tolist() == list(range(5, 101))
    assert built.special_token_ids.tolist() == [0, 1, 2, 3, 4, 101]


def test_rows_of_batch_gives_the_rows_that_training_reads() -> None:
    batches = train_batches(9)
    for number in range(9):
        read = [row for row in indices(batches[number : number + 1]) if row >= 0]
        assert rows_of_batch(ROWS, BATCH, 42, number).tolist() == read
