"""Groups masked tokens by treatment, frequency, part of the word and part of the sequence, and by token.

Computed in numpy from the values of each token, in float64.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

from tf_mlm.data.sequences import Sequences, unigram_counts
from tf_mlm.inference.breakdown import (
    BASELINE,
    DIFFERENCE,
    MIN_OCCURRENCES,
    MODEL,
    Breakdown,
    Group,
    Row,
    Score,
    TokenRow,
)
from tf_mlm.inference.masked_tokens import MaskedTokens, Predictions
from tf_mlm.inference.words import WORD_PARTS, Words
from tf_mlm.model.metrics import LOSS, metric_values

_NUM_TOKENS = 10  # rows of a table of tokens
_RANKS = (10, 100, 1000, 10_000)  # upper limits of the bands of frequency
_QUARTERS = ("first quarter", "second quarter", "third quarter", "last quarter")


def build_breakdown(
    tokens: MaskedTokens,
    predictions: dict[str, Predictions],
    sequences: Sequences,
    tokenizer: PreTrainedTokenizerFast,
    models: dict[str, str],
) -> Breakdown:
    """Group the masked tokens of all draws.

    Args:
        predictions: of each model, by `MODEL` and, optionally, `BASELINE`.
        sequences: the evaluated sequences, with those that were not drawn; frequencies are counted in them.
        models: name of each model.
    """
    words = Words(tokenizer)
    counts = unigram_counts(sequences, len(tokenizer))
    counts[tokenizer.all_special_ids] = 0
    num_draws = int(tokens.draws.max()) + 1
    properties: list[tuple[str, np.ndarray, Sequence[str]]] = [
        ("all", np.zeros(len(tokens), np.int64), ["all masked tokens"]),
        ("treatment", *_treatments(tokens, tokenizer)),
        ("frequency", *_bands(tokens.token_ids, counts)),
        ("part of the word", words.parts(sequences, tokens.rows, tokens.positions), WORD_PARTS),
        ("part of the sequence", *_quarters(tokens.positions, sequences.input_ids.shape[1])),
    ]
    groups = [
        Group(title, _rows(codes, names, tokens.draws, num_draws, predictions)) for title, codes, names in properties
    ]

    def table(values: np.ndarray, descending: bool) -> list[TokenRow]:
        return list(_token_rows(values, descending, tokens, predictions, sequences, words))

    losses = {key: each.values[LOSS.name].astype(np.float64) for key, each in predictions.items()}
    tables = {"greatest loss": table(losses[MODEL], descending=True)}
    if BASELINE in losses:
        difference = losses[MODEL] - losses[BASELINE]
        improved, worsened = table(difference, descending=False), table(difference, descending=True)
        tables["most improved"] = [row for row in improved if row.losses[DIFFERENCE] < 0]
        tables["most worsened"] = [row for row in worsened if row.losses[DIFFERENCE] > 0]
    return Breakdown(models, num_draws, int(counts.sum()), groups, tables)


def _treatments(tokens: MaskedTokens, tokenizer: PreTrainedTokenizerFast) -> tuple[np.ndarray, list[str]]:
    """What the model was shown. A random token that equals the original counts as kept."""
    is_mask, is_kept = tokens.shown_ids == tokenizer.mask_token_id, tokens.shown_ids == tokens.token_ids
    return np.where(is_mask, 0, np.where(is_kept, 2, 1)), [str(tokenizer.mask_token), "random token", "kept"]


def _bands(token_ids: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Bands of the rank of a token by its count; of tokens with equal counts, the lower id comes first."""
    order = np.argsort(-counts, kind="stable")
    ranks = np.empty_like(order)
    ranks[order] = np.arange(1, len(order) + 1)
    names = []
    for low, high in pairwise((0, *_RANKS, max(len(order), _RANKS[-1] + 1))):
        occurring = counts[order[low:high]][counts[order[low:high]] > 0]
        times = f" ({occurring[-1]:,} to {occurring[0]:,} times)" if len(occurring) else ""
        limits = f"{low + 1:,} to {high:,}" if high in _RANKS else f"above {low:,}"
        names.append(f"rank {limits}{times}")
    return np.searchsorted(_RANKS, ranks[token_ids]), names


def _quarters(positions: np.ndarray, length: int) -> tuple[np.ndarray, list[str]]:
    codes = positions.astype(np.int64) * 4 // length
    starts = [-(-quarter * length // 4) for quarter in range(5)]
    names = [f"{name}, positions {starts[i]} to {starts[i + 1] - 1}" for i, name in enumerate(_QUARTERS)]
    return codes, names


def _rows(
    codes: np.ndarray, names: Sequence[str], draws: np.ndarray, num_draws: int, predictions: dict[str, Predictions]
) -> list[Row]:
    """One row per code that occurs; `names` has their names."""
    cells = draws.astype(np.int64) * len(names) + codes

    def add(values: np.ndarray | None = None) -> np.ndarray:
        """[num_draws + 1, codes]: the sums of each draw, then of all draws."""
        sums = np.bincount(cells, values, minlength=num_draws * len(names)).reshape(num_draws, len(names))
        return np.concatenate([sums, sums.sum(0, keepdims=True)])

    counts = add()
    means = {
        key: {name: add(values) / np.where(counts, counts, np.nan) for name, values in each.values.items()}
        for key, each in predictions.items()
    }
    rows = []
    for code in np.flatnonzero(counts[-1]).tolist():
        found = {
            key: [metric_values({name: each[i, code] for name, each in by_name.items()}) for i in range(num_draws + 1)]
            for key, by_name in means.items()
        }
        if BASELINE in found:
            pairs = zip(found[MODEL], found[BASELINE], strict=True)
            found[DIFFERENCE] = [{name: model[name] - baseline[name] for name in model} for model, baseline in pairs]
        scores = {
            key: {name: Score.of(pooled[name], [each[name] for each in by_draw]) for name in pooled}
            for key, (*by_draw, pooled) in found.items()
        }
        rows.append(Row(names[code], int(counts[-1, code]), scores))
    return rows


def _token_rows(
    values: np.ndarray,
    descending: bool,
    tokens: MaskedTokens,
    predictions: dict[str, Predictions],
    sequences: Sequences,
    words: Words,
) -> Iterable[TokenRow]:
    """The tokens with the greatest or the smallest mean of `values`, [num_tokens]."""
    counts = np.bincount(tokens.token_ids)
    means = np.bincount(tokens.token_ids, values) / np.maximum(counts, 1)
    candidates = np.flatnonzero(counts >= MIN_OCCURRENCES)
    order = np.argsort(-means[candidates] if descending else means[candidates], kind="stable")
    for token_id in candidates[order[:_NUM_TOKENS]]:
        places = np.flatnonzero(tokens.token_ids == token_id)
        example = places[np.argmin(np.abs(values[places] - means[token_id]))]
        row, position = int(tokens.rows[example]), int(tokens.positions[example])
        losses = {key: float(each.values[LOSS.name][places].mean(dtype=float)) for key, each in predictions.items()}
        if BASELINE in losses:
            losses[DIFFERENCE] = losses[MODEL] - losses[BASELINE]
        yield TokenRow(
            token=words.name(token_id),
            token_id=int(token_id),
            masked_tokens=len(places),
            losses=losses,
            predicted={key: words.name(each.token_ids[example]) for key, each in predictions.items()},
            example=words.context(sequences.input_ids[row, : sequences.lengths[row]], position),
            draw=int(tokens.draws[example]) + 1,
            sequence=row,
            position=position,
        )
