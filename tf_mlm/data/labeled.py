"""Loads labeled documents: from the Hub or from local files."""

import difflib
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import xxhash

from tf_mlm.config import Config
from tf_mlm.data.corpus import SAMPLE, find_overlap, find_splits, hash_text, hold_out
from tf_mlm.data.readers import is_number
from tf_mlm.data.tables import Table, load_tables
from tf_mlm.errors import Refused

NO_LABEL = -1
"""Index of a word without a tag. Datasets on the Hub use the same number for a missing label."""


@dataclass(frozen=True)
class LabeledDocuments:
    """Training and validation documents with labels.

    Attributes:
        train: columns `text`, `label` (int) and, for pairs, `text_pair`; for tags, `tokens` and `tags` (lists), where
            `NO_LABEL` is a word without a tag; likewise `validation`.
        label_names: names of the labels; a label is an index into them.
        held_out: whether the validation documents are a random share of the training documents instead of a split.
        num_overlap: validation documents dropped because a training document has the same text.
        num_unlabeled: documents dropped because they have no label.
        num_empty: documents dropped because they have no text.
        train_fingerprint: hash of texts and labels, in order; likewise `validation_fingerprint`.
        train_hashes: uint64 [num_documents], one hash per training document.
        validation_hashes: as `train_hashes`, of the validation documents. The hash of a text is that of
            `load_corpus`.
        text_column: the column with the text or the words.
        columns: all columns of the data.
    """

    train: datasets.Dataset
    validation: datasets.Dataset
    label_names: tuple[str, ...]
    held_out: bool
    num_overlap: int
    num_unlabeled: int
    num_empty: int
    train_fingerprint: str
    validation_fingerprint: str
    train_hashes: np.ndarray
    validation_hashes: np.ndarray
    text_column: str
    columns: tuple[str, ...]


@dataclass(frozen=True)
class LabeledSplit:
    """Documents with labels to evaluate a model on; attributes as in `LabeledDocuments`."""

    documents: datasets.Dataset
    fingerprint: str
    description: str
    num_in_training: int | None


def load_labeled(config: Config) -> LabeledDocuments:
    """Load the labeled documents of both splits.

    Raises:
        Refused: the data does not exist or is malformed, lacks a split or a column, has a label of another type or
            fewer than two different labels, or a validation label does not occur in training.
    """
    data = config.data
    tables = _load_tables(config, {*data.train_split.split("+"), *data.validation_split.split("+")})
    is_held_out = not data.validation_split or list(tables) == [""]
    train = _read_split(config, tables, "train_split")
    find_splits(list(tables), data.validation_split or data.train_split, "validation_split", data)
    if is_held_out:
        train_rows, validation_rows = hold_out(len(train), data, config.training.seed)
        train, validation, dropped = train.select(train_rows), train.select(validation_rows), [train]
    else:
        validation = _read_split(config, tables, "validation_split")
        dropped = [train, validation]
    names = dropped[0].label_names
    _check_known(validation.label_names, names, "validation")
    _check_labels(train, names)
    overlap = find_overlap(validation.hashes, train.hashes, data, is_held_out)
    validation = validation.select(np.flatnonzero(~overlap))
    return LabeledDocuments(
        train=train.as_dataset(names),
        validation=validation.as_dataset(names),
        label_names=tuple(names),
        held_out=is_held_out,
        num_overlap=int(overlap.sum()),
        num_unlabeled=sum(each.num_unlabeled for each in dropped),
        num_empty=sum(each.num_empty for each in dropped),
        train_fingerprint=train.fingerprint(names),
        validation_fingerprint=validation.fingerprint(names),
        train_hashes=train.hashes,
        validation_hashes=validation.hashes,
        text_column=train.columns.text,
        columns=train.columns.all,
    )


def load_labeled_split(
    config: Config, label_names: Sequence[str], train_hashes: np.ndarray | None = None
) -> LabeledSplit:
    """The labeled documents of `data.validation_split`; all documents if it is "" or the data has no named splits.

    Args:
        label_names: names of the model's labels.
        train_hashes: uint64, the hashes of the model's training documents; None if they are unknown.

    Raises:
        Refused: as `load_labeled`, or a label is not one of `label_names`.
    """
    split = config.data.validation_split
    tables = _load_tables(config, set(split.split("+")) if split else None)
    documents = _read_split(config, tables, "validation_split")
    _check_known(documents.label_names, label_names, "evaluated")
    is_unnamed = list(tables) == [""]
    description = f"split {split}" if split and not is_unnamed else "all documents"
    return LabeledSplit(
        documents.as_dataset(label_names),
        documents.fingerprint(label_names),
        f"{description} (no named splits)" if is_unnamed else description,
        int(np.isin(documents.hashes, train_hashes).sum()) if train_hashes is not None else None,
    )


@dataclass(frozen=True)
class _Columns:
    """The columns that an objective reads.

    Attributes:
        text: column of the texts, or of the words (lists).
        pair: column of the second texts; "" if none.
        label: column of the labels, or of the tags (lists).
        all: all columns of the data.
    """

    text: str
    pair: str
    label: str
    all: tuple[str, ...]

    @property
    def wanted(self) -> list[str]:
        return list(dict.fromkeys(filter(None, (self.text, self.pair, self.label))))


@dataclass(frozen=True)
class _Documents:
    """Documents with a label.

    Attributes:
        texts: of each document, the text or the words.
        pairs: the second text of each document; empty if there are no pairs.
        labels: name of the label, or a list with the name of each word's tag, None for a word without one.
        label_names: the names that occur, in order.
        hashes: uint64 [num_documents], a hash of each document without its label.
    """

    texts: list[Any]
    pairs: list[str]
    labels: list[Any]
    label_names: list[str]
    hashes: np.ndarray
    columns: _Columns
    num_unlabeled: int
    num_empty: int

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, rows: np.ndarray) -> "_Documents":
        labels = [self.labels[row] for row in rows]
        occurring = {name for label in labels for name in _names_in(label)}
        return _Documents(
            [self.texts[row] for row in rows],
            [self.pairs[row] for row in rows] if self.pairs else [],
            labels,
            [name for name in self.label_names if name in occurring],
            self.hashes[rows],
            self.columns,
            self.num_unlabeled,
            self.num_empty,
        )

    def as_dataset(self, names: Sequence[str]) -> datasets.Dataset:
        """Columns as in `LabeledDocuments.train`, with indices into `names`."""
        index: dict[str | None, int] = {None: NO_LABEL} | {name: number for number, name in enumerate(names)}
        if _is_tags(self.labels):
            tags = [[index[tag] for tag in row] for row in self.labels]
            return datasets.Dataset.from_dict({"tokens": self.texts, "tags": tags})
        columns = {"text": self.texts, "label": [index[label] for label in self.labels]}
        return datasets.Dataset.from_dict(columns | ({"text_pair": self.pairs} if self.pairs else {}))

    def fingerprint(self, names: Sequence[str]) -> str:
        digest = xxhash.xxh3_128(repr(list(names)).encode())
        digest.update(self.hashes.tobytes())
        digest.update(repr(self.labels).encode())
        return digest.hexdigest()


def _is_tags(labels: list[Any]) -> bool:
    return bool(labels) and isinstance(labels[0], list)


def _names_in(label: Any) -> set[str]:
    return {name for name in (label if isinstance(label, list) else [label]) if name is not None}


def _load_tables(config: Config, wanted: set[str] | None) -> dict[str, Table]:
    if config.data.dataset == SAMPLE:
        raise Refused("data.dataset = 'sample': the sample corpus has no labels; pass a labeled dataset")
    return load_tables(config.data, wanted)


def _read_split(config: Config, tables: dict[str, Table], setting: str) -> _Documents:
    """The documents with a text and a label."""
    data = config.data
    wanted = getattr(data, setting) or "+".join(tables)
    splits = find_splits(list(tables), wanted, setting, data)
    columns = [_find_columns(config, tables[name]) for name in splits]
    read = _read_tagged if config.objective.name == "token_classification" else _read_texts
    texts, pairs, labels = read([(tables[name], found) for name, found in zip(splits, columns, strict=True)])
    class_names = list(
        dict.fromkeys(
            name
            for split, found in zip(splits, columns, strict=True)
            for name in tables[split].class_names.get(found.label, [])
        )
    )
    is_text = [bool(text) and (not isinstance(text, str) or not text.isspace()) for text in texts]
    is_labeled = [label is not None for label in labels]
    kept = [row for row in range(len(texts)) if is_text[row] and is_labeled[row]]
    if not kept:
        raise Refused(
            f"data.{setting} = {wanted!r}: no document of {data.dataset} has a label in {columns[0].label!r}; set "
            "objective.label_column, or pass another dataset"
        )
    occurring = {name for row in kept for name in _names_in(labels[row])}
    hashes = [_hash(texts[row], pairs[row] if pairs else None) for row in kept]
    return _Documents(
        [texts[row] for row in kept],
        [pairs[row] for row in kept] if pairs else [],
        [labels[row] for row in kept],
        _in_order(occurring, class_names),
        np.array(hashes, np.uint64),
        columns[0],
        num_unlabeled=len(texts) - sum(is_labeled),
        num_empty=sum(is_labeled) - len(kept),
    )


def _hash(text: Any, pair: str | None) -> int:
    if isinstance(text, list):
        return xxhash.xxh3_64_intdigest("\0".join(text).encode())
    return hash_text(text if pair is None else f"{text}\0{pair}")


def _find_columns(config: Config, table: Table) -> _Columns:
    """The columns of one split.

    Raises:
        Refused: a column does not exist, or the text column is ambiguous.
    """
    objective, dataset = config.objective, config.data.dataset
    is_tags = objective.name == "token_classification"
    label = objective.label_column or ("ner_tags" if is_tags else "label")
    _require(label, table, "objective.label_column", dataset)
    pair = objective.text_pair_column
    strings = [name for name in table.text_columns if name not in (label, pair)]
    text = config.data.text_column
    if not text and is_tags:
        text = "tokens"
    if not text:
        text = "text" if "text" in strings else strings[0] if len(strings) == 1 else ""
    if not text:
        found = (
            f"several text columns: {', '.join(strings)}" if strings else f"no text column among {_list(table.columns)}"
        )
        raise Refused(f"data.text_column: {dataset} has {found}; choose one with --data.text_column")
    _require(text, table, "data.text_column", dataset)
    if pair:
        _require(pair, table, "objective.text_pair_column", dataset)
    return _Columns(text, pair, label, table.columns)


def _require(column: str, table: Table, setting: str, dataset: str) -> None:
    if column not in table.columns:
        near = difflib.get_close_matches(column, table.columns, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"columns: {_list(table.columns) or 'none'}"
        raise Refused(f"{setting} = {column!r}: is not a column of {dataset}; {hint}")


def _read_texts(tables: list[tuple[Table, _Columns]]) -> tuple[list[str], list[str], list[str | None]]:
    """Texts, second texts (empty if there are no pairs) and labels of all rows."""
    texts, pairs, labels, places = [], [], [], []
    for table, columns in tables:
        for place, row in table.read(columns.wanted):
            texts.append(_text(row[columns.text], place, columns.text, "data.text_column"))
            if columns.pair:
                pairs.append(_text(row[columns.pair], place, columns.pair, "objective.text_pair_column"))
            labels.append(row[columns.label])
            places.append(place)
    return texts, pairs, _label_names(labels, places, tables[0][1].label)


def _text(value: Any, place: str, column: str, setting: str) -> str:
    if value is not None and not isinstance(value, str):
        raise Refused(f"{setting} = {column!r}: {place} has {_short(value)}, which is not text; choose another column")
    return value or ""


def _read_tagged(
    tables: list[tuple[Table, _Columns]],
) -> tuple[list[list[str]], list[str], list[list[str | None] | None]]:
    """The words and the tags of all rows; None for a row without tags."""
    words: list[list[str]] = []
    tags: list[list[str | None] | None] = []
    for table, columns in tables:
        for place, row in table.read(columns.wanted):
            found, found_tags = row[columns.text], row[columns.label]
            for value, column, setting in (
                (found, columns.text, "data.text_column"),
                (found_tags, columns.label, "objective.label_column"),
            ):
                if value is not None and not isinstance(value, list):
                    raise Refused(
                        f"{setting} = {column!r}: {place} has {_short(value)}, not a list with one item per word; "
                        "choose another column"
                    )
            if bad := [word for word in found or [] if not isinstance(word, str)]:
                raise Refused(
                    f"data.text_column = {columns.text!r}: {place} has {_short(bad[0])}, which is not a word; fix "
                    "the row"
                )
            if found_tags is not None and len(found or []) != len(found_tags):
                raise Refused(
                    f"objective.label_column: {place} has {len(found or [])} words but {len(found_tags)} tags in "
                    f"{columns.label!r}; fix the row"
                )
            names = _label_names(found_tags or [], [place] * len(found_tags or []), columns.label)
            words.append(found or [])
            tags.append(names if any(name is not None for name in names) else None)
    return words, [], tags


def _label_names(labels: list[Any], places: list[str], column: str) -> list[str | None]:
    """The names of labels; None for no label: null, a blank text, or -1.

    A column of texts that are all numbers, as csv files have, is a column of numbers.
    """
    texts = [label for label in labels if isinstance(label, str) and label.strip()]
    are_numbers = all(map(is_number, texts))
    return [
        _label_name(float(label) if are_numbers and isinstance(label, str) and label.strip() else label, place, column)
        for label, place in zip(labels, places, strict=True)
    ]


def _label_name(label: Any, place: str, column: str) -> str | None:
    if label is None or label == NO_LABEL or (isinstance(label, str) and not label.strip()):
        return None
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if not isinstance(label, str | int):
        raise Refused(
            f"objective.label_column = {column!r}: {place} has {_short(label)}, which is not a text or a whole number; "
            "choose another column"
        )
    return str(label)


def _in_order(occurring: set[str], class_names: list[str]) -> list[str]:
    """The labels that occur: in the order of the data's classes, then numbers by value, then in alphabetical order."""
    others = occurring - set(class_names)
    ordered = sorted(others, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))
    return [*(name for name in class_names if name in occurring), *ordered]


def _check_known(names: Sequence[str], known: Sequence[str], kind: str) -> None:
    if unknown := [name for name in names if name not in known]:
        raise Refused(
            f"objective.label_column: the label {unknown[0]!r} of the {kind} documents is not a label of the "
            f"training documents (labels: {_list(known)}); fix the label, or pass another dataset"
        )


def _check_labels(train: _Documents, names: Sequence[str]) -> None:
    column = train.columns.label
    if len(train.label_names) < 2:
        dropped = f" ({train.num_unlabeled:,} documents have no label: null or -1)" if train.num_unlabeled else ""
        raise Refused(
            f"objective.label_column = {column!r}: all training documents have the label {train.label_names[0]!r}"
            f"{dropped}; classification requires at least two different labels"
        )
    if _is_tags(train.labels):
        for name in names:
            if name != "O" and not (name[:2] in ("B-", "I-") and len(name) > 2):
                raise Refused(
                    f"objective.label_column = {column!r}: the tag {name!r} is not O, B-TYPE or I-TYPE; use IOB2 tags"
                )


def _short(value: Any) -> str:
    return textwrap.shorten(repr(value), 60, placeholder=" …")


def _list(names: Any) -> str:
    return textwrap.shorten(", ".join(map(str, names)), 120, placeholder=" …")
