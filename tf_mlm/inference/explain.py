"""Masked language modeling shown on one sentence: tokenize, mask, predict, loss."""

import math
from typing import Any

import numpy as np

from tf_mlm.config import MaskingConfig
from tf_mlm.data.masking import IGNORE_INDEX, example_keys, mask_tokens
from tf_mlm.errors import Refused
from tf_mlm.inference.fill_mask import predict_probabilities
from tf_mlm.model.architectures import max_sequence_length
from tf_mlm.model.metrics import PERPLEXITY, perplexity


def explain_sentence(
    model: Any, tokenizer: Any, sentence: str, masking: MaskingConfig, seed: int, top_k: int = 3
) -> str:
    """The training computation on `sentence`, as lines of text. `seed` selects the masked tokens.

    Raises:
        Refused: the sentence has no ordinary token, or more tokens than the model has positions.
    """
    original = np.array([tokenizer(sentence)["input_ids"]], np.int32)
    ordinary = ~np.isin(original, tokenizer.all_special_ids)
    if not ordinary.any():
        raise Refused(f"explain: {sentence!r} contains no ordinary token; pass a sentence")
    if original.shape[1] > max_sequence_length(model.config):
        raise Refused(
            f"explain: the sentence has {original.shape[1]} tokens, more than the model has positions; shorten it"
        )
    masked, labels = mask_tokens(
        original,
        ordinary,
        example_keys(seed, epoch=np.zeros(1, np.int64), index=np.zeros(1, np.int64)),
        mlm_probability=masking.mlm_probability,
        mask_replace_prob=masking.mask_replace_prob,
        random_replace_prob=masking.random_replace_prob,
        mask_token_id=tokenizer.mask_token_id,
        random_token_ids=np.setdiff1d(np.arange(len(tokenizer), dtype=np.int32), tokenizer.all_special_ids),
    )
    predicted = np.flatnonzero(labels[0] != IGNORE_INDEX)
    probabilities = predict_probabilities(model, masked[0], predicted)
    lines = [
        f"sentence  {sentence}",
        f"tokenize  {' '.join(tokenizer.convert_ids_to_tokens(original[0]))}",
        f"mask      {' '.join(tokenizer.convert_ids_to_tokens(masked[0]))}",
    ]
    losses = []
    for position, row in zip(predicted, probabilities, strict=True):
        token, shown = tokenizer.convert_ids_to_tokens([int(original[0, position]), int(masked[0, position])])
        best = tokenizer.convert_ids_to_tokens(np.argsort(-row, kind="stable")[:top_k].tolist())
        guesses = ", ".join(f"{guess} {row[tokenizer.convert_tokens_to_ids(guess)]:.1%}" for guess in best)
        losses.append(-math.log(row[original[0, position]]))
        lines.append(f"predict   position {position}, {token!r} shown as {shown!r}: {guesses}")
        lines.append(f"loss      -ln p({token!r}) = -ln {row[original[0, position]]:.4g} = {losses[-1]:.3f}")
    mean = sum(losses) / len(losses)
    tokens = f"{len(losses)} predicted token{'s' * (len(losses) > 1)}"
    lines.append(f"mean      {mean:.3f} nats over {tokens}: perplexity {PERPLEXITY.show(perplexity(mean))}")
    return "\n".join(lines)
