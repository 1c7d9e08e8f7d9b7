"""Finds documents that repeat an earlier one: exactly, or nearly by MinHash.

Each text has signatures; equal texts have equal signatures. For exact duplicates, the signature is a hash of the
normalized text. For near duplicates, the signatures are the MinHash values of its word 5-grams (Broder, "On the
resemblance and containment of documents", 1997). The share of equal MinHash values of two texts estimates the Jaccard
similarity of their 5-grams.
"""

import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import xxhash

Method = Literal["exact", "near"]

NUM_PERMUTATIONS = 128
_WORDS_PER_SHINGLE = 5
_PAIRS_PER_CHUNK = 100_000  # pairs whose signatures are compared at a time
_BLANK = {"exact": xxhash.xxh3_64_intdigest(b""), "near": 2**32 - 1}
"""Signature of a text without words."""


def normalize(text: str | None) -> str:
    """Remove differences in case, white space and Unicode compatibility forms."""
    return " ".join(unicodedata.normalize("NFKC", text or "").casefold().split())


def build_signatures(texts: Iterable[str | None], method: Method) -> np.ndarray:
    """uint64 [num_texts, 1] for exact, uint32 [num_texts, NUM_PERMUTATIONS] for near duplicates."""
    normalized = map(normalize, texts)
    if method == "exact":
        hashes = [xxhash.xxh3_64_intdigest(text.encode()) for text in normalized]
        return np.array(hashes, np.uint64).reshape(-1, 1)
    rows = [_min_hash(text.split()) for text in normalized]
    return np.array(rows, np.uint32).reshape(-1, NUM_PERMUTATIONS)


def _min_hash(words: list[str]) -> np.ndarray:
    num_shingles = max(len(words) - _WORDS_PER_SHINGLE, 0) + 1 if words else 0
    shingles = {" ".join(words[start : start + _WORDS_PER_SHINGLE]) for start in range(num_shingles)}
    sketch = _empty_sketch().copy()
    sketch.update_batch([shingle.encode() for shingle in sorted(shingles)])
    values: np.ndarray = sketch.hashvalues
    return values


@lru_cache(1)
def _empty_sketch() -> Any:
    from datasketch import MinHash

    return MinHash(NUM_PERMUTATIONS, seed=1, hashfunc=xxhash.xxh32_intdigest, scheme="affine32")


def find_duplicates(signatures: Any, method: Method, threshold: float) -> np.ndarray:
    """bool [num_texts]: whether a text repeats an earlier one. A text without words is never a duplicate.

    A near duplicate has an estimated similarity of at least `threshold` to an earlier text. Each text is compared only
    with the candidates of locality-sensitive hashing: the first text in each of its buckets. A candidate may be a
    duplicate itself.

    Args:
        signatures: an array as from `build_signatures`, or `JoinedRows` of several.
    """
    repeated = np.zeros(len(signatures), bool)
    is_blank = _join(signatures, slice(0, 1))[:, 0] == _BLANK[method]
    if method == "exact":
        repeated[:] = True
        repeated[np.unique(_join(signatures, slice(0, 1))[:, 0], return_index=True)[1]] = False
        return repeated & ~is_blank
    for columns in _bands(threshold):
        keys = _hash_rows(_join(signatures, columns))
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(keys[order]) != 0])
        first = np.empty(len(keys), np.int64)
        first[order] = np.repeat(order[starts], np.diff(np.r_[starts, len(keys)]))
        pairs = np.flatnonzero((first != np.arange(len(keys))) & ~repeated & ~is_blank)
        for start in range(0, len(pairs), _PAIRS_PER_CHUNK):
            chunk = pairs[start : start + _PAIRS_PER_CHUNK]
            similarity = (signatures[chunk] == signatures[first[chunk]]).mean(axis=1)
            repeated[chunk] = similarity >= threshold
    return repeated


def _join(signatures: Any, columns: slice) -> np.ndarray:
    """Some columns of all signatures; only these are read into memory."""
    starts = range(0, len(signatures), _PAIRS_PER_CHUNK)
    return np.concatenate([signatures[start : start + _PAIRS_PER_CHUNK][:, columns] for start in starts])


def _bands(threshold: float) -> list[slice]:
    """Columns of the signatures: two texts are candidates if they are equal in all columns of a band.

    The weights make a missed duplicate nine times as costly as an unnecessary comparison.
    """
    from datasketch import MinHashLSH

    index = MinHashLSH(threshold, NUM_PERMUTATIONS, weights=(0.1, 0.9))
    return [slice(band * index.r, (band + 1) * index.r) for band in range(index.b)]


def _hash_rows(values: np.ndarray) -> np.ndarray:
    """uint64 [num_rows]: equal rows have equal hashes."""
    keys = np.zeros(len(values), np.uint64)
    for column in values.T:
        keys = (keys ^ column) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(32)
    return keys
