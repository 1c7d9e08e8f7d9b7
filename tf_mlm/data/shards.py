"""A directory of sequences that `tf-mlm prepare` wrote: its layout, its record and the checks before it is used.

DIR/prepared.json    the record, written last: settings, counts, list of shards
DIR/started.json     the first part of the record, until `prepared.json` is written
DIR/tokenizer/       the tokenizer, as Hugging Face files
DIR/train/shard-00000/, ...        directories of `write_sequences`; a fixed number of consecutive documents each
DIR/validation/shard-00000/, ...   likewise
DIR/train_hashes.npy               uint64, one hash per training document
DIR/train_unigrams.npy             int64, occurrences of each token id; likewise validation_unigrams.npy
"""

import json
import shlex
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

from tf_mlm.config import DataConfig, ModelConfig
from tf_mlm.data.joined_rows import join_sequences
from tf_mlm.data.local_files import PREPARED, STARTED, is_prepared
from tf_mlm.data.sequences import Sequences, read_sequences
from tf_mlm.errors import Refused

SPLITS = ("train", "validation")
PREPARE_FLAGS = ("--documents-per-shard", "--deduplicate", "--duplicate-threshold")  # that `train` does not have

VERSION = 1  # of the layout: change it when the written files change
SEQUENCE_SETTINGS = ("sequence_length", "line_by_line", "overflow", "isolate_documents")
_TEXT_SETTINGS = (
    "revision", "config_name", "document", "text_column", "csv_header", "train_split", "validation_split",
    "validation_fraction", "streaming",
)  # fmt: skip


@dataclass(frozen=True)
class Shards:
    """The sequences in a directory of `tf-mlm prepare`, with the same facts as `Corpus`.

    Attributes:
        record: the content of `prepared.json`.
    """

    path: Path
    record: dict[str, Any]

    @property
    def num_overlap(self) -> int:
        return int(self.record["num_overlap"])

    @property
    def num_repeated(self) -> dict[str, int]:
        """Documents of each split that `--deduplicate` dropped; empty without it."""
        return dict(self.record.get("num_repeated", {}))

    @property
    def held_out(self) -> bool:
        return bool(self.record["held_out"])

    @property
    def text_column(self) -> str:
        return str(self.record["text_column"])

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.record["columns"])

    @property
    def train_fingerprint(self) -> str:
        return self._fingerprint("train")

    @property
    def validation_fingerprint(self) -> str:
        return self._fingerprint("validation")

    def _fingerprint(self, split: str) -> str:
        """A hash of the content of the shards."""
        return xxhash.xxh3_128_hexdigest("".join(shard["digest"] for shard in self.record["shards"][split]).encode())

    @property
    def origin(self) -> dict[str, Any]:
        """The settings of the text that was prepared, for the model card."""
        return {key: self.record["data"][key] for key in ("dataset", *_TEXT_SETTINGS)}

    @property
    def tokenizer_path(self) -> Path:
        return self.path / "tokenizer"

    @cached_property
    def train_hashes(self) -> np.ndarray:
        hashes: np.ndarray = np.load(self.path / "train_hashes.npy", mmap_mode="r", allow_pickle=False)
        return hashes

    def unigram_counts(self, split: str) -> np.ndarray:
        """int64 [vocab_size]: as `sequences.unigram_counts`, of all sequences of the split."""
        counts: np.ndarray = np.load(self.path / f"{split}_unigrams.npy", allow_pickle=False)
        return counts

    def load(self, split: str) -> Sequences:
        """The sequences of the split, over all shards.

        Raises:
            Refused: a shard is missing or incomplete.
        """
        length = self.record["data"]["sequence_length"]
        parts = []
        for number, shard in enumerate(self.record["shards"][split]):
            folder = shard_path(self.path, split, number)
            part = read_shard(folder, length)
            if part is None or len(part.lengths) != shard["num_sequences"]:
                raise Refused(
                    f"data.dataset = {str(self.path)!r}: {folder.relative_to(self.path)} is missing or damaged; remove "
                    f"{PREPARED} and run: {self.command(self.path)}"
                )
            parts.append(part)
        return join_sequences(parts)

    def check_settings(self, data: DataConfig) -> None:
        """
        Raises:
            Refused: a setting of `data` differs from the one that the directory was prepared with.
        """
        prepared, given, defaults = self.record["data"], asdict(data), asdict(DataConfig())
        for key in SEQUENCE_SETTINGS:
            is_used = key != "overflow" or prepared["line_by_line"]
            if is_used and given[key] != prepared[key]:
                raise self._mismatch(f"data.{key}", prepared[key], given[key])
        for key in _TEXT_SETTINGS:
            if given[key] not in (defaults[key], prepared[key]):
                raise self._mismatch(f"data.{key}", prepared[key], given[key])

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerFast, model: ModelConfig) -> None:
        """
        Args:
            tokenizer: the tokenizer of `model`; for a new model, the one in the directory.

        Raises:
            Refused: the directory was prepared with another tokenizer, or for a vocabulary of another size.
        """
        prepared = self.record["model"]
        if bool(model.name) < bool(prepared) or hash_tokenizer(tokenizer) != self.record["tokenizer"]:
            again = self.command(_other(self.path), {"--model": model.name})
            raise Refused(
                f"model.name = {model.name!r}: {str(self.path)!r} was prepared with another tokenizer, that of "
                f"{repr(prepared) if prepared else 'a new model'}; pass --model {prepared or repr('')}, or prepare "
                f"again: {again}"
            )
        if not model.name and model.vocab_size != self.record["vocab_size"]:
            raise self._mismatch("model.vocab_size", self.record["vocab_size"], model.vocab_size)

    def _mismatch(self, name: str, prepared: Any, given: Any) -> Refused:
        again = self.command(_other(self.path), {f"--{name}": as_flag(given)})
        return Refused(
            f"{name} = {given!r}: {str(self.path)!r} was prepared with {prepared!r}; pass --{name} "
            f"{shlex.quote(as_flag(prepared))}, or prepare again: {again}"
        )

    def command(self, output: Path, flags: dict[str, str] | None = None) -> str:
        """The command that prepared the directory, with another output and other `flags`."""
        return prepare_command(self.record["flags"] | (flags or {}), output)

    def train_command(self) -> str:
        """The command that trains on the directory with the settings that it was prepared with."""
        flags = {flag: value for flag, value in self.record["flags"].items() if flag not in PREPARE_FLAGS}
        if self.record["data"]["num_train_sequences"] == DataConfig().num_train_sequences:
            flags["--data.num_train_sequences"] = "0"
        return shlex.join(["python", "train.py", *_words(flags | {"--dataset": str(self.path)})])


def as_flag(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _other(path: Path) -> Path:
    """A directory next to `path` that does not exist."""
    return next(other for number in range(2, 1000) if not (other := path.with_name(f"{path.name}-{number}")).exists())


def prepare_command(flags: dict[str, Any], output: Path) -> str:
    """The command line of `tf-mlm prepare` with these flags: one value each, or a list."""
    return shlex.join(["tf-mlm", "prepare", *_words(flags), "--output", str(output)])


def _words(flags: dict[str, Any]) -> list[str]:
    return [
        str(word) for flag, value in flags.items() for word in [flag, *(value if isinstance(value, list) else [value])]
    ]


def find_shards(data: DataConfig) -> Shards | None:
    """The shards that `data.dataset` names; None if it names anything else.

    Raises:
        Refused: the preparation is incomplete, or a setting differs from the one that it was prepared with.
    """
    path = data.source.path
    if path is None or not is_prepared(path):
        return None
    if not (path / PREPARED).exists():
        flags = read_record(path / STARTED)["flags"]
        raise Refused(
            f"data.dataset = {data.dataset!r}: its preparation is incomplete; continue it with: "
            f"{prepare_command(flags, path)}"
        )
    if data.mixture:
        raise Refused(
            f"data.mixture: {data.dataset!r} was written by tf-mlm prepare and cannot be mixed with others; pass the "
            "dataset with the text as data.dataset, or omit data.mixture"
        )
    shards = Shards(path, read_record(path / PREPARED))
    shards.check_settings(data)
    return shards


def read_record(path: Path) -> dict[str, Any]:
    """
    Raises:
        Refused: the file is damaged, or another version of tf_mlm wrote it.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        version = record["version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Refused(f"{path}: is damaged ({type(error).__name__}); remove the directory and prepare again") from None
    if version != VERSION:
        raise Refused(f"{path}: has layout {version!r}, but this version of tf_mlm reads {VERSION}; prepare again")
    return dict(record)


def hash_tokenizer(tokenizer: PreTrainedTokenizerFast) -> str:
    """A hash of everything that determines the ids of a text. Disables padding and truncation of `tokenizer`."""
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    return xxhash.xxh3_128_hexdigest(f"{backend.to_str()} {tokenizer.pad_token_id}".encode())


def shard_path(path: Path, split: str, number: int) -> Path:
    return path / split / f"shard-{number:05d}"


def read_shard(folder: Path, sequence_length: int) -> Sequences | None:
    """The sequences of one shard; None if a file is missing or its size does not match the others."""
    try:
        part = read_sequences(folder, sequence_length)
    except (OSError, ValueError, TypeError):
        return None
    return part if len(part.input_ids) == len(part.lengths) else None
