"""Prepares a corpus for training: documents to shards of sequences, in several processes, resumable after a kill."""

import contextlib
import io
import shutil
import signal
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import datasets
import filelock
import numpy as np
import xxhash
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

from tf_mlm.atomic_files import atomic_directory, recover, write_atomically
from tf_mlm.config import Config, DataConfig
from tf_mlm.data.corpus import Corpus, load_corpus
from tf_mlm.data.duplicates import Method, build_signatures, find_duplicates
from tf_mlm.data.joined_rows import join_rows
from tf_mlm.data.local_files import PREPARED, STARTED, is_prepared
from tf_mlm.data.sequences import batches_of, unigram_counts, write_sequences
from tf_mlm.data.shards import (
    SEQUENCE_SETTINGS,
    SPLITS,
    VERSION,
    Shards,
    as_flag,
    hash_tokenizer,
    read_record,
    read_shard,
    shard_path,
)
from tf_mlm.errors import Interrupted, Refused
from tf_mlm.json_text import dump_json
from tf_mlm.model.tokenizer import load_tokenizer
from tf_mlm.run.directory import describe_bytes, free_bytes
from tf_mlm.training.callbacks.stop_signals import is_main_thread

_SIGNATURES = "signatures"  # directory of temporary files
_SAMPLED_DOCUMENTS = 256  # of each split, to estimate the size of the shards
_SAMPLED_CHARACTERS = 10_000  # of each of them
_SETTINGS = (
    "--documents-per-shard",
    "--deduplicate",
    "--duplicate-threshold",
    *(f"--data.{key}" for key in SEQUENCE_SETTINGS),
)


@dataclass(frozen=True)
class Block:
    """Consecutive documents, and the directory of their shard. Small when pickled: the documents stay on disk."""

    split: str
    number: int
    folder: Path
    documents: datasets.Dataset


@dataclass(frozen=True)
class FinishedShard:
    """A shard that is complete on disk.

    Attributes:
        facts: its entry in the record.
        unigrams: int64 [vocab_size], occurrences of each token id.
    """

    split: str
    number: int
    facts: dict[str, Any]
    unigrams: np.ndarray

    @property
    def num_documents(self) -> int:
        return int(self.facts["num_documents"]) + int(self.facts["num_empty"])


@dataclass(frozen=True)
class SignedBlock:
    """A block whose signatures are complete in the file `path`; `place` orders the blocks of both splits."""

    place: tuple[int, int]
    path: Path
    num_documents: int


_Result = TypeVar("_Result", FinishedShard, SignedBlock)
RunTasks = Callable[[Callable[[Block], Any], Iterable[Block]], Generator[Any, None, None]]
"""Maps a function over blocks in several processes, and yields the results as they are completed."""


def prepare(
    config: Config,
    output: Path,
    flags: dict[str, Any],
    *,
    documents_per_shard: int,
    run_tasks: RunTasks,
    deduplicate: Literal["none", "exact", "near"] = "none",
    duplicate_threshold: float = 0.8,
) -> Shards:
    """Write the shards of the documents of `config` to `output`, or the missing ones of an interrupted preparation.

    Args:
        flags: the flags of the command, for the record.
        run_tasks: maps a function over blocks, such as `map_unordered` with a number of processes.
        deduplicate: drop documents that repeat an earlier one; see `duplicates`. Training documents come first.
        duplicate_threshold: similarity of near duplicates.

    Raises:
        Refused: the data is missing or malformed, the disk is too small, or `output` contains something else.
        Interrupted: a signal arrived; the finished shards are kept.
    """
    _check_output(output)
    if config.data.mixture:
        raise Refused("data.mixture: prepare supports one dataset; omit the setting")
    corpus = load_corpus(config.data, config.training.seed)
    tokenizer = load_tokenizer(config.model, () if config.model.name else corpus.train["text"])
    record = {
        "version": VERSION,
        "flags": flags,
        "model": config.model.name,
        "vocab_size": config.model.vocab_size,
        "tokenizer": hash_tokenizer(tokenizer),
        "seed": config.training.seed,
        "data": asdict(config.data),
        "documents": {"train": corpus.train_fingerprint, "validation": corpus.validation_fingerprint},
        "documents_per_shard": documents_per_shard,
        "deduplicate": deduplicate,
        "duplicate_threshold": duplicate_threshold,
    }
    with _opened(output) as is_new:
        if not is_new:
            _check_record(output, record)
        if (output / PREPARED).exists():
            print(f"{output} is already prepared; nothing to do")
            return Shards(output, read_record(output / PREPARED))
        _check_disk(output, corpus, tokenizer, config.data)
        write_atomically(output / STARTED, dump_json(record, indent=2) + "\n")  # first, so that a kill can be continued
        with atomic_directory(output / "tokenizer") as temporary:
            tokenizer.save_pretrained(str(temporary))
        for folder in (*SPLITS, _SIGNATURES):
            (output / folder).mkdir(exist_ok=True)
        with _interruptible(output):
            if deduplicate != "none":
                sign = partial(write_signatures, method=deduplicate)
                blocks = _blocks(output, corpus, documents_per_shard)
                signed = [*_with_bar("Comparing", run_tasks(sign, blocks), corpus)]
                corpus, record["num_repeated"] = _drop_duplicates(corpus, signed, deduplicate, duplicate_threshold)
            write = partial(write_shard, tokenizer=_describe_tokenizer(tokenizer), data=config.data)
            blocks = _blocks(output, corpus, documents_per_shard)
            finished = _with_bar("Tokenizing", run_tasks(write, blocks), corpus)
            record["shards"] = _collect(output, finished, len(tokenizer))
        _save_array(output / "train_hashes.npy", corpus.train_hashes)
        record |= {
            "num_overlap": corpus.num_overlap,
            "held_out": corpus.held_out,
            "text_column": corpus.text_column,
            "columns": corpus.columns,
        }
        shutil.rmtree(output / _SIGNATURES)
        write_atomically(output / PREPARED, dump_json(record, indent=2) + "\n")
        (output / STARTED).unlink()
        return Shards(output, record)


def _collect(output: Path, finished: Iterable[FinishedShard], vocab_size: int) -> dict[str, list[dict[str, Any]]]:
    """The facts of the shards of each split in order. Writes the occurrences of each token id."""
    shards: dict[str, dict[int, dict[str, Any]]] = {split: {} for split in SPLITS}
    unigrams = {split: np.zeros(vocab_size, np.int64) for split in SPLITS}
    for shard in finished:
        shards[shard.split][shard.number] = shard.facts
        unigrams[shard.split] += shard.unigrams
    for split in SPLITS:
        _save_array(output / f"{split}_unigrams.npy", unigrams[split])
    return {split: [facts for _, facts in sorted(shards[split].items())] for split in SPLITS}


def write_shard(block: Block, tokenizer: tuple[str, str], data: DataConfig) -> FinishedShard:
    """Tokenize and pack the documents of `block`, unless its shard is already complete.

    Args:
        tokenizer: its `_describe_tokenizer`. Each task builds its own one, because packing changes its truncation.
    """
    backend, pad_token = tokenizer
    own_tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(backend), pad_token=pad_token)
    part = read_shard(block.folder, data.sequence_length)
    if part is None or part.num_documents + part.num_empty != len(block.documents):
        with atomic_directory(block.folder) as temporary:
            write_sequences(temporary, batches_of(block.documents), own_tokenizer, data)
        part = read_shard(block.folder, data.sequence_length)
        assert part is not None
    digest = xxhash.xxh3_128()
    digest.update(part.input_ids.data)
    digest.update(part.lengths.data)
    if part.document_starts is not None:
        digest.update(part.document_starts.data)
    facts = {
        "num_documents": part.num_documents,
        "num_empty": part.num_empty,
        "num_tokens": part.num_tokens,
        "num_sequences": len(part.lengths),
        "digest": digest.hexdigest(),
    }
    return FinishedShard(block.split, block.number, facts, unigram_counts(part, len(own_tokenizer)))


def write_signatures(block: Block, method: Method) -> SignedBlock:
    """Write the signatures of the documents of `block`, unless they are already complete."""
    path = block.folder.parents[1] / _SIGNATURES / f"{block.split}-{block.number}.npy"
    if not path.exists():
        texts = (text for batch in batches_of(block.documents) for text in batch)
        _save_array(path, build_signatures(texts, method))
    return SignedBlock((SPLITS.index(block.split), block.number), path, len(block.documents))


def _blocks(output: Path, corpus: Corpus, documents_per_shard: int) -> Iterator[Block]:
    for split in SPLITS:
        documents = getattr(corpus, split)
        for number, start in enumerate(range(0, len(documents), documents_per_shard)):
            rows = range(start, min(start + documents_per_shard, len(documents)))
            yield Block(split, number, shard_path(output.absolute(), split, number), documents.select(rows))


def _with_bar(what: str, results: Generator[_Result, None, None], corpus: Corpus) -> Iterator[_Result]:
    """Show the progress as a bar, or as a line for each tenth of the documents if stderr is not a terminal."""
    done, total, is_terminal = 0, sum(len(getattr(corpus, split)) for split in SPLITS), sys.stderr.isatty()
    bar = tqdm(total=total, desc=what, unit=" documents", disable=not is_terminal)
    with contextlib.closing(results), bar:
        for result in results:
            done += result.num_documents
            bar.update(result.num_documents)
            if not is_terminal and done * 10 // total > (done - result.num_documents) * 10 // total:
                print(f"{what.lower():<11}{done:>10,} of {total:,} documents", flush=True)
            yield result


def _drop_duplicates(
    corpus: Corpus, signed: list[SignedBlock], method: Method, threshold: float
) -> tuple[Corpus, dict[str, int]]:
    """`corpus` without the documents that repeat an earlier one, and their number in each split.

    Raises:
        Refused: no validation documents remain.
    """
    paths = [block.path for block in sorted(signed, key=lambda block: block.place)]
    signatures = join_rows([np.load(path, mmap_mode="r", allow_pickle=False) for path in paths])
    kept = ~find_duplicates(signatures, method, threshold)
    train_rows, validation_rows = map(np.flatnonzero, np.split(kept, [len(corpus.train)]))
    if not len(validation_rows):
        raise Refused(
            f"--deduplicate {method}: no validation documents remain, because all repeat others; pass another dataset, "
            "or a higher --duplicate-threshold"
        )
    repeated = {
        "train": len(corpus.train) - len(train_rows),
        "validation": len(corpus.validation) - len(validation_rows),
    }
    corpus = replace(
        corpus,
        train=corpus.train.select(train_rows),
        validation=corpus.validation.select(validation_rows),
        train_hashes=corpus.train_hashes[train_rows],
    )
    return corpus, repeated


def _check_output(output: Path) -> None:
    """Refuse a directory that contains anything else, before the data is loaded, which can take long."""
    if output.exists() and not output.is_dir():
        raise Refused(f"--output {output}: is a file; pass a directory")
    if output.is_dir() and not is_prepared(output):
        if others := sorted(path.name for path in output.iterdir() if not path.name.startswith(".")):
            raise Refused(f"--output {output}: is not empty (it contains {others[0]}); choose a new directory")


@contextlib.contextmanager
def _opened(output: Path) -> Iterator[bool]:
    """Create and lock the directory, and remove the temporary files of a killed process.

    Yields whether the directory contains no preparation yet. If it was created here, a refusal in the block removes it.
    """
    try:
        was_made = not output.exists()
        output.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(output / ".lock", timeout=0)
        lock.acquire()
    except filelock.Timeout:
        raise Refused(f"--output {output}: another process is preparing it; wait for it or stop it") from None
    except OSError as error:
        raise Refused(f"--output {output}: cannot be written: {error.strerror}; choose another directory") from None
    is_new = not is_prepared(output)
    try:
        _remove_temporary(output)
        yield is_new
    except Refused:
        if is_new and was_made:
            shutil.rmtree(output)
        raise
    finally:
        lock.release()


def _remove_temporary(output: Path) -> None:
    for folder in (output, *(output / split for split in SPLITS), output / _SIGNATURES):
        recover(folder)


def _check_record(output: Path, request: dict[str, Any]) -> None:
    """
    Raises:
        Refused: `output` contains a preparation with other settings or of other documents.
    """
    found = read_record(output / (PREPARED if (output / PREPARED).exists() else STARTED))
    for name in ("tokenizer", "documents"):
        if found[name] != request[name]:
            what = "with another tokenizer" if name == "tokenizer" else "from other documents"
            raise Refused(f"--output {output}: was prepared {what}; choose a new directory")
    for flag in _SETTINGS:
        before, now = (
            (each["data"] | each)[flag.split(".")[-1].strip("-").replace("-", "_")] for each in (found, request)
        )
        if before != now:
            raise Refused(
                f"--output {output}: was prepared with {flag} {as_flag(before)}, not {as_flag(now)}; pass the same "
                "value, or choose a new directory"
            )


@contextlib.contextmanager
def _interruptible(output: Path) -> Iterator[None]:
    """Raise Interrupted on SIGINT and SIGTERM, and remove temporary files. A second SIGINT ends the process."""

    def interrupt(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise Interrupted(
            f"{signal.Signals(number).name}: stopped, and the finished shards are kept; repeat the command to continue",
            number,
        )

    numbers = (signal.SIGINT, signal.SIGTERM) if is_main_thread() else ()
    previous = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    except BaseException:
        _remove_temporary(output)
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _check_disk(output: Path, corpus: Corpus, tokenizer: PreTrainedTokenizerFast, data: DataConfig) -> None:
    needed = sum(_estimate_bytes(getattr(corpus, split), tokenizer, data) for split in SPLITS)
    needed -= sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    free = free_bytes(output)
    if needed > free:
        raise Refused(
            f"--output {output}: the shards need about {describe_bytes(needed)} more, and {describe_bytes(free)} are "
            "available; free disk space, or choose a directory on another disk"
        )


def _estimate_bytes(documents: datasets.Dataset, tokenizer: PreTrainedTokenizerFast, data: DataConfig) -> int:
    """The size of the shards of `documents`, extrapolated from a sample."""
    rows = np.unique(np.linspace(0, len(documents) - 1, _SAMPLED_DOCUMENTS).astype(int))
    texts = [text or "" for text in documents[rows]["text"]]
    encodings = tokenizer.backend_tokenizer.encode_batch_fast([text[:_SAMPLED_CHARACTERS] for text in texts])
    num_tokens = np.array([len(encoding) for encoding in encodings], float)
    num_tokens *= [max(len(text) / _SAMPLED_CHARACTERS, 1) for text in texts]
    num_sequences = num_tokens / data.sequence_length
    if data.line_by_line:
        num_sequences = np.ceil(num_sequences) if data.overflow == "split" else np.ones_like(num_sequences)
    bytes_per_token = np.dtype(np.int32).itemsize + data.isolate_documents  # the flags of `document_starts`
    return int(num_sequences.mean() * len(documents) * (data.sequence_length * bytes_per_token + 4))


def _describe_tokenizer(tokenizer: PreTrainedTokenizerFast) -> tuple[str, str]:
    """All that packing needs of a tokenizer: its backend as JSON, and its padding token."""
    return tokenizer.backend_tokenizer.to_str(), str(tokenizer.pad_token)


def _save_array(path: Path, array: np.ndarray) -> None:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    write_atomically(path, content.getvalue())


def describe_shards(shards: Shards) -> str:
    """The counts of both splits, and the command that trains, as lines of text."""
    lines = []
    for split, name in zip(SPLITS, ("training", "validation"), strict=True):
        facts = shards.record["shards"][split]
        count = {key: sum(shard[key] for shard in facts) for key in ("num_documents", "num_tokens", "num_sequences")}
        lines.append(
            f"{name:<11}{count['num_documents']:>10,} documents  {count['num_tokens']:>14,} tokens  "
            f"{count['num_sequences']:>11,} sequences in {len(facts):,} shard{'s' * (len(facts) > 1)}"
        )
    if shards.text_column:
        lines.append(f"text       column {shards.text_column!r} of {', '.join(shards.columns)}")
    for split, number in shards.num_repeated.items():
        kind = {"exact": "repeat an earlier one", "near": "nearly repeat an earlier one"}[shards.record["deduplicate"]]
        lines.append(f"dropped    {number:>10,} {'training' if split == 'train' else split} documents that {kind}")
    if shards.num_overlap:
        lines.append(f"dropped    {shards.num_overlap:>10,} validation documents that are also training documents")
    num_empty = sum(shard["num_empty"] for split in SPLITS for shard in shards.record["shards"][split])
    if num_empty:
        lines.append(f"dropped    {num_empty:>10,} documents without text")
    lines.append(f"prepared   {shards.path}")
    lines.append(f"try        {shards.train_command()}")
    return "\n".join(lines)
