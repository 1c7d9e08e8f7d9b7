"""The metrics of masked tokens by treatment, frequency, part of the word and part of the sequence, and by token.

Computed in numpy from the values of each token, in float64.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import stdev
from typing import Any

import numpy as np
from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

from tf_mlm.data.sequences import Sequences, unigram_counts
from tf_mlm.inference.masked_tokens import MaskedTokens, Predictions
from tf_mlm.inference.words import WORD_PARTS, Words
from tf_mlm.model.metrics import LOSS, METRICS, Metric, metric_values

MODEL, BASELINE, DIFFERENCE = "model", "baseline", "difference"
"""Keys of `Row.scores` and `TokenRow.losses`. The difference is model - baseline."""

MIN_OCCURRENCES = 10
"""Times that a token must be masked to be listed: the mean of fewer losses is mostly chance."""

_NUM_TOKENS = 10  # rows of a table of tokens
_RANKS = (10, 100, 1000, 10_000)  # upper limits of the bands of frequency
_QUARTERS = ("first quarter", "second quarter", "third quarter", "last quarter")
_COMPARED = (LOSS.name, "masked_accuracy")  # metrics in the table of two models


@dataclass(frozen=True)
class Score:
    """A metric of a group of tokens.

    Attributes:
        value: over the tokens of all draws.
        draws: the value of each draw; None for a draw without tokens.
        deviation: standard deviation (n - 1) of the draws; None for fewer than two values.
    """

    value: float
    draws: list[float | None]
    deviation: float | None

    @classmethod
    def of(cls, value: float, draws: Sequence[float]) -> "Score":
        """`draws` has nan for a draw without tokens."""
        return cls(value, [each if math.isfinite(each) else None for each in draws], deviation_of(draws))


def deviation_of(values: Sequence[float]) -> float | None:
    """The standard deviation (n - 1) of the finite values; None for fewer than two."""
    finite = [each for each in values if math.isfinite(each)]
    return stdev(finite) if len(finite) > 1 else None


@dataclass(frozen=True)
class Row:
    """The metrics of a group of masked tokens.

    Attributes:
        scores: by `MODEL` and, with a baseline, `BASELINE` and `DIFFERENCE`; then by name of the metric.
    """

    name: str
    masked_tokens: int
    scores: dict[str, dict[str, Score]]


@dataclass(frozen=True)
class Group:
    """Rows that divide the masked tokens by one property."""

    title: str
    rows: list[Row]


@dataclass(frozen=True)
class TokenRow:
    """The mean loss of a token.

    Attributes:
        losses: by `MODEL` and, with a baseline, `BASELINE` and `DIFFERENCE`.
        predicted: the most likely token of each model at the example.
        example: the text around the occurrence whose value is nearest to the mean; the token is in brackets.
        draw: the draw of the example, from 1.
        sequence: row of the example in the evaluated sequences; `position` is the position in it, from 0.
    """

    token: str
    token_id: int
    masked_tokens: int
    losses: dict[str, float]
    predicted: dict[str, str]
    example: str
    draw: int
    sequence: int
    position: int


@dataclass(frozen=True)
class Breakdown:
    """The metrics of one or two models on the same masked tokens, in groups.

    Attributes:
        models: names by `MODEL` and `BASELINE`.
        num_counted: ordinary tokens of the evaluated documents, in which the frequencies were counted.
        groups: the first has one row with all tokens.
        token_tables: tables of tokens by title.
    """

    models: dict[str, str]
    num_draws: int
    num_counted: int
    groups: list[Group]
    token_tables: dict[str, list[TokenRow]]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"min_occurrences": MIN_OCCURRENCES}

    def describe(self) -> str:
        """The tables, as lines of text."""
        lines = [f"{key:<8}  {name}" for key, name in self.models.items()] if BASELINE in self.models else []
        lines += _align(self._group_cells())
        lines.append(f"frequency: rank of the token among the {self.num_counted:,} tokens of the evaluated documents")
        if self.num_draws > 1:
            lines.append(f"the {self.num_draws} draws together; ±: standard deviation of the draws")
        for title, rows in self.token_tables.items():
            lines += ["", f"{title}, of the tokens masked at least {MIN_OCCURRENCES} times{'' if rows else ': none'}"]
            lines += _align(self._token_cells(rows), num_texts=1 + len(self.models)) if rows else []
        return "\n".join(lines)

    def _group_cells(self) -> list[list[str]]:
        columns = [(MODEL, metric, _title(metric)) for metric in METRICS]
        if BASELINE in self.models:
            compared = [metric for metric in METRICS if metric.name in _COMPARED]
            keys = (MODEL, BASELINE, DIFFERENCE)
            columns = [(key, metric, _title(metric) if key == MODEL else key) for metric in compared for key in keys]
        cells = [["", "masked tokens", *(title for *_, title in columns)]]
        for number, group in enumerate(self.groups):
            if number:
                cells.append([group.title])
            for row in group.rows:
                shown = [_show(metric, row.scores[key][metric.name], key) for key, metric, _ in columns]
                cells.append([f"{'  ' if number else ''}{row.name}", f"{row.masked_tokens:,}", *shown])
        return cells

    def _token_cells(self, rows: list[TokenRow]) -> list[list[str]]:
        keys = list(rows[0].losses)
        losses = [key if key != MODEL else "loss" for key in keys]
        cells = [["  token", "times", *losses, *(f"{key} predicts" for key in self.models), "example"]]
        for row in rows:
            losses = [f"{row.losses[key]:{'+' if key == DIFFERENCE else ''}.2f}" for key in keys]
            predicted = [row.predicted[key] for key in self.models]
            cells.append([f"  {row.token}", f"{row.masked_tokens:,}", *losses, *predicted, row.example])
        return cells


def _title(metric: Metric) -> str:
    return metric.name.replace("_", " ")


def _show(metric: Metric, score: Score, key: str) -> str:
    shown = f"{score.value:+{metric.format}}" if key == DIFFERENCE else metric.show(score.value)
    return shown if score.deviation is None or metric is not LOSS else f"{shown} ± {metric.show(score.deviation)}"


def _align(cells: list[list[str]], num_texts: int = 0) -> list[str]:
    """Lines of columns: the first one and the last `num_texts` ones are aligned to the left, the others to the right.

    A row may have only its first cell.
    """
    num_columns = len(cells[0])
    widths = [max(len(row[column]) for row in cells if column < len(row)) for column in range(num_columns)]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 or column >= num_columns - num_texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=False))
        ).rstrip()
        for row in cells
    ]


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
