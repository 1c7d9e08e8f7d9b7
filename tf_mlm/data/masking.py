"""The masking collator: selects the tokens to predict and replaces them.

Masks depend only on (seed, epoch, index of the example), so that a resumed run and a second pass use the same masks.
The random numbers come from a counter hashed by splitmix64 (Steele, Lea and Flood, "Fast
splittable pseudorandom number generators", OOPSLA 2014), because seeding a numpy generator
for each row would need a Python loop.
"""

from dataclasses import dataclass

import numpy as np

IGNORE_INDEX = -100
"""Label of a position that is not predicted (the convention of Hugging Face and PyTorch)."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


VALIDATION_PROBABILITY = 0.15
"""Share of the tokens masked in validation; independent of the training ratio, so that losses can be compared."""


def num_slots(sequence_length: int, mlm_probability: float) -> int:
    """Positions per sequence that the head must support, in training and in validation."""
    return max_masked_per_sequence(sequence_length, max(mlm_probability, VALIDATION_PROBABILITY))


def max_masked_per_sequence(sequence_length: int, mlm_probability: float) -> int:
    """Upper limit of the tokens that `mask_tokens` chooses in one sequence: a static shape for the head."""
    return min(sequence_length, int(np.ceil(sequence_length * mlm_probability)))


def mask_tokens(
    input_ids: np.ndarray,
    maskable: np.ndarray,
    keys: np.ndarray,
    *,
    mlm_probability: float,
    mask_replace_prob: float,
    random_replace_prob: float,
    mask_token_id: int,
    random_token_ids: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose tokens to predict and replace most of them, as BERT does (Devlin et al. 2019, section 3.1).

    The number chosen in a row is `mlm_probability` times its maskable tokens, randomly rounded up or down so that the
    expectation is exact, and at least one if the row has any.

    Args:
        input_ids: int32 [batch, length].
        maskable: bool [batch, length], true for ordinary tokens: neither special nor padding.
        keys: uint64 [batch]; the masks of a row depend only on its key.
        random_token_ids: int32 [n], the candidates for a random replacement.

    Returns:
        The masked input_ids, and the labels (IGNORE_INDEX at positions that are not predicted); both
        int32 [batch, length].
    """
    length = input_ids.shape[1]
    counter = np.arange(1, 3 * length + 2, dtype=np.uint64)
    bits = _splitmix64(keys[:, None] + counter * _GOLDEN)
    rank_bits, treatment_bits, token_bits = bits[:, :length], bits[:, length : 2 * length], bits[:, 2 * length : -1]

    # Ordinary tokens come first in a random order; the first `num_masked` of them are chosen.
    num_maskable = maskable.sum(axis=1)
    expected = num_maskable * mlm_probability
    whole = np.floor(expected)  # floor before adding the random number: 19 + 0.99…9 rounds to 20.0
    num_masked = (whole + (expected - whole + _uniform(bits[:, -1]) >= 1)).astype(np.int64)
    num_masked = np.minimum(np.maximum(num_masked, 1), num_maskable)
    order = np.argsort(np.where(maskable, rank_bits >> np.uint64(1), np.uint64(2**64 - 1)), axis=1, kind="stable")
    chosen = np.zeros(input_ids.shape, bool)
    np.put_along_axis(chosen, order, np.arange(length) < num_masked[:, None], axis=1)

    labels = np.where(chosen, input_ids, np.int32(IGNORE_INDEX))
    treatment = _uniform(treatment_bits)
    random_tokens = random_token_ids[(_uniform(token_bits) * len(random_token_ids)).astype(np.int64)]
    masked = np.where(chosen & (treatment < mask_replace_prob), np.int32(mask_token_id), input_ids)
    randomized = chosen & (treatment >= mask_replace_prob) & (treatment < mask_replace_prob + random_replace_prob)
    masked = np.where(randomized, random_tokens, masked)
    return masked, labels


def example_keys(seed: int, epoch: np.ndarray, index: np.ndarray) -> np.ndarray:
    """uint64 [batch]: a distinct key for each (seed, epoch, index)."""
    stream = np.uint64(seed * int(_GOLDEN) % 2**64)
    key = _splitmix64(epoch.astype(np.uint64) + stream)
    return _splitmix64(key ^ (index.astype(np.uint64) * _GOLDEN))


def _splitmix64(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    hashed: np.ndarray = state ^ (state >> np.uint64(31))
    return hashed


def _uniform(bits: np.ndarray) -> np.ndarray:
    """float64 in [0, 1) from the upper 53 bits."""
    uniform: np.ndarray = (bits >> np.uint64(11)) * 2.0**-53
    return uniform


@dataclass(frozen=True)
class MaskingCollator:
    """Maps rows of (epoch, index) to a masked batch: the `collate_fn` of `to_tf_dataset`.

    An index of -1 gives a filler row: all padding, attention only to the first position, no labels.

    Attributes:
        input_ids: int32 [num_sequences, length], memory-mapped; `index` selects its rows.
        lengths: int32 [num_sequences], tokens before the padding.
        document_starts: uint8 [num_sequences, length], 1 at the first token of each document; None if attention is not
            limited to documents.
        epoch_masks: False uses the same masks in every epoch (validation).
        draw: number of the draw of the fixed masks, if `epoch_masks` is False. Draw 1 has the validation masks of
            training.
    """

    input_ids: np.ndarray
    lengths: np.ndarray
    seed: int
    epoch_masks: bool
    mlm_probability: float
    mask_replace_prob: float
    random_replace_prob: float
    mask_token_id: int
    pad_token_id: int
    special_token_ids: np.ndarray
    random_token_ids: np.ndarray
    draw: int = 1
    document_starts: np.ndarray | None = None

    def __call__(self, rows: list[dict[str, int]]) -> dict[str, np.ndarray]:
        """Returns input_ids, attention_mask and labels, each int32 [batch, length].

        With `document_starts`, also position_ids: the position of each token in its document, from 0. A document that
        continues from the previous row starts again at 0. Padding continues the positions of the last document.
        """
        epoch = np.array([row["epoch"] for row in rows], np.int64)
        index = np.array([row["index"] for row in rows], np.int64)
        filler = index < 0
        lengths = np.where(filler, 0, self.lengths[index])
        input_ids = np.where(filler[:, None], np.int32(self.pad_token_id), self.input_ids[index])
        real = np.arange(input_ids.shape[1]) < lengths[:, None]
        maskable = real & ~np.isin(input_ids, self.special_token_ids)
        input_ids, labels = mask_tokens(
            input_ids,
            maskable,
            # No draw has the key of a training epoch, which counts from 1.
            example_keys(self.seed, epoch if self.epoch_masks else np.full_like(epoch, 1 - self.draw), index),
            mlm_probability=self.mlm_probability,
            mask_replace_prob=self.mask_replace_prob,
            random_replace_prob=self.random_replace_prob,
            mask_token_id=self.mask_token_id,
            random_token_ids=self.random_token_ids,
        )
        real[:, 0] |= lengths == 0  # softmax is undefined for a row without attention
        batch = {"input_ids": input_ids, "attention_mask": real.astype(np.int32), "labels": labels}
        if self.document_starts is not None:
            columns = np.arange(input_ids.shape[1], dtype=np.int32)
            starts = self.document_starts[index] * columns * ~filler[:, None]
            batch["position_ids"] = columns - np.maximum.accumulate(starts, axis=1)
        return batch
