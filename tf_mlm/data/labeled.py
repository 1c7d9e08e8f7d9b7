"""Loads labeled documents: from the Hub or from local files."""

import difflib
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import xxhash

from tf_mlm import hub
from tf_mlm.config import Config, DataConfig
from tf_mlm.data.corpus import SAMPLE, find_overlap, find_splits, hold_out
from tf_mlm.data.local_files import find_split_files, kind_of, refusal
from tf_mlm.errors import Refused

_NO_LABEL = -1  # the Hub's convention in an integer column
_LOADERS = {"parquet": "parquet", "csv": "csv", "tsv": "csv", "json": "json", "jsonl": "json", "ndjson": "json"}


@dataclass(frozen=True)
class LabeledDocuments:
    """Training and validation documents with labels.

    Attributes:
        train: columns `text`, `label` (int) and, for pairs, `text_pair`; for tags, `tokens` and `tags` (lists);
            likewise `validation`.
        label_names: names of the labels; a label is an index into them.
        held_out: whether the validation documents are a random share of the training documents instead of a split.
        num_overlap: validation documents dropped because a training document has the same text.
        num_unlabeled: documents dropped because they have no label.
        train_fingerprint: hash of texts and labels, in order; likewise `validation_fingerprint`.
        train_hashes: uint64 [num_documents], one hash per training document.
        text_column: the column with the text or the words.
        columns: all columns of the data.
    """

    train: datasets.Dataset
    validation: datasets.Dataset
    label_names: tuple[str, ...]
    held_out: bool
    num_overlap: int
    num_unlabeled: int
    train_fingerprint: str
    validation_fingerprint: str
    train_hashes: np.ndarray
    text_column: str
    columns: tuple[str, ...]


@dataclass(frozen=True)
class LabeledSplit:
    """Documents with labels to evaluate a model on; attributes as in `LabeledDocuments`."""

    documents: datasets.Dataset
    fingerprint: str
    description: str
    num_in_training: int | None


@dataclass(frozen=True)
class _Columns:
    """The columns that an objective reads.

    Attributes:
        wanted: names in the data by the names that they get: text, text_pair, label, tokens, tags.
        all: all columns of the data.
    """

    wanted: dict[str, str]
    all: tuple[str, ...]

    @property
    def text(self) -> str:
        return self.wanted.get("text") or self.wanted["tokens"]

    @property
    def label(self) -> str:
        return self.wanted.get("label") or self.wanted["tags"]


def load_labeled(config: Config) -> LabeledDocuments:
    """Load the labeled documents of both splits.

    Raises:
        Refused: the data does not exist or is malformed, lacks a split or a column, has a label of another type or
            fewer than two different labels, or a validation label does not occur in training.
    """
    data = config.data
    tables = _load_tables(data, {data.train_split, data.validation_split})
    is_held_out = not data.validation_split or list(tables) == [""]
    train, names, columns, num_unlabeled = _read_split(config, tables, "train_split")
    if not is_held_out:
        validation, validation_names, _, num_unlabeled_too = _read_split(config, tables, "validation_split")
        num_unlabeled += num_unlabeled_too
        _check_known(validation_names, names)
    _check_labels(names, columns)
    hashes = _hash_texts(train)
    if is_held_out:
        train_rows, validation_rows = hold_out(len(train), data, config.training.seed)
        train, validation, hashes = train.select(train_rows), train.select(validation_rows), hashes[train_rows]
    overlap = find_overlap(_hash_texts(validation), hashes, data, is_held_out)
    validation = validation.select(np.flatnonzero(~overlap))
    train, validation = (_with_indices(each, names) for each in (train, validation))
    return LabeledDocuments(
        train=train,
        validation=validation,
        label_names=tuple(names),
        held_out=is_held_out,
        num_overlap=int(overlap.sum()),
        num_unlabeled=num_unlabeled,
        train_fingerprint=_fingerprint(train, names),
        validation_fingerprint=_fingerprint(validation, names),
        train_hashes=hashes,
        text_column=columns.text,
        columns=columns.all,
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
    tables = _load_tables(config.data, {split} if split else None)
    documents, names, _, _ = _read_split(config, tables, "validation_split")
    _check_known(names, label_names)
    num_in_training = None
    if train_hashes is not None:
        num_in_training = int(np.isin(_hash_texts(documents), train_hashes).sum())
    documents = _with_indices(documents, label_names)
    description = f"split {split}" if split and list(tables) != [""] else "all documents"
    return LabeledSplit(documents, _fingerprint(documents, label_names), description, num_in_training)


def _read_split(
    config: Config, tables: dict[str, datasets.Dataset], setting: str
) -> tuple[datasets.Dataset, list[str], _Columns, int]:
    """The documents with a label, the names of the labels, the columns, and the number of documents without a label."""
    data = config.data
    wanted = getattr(data, setting) or "+".join(tables)
    parts = []
    for name in find_splits(list(tables), wanted, setting, data):
        columns = _find_columns(config, tables[name])
        part = tables[name].select_columns(list(columns.wanted.values()))
        parts.append(part.rename_columns({old: new for new, old in columns.wanted.items() if old != new}))
    joined = datasets.concatenate_datasets(parts)
    read = _read_tags if "tags" in columns.wanted else _read_labels
    documents, names = read(joined, columns.label)
    if not len(documents):
        raise Refused(f"data.{setting} = {wanted!r}: no document of {data.dataset} has a label in {columns.label!r}")
    return documents, names, columns, len(joined) - len(documents)


def _load_tables(config: DataConfig, wanted: set[str] | None) -> dict[str, datasets.Dataset]:
    """The splits with all columns; one split "" if the data has no named splits.

    Args:
        wanted: the splits to load, several joined with +; None for all. Other splits stay empty.
    """
    if config.dataset == SAMPLE:
        raise Refused("data.dataset = 'sample': the sample corpus has no labels; pass a labeled dataset")
    if config.streaming:
        raise Refused("data.streaming = true: labeled data cannot be streamed; omit data.streaming")
    needed = None if wanted is None else set("+".join(wanted).split("+"))
    if config.source.path is None:
        try:
            found = datasets.load_dataset(
                config.dataset, config.config_name or None, revision=config.revision or None, num_proc=config.num_proc
            )
            return {str(name): split for name, split in found.items()}
        except Exception as error:  # readers, parsers and transports raise many types
            raise hub.refusal("data.dataset", config.dataset, error) from None
    files = find_split_files(config.dataset, config.config_name)
    return {
        split: _load_files(paths) if not split or needed is None or split in needed else datasets.Dataset.from_dict({})
        for split, paths in files.items()
    }


def _load_files(paths: list[Path]) -> datasets.Dataset:
    kinds = sorted({kind_of(path) for path in paths})
    if "txt" in kinds:
        raise refusal(paths[0], "a txt file has no labels; pass csv, tsv, json, jsonl or parquet files")
    tables: list[datasets.Dataset] = []
    for path in paths:
        loader = _LOADERS[kind_of(path)]
        options: dict[str, Any] = {"sep": "\t"} if kind_of(path) == "tsv" else {}
        try:
            table = datasets.load_dataset(loader, data_files=str(path), split="train", **options)
        except Exception as error:  # three parsers raise many types
            cause = error.__cause__ or error
            reason = textwrap.shorten(str(cause) or type(cause).__name__, 160, placeholder=" …")
            raise refusal(path, f"cannot be read as {loader}: {reason}; fix the file") from None
        if tables and table.column_names != tables[0].column_names:
            raise refusal(path, f"its columns differ from those of {paths[0]}; pass files with the same columns")
        tables.append(table)
    return datasets.concatenate_datasets(tables)


def _find_columns(config: Config, table: datasets.Dataset) -> _Columns:
    """The columns of one split.

    Raises:
        Refused: a column does not exist or has another type.
    """
    objective, features = config.objective, table.features
    names = tuple(features)
    is_tags = objective.name == "token_classification"
    label = objective.label_column or ("ner_tags" if is_tags else "label")
    _require(label, names, "objective.label_column", config)
    if is_tags:
        text = config.data.text_column or "tokens"
        _require(text, names, "data.text_column", config)
        for name in (text, label):
            if not isinstance(features[name], datasets.List | datasets.LargeList):
                setting = "data.text_column" if name == text else "objective.label_column"
                raise Refused(f"{setting}: column {name!r} of {config.data.dataset} is not a list, one item per word")
        return _Columns({"tokens": text, "tags": label}, names)
    pair = objective.text_pair_column
    strings = [name for name in names if _is_text(features[name]) and name not in (label, pair)]
    text = config.data.text_column or ("text" if "text" in strings else strings[0] if len(strings) == 1 else "")
    if not text:
        raise Refused(
            f"data.text_column: {config.data.dataset} has "
            + (f"several text columns: {', '.join(strings)}" if strings else f"no text column among {_list(names)}")
            + "; choose one with --data.text_column"
        )
    wanted = {"text": text, "label": label} | ({"text_pair": pair} if pair else {})
    for name, setting in ((text, "data.text_column"), (pair, "objective.text_pair_column")):
        if name:
            _require(name, names, setting, config)
            if not _is_text(features[name]):
                raise Refused(f"{setting} = {name!r}: is not text in {config.data.dataset}; choose another column")
    return _Columns(wanted, names)


def _require(column: str, names: tuple[str, ...], setting: str, config: Config) -> None:
    if column not in names:
        near = difflib.get_close_matches(column, names, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"columns: {_list(names) or 'none'}"
        raise Refused(f"{setting} = {column!r}: is not a column of {config.data.dataset}; {hint}")


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", "") in ("string", "large_string")


def _read_labels(documents: datasets.Dataset, column: str) -> tuple[datasets.Dataset, list[str]]:
    """The documents with a label, as text, and the names of the labels in order."""
    names = getattr(documents.features["label"], "names", None)
    labels = [_label_name(label, names, column) for label in documents["label"]]
    kept = [row for row, label in enumerate(labels) if label is not None]
    found = {label for label in labels if label is not None}
    documents = documents.select(kept).remove_columns("label").add_column("label", [labels[row] for row in kept])
    return documents, _in_order(found, names)


def _read_tags(documents: datasets.Dataset, column: str) -> tuple[datasets.Dataset, list[str]]:
    names = getattr(documents.features["tags"].feature, "names", None)
    tags = []
    for number, (words, row) in enumerate(zip(documents["tokens"], documents["tags"], strict=True), start=1):
        if len(words or []) != len(row or []):
            raise Refused(
                f"objective.label_column: document {number} has {len(words or [])} words but {len(row or [])} tags in "
                f"{column!r}; fix the document"
            )
        tags.append([_label_name(tag, names, column) for tag in row or []])
    kept = [row for row, row_tags in enumerate(tags) if row_tags]
    found = {tag for row in tags for tag in row if tag is not None}
    documents = documents.select(kept).remove_columns("tags")
    return documents.add_column("tags", [tags[row] for row in kept]), _in_order(found, names)


def _label_name(label: Any, names: list[str] | None, column: str) -> str | None:
    """The label as text; None if there is no label."""
    if label is None or (isinstance(label, int) and label == _NO_LABEL):
        return None
    if names is not None:
        return names[label]
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if not isinstance(label, str | int):
        raise Refused(f"objective.label_column = {column!r}: {label!r} is not a text or a whole number")
    return str(label)


def _in_order(found: set[str], names: list[str] | None) -> list[str]:
    """The labels that occur: in the order of the data's names, else numbers by value, else by the alphabet."""
    if names is not None:
        return [name for name in names if name in found]
    return sorted(found, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))


def _check_known(names: Sequence[str], known: Sequence[str]) -> None:
    if unknown := [name for name in names if name not in known]:
        raise Refused(
            f"objective.label_column: the label {unknown[0]!r} of the validation documents is not a label of the "
            f"training documents (labels: {_list(known)})"
        )


def _check_labels(names: list[str], columns: _Columns) -> None:
    column = columns.label
    if len(names) < 2:
        raise Refused(
            f"objective.label_column = {column!r}: all training documents have the label {names[0]!r}; "
            "a classification requires at least two different labels"
        )
    if "tags" in columns.wanted:
        for name in names:
            if name != "O" and not (name[:2] in ("B-", "I-") and len(name) > 2):
                raise Refused(f"objective.label_column = {column!r}: the tag {name!r} is not O, B-TYPE or I-TYPE")


def _with_indices(documents: datasets.Dataset, names: Sequence[str]) -> datasets.Dataset:
    """The documents with indices into `names` instead of names."""
    key = "tags" if "tags" in documents.column_names else "label"
    index = {name: number for number, name in enumerate(names)}

    def convert(value: Any) -> Any:
        if isinstance(value, list):
            return [_NO_LABEL if each is None else index[each] for each in value]
        return index[value]

    values = [convert(value) for value in documents[key]]
    return documents.remove_columns(key).add_column(key, values)


def _hash_texts(documents: datasets.Dataset) -> np.ndarray:
    """uint64 [num_documents]: a hash of each document's text or words."""
    keys = [name for name in ("text", "text_pair", "tokens") if name in documents.column_names]
    hashes = np.zeros(len(documents), np.uint64)
    row = 0
    for batch in documents.iter(1000):
        for values in zip(*(batch[key] for key in keys), strict=True):
            hashes[row] = xxhash.xxh3_64_intdigest("\0".join(map(str, values)).encode())
            row += 1
    return hashes


def _fingerprint(documents: datasets.Dataset, names: Sequence[str]) -> str:
    digest = xxhash.xxh3_128(repr(list(names)).encode())
    digest.update(_hash_texts(documents).tobytes())
    key = "tags" if "tags" in documents.column_names else "label"
    digest.update(repr(documents[key][:]).encode())
    return digest.hexdigest()


def _list(names: Any) -> str:
    return textwrap.shorten(", ".join(map(str, names)), 120, placeholder=" …")
