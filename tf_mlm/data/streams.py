"""Streams of training documents, which are read while training, and their validation documents."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import xxhash

from tf_mlm import hub
from tf_mlm.config import DataConfig
from tf_mlm.data.corpus import FEATURES, SAMPLE, choose_text_column, find_splits, hash_text
from tf_mlm.data.local_files import find_split_files
from tf_mlm.data.readers import find_text_column, read_documents
from tf_mlm.errors import Refused

_CHARACTERS_PER_TOKEN = 4  # for English prose in WordPiece; twice the text is kept, in case the estimate is too low
_CHARACTERS_READ = 2**26  # validation documents are drawn from this much text


class Shard(NamedTuple):
    """A part of a dataset that is read in order.

    Attributes:
        name: the name of the file, or its number.
        read: yields the documents that contain text, from the beginning.
    """

    name: str
    read: Callable[[], Iterator[str]]


@dataclass(frozen=True)
class DocumentStream:
    """The documents of a dataset, read in order and not stored.

    Attributes:
        shards: the training documents, before `is_training` selects them.
        validation: validation documents (column `text`), drawn from the beginning of their shards.
        held_out: whether the validation documents are a share of the training documents instead of a split.
        is_training: whether a document of `shards` belongs to the training documents: it is neither held out nor equal
            to a validation document.
        fingerprint: hash of the names of the shards; their content is not known before it is read.
        validation_fingerprint: hash of the validation documents' content, in order.
        text_column: the column with the text; "" if the data has no columns.
        columns: all columns of the data.
    """

    shards: list[Shard]
    validation: datasets.Dataset
    held_out: bool
    is_training: Callable[[str], bool]
    fingerprint: str
    validation_fingerprint: str
    text_column: str
    columns: tuple[str, ...]


def load_stream(config: DataConfig, seed: int) -> DocumentStream:
    """Find the shards of a dataset and read its validation documents.

    If the data has no validation split, a document is held out if the hash of (seed, text) is among the lowest
    `data.validation_fraction` of all hashes.

    Raises:
        Refused: the data does not exist, lacks a split or the text column, or has no validation documents.
    """
    if config.dataset == SAMPLE:
        raise Refused("data.streaming = true: the sample is generated in memory; omit data.streaming")
    table = _load_from_hub(config) if config.source.path is None else _load_files(config)
    known = list(table.shards)
    train_names = find_splits(known, config.train_split, "train_split", config)
    names = train_names
    if config.validation_split:
        names = find_splits(known, config.validation_split, "validation_split", config)
    held_out = names == [""] or not config.validation_split

    def rank(text: str) -> int:
        return xxhash.xxh3_64_intdigest(text.encode(), seed=seed)

    def is_held_out(text: str) -> bool:
        return rank(text) < config.validation_fraction * 2**64

    documents = (text for name in names for shard in table.shards[name] for text in shard.read())
    texts = _draw_validation(documents, is_held_out if held_out else None, rank, config)
    if not texts:
        raise Refused(
            f"data.dataset = {config.dataset!r}: has no validation documents; pass a dataset with a validation split, "
            "or raise data.validation_fraction"
        )
    hashes = {hash_text(text) for text in texts}

    def is_training(text: str) -> bool:
        return not is_held_out(text) if held_out else hash_text(text) not in hashes

    shard_names = [f"{split}/{shard.name}" for split in train_names for shard in table.shards[split]]
    if config.source.path is None:  # its shards have numbers as names
        shard_names = [config.dataset, config.config_name, config.revision, *shard_names]
    return DocumentStream(
        shards=[shard for split in train_names for shard in table.shards[split]],
        validation=datasets.Dataset.from_dict({"text": texts}, FEATURES),
        held_out=held_out,
        is_training=is_training,
        fingerprint=xxhash.xxh3_128_hexdigest("\n".join(shard_names).encode()),
        validation_fingerprint=xxhash.xxh3_128_hexdigest(np.array([hash_text(text) for text in texts]).tobytes()),
        text_column=table.text_column,
        columns=table.columns,
    )


@dataclass(frozen=True)
class _Table:
    """The shards of each split; one split "" if the data has no named splits."""

    shards: dict[str, list[Shard]]
    text_column: str
    columns: tuple[str, ...]


def _load_files(config: DataConfig) -> _Table:
    files = find_split_files(config.dataset, config.config_name)
    used = {"", *config.train_split.split("+"), *config.validation_split.split("+")}
    paths = [path for split, paths in files.items() if split in used for path in paths]
    column, columns = find_text_column(paths, config.text_column, config.csv_header) or ("", [])

    def read(path: Path) -> Iterator[str]:
        return filter(_has_text, read_documents([path], column, config.document, config.csv_header))

    shards = {split: [Shard(path.name, partial(read, path)) for path in paths] for split, paths in files.items()}
    return _Table(shards, column, tuple(columns))


def _load_from_hub(config: DataConfig) -> _Table:
    with _reporting_hub_errors(config):
        splits = datasets.load_dataset(
            config.dataset, config.config_name or None, revision=config.revision or None, streaming=True
        )
        first = config.train_split.split("+")[0]
        column, columns = choose_text_column(splits.get(first, next(iter(splits.values()))), config)

    def read(split: Any, number: int) -> Iterator[str]:
        with _reporting_hub_errors(config):
            # The types of the rows of csv and json files are not fixed.
            text_only = split.select_columns([column]).rename_columns({column: "text"} if column != "text" else {})
            for row in text_only.cast(FEATURES).shard(split.num_shards, number):
                if _has_text(row["text"]):
                    yield row["text"]

    shards = {
        name: [Shard(str(number), partial(read, split, number)) for number in range(split.num_shards)]
        for name, split in splits.items()
    }
    return _Table(shards, column, columns)


def _has_text(text: str | None) -> bool:
    return text is not None and bool(text.strip())


@contextlib.contextmanager
def _reporting_hub_errors(config: DataConfig) -> Iterator[None]:
    try:
        yield
    except Refused:
        raise
    except Exception as error:  # readers, parsers and transports raise many types
        raise hub.refusal("data.dataset", config.dataset, error) from None


def _draw_validation(
    documents: Iterable[str], is_held_out: Callable[[str], bool] | None, rank: Callable[[str], int], config: DataConfig
) -> list[str]:
    """Documents with about twice as many tokens as the validation sequences need, in the order of `rank`.

    They are those with the lowest rank in the first `_CHARACTERS_READ` characters. More text is read if these are too
    few.
    """
    wanted = 2 * config.num_validation_sequences * config.sequence_length * _CHARACTERS_PER_TOKEN
    found: list[str] = []
    num_read = num_found = 0

    def lowest() -> list[str]:
        in_order = sorted(found, key=rank)
        ends = np.cumsum([len(text) for text in in_order])
        return in_order[: int(np.searchsorted(ends, wanted)) + 1]

    for text in documents:
        num_read += len(text)
        if is_held_out is None or is_held_out(text):
            found.append(text)
            num_found += len(text)
        if num_read >= _CHARACTERS_READ and num_found >= wanted:
            break
        if num_found >= 4 * wanted:  # limits the memory
            found = lowest()
            num_found = sum(map(len, found))
    return lowest()
