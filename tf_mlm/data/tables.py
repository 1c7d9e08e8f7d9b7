"""Tables with named columns: datasets on the Hub, and csv, tsv, json, jsonl and parquet files."""

import glob
import itertools
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from tf_mlm import hub
from tf_mlm.config import DataConfig
from tf_mlm.data.local_files import find_split_files, kind_of, refusal
from tf_mlm.data.readers import ROWS_LOOKED_AT, is_number, read_rows

_ROWS_PER_BATCH = 1000

Rows = Iterator[tuple[str, dict[str, Any]]]
"""The place of each row, for error messages, and its values by column. A class is its name; -1 is None."""


@dataclass(frozen=True)
class Table:
    """The rows of one split.

    Attributes:
        text_columns: the columns whose first values contain text.
        class_names: for columns of classes, the names of all classes in order.
        read: maps names of columns to the rows with these columns. It refuses a damaged file and a missing column.
    """

    columns: tuple[str, ...]
    text_columns: tuple[str, ...]
    class_names: dict[str, list[str]]
    read: Callable[[Sequence[str]], Rows]


def load_tables(config: DataConfig, wanted: set[str] | None) -> dict[str, Table]:
    """The splits by name; one split "" if the data has no named splits.

    Args:
        wanted: the splits to load; None for all. Other splits have no columns and no rows.

    Raises:
        Refused: the data does not exist or is malformed.
    """
    if config.source.path is None:
        try:
            found = datasets.load_dataset(
                config.dataset, config.config_name or None, revision=config.revision or None, num_proc=config.num_proc
            )
        except Exception as error:  # readers, parsers and transports raise many types
            raise hub.refusal("data.dataset", config.dataset, error) from None
        return {str(name): _of_dataset(split, f"{config.dataset} {name}") for name, split in found.items()}
    files = find_split_files(config.dataset, config.config_name)
    return {
        split: _join([_of_file(path, config) for path in paths])
        if not split or wanted is None or split in wanted
        else Table((), (), {}, lambda columns: iter(()))
        for split, paths in files.items()
    }


def _join(tables: list[Table]) -> Table:
    first = tables[0]
    class_names = {
        column: list(dict.fromkeys(name for table in tables for name in table.class_names.get(column, [])))
        for column in first.class_names
    }

    def read(columns: Sequence[str]) -> Rows:
        return itertools.chain.from_iterable(table.read(columns) for table in tables)

    return Table(first.columns, first.text_columns, class_names, read)


def _of_file(path: Path, config: DataConfig) -> Table:
    if kind_of(path) == "txt":
        raise refusal(path, "a txt file has no labels; pass csv, tsv, json, jsonl or parquet files")
    if kind_of(path) == "parquet":
        try:
            dataset = datasets.load_dataset("parquet", data_files=glob.escape(str(path)), split="train")
        except Exception as error:  # the parser raises many types
            cause = error.__cause__ or error
            reason = textwrap.shorten(str(cause) or type(cause).__name__, 160, placeholder=" …")
            raise refusal(path, f"cannot be read as parquet: {reason}; create it again") from None
        return _of_dataset(dataset, str(path))
    head = [row for _, row in itertools.islice(read_rows(path, config.csv_header), ROWS_LOOKED_AT)]
    columns = tuple(dict.fromkeys(name for row in head for name in row))
    is_csv = kind_of(path) in ("csv", "tsv")

    def is_text(value: Any) -> bool:
        return isinstance(value, str) and not (is_csv and (not value or is_number(value)))

    def read(wanted: Sequence[str]) -> Rows:
        for place, row in read_rows(path, config.csv_header):
            for column in wanted:
                if column not in row:
                    raise refusal(place, f"has no {column!r}; add it" + ("" if is_csv else ", or null"))
            yield place, {column: row[column] for column in wanted}

    text_columns = tuple(column for column in columns if any(is_text(row.get(column)) for row in head))
    return Table(columns, text_columns, {}, read)


def _of_dataset(dataset: datasets.Dataset, name: str) -> Table:
    features = dataset.features
    classes = {column: _class_names(feature) for column, feature in features.items()}
    class_names = {column: names for column, names in classes.items() if names is not None}

    def read(columns: Sequence[str]) -> Rows:
        number = 0
        for batch in dataset.select_columns(list(columns)).iter(_ROWS_PER_BATCH):
            for values in zip(*(batch[column] for column in columns), strict=True):
                number += 1
                row = dict(zip(columns, values, strict=True))
                for column in class_names.keys() & row.keys():
                    row[column] = _name(row[column], class_names[column])
                yield f"{name} row {number}", row

    is_text = {
        column: getattr(feature, "dtype", "") in ("string", "large_string") for column, feature in features.items()
    }
    return Table(tuple(features), tuple(column for column in features if is_text[column]), class_names, read)


def _class_names(feature: Any) -> list[str] | None:
    """The names of a column of classes, or of lists of classes; None for another column."""
    names = getattr(getattr(feature, "feature", feature), "names", None)
    return None if names is None else list(names)


def _name(value: Any, names: list[str]) -> Any:
    if isinstance(value, list):
        return [_name(each, names) for each in value]
    return None if value is None or value < 0 else names[value]
