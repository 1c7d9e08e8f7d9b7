"""Loads the training and validation documents: from the Hub, from local files, or the sample corpus."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import xxhash

from tf_mlm import hub
from tf_mlm.config import DataConfig
from tf_mlm.data.local_files import find_split_files
from tf_mlm.data.readers import find_text_column, read_documents
from tf_mlm.data.sample_corpus import generate_documents
from tf_mlm.errors import Refused, refusing_setting

SAMPLE = "sample"

FEATURES = datasets.Features({"text": datasets.Value("string")})
_NO_DOCUMENTS = datasets.Dataset.from_dict({"text": []}, FEATURES)  # also for a split that the settings do not select
_BLANK = xxhash.xxh3_64_intdigest(b"")  # hash of all documents without text
_SAMPLE_DOCUMENTS = 4200
_READER_VERSION = "2"  # change it when `read_documents` yields other documents for the same files
_ROWS_INSPECTED = 100  # rows that determine the columns of a stream without a schema
_HOLD_OUT_STREAM = 3  # separates these random numbers from others drawn with the same seed


@dataclass(frozen=True)
class MixedDocuments:
    """The training documents of one dataset of `data.mixture`.

    Attributes:
        share: share of the training sequences of an epoch.
        fingerprint: hash of the documents' content, in order.
    """

    dataset: str
    share: float
    documents: datasets.Dataset
    fingerprint: str


@dataclass(frozen=True)
class Corpus:
    """Training and validation documents, each a `datasets.Dataset` with one column, `text`.

    Attributes:
        num_overlap: validation documents dropped because a training document has the same text.
        held_out: whether the validation documents are a random share of the training documents instead of a split.
        train_fingerprint: hash of the training documents' content, in order; likewise `validation_fingerprint`.
        train_hashes: uint64 [num_documents], one hash per training document, including those of `mixture`.
        text_column: the column with the text; "" if the data has no columns.
        columns: all columns of the data.
        mixture: the training documents of the other datasets.
    """

    train: datasets.Dataset
    validation: datasets.Dataset
    num_overlap: int
    held_out: bool
    train_fingerprint: str
    validation_fingerprint: str
    train_hashes: np.ndarray
    text_column: str = ""
    columns: tuple[str, ...] = ()
    mixture: tuple[MixedDocuments, ...] = ()


@dataclass(frozen=True)
class ScoredDocuments:
    """Documents to evaluate a model on.

    Attributes:
        description: the selection, for display, such as "split test".
        num_in_training: documents that are also training documents; None if those are unknown.
    """

    documents: datasets.Dataset
    fingerprint: str
    description: str
    num_in_training: int | None


def load_corpus(config: DataConfig, seed: int) -> Corpus:
    """Load the documents of both splits.

    Raises:
        Refused: the data does not exist, is malformed, lacks a split or the text column, or is too small to divide.
    """
    table = _load_table(config, _named_splits(config))
    splits = table.splits
    unnamed = list(splits) == [""]
    held_out = unnamed or not config.validation_split
    train = _join(splits, config.train_split, "train_split", config)
    hashes = _hash_texts(train)
    if unnamed:
        _join(splits, config.validation_split, "validation_split", config)  # refuses a split name
    if held_out:
        train_rows, validation_rows = hold_out(len(train), config, seed)
        validation, validation_hashes = train.select(validation_rows), hashes[validation_rows]
        train, hashes = train.select(train_rows), hashes[train_rows]
    else:
        validation = _join(splits, config.validation_split, "validation_split", config)
        validation_hashes = _hash_texts(validation)
    mixture = [_load_mixed(config, share, dataset) for share, dataset in config.mixture_shares]
    all_hashes = np.concatenate([hashes, *(hashes_of_other for _, hashes_of_other in mixture)])
    overlap = find_overlap(validation_hashes, all_hashes, config, held_out)
    kept = np.flatnonzero(~overlap)
    return Corpus(
        train=train,
        validation=validation.select(kept),
        num_overlap=int(overlap.sum()),
        held_out=held_out,
        train_fingerprint=xxhash.xxh3_128_hexdigest(hashes.tobytes()),
        validation_fingerprint=xxhash.xxh3_128_hexdigest(validation_hashes[kept].tobytes()),
        train_hashes=all_hashes,
        text_column=table.text_column,
        columns=table.columns,
        mixture=tuple(other for other, _ in mixture),
    )


def _load_mixed(config: DataConfig, share: float, dataset: str) -> tuple[MixedDocuments, np.ndarray]:
    """The training documents of a dataset of `data.mixture`, with the default settings, and their hashes."""
    data = replace(DataConfig(), dataset=dataset, num_proc=config.num_proc)
    with refusing_setting("data.mixture"):
        splits = _load_table(data, set(data.train_split.split("+"))).splits
        documents = _join(splits, data.train_split, "train_split", data)
    hashes = _hash_texts(documents)
    return MixedDocuments(dataset, share, documents, xxhash.xxh3_128_hexdigest(hashes.tobytes())), hashes


def load_second_validation(config: DataConfig, train_hashes: np.ndarray | None) -> tuple[datasets.Dataset, str, int]:
    """The documents of `data.second_validation_dataset`, without those that are also training documents.

    They are those of the split `test`, or all if the data has no named splits.

    Args:
        train_hashes: uint64, the hashes of the training documents; None if they are unknown.

    Returns:
        The documents, a hash of their content, and the number of documents that were dropped.

    Raises:
        Refused: the data does not exist or is malformed, or no document remains.
    """
    data = replace(DataConfig(), dataset=config.second_validation_dataset, num_proc=config.num_proc)
    with refusing_setting("data.second_validation_dataset"):
        splits = _load_table(data, {data.validation_split}).splits
        documents = _join(splits, data.validation_split, "validation_split", data)
        hashes = _hash_texts(documents)
        overlap = np.zeros(len(hashes), bool)
        if train_hashes is not None:
            overlap = find_overlap(hashes, train_hashes, data, held_out=True)
    kept = np.flatnonzero(~overlap)
    return documents.select(kept), xxhash.xxh3_128_hexdigest(hashes[kept].tobytes()), int(overlap.sum())


def hold_out(num_documents: int, config: DataConfig, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the training and of the validation documents, drawn at random, each int64 in ascending order.

    Raises:
        Refused: there is only one document.
    """
    if num_documents < 2:
        raise Refused(
            f"data.dataset = {config.dataset!r}: has only {num_documents} document, but training and validation need "
            "one each; pass a dataset with more documents, or one with a validation split"
            + ("" if config.document == "line" else ", or pass --data.document line")
        )
    order = np.random.default_rng([seed, _HOLD_OUT_STREAM]).permutation(num_documents)
    num_validation = min(max(1, round(num_documents * config.validation_fraction)), num_documents - 1)
    return np.sort(order[num_validation:]), np.sort(order[:num_validation])


def find_overlap(
    validation_hashes: np.ndarray, train_hashes: np.ndarray, config: DataConfig, held_out: bool
) -> np.ndarray:
    """bool [num_documents]: the validation documents that are also training documents.

    Raises:
        Refused: all of them are.
    """
    blank = validation_hashes == _BLANK  # not an overlap: `load_sequences` drops and counts the empty documents
    overlap: np.ndarray = ~blank & np.isin(validation_hashes, train_hashes)
    if overlap.any() and (overlap | blank).all():
        fix = "remove the duplicates or pass another dataset" if held_out else "pass another data.validation_split"
        raise Refused(
            f"data.dataset = {config.dataset!r}: no validation documents remain, because all {overlap.sum()} are also "
            f"training documents; {fix}"
        )
    return overlap


def load_documents(config: DataConfig, train_hashes: np.ndarray | None = None) -> ScoredDocuments:
    """The documents of `validation_split`; all documents if it is "" or the data has no named splits.

    Args:
        train_hashes: uint64, the hashes of the training documents of the model; None if they are unknown.

    Raises:
        Refused: as `load_corpus`.
    """
    wanted = set(config.validation_split.split("+")) if config.validation_split else None
    splits = _load_table(config, wanted).splits
    if list(splits) == [""]:
        documents, description = _join(splits, "", "validation_split", config), "all documents (no named splits)"
    elif wanted is None:
        documents = _join(splits, "+".join(splits), "validation_split", config)
        description = f"all documents of {', '.join(splits)}"
    else:
        documents = _join(splits, config.validation_split, "validation_split", config)
        description = f"split {config.validation_split}"
    hashes = _hash_texts(documents)
    num_in_training = None
    if train_hashes is not None:
        num_in_training = int((np.isin(hashes, train_hashes) & (hashes != _BLANK)).sum())
    return ScoredDocuments(
        documents,
        fingerprint=xxhash.xxh3_128_hexdigest(hashes.tobytes()),
        description=description,
        num_in_training=num_in_training,
    )


@dataclass(frozen=True)
class _Table:
    """The documents of each split; one split "" if the data has no named splits."""

    splits: dict[str, datasets.Dataset]
    text_column: str = ""
    columns: tuple[str, ...] = ()


def _load_table(config: DataConfig, wanted: set[str] | None) -> _Table:
    """Load the splits in `wanted`, or all splits if it is None; the others stay empty."""
    source = config.source
    if config.dataset == SAMPLE:
        return _Table({"": datasets.Dataset.from_dict({"text": generate_documents(_SAMPLE_DOCUMENTS, seed=0)})})
    if source.path is None:
        return _load_from_hub(config, wanted)
    files = find_split_files(config.dataset, config.config_name)
    named = [split for split in files if wanted is None or split in wanted or not split]
    found = find_text_column([path for split in named for path in files[split]], config.text_column, config.csv_header)
    column, columns = found or ("", [])
    splits = {split: _load_files(paths, config) if split in named else _NO_DOCUMENTS for split, paths in files.items()}
    return _Table(splits, column, tuple(columns))


def _named_splits(config: DataConfig) -> set[str]:
    return set(f"{config.train_split}+{config.validation_split}".split("+"))


def _load_files(paths: list[Path], config: DataConfig) -> datasets.Dataset:
    # The arguments are the key of the cache: a changed file or a changed reader reads again.
    contents = [_hash_file(path) for path in paths]
    arguments: dict[str, Any] = {
        "paths": paths,
        "contents": contents,
        "text_column": config.text_column,
        "document": config.document,
        "csv_header": config.csv_header,
        "reader": _READER_VERSION,
    }
    try:
        return datasets.Dataset.from_generator(_generate, gen_kwargs=arguments, features=FEATURES)
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, Refused | OSError):
            raise error.__cause__ from None
        raise
    except ValueError:  # the library raises it for a generator without rows
        if next(_generate(**arguments), None) is not None:
            raise
        return _NO_DOCUMENTS


def _generate(
    paths: list[Path], contents: list[str], text_column: str, document: Any, csv_header: bool, reader: str
) -> Iterator[dict[str, str]]:
    for text in read_documents(paths, text_column, document, csv_header):
        yield {"text": text}


def _load_from_hub(config: DataConfig, wanted: set[str] | None) -> _Table:
    try:
        splits = datasets.load_dataset(
            config.dataset,
            config.config_name or None,
            revision=config.revision or None,
            num_proc=None if config.num_proc == 1 else config.num_proc,
        )
        return _select_documents(splits, config, wanted)
    except Refused:
        raise
    except Exception as error:  # readers, parsers and transports raise many types
        raise hub.refusal("data.dataset", config.dataset, error) from None


def _select_documents(splits: Any, config: DataConfig, wanted: set[str] | None) -> _Table:
    column, columns = "", tuple[str, ...]()
    documents = {}
    for name, split in splits.items():
        if wanted is not None and name not in wanted:
            documents[name] = _NO_DOCUMENTS
            continue
        if not column:
            column, columns = choose_text_column(split, config)
        text_only = split.select_columns([column])
        if column != "text":  # the library refuses to rename a column to the same name
            text_only = text_only.rename_column(column, "text")
        documents[name] = text_only
    return _Table(documents, column, columns)


def choose_text_column(split: Any, config: DataConfig) -> tuple[str, tuple[str, ...]]:
    """The text column of a split of a Hub dataset, and all columns.

    Raises:
        Refused: the column does not exist, is not text, or several columns are text.
    """
    features = split.features or datasets.Dataset.from_list(list(split.take(_ROWS_INSPECTED))).features
    strings = [
        name for name, feature in features.items() if getattr(feature, "dtype", "") in ("string", "large_string")
    ]
    if config.text_column:
        if config.text_column not in strings:
            kind = "is not text" if config.text_column in features else "does not exist"
            raise Refused(
                f"data.text_column = {config.text_column!r}: {kind} in {config.dataset}; text columns are "
                f"{', '.join(strings) or 'none'}"
            )
        return config.text_column, tuple(features)
    if "text" in strings:
        return "text", tuple(features)
    if len(strings) == 1:
        return strings[0], tuple(features)
    found = (
        f"several text columns: {', '.join(strings)}"
        if strings
        else f"no text column among {', '.join(features) or 'none'}"
    )
    raise Refused(f"data.text_column: {config.dataset} has {found}; choose one with --data.text_column")


def _join(splits: dict[str, datasets.Dataset], wanted: str, setting: str, config: DataConfig) -> datasets.Dataset:
    """Concatenate the splits listed in `wanted`; all documents if the data has no named splits."""
    names = find_splits(list(splits), wanted, setting, config)
    documents = datasets.concatenate_datasets([splits[name] for name in names])
    if not len(documents):
        raise Refused(f"data.{setting} = {wanted!r}: {config.dataset} has no documents; pass a dataset with text")
    return documents


def find_splits(known: list[str], wanted: str, setting: str, config: DataConfig) -> list[str]:
    """The splits listed in `wanted`; [""] if the data has no named splits.

    Args:
        known: the splits of the data.
        setting: the setting that `wanted` is the value of, `train_split` or `validation_split`.

    Raises:
        Refused: a split does not exist.
    """
    if known == [""]:
        # The default names are allowed here, because the user did not choose them.
        if wanted not in (getattr(DataConfig(), setting), ""):
            raise Refused(
                f"data.{setting} = {wanted!r}: {config.dataset} has no named splits; omit the setting to hold "
                "out data.validation_fraction of the documents"
            )
        return [""]
    for name in (names := wanted.split("+")):
        if name not in known:
            raise Refused(
                f"data.{setting} = {wanted!r}: {config.dataset} has no split {name!r} (splits: "
                f"{', '.join(sorted(known))}); pass one of them, or --data.validation_split '' to hold documents out"
            )
    return names


def _hash_texts(documents: datasets.Dataset) -> np.ndarray:
    """uint64 [num_documents]: a hash of each text."""
    hashes = (hash_text(text) for batch in documents.iter(1000) for text in batch["text"])
    return np.fromiter(hashes, np.uint64, len(documents))


def hash_text(text: str | None) -> int:
    """A 64-bit hash of a text; all blank texts have the same."""
    return xxhash.xxh3_64_intdigest(b"" if not text or text.isspace() else text.encode())


def _hash_file(path: Path) -> str:
    digest = xxhash.xxh3_128()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise Refused(f"data.dataset: {path}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()
