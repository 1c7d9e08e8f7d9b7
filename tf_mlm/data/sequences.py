"""Documents to sequences: tokenize, pack into rows of fixed length (or pad one document per row), and cache.

The cache is one memory-mapped int32 matrix, so that memory does not grow with the corpus.
"""

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import datasets
import filelock
import numpy as np
from datasets.fingerprint import Hasher
from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

from tf_mlm.config import DataConfig
from tf_mlm.errors import Refused

_DOCUMENTS_PER_BATCH = 1000
_CHARACTERS_PER_BATCH = 2**20
"""Characters tokenized at a time; the tokenizer needs about 150 bytes of memory per character."""
_CAP_STREAM = 2  # separates these random numbers from others drawn with the same seed


@dataclass(frozen=True)
class Sequences:
    """Fixed rows of token ids.

    Attributes:
        input_ids: int32 [num_sequences, sequence_length], memory-mapped.
        lengths: int32 [num_sequences], tokens before the padding, memory-mapped.
        document_starts: uint8 [num_sequences, sequence_length], 1 at the first token of each document, memory-mapped;
            None without `data.isolate_documents`.
        num_documents: documents that contain text.
        num_empty: documents without text, which are skipped.
        num_tokens: tokens of the documents, including special tokens and those that `overflow = "truncate"` cuts off.
    """

    input_ids: np.ndarray
    lengths: np.ndarray
    num_documents: int
    num_empty: int
    num_tokens: int
    document_starts: np.ndarray | None = None

    def draw_rows(self, cap: int, seed: int) -> np.ndarray:
        """int64 [min(cap, num_sequences)]: random rows in ascending order; all rows if cap is 0."""
        return draw_rows(len(self.input_ids), cap, seed)


def draw_rows(num_sequences: int, cap: int, seed: int) -> np.ndarray:
    """int64 [min(cap, num_sequences)]: random rows in ascending order; all rows if cap is 0."""
    if cap == 0 or cap >= num_sequences:
        return np.arange(num_sequences)
    return np.sort(np.random.default_rng([seed, _CAP_STREAM]).choice(num_sequences, cap, replace=False))


def load_sequences(
    documents: datasets.Dataset,
    fingerprint: str,
    tokenizer: PreTrainedTokenizerFast,
    config: DataConfig,
    description: str,
) -> Sequences:
    """Tokenize `documents` (column `text`), or load the result from the cache.

    Args:
        fingerprint: hash of the documents' content.
        tokenizer: a fast Hugging Face tokenizer.
        description: name of the documents in the progress bar and in errors.

    Raises:
        Refused: no document contains text, or another process takes too long to tokenize the same documents.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    folder = _cache_folder(fingerprint, tokenizer, config)
    if not folder.exists():  # checked before locking, so that a read-only cache works
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _waiting_for(filelock.FileLock(f"{folder}.lock"), description, config.wait_minutes):
            if not folder.exists():  # another process may have written it meanwhile
                _write(folder, documents, tokenizer, config, description)
    sequences = read_sequences(folder, config.sequence_length)
    require_text(sequences, description)
    return sequences


def find_cached_sequences(fingerprint: str, tokenizer: PreTrainedTokenizerFast, config: DataConfig) -> Sequences | None:
    """The result of `load_sequences` if it is in the cache, without the documents; None otherwise.

    Args:
        tokenizer: one that does not truncate or pad.
    """
    folder = _cache_folder(fingerprint, tokenizer, config)
    return read_sequences(folder, config.sequence_length) if folder.exists() else None


def _cache_folder(fingerprint: str, tokenizer: PreTrainedTokenizerFast, config: DataConfig) -> Path:
    # "2" is the version of the layout: change it when the files that `write_sequences` writes change.
    settings = tokenizer.backend_tokenizer.to_str()
    layout = ("2", fingerprint, settings, config.sequence_length, config.line_by_line, config.overflow)
    key = Hasher.hash((*layout, "document_starts") if config.isolate_documents else layout)
    return Path(datasets.config.HF_DATASETS_CACHE) / "tf_mlm" / f"sequences-{key}"


@contextlib.contextmanager
def _waiting_for(lock: filelock.BaseFileLock, description: str, minutes: float) -> Iterator[None]:
    """Hold the lock of a cache entry, after waiting for another process that writes it.

    Raises:
        Refused: the other process took longer than `minutes`.
    """
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f"waiting    another process is tokenizing the {description} documents", flush=True)
        try:
            lock.acquire(timeout=60 * minutes)
        except filelock.Timeout:
            raise Refused(
                f"{lock.lock_file}: another process has been tokenizing the {description} documents for "
                f"more than {minutes:g} minutes; stop it, or raise data.wait_minutes"
            ) from None
    try:
        yield
    finally:
        lock.release()


def require_text(sequences: Sequences, description: str) -> None:
    """Check that a document contains text.

    Raises:
        Refused: no document contains text.
    """
    if not sequences.num_tokens:
        raise Refused(f"data.dataset: the {description} documents contain no text; pass a dataset with text")


def read_sequences(folder: Path, sequence_length: int) -> Sequences:
    """The sequences in a directory that `write_sequences` wrote, memory-mapped."""
    starts = folder / "document_starts.bin"
    return Sequences(
        input_ids=_map_file(folder / "input_ids.bin").reshape(-1, sequence_length),
        lengths=_map_file(folder / "lengths.bin"),
        document_starts=_map_file(starts, np.uint8).reshape(-1, sequence_length) if starts.exists() else None,
        **json.loads((folder / "facts.json").read_text()),
    )


def _map_file(path: Path, dtype: Any = np.int32) -> np.ndarray:
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)  # mmap refuses an empty file


def unigram_counts(sequences: Sequences, vocab_size: int) -> np.ndarray:
    """int64 [vocab_size]: the number of occurrences of each id, without padding."""
    counts = np.zeros(vocab_size, np.int64)
    for start in range(0, len(sequences.input_ids), 10_000):
        chunk = sequences.input_ids[start : start + 10_000]
        real = np.arange(chunk.shape[1]) < sequences.lengths[start : start + 10_000][:, None]
        counts += np.bincount(chunk[real], minlength=vocab_size)
    return counts


def unigram_entropy(counts: np.ndarray, special_token_ids: list[int]) -> float:
    """Entropy in nats of the frequencies of the ordinary tokens: the loss of predicting by frequency alone."""
    ordinary = np.delete(counts, special_token_ids).astype(np.float64)
    share = ordinary[ordinary > 0] / ordinary.sum()
    return float(-(share * np.log(share)).sum())


# Takes the encodings of a batch of documents (None after the last batch) and yields complete rows as (ids, lengths).
_Packer = Callable[[list["_Encoding"] | None], Iterator[tuple[np.ndarray, np.ndarray]]]


class RowPacker:
    """Joins the tokens of consecutive documents and divides them into rows.

    Attributes:
        remainder: int32 [less than `length`], the tokens after the last complete row.
    """

    def __init__(self, length: int, remainder: Sequence[int] | np.ndarray = ()):
        self._length = length
        self.remainder = np.array(remainder, np.int32)

    def add(self, documents: Iterable[Sequence[int] | np.ndarray]) -> np.ndarray:
        """int32 [num_rows, length]: the rows that these documents complete."""
        ids = np.concatenate([self.remainder, *(np.array(document, np.int32) for document in documents)])
        full = len(ids) // self._length
        self.remainder = ids[full * self._length :]
        return ids[: full * self._length].reshape(full, self._length)


def _pack_rows(length: int) -> _Packer:
    packer = RowPacker(length)

    def pack(encodings: list[_Encoding] | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if encodings is not None:
            rows = packer.add(encoding.ids for encoding in encodings)
            yield rows, np.full(len(rows), length, np.int32)
        elif len(packer.remainder):  # pad the last row instead of dropping it
            yield packer.remainder[None], np.array([len(packer.remainder)], np.int32)

    return pack


def document_start(num_tokens: int) -> np.ndarray:
    """int32 [num_tokens]: 1 at the first token of a document, 0 at the others."""
    start: np.ndarray = np.eye(1, num_tokens, dtype=np.int32)[0]
    return start


def _flag_starts(encodings: list["_Encoding"]) -> list["_Encoding"]:
    """The encodings with their first token replaced by 1 and their other tokens by 0."""
    return [_JoinedEncoding(document_start(len(encoding))) for encoding in encodings]


def _one_per_row(encodings: list["_Encoding"] | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for encoding in encodings or []:
        yield np.array([encoding.ids], np.int32), np.array([len(encoding)], np.int32)


class _Encoding(Protocol):
    """The part of `tokenizers.Encoding` that is used here."""

    @property
    def ids(self) -> Sequence[int] | np.ndarray: ...

    @property
    def overflowing(self) -> Sequence["_Encoding"]: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class _JoinedEncoding:
    """The encoding of a document that was tokenized in parts; `ids` is int32 [num_tokens]."""

    ids: np.ndarray
    overflowing: list["_JoinedEncoding"] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)


def encode(
    texts: list[str], tokenizer: PreTrainedTokenizerFast, max_length: int | None = None
) -> Iterator[list[_Encoding]]:
    """Yield the encodings of the texts in order, including special tokens, `_CHARACTERS_PER_BATCH` at a time.

    Args:
        max_length: most tokens of an encoding; the rest of a longer text is in its `overflowing`. None for no limit.
    """
    backend = tokenizer.backend_tokenizer
    batch: list[str] = []
    num_characters = 0
    for text in texts:
        if len(text) > _CHARACTERS_PER_BATCH and can_be_split(tokenizer):
            yield backend.encode_batch_fast(batch)
            batch, num_characters = [], 0
            yield [_encode_long(text, tokenizer, max_length)]
            continue
        batch.append(text)
        num_characters += len(text)
        if num_characters >= _CHARACTERS_PER_BATCH:
            yield backend.encode_batch_fast(batch)
            batch, num_characters = [], 0
    yield backend.encode_batch_fast(batch)


def can_be_split(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether tokenizing the parts of a text, divided as in `_parts`, gives the ids of the whole text.

    True for the tokenizers of BERT, RoBERTa and ALBERT: no token continues across such a space, no normalizer depends
    on the position in the text, and no added token matches white space after it.
    """
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    if any(re.search(r"\s", token["content"]) or token["rstrip"] for token in settings["added_tokens"]):
        return False
    parts = _flatten(settings["pre_tokenizer"], "pretokenizers")
    normalizers = _flatten(settings["normalizer"], "normalizers")
    match [part["type"] for part in parts]:
        case ["BertPreTokenizer"]:
            return all(each["type"] == "BertNormalizer" for each in normalizers)
        case ["ByteLevel"]:
            return parts[0]["use_regex"] and not normalizers
        case ["WhitespaceSplit"]:
            return all(map(_ignores_position, normalizers))
        case ["WhitespaceSplit", "Metaspace"]:
            return parts[1]["prepend_scheme"] != "first" and all(map(_ignores_position, normalizers))
    return False


def _flatten(component: dict[str, Any] | None, members: str) -> list[dict[str, Any]]:
    if component is None:
        return []
    if component["type"] != "Sequence":
        return [component]
    return [each for member in component[members] for each in _flatten(member, members)]


def _ignores_position(normalizer: dict[str, Any]) -> bool:
    if normalizer["type"] == "Replace":
        pattern = normalizer["pattern"]
        return pattern == {"Regex": " {2,}"} or ("String" in pattern and not re.search(r"\s", pattern["String"]))
    unicode_forms = ("NFC", "NFD", "NFKC", "NFKD")
    return normalizer["type"] in (*unicode_forms, "BertNormalizer", "Lowercase", "Nmt", "Precompiled", "StripAccents")


def _encode_long(text: str, tokenizer: PreTrainedTokenizerFast, max_length: int | None) -> _JoinedEncoding:
    """The encoding of one text, tokenized in parts."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    ids = np.concatenate(
        [
            np.array(backend.encode_batch_fast([part], add_special_tokens=False)[0].ids, np.int32)
            for part in _parts(text)
        ]
    )
    probe = backend.encode("a")
    num_before = probe.special_tokens_mask.index(0)
    num_after = probe.special_tokens_mask[::-1].index(0)
    before, after = probe.ids[:num_before], probe.ids[len(probe.ids) - num_after :]
    if max_length:
        backend.enable_truncation(max_length)
    body = max_length - num_before - num_after if max_length else max(len(ids), 1)
    rows = [
        _JoinedEncoding(np.concatenate([before, ids[start : start + body], after]).astype(np.int32))
        for start in range(0, max(len(ids), 1), body)
    ]
    return _JoinedEncoding(rows[0].ids, rows[1:])


def _parts(text: str) -> Iterator[str]:
    """Divide `text` into parts of about `_CHARACTERS_PER_BATCH`, each before a single space after an ASCII character.

    After some other characters, the space belongs to the same grapheme, which SentencePiece normalizes as a unit.
    """
    space = re.compile(r"(?<=[!-~]) (?=\S)")
    start = 0
    while len(text) - start > _CHARACTERS_PER_BATCH and (found := space.search(text, start + _CHARACTERS_PER_BATCH)):
        yield text[start : found.start()]
        start = found.start()
    yield text[start:]


def _write(
    folder: Path, documents: datasets.Dataset, tokenizer: PreTrainedTokenizerFast, config: DataConfig, description: str
) -> None:
    """Write to a temporary directory and rename it, so that a kill never leaves an incomplete cache entry."""
    for leftover in folder.parent.glob(f"{folder.name}.*/"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        write_sequences(temporary, _with_bar(batches_of(documents), len(documents), description), tokenizer, config)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.exists():  # a process on a disk without locks may have written it meanwhile
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def batches_of(documents: datasets.Dataset) -> Iterator[list[str | None]]:
    """The texts of `documents` (column `text`), in batches that fit in memory."""
    for start in range(0, len(documents), _DOCUMENTS_PER_BATCH):
        yield documents[start : start + _DOCUMENTS_PER_BATCH]["text"]


def write_sequences(
    folder: Path, batches: Iterable[list[str | None]], tokenizer: PreTrainedTokenizerFast, config: DataConfig
) -> None:
    """Tokenize and pack `batches` of texts, and write the files of `Sequences` to the directory `folder`."""
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    length = config.sequence_length
    if config.line_by_line:
        backend.enable_truncation(length)
    pack = _one_per_row if config.line_by_line else _pack_rows(length)
    pack_starts = _pack_rows(length)  # the same rows, of flags instead of ids
    num_special = tokenizer.num_special_tokens_to_add()
    pad_token_id: int = tokenizer.pad_token_id
    num_documents = num_empty = num_tokens = 0
    try:
        starts_path = folder / "document_starts.bin"
        with (
            open(folder / "input_ids.bin", "wb") as ids_file,
            open(folder / "lengths.bin", "wb") as lengths_file,
            open(starts_path, "wb") if config.isolate_documents else contextlib.nullcontext() as starts_file,
        ):

            def write_rows(encodings: list[_Encoding] | None) -> None:
                for ids, lengths in pack(encodings):
                    padding = ((0, 0), (0, length - ids.shape[1]))
                    np.pad(ids, padding, constant_values=pad_token_id).tofile(ids_file)
                    lengths.tofile(lengths_file)
                if starts_file:
                    for starts, _ in pack_starts(encodings and _flag_starts(encodings)):
                        padding = ((0, 0), (0, length - starts.shape[1]))
                        np.pad(starts.astype(np.uint8), padding).tofile(starts_file)

            for batch in batches:
                texts = [text for text in batch if text and not text.isspace()]
                num_documents += len(texts)
                num_empty += len(batch) - len(texts)
                for encodings in encode(texts, tokenizer, length if config.line_by_line else None):
                    pieces = [piece for encoding in encodings for piece in (encoding, *encoding.overflowing)]
                    num_tokens += sum(map(len, pieces))
                    if config.overflow == "split":
                        encodings = pieces
                    else:  # do not count the special tokens of the parts that are cut off
                        num_tokens -= num_special * (len(pieces) - len(encodings))
                    write_rows(encodings)
            write_rows(None)
        facts = {"num_documents": num_documents, "num_empty": num_empty, "num_tokens": num_tokens}
        (folder / "facts.json").write_text(json.dumps(facts))
    finally:
        backend.no_truncation()


def _with_bar(batches: Iterator[list[str | None]], total: int, description: str) -> Iterator[list[str | None]]:
    # The bar of `datasets` is disabled together with its others if stderr is not a terminal.
    with datasets.utils.tqdm(total=total, desc=f"Tokenizing {description} documents", unit=" documents") as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))
