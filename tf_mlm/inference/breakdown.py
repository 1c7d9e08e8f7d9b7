"""The metrics of groups of masked tokens and of single tokens, as tables and JSON."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import stdev
from typing import Any

from tf_mlm.model.metrics import LOSS, METRICS, Metric

MODEL, BASELINE, DIFFERENCE = "model", "baseline", "difference"
"""Keys of `Row.scores` and `TokenRow.losses`. The difference is model - baseline."""

MIN_OCCURRENCES = 10
"""A token is listed if it was masked at least this many times. The mean of fewer losses is too noisy."""

_COMPARED = (LOSS.name, "masked_accuracy")  # metrics in the table of two models


@dataclass(frozen=True)
class Score:
    """A metric of a group of tokens.

    Attributes:
        value: over the tokens of all draws.
        draws: the value of each draw; None for a draw without tokens.
        deviation: standard deviation (n - 1) over the draws; None for fewer than two values.
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
            lines.append(f"values over all {self.num_draws} draws; ±: standard deviation over the draws")
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
