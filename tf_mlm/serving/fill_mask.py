"""Sentences with a gap in, likely words out."""

from typing import Any, NamedTuple

import numpy as np

from tf_mlm.errors import Refused
from tf_mlm.model.loading import max_sequence_length

MASK = "[MASK]"
"""How a gap is written whatever the model; it is replaced by the tokenizer's own mask token."""


class Fill(NamedTuple):
    token: str
    probability: float
    sentence: str


def fill_masks(model: Any, tokenizer: Any, sentence: str, top_k: int) -> list[list[Fill]]:
    """The `top_k` likeliest tokens for each gap of `sentence`, each gap for itself while the others stay masked.

    Raises:
        Refused: the sentence has no gap, or more tokens than the model has positions.
    """
    text = sentence.replace(MASK, tokenizer.mask_token)
    input_ids = np.array(tokenizer(text)["input_ids"], np.int32)
    gaps = np.flatnonzero(input_ids == tokenizer.mask_token_id)
    if not len(gaps):
        raise Refused(f"fill-mask: {sentence!r} has no {MASK}; write {MASK} where a word is to be filled in")
    positions = max_sequence_length(model.config)
    if len(input_ids) > positions:
        raise Refused(
            f"fill-mask: the text {sentence[:40]!r}… has {len(input_ids)} tokens, the model {positions} positions; "
            "shorten it"
        )
    probabilities = predict_probabilities(model, input_ids, gaps)
    fills = []
    for gap, row in zip(gaps, probabilities, strict=True):
        best = np.argsort(-row, kind="stable")[:top_k]
        fills.append(
            [
                Fill(_word(tokenizer, int(i)), float(row[i]), _filled(tokenizer, input_ids, int(gap), int(i)))
                for i in best
            ]
        )
    return fills


def predict_probabilities(model: Any, input_ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """float64 [positions, vocabulary]: the model's probabilities at `positions` of input_ids, int32 [length]."""
    logits = model(input_ids=input_ids[None], training=False).logits.numpy()[0, positions].astype(np.float64)
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    return probabilities / probabilities.sum(-1, keepdims=True)


def describe_fills(sentence: str, gaps: list[list[Fill]]) -> str:
    """A table for a reader: token, probability as number and bar, sentence."""
    lines = [sentence]
    for number, fills in enumerate(gaps, start=1):
        if len(gaps) > 1:
            lines.append(f" gap {number}")
        width = max(len(fill.token) for fill in fills)
        for fill in fills:
            bar = "█" * round(20 * fill.probability)
            lines.append(f"  {fill.token:<{width}}  {fill.probability:7.2%}  {bar:<20}  {fill.sentence}")
    return "\n".join(lines)


def _word(tokenizer: Any, token_id: int) -> str:
    return tokenizer.decode([token_id], clean_up_tokenization_spaces=False).strip()


def _filled(tokenizer: Any, input_ids: np.ndarray, gap: int, token_id: int) -> str:
    filled = input_ids.copy()
    filled[gap] = token_id
    # Other gaps stay visible; only the tokens around the sentence go.
    kept = [i for i in filled if i == tokenizer.mask_token_id or i not in tokenizer.all_special_ids]
    return tokenizer.decode(kept, clean_up_tokenization_spaces=True)
