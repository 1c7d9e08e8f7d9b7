"""Documents to sequences: tokenise, join and cut (or pad line by line), and keep the result in the cache.

What is kept is one memory-mapped int32 matrix, so that memory does not grow with the corpus.
"""

import itertools
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import filelock
import numpy as np
from datasets.fingerprint import Hasher

from tf_mlm.config import DataConfig
from tf_mlm.errors import Refused

_DOCUMENTS_PER_BATCH = 1000
_CHARACTERS_PER_BATCH = 2**20
"""Characters tokenized at a time: the tokenizer needs about 150 times as many bytes for its own structures."""
_CAP_STREAM = 2  # keeps these random numbers apart from those drawn with the same seed elsewhere


@dataclass(frozen=True)
class Sequences:
    """Fixed rows of token ids.

    Attributes:
        input_ids: int32 [num_sequences, sequence_length], memory-mapped.
        lengths: int32 [num_sequences], tokens before the padding, memory-mapped.
        num_documents: documents that hold text.
        num_empty: documents that do not, left out.
        num_tokens: tokens of the documents, special tokens included, those cut off by `overflow = "truncate"` too.
    """

    input_ids: np.ndarray
    lengths: np.ndarray
    num_documents: int
    num_empty: int
    num_tokens: int

    def draw_rows(self, cap: int, seed: int) -> np.ndarray:
        """int64 [min(cap, num_sequences)]: rows drawn by seed, in ascending order; all of them where cap is 0."""
        num_sequences = len(self.input_ids)
        if cap == 0 or cap >= num_sequences:
            return np.arange(num_sequences)
        return np.sort(np.random.default_rng([seed, _CAP_STREAM]).choice(num_sequences, cap, replace=False))


def load_sequences(
    documents: datasets.Dataset, fingerprint: str, tokenizer: Any, config: DataConfig, description: str
) -> Sequences:
    """Tokenise `documents` (column `text`), or find the result in the cache.

    Args:
        fingerprint: hash of the documents' content.
        tokenizer: a fast Hugging Face tokenizer.
        description: what to call the documents in the progress bar and in errors.

    Raises:
        Refused: there is no document with text.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    length = config.sequence_length
    # The version of the layout below is part of the key: change it when what is written changes.
    key = Hasher.hash(("2", fingerprint, backend.to_str(), length, config.line_by_line, config.overflow))
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "tf_mlm" / f"sequences-{key}"
    if not folder.exists():  # asked before the lock: a cache that cannot be written can be read
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{folder}.lock"):
            if not folder.exists():  # else another process has just finished the same work
                if config.line_by_line:
                    backend.enable_truncation(length)
                _write(folder, documents, tokenizer, config, description)
                backend.no_truncation()
    facts = json.loads((folder / "facts.json").read_text())
    if not facts["num_tokens"]:
        raise Refused(f"data.dataset: the {description} documents hold no text; name data with text in it")
    return Sequences(
        input_ids=np.memmap(folder / "input_ids.bin", np.int32, "r").reshape(-1, length),
        lengths=np.memmap(folder / "lengths.bin", np.int32, "r"),
        **facts,
    )


def unigram_counts(sequences: Sequences, vocab_size: int) -> np.ndarray:
    """int64 [vocab_size]: how often each id occurs, padding left out."""
    counts = np.zeros(vocab_size, np.int64)
    for start in range(0, len(sequences.input_ids), 10_000):
        chunk = sequences.input_ids[start : start + 10_000]
        real = np.arange(chunk.shape[1]) < sequences.lengths[start : start + 10_000, None]
        counts += np.bincount(chunk[real], minlength=vocab_size)
    return counts


def unigram_entropy(counts: np.ndarray, special_token_ids: list[int]) -> float:
    """Entropy in nats of the ordinary tokens' frequencies: the loss of a model that knows nothing but them."""
    ordinary = np.delete(counts, special_token_ids).astype(np.float64)
    share = ordinary[ordinary > 0] / ordinary.sum()
    return float(-(share * np.log(share)).sum())


# A packer takes the encodings of a batch of documents (None at the end) and yields finished rows as (ids, lengths).
_Packer = Callable[[list[Any] | None], Iterator[tuple[np.ndarray, np.ndarray]]]


def _join_and_cut(length: int) -> _Packer:
    remainder = np.zeros(0, np.int32)

    def pack(encodings: list[Any] | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        nonlocal remainder
        if encodings is None:
            if len(remainder):  # padded, not dropped
                yield remainder[None], np.array([len(remainder)], np.int32)
            return
        joined = itertools.chain.from_iterable(encoding.ids for encoding in encodings)
        ids = np.concatenate([remainder, np.fromiter(joined, np.int32)])
        full = len(ids) // length
        remainder = ids[full * length :]
        yield ids[: full * length].reshape(full, length), np.full(full, length, np.int32)

    return pack


def _one_each(encodings: list[Any] | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for encoding in encodings or []:
        yield np.array([encoding.ids], np.int32), np.array([len(encoding)], np.int32)


@dataclass(frozen=True)
class _Encoding:
    """The ids of a document that was tokenized in parts, in place of the tokenizer's own `Encoding`."""

    ids: list[int]
    overflowing: list["_Encoding"] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)


def _encode(texts: list[str], tokenizer: Any, max_length: int | None) -> list[Any]:
    """The encodings of the texts, special tokens included, tokenized about `_CHARACTERS_PER_BATCH` at a time.

    Args:
        max_length: tokens of an encoding; the rest of a longer text is in its `overflowing`. None for no limit.
    """
    encodings: list[Any] = []
    batch: list[str] = []
    num_characters = 0
    for text in texts:
        if len(text) > _CHARACTERS_PER_BATCH and can_be_split(tokenizer):
            encodings += tokenizer.backend_tokenizer.encode_batch_fast(batch)
            encodings.append(_encode_long(text, tokenizer, max_length))
            batch, num_characters = [], 0
            continue
        batch.append(text)
        num_characters += len(text)
        if num_characters >= _CHARACTERS_PER_BATCH:
            encodings += tokenizer.backend_tokenizer.encode_batch_fast(batch)
            batch, num_characters = [], 0
    return encodings + tokenizer.backend_tokenizer.encode_batch_fast(batch)


def can_be_split(tokenizer: Any) -> bool:
    """Whether tokenizing a text in parts, divided before a single space, gives the ids of the whole text.

    True where no token holds a space followed by something else: the pre-tokenizers of BERT, RoBERTa and ALBERT.
    """
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    pre_tokenizer = settings["pre_tokenizer"] or {}
    kinds = [part["type"] for part in pre_tokenizer.get("pretokenizers", [pre_tokenizer]) if part]
    is_safe = kinds in (["BertPreTokenizer"], ["ByteLevel"], ["WhitespaceSplit", "Metaspace"], ["WhitespaceSplit"])
    return is_safe and not any(re.search(r"\s", token["content"]) for token in settings["added_tokens"])


def _encode_long(text: str, tokenizer: Any, max_length: int | None) -> _Encoding:
    """The encoding of one text, tokenized in parts."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    ids: list[int] = []
    for part in _parts(text):
        ids += backend.encode_batch_fast([part], add_special_tokens=False)[0].ids
    if max_length:
        backend.enable_truncation(max_length)
    body = max_length - tokenizer.num_special_tokens_to_add() if max_length else max(len(ids), 1)
    rows = [
        _Encoding(tokenizer.build_inputs_with_special_tokens(ids[start : start + body]))
        for start in range(0, max(len(ids), 1), body)
    ]
    return _Encoding(rows[0].ids, rows[1:])


def _parts(text: str) -> Iterator[str]:
    """`text` divided before single spaces between other characters, into parts of about `_CHARACTERS_PER_BATCH`."""
    space = re.compile(r"(?<=[^\s]) (?=[^\s])")
    start = 0
    while len(text) - start > _CHARACTERS_PER_BATCH and (found := space.search(text, start + _CHARACTERS_PER_BATCH)):
        yield text[start : found.start()]
        start = found.start()
    yield text[start:]


def _write(folder: Path, documents: datasets.Dataset, tokenizer: Any, config: DataConfig, description: str) -> None:
    """Write the rows aside and rename the folder, so that a kill leaves nothing that looks finished."""
    for left_by_a_kill in folder.parent.glob(f"{folder.name}.*/"):
        shutil.rmtree(left_by_a_kill, ignore_errors=True)
    aside = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    length = config.sequence_length
    pack = _one_each if config.line_by_line else _join_and_cut(length)
    num_special = tokenizer.num_special_tokens_to_add()
    num_documents = num_empty = num_tokens = 0
    try:
        with open(aside / "input_ids.bin", "wb") as ids_file, open(aside / "lengths.bin", "wb") as lengths_file:
            batches = (
                documents[start : start + _DOCUMENTS_PER_BATCH]["text"]
                for start in range(0, len(documents), _DOCUMENTS_PER_BATCH)
            )
            for batch in itertools.chain(_with_bar(batches, len(documents), description), [None]):
                encodings = None
                if batch is not None:
                    texts = [text for text in batch if text and not text.isspace()]
                    num_documents += len(texts)
                    num_empty += len(batch) - len(texts)
                    encodings = _encode(texts, tokenizer, length if config.line_by_line else None)
                    pieces = [piece for encoding in encodings for piece in (encoding, *encoding.overflowing)]
                    num_tokens += sum(map(len, pieces))
                    if config.overflow == "split":
                        encodings = pieces
                    else:  # the special tokens around what is cut off were never in the text
                        num_tokens -= num_special * (len(pieces) - len(encodings))
                for ids, lengths in pack(encodings):
                    padding = ((0, 0), (0, length - ids.shape[1]))
                    np.pad(ids, padding, constant_values=tokenizer.pad_token_id).tofile(ids_file)
                    lengths.tofile(lengths_file)
        facts = {"num_documents": num_documents, "num_empty": num_empty, "num_tokens": num_tokens}
        (aside / "facts.json").write_text(json.dumps(facts))
        try:
            aside.rename(folder)
        except OSError:
            if not folder.exists():  # else another process, on a disk without locks, has just finished the same work
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _with_bar(batches: Iterator[list[str]], total: int, description: str) -> Iterator[list[str]]:
    # datasets' own bar, which is switched off with all its others where stderr is no terminal.
    with datasets.utils.tqdm(total=total, desc=f"Tokenising {description} documents", unit=" documents") as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))
