"""Claims about which tokens are masked, with what, and on what that depends."""

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.conftest import CLS, MASK, PAD, SEP, SPECIAL
from tf_mlm.data import masking
from tf_mlm.data.masking import IGNORE_INDEX, MaskingCollator, example_keys, mask_tokens, max_masked_per_sequence

ORDINARY = np.arange(5, 100, dtype=np.int32)


def keys(count: int, seed: int = 42, epoch: int = 1) -> np.ndarray:
    return example_keys(seed, np.full(count, epoch), np.arange(count))


def mask(
    input_ids: Any, maskable: Any, row_keys: Any, rates: Any = (0.15, 0.8, 0.1), random_token_ids: Any = ORDINARY
) -> tuple[np.ndarray, np.ndarray]:
    return mask_tokens(
        input_ids,
        maskable,
        row_keys,
        mlm_probability=rates[0],
        mask_replace_prob=rates[1],
        random_replace_prob=rates[2],
        mask_token_id=MASK,
        random_token_ids=random_token_ids,
    )


def num_masked(num_maskable: int, mlm_probability: float, rows: int = 20_000) -> Counter[int]:
    """Histogram of the masked tokens per row, over `rows` rows with `num_maskable` ordinary tokens and 3 others."""
    input_ids = np.full((rows, num_maskable + 3), 50, np.int32)
    maskable = np.ones(input_ids.shape, bool)
    maskable[:, [0, 1, -1]] = False
    _, labels = mask(input_ids, maskable, keys(rows), (mlm_probability, 0.8, 0.1))
    return Counter((labels != IGNORE_INDEX).sum(axis=1).tolist())


def collator(
    lengths: Any, sequence_length: Any = 16, seed: int = 42, epoch_masks: Any = True, rates: Any = (0.15, 0.8, 0.1)
) -> MaskingCollator:
    """Rows of [CLS] 10 11 12 ... [SEP], `lengths` tokens each, padded."""
    input_ids = np.full((len(lengths), sequence_length), PAD, np.int32)
    for row, length in zip(input_ids, lengths, strict=True):
        row[:length] = [CLS, *range(10, 10 + length - 2), SEP][:length]
    return MaskingCollator(
        input_ids=input_ids,
        lengths=np.array(lengths, np.int32),
        seed=seed,
        epoch_masks=epoch_masks,
        mlm_probability=rates[0],
        mask_replace_prob=rates[1],
        random_replace_prob=rates[2],
        mask_token_id=MASK,
        pad_token_id=PAD,
        special_token_ids=np.array(SPECIAL, np.int32),
        random_token_ids=ORDINARY,
    )


def rows(indices: Any, epoch: int = 1) -> list[dict[str, int]]:
    return [{"epoch": epoch, "index": index} for index in indices]


def assert_equal(batch: dict[str, Any], other: dict[str, Any], order: Any = slice(None)) -> None:
    assert batch.keys() == other.keys()
    for name in batch:
        np.testing.assert_array_equal(batch[name], other[name][order], err_msg=name)


# --- how many


def test_the_number_of_masks_is_exact_for_whole_numbers() -> None:
    assert num_masked(20, 0.25) == {5: 20_000}
    assert num_masked(100, 0.07) == {7: 20_000}  # 100 * 0.07 is 7.000000000000001 in floating point
    assert num_masked(7, 1.0) == {7: 20_000}


def test_a_fraction_is_rounded_up_with_its_probability() -> None:
    counts = num_masked(18, 0.15)  # 2.7
    assert counts.keys() == {2, 3}
    assert counts[3] / 20_000 == pytest.approx(0.7, abs=0.015)  # standard error 0.0032
    counts = num_masked(125, 0.15)  # 18.75
    assert counts.keys() == {18, 19}
    assert counts[19] / 20_000 == pytest.approx(0.75, abs=0.015)


def test_at_least_one_ordinary_token_is_masked() -> None:
    assert num_masked(1, 0.15) == {1: 20_000}
    assert num_masked(3, 0.01) == {1: 20_000}


def test_a_row_without_ordinary_tokens_is_unchanged() -> None:
    assert num_masked(0, 1.0) == {0: 20_000}
    input_ids = np.array([[CLS, SEP, PAD, PAD]], np.int32)
    masked, labels = mask(input_ids, np.zeros((1, 4), bool), keys(1), (1.0, 1.0, 0.0))
    np.testing.assert_array_equal(masked, input_ids)
    np.testing.assert_array_equal(labels, [[IGNORE_INDEX] * 4])


def test_the_largest_random_number_does_not_round_up_a_whole_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """19 + 0.99...9 is 20.0 in floating point, one more than the limit of the head."""
    monkeypatch.setattr(masking, "_uniform", lambda bits: np.full(bits.shape, 1 - 2.0**-53))
    assert num_masked(76, 0.25, rows=3) == {19: 3}
    assert max_masked_per_sequence(76, 0.25) == 19


@pytest.mark.parametrize(
    "length, rate, most", [(128, 0.15, 20), (64, 0.15, 10), (100, 0.25, 25), (8, 1.0, 8), (8, 0.01, 1)]
)
def test_the_upper_limit_of_masks(length: int, rate: float, most: int) -> None:
    assert max_masked_per_sequence(length, rate) == most


@settings(deadline=None)
@given(
    st.integers(8, 200),
    st.floats(0, 1, exclude_min=True),
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 200), min_size=1, max_size=20),
)
def test_no_row_exceeds_the_limit_or_differs_from_the_expectation_by_one(
    length: int, rate: float, seed: int, num_maskable: int
) -> None:
    maskable = np.arange(length) < np.array(num_maskable)[:, None]
    input_ids = np.full(maskable.shape, 50, np.int32)
    _, labels = mask(input_ids, maskable, keys(len(maskable), seed), (rate, 0.8, 0.1))
    for row, ordinary in zip(labels, maskable.sum(axis=1), strict=True):
        count = (row != IGNORE_INDEX).sum()
        assert count <= max_masked_per_sequence(length, rate)
        assert math.floor(ordinary * rate) <= count <= max(math.ceil(ordinary * rate), 1)
        assert count >= (ordinary > 0)
        assert not (row[ordinary:] != IGNORE_INDEX).any()


# --- which, and with what


def test_special_and_padding_tokens_are_never_chosen() -> None:
    batch = collator([16, 9, 3, 2], rates=(1.0, 1.0, 0.0))(rows(range(4)))
    labels, masked = batch["labels"], batch["input_ids"]
    for row, ordinary in enumerate([14, 7, 1, 0]):
        words = list(range(10, 10 + ordinary))
        assert labels[row].tolist() == [-100, *words, *[-100] * (15 - ordinary)]
        assert masked[row].tolist() == [CLS, *[MASK] * ordinary, SEP, *[PAD] * (14 - ordinary)]
    assert batch["attention_mask"].tolist() == [[1] * n + [0] * (16 - n) for n in (16, 9, 3, 2)]


def test_a_mask_token_in_the_text_is_special() -> None:
    one = collator([6], rates=(1.0, 0.0, 0.0))
    one.input_ids[0, 2] = MASK
    batch = one(rows([0]))
    assert batch["labels"][0, :6].tolist() == [-100, 10, -100, 12, 13, -100]


def test_with_rates_1_and_0_every_chosen_token_becomes_the_mask_token() -> None:
    batch = collator([16] * 50, rates=(0.5, 1.0, 0.0))(rows(range(50)))
    chosen = batch["labels"] != IGNORE_INDEX
    assert chosen.sum() == 50 * 7
    assert (batch["input_ids"][chosen] == MASK).all()
    assert (batch["input_ids"][~chosen] != MASK).all()


def test_with_rates_0_and_1_every_chosen_token_becomes_an_ordinary_one_from_the_whole_vocabulary() -> None:
    source = collator([16] * 2000, rates=(0.5, 0.0, 1.0))
    batch = source(rows(range(2000)))
    chosen = batch["labels"] != IGNORE_INDEX
    counts = Counter(batch["input_ids"][chosen].tolist())
    assert counts.keys() == set(range(5, 100))
    assert 90 < min(counts.values()) and max(counts.values()) < 210  # 147 expected, standard deviation 12
    np.testing.assert_array_equal(batch["input_ids"][~chosen], source.input_ids[~chosen])


def test_with_rates_0_and_0_every_chosen_token_is_kept_and_still_predicted() -> None:
    source = collator([16] * 50, rates=(0.5, 0.0, 0.0))
    batch = source(rows(range(50)))
    np.testing.assert_array_equal(batch["input_ids"], source.input_ids)
    chosen = batch["labels"] != IGNORE_INDEX
    assert chosen.sum() == 50 * 7
    np.testing.assert_array_equal(batch["labels"][chosen], source.input_ids[chosen])


def test_labels_are_the_ids_before_masking() -> None:
    source = collator([16] * 200)
    batch = source(rows(range(200)))
    chosen = batch["labels"] != IGNORE_INDEX
    np.testing.assert_array_equal(batch["labels"][chosen], source.input_ids[chosen])
    np.testing.assert_array_equal(batch["input_ids"][~chosen], source.input_ids[~chosen])


def test_the_rates_hold_within_a_hundredth_on_a_large_sample() -> None:
    count, length = 8000, 128
    input_ids = np.full((count, length), 50, np.int32)
    maskable = np.ones(input_ids.shape, bool)
    maskable[:, [0, -1]] = False
    # A random token is never 50 here, so that a kept token can be distinguished from a replaced one.
    masked, labels = mask(input_ids, maskable, keys(count), random_token_ids=np.arange(60, 90, dtype=np.int32))
    chosen = labels != IGNORE_INDEX
    assert chosen.sum() / maskable.sum() == pytest.approx(0.15, abs=0.0005)
    treated = masked[chosen]
    assert (treated == MASK).mean() == pytest.approx(0.8, abs=0.01)  # standard error 0.001
    assert ((treated >= 60) & (treated < 90)).mean() == pytest.approx(0.1, abs=0.01)
    assert (treated == 50).mean() == pytest.approx(0.1, abs=0.01)
    by_position = chosen[:, 1:-1].mean(axis=0)
    assert abs(by_position - 0.15).max() < 0.02  # every position alike; standard error 0.004


def test_the_replacement_does_not_depend_on_the_position_or_rank() -> None:
    masked, labels = mask(np.full((4000, 20), 50, np.int32), np.ones((4000, 20), bool), keys(4000), (0.5, 0.5, 0.0))
    chosen = labels != IGNORE_INDEX
    share = ((masked == MASK) & chosen).sum(axis=0) / chosen.sum(axis=0)
    assert abs(share - 0.5).max() < 0.06  # standard error 0.011


# --- on what it depends


def test_masks_do_not_depend_on_the_batch_or_its_order() -> None:
    source = collator([16, 12, 9, 16, 5, 3, 2, 14])
    whole = source(rows(range(8)))
    order = np.array([5, 0, 7, 3, 1, 6, 2, 4])
    assert_equal(source(rows(order)), whole, order)
    for index in range(8):
        assert_equal(source(rows([index])), whole, [index])
    mixed = source([{"epoch": 9, "index": 0}, *rows([4]), {"epoch": 2, "index": 7}])
    np.testing.assert_array_equal(mixed["labels"][1], whole["labels"][4])


def test_two_passes_see_the_same_masks_with_seed_0_too() -> None:
    """Trap 12: the collator of transformers uses other masks in the second pass and ignores seed 0."""
    for seed in (0, 42):
        first, second = collator([16] * 40, seed=seed), collator([16] * 40, seed=seed)
        batch = first(rows(range(40)))
        first(rows([0]))  # a probe consumes nothing
        assert_equal(first(rows(range(40))), batch)
        assert_equal(second(rows(range(40))), batch)


@pytest.mark.parametrize("seed, epoch", [(0, 2), (1, 1), (42, 1), (2**32 - 1, 1), (0, 0)])
def test_another_seed_or_epoch_gives_other_masks(seed: int, epoch: int) -> None:
    """The others are compared with seed 0, epoch 1."""
    lengths = [128] * 200
    labels = collator(lengths, 128, seed=0)(rows(range(200), epoch=1))["labels"] != IGNORE_INDEX
    other = collator(lengths, 128, seed=seed)(rows(range(200), epoch=epoch))["labels"] != IGNORE_INDEX
    both, share = (labels & other).sum(), labels.mean()
    assert both / labels.sum() == pytest.approx(share, abs=0.03)  # as unrelated choices have in common; error 0.006


def test_no_two_examples_share_their_masks() -> None:
    labels = collator([128] * 500, 128)(rows(range(500)))["labels"]
    assert len(np.unique(labels, axis=0)) == 500


def test_keys_are_distinct_over_seeds_epochs_and_examples() -> None:
    epoch, index = (axis.ravel() for axis in np.meshgrid(np.arange(20), np.arange(1000)))
    found = np.concatenate([example_keys(seed, epoch, index) for seed in (0, 1, 2, 42, 2**32 - 1)])
    assert found.dtype == np.uint64
    assert len(np.unique(found)) == 5 * 20 * 1000


def test_validation_masks_are_the_same_in_every_epoch_and_differ_from_training() -> None:
    lengths = [128] * 20
    validation = collator(lengths, 128, epoch_masks=False)
    batch = validation(rows(range(20), epoch=0))
    for epoch in (1, 2, 7):
        assert_equal(validation(rows(range(20), epoch=epoch)), batch)
        training = collator(lengths, 128)(rows(range(20), epoch=epoch))
        assert (training["labels"] != batch["labels"]).any(axis=1).all()


# --- what is returned


def test_a_filler_row_has_no_label_and_attends_to_one_padding_token() -> None:
    batch = collator([16, 9], rates=(1.0, 1.0, 0.0))(rows([-1, 1, -1]))
    for row in (0, 2):
        assert batch["input_ids"][row].tolist() == [PAD] * 16
        assert batch["attention_mask"][row].tolist() == [1] + [0] * 15
        assert batch["labels"][row].tolist() == [IGNORE_INDEX] * 16
    assert batch["attention_mask"][1].sum() == 9
    assert (batch["labels"][1] != IGNORE_INDEX).sum() == 7


def test_a_row_without_tokens_attends_to_one_position() -> None:
    batch = collator([0, 5])(rows([0, 1]))
    assert batch["attention_mask"].sum(axis=1).tolist() == [1, 5]


def test_every_array_is_int32_of_one_shape_and_the_sequences_are_not_written_to() -> None:
    source = collator([16, 9, 5], rates=(1.0, 1.0, 0.0))
    before = source.input_ids.copy()
    batch = source(rows([2, 0]))
    assert {name: (array.dtype, array.shape) for name, array in batch.items()} == {
        name: (np.dtype(np.int32), (2, 16)) for name in ("input_ids", "attention_mask", "labels")
    }
    np.testing.assert_array_equal(source.input_ids, before)


def test_positions_restart_at_each_document_and_at_the_first_column() -> None:
    starts = np.zeros((3, 16), np.uint8)
    starts[0, [0, 3, 4]] = 1
    starts[1, 2] = 1  # the first two tokens continue a document of the row before; padding from column 9 on
    source = replace(collator([16, 9, 16]), document_starts=starts)
    batch = source(rows([1, 0, -1, 2]))
    assert batch["position_ids"].dtype == np.int32
    assert batch["position_ids"].tolist() == [
        [0, 1, *range(14)],
        [0, 1, 2, 0, *range(12)],
        [*range(16)],  # a filler row is one document
        [*range(16)],  # a document that fills the row
    ]
    plain = collator([16, 9, 16])(rows([1, 0, -1, 2]))
    assert batch.keys() - plain.keys() == {"position_ids"}
    assert_equal({name: batch[name] for name in plain}, plain)


def test_a_filler_row_does_not_have_the_documents_of_the_last_row() -> None:
    starts = np.zeros((2, 16), np.uint8)
    starts[1, [0, 5]] = 1
    batch = replace(collator([16, 16]), document_starts=starts)(rows([-1, 1]))
    assert batch["position_ids"].tolist() == [[*range(16)], [*range(5), *range(11)]]


def test_the_draws_of_validation_masks_are_fixed_and_differ_from_each_other_and_from_training() -> None:
    rows = [{"epoch": 0, "index": index} for index in range(40)]
    validation = collator([16] * 40, epoch_masks=False)

    def labels(collator: MaskingCollator, epoch: int = 0) -> bytes:
        return bytes(collator([row | {"epoch": epoch} for row in rows])["labels"].tobytes())

    draws = [labels(replace(validation, draw=draw)) for draw in (1, 2, 3)]
    assert draws[0] == labels(validation) == labels(collator([16] * 40), epoch=0)
    assert draws == [labels(replace(validation, draw=draw), epoch=5) for draw in (1, 2, 3)]
    assert len({*draws, *(labels(collator([16] * 40), epoch) for epoch in (1, 2, 3))}) == 6
