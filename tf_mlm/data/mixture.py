"""Several training corpora in fixed shares: their joined sequences, and the rows of each epoch."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

from tf_mlm.config import DataConfig
from tf_mlm.data.corpus import Corpus
from tf_mlm.data.joined_rows import join_sequences
from tf_mlm.data.sequences import Sequences, load_sequences

_STREAM = 8  # separates these random numbers from others drawn with the same seed


class MixedRows:
    """The rows of several corpora, whose sequences are joined into one matrix.

    Every epoch has all rows of the first corpus. Each other corpus adds its next rows, in a random order. After its
    last row, it restarts in another order. The rows are a function of (seed, epoch).

    Args:
        first: int64 [n], the rows of the first corpus.
        starts: row of the matrix at which each other corpus begins.
        sizes: number of sequences of each other corpus.
        counts: number of rows of each other corpus in an epoch.

    Attributes:
        of_epoch: maps an epoch, counted from 1, to its rows, int64 [len(self)], before they are shuffled.
    """

    def __init__(self, first: np.ndarray, starts: list[int], sizes: list[int], counts: list[int], seed: int):
        self._first = first
        self._others = list(zip(starts, sizes, counts, strict=True))
        self._seed = seed
        self.of_epoch: Callable[[int], np.ndarray] = lru_cache(1)(self._draw)  # an epoch is read in many parts

    def __len__(self) -> int:
        return len(self._first) + sum(count for _, _, count in self._others)

    def _draw(self, epoch: int) -> np.ndarray:
        found = [self._first]
        for corpus, (start, size, count) in enumerate(self._others):
            passes, places = np.divmod(np.arange((epoch - 1) * count, epoch * count), size)
            rows = np.empty(count, np.int64)
            for number in np.unique(passes):
                order = np.random.default_rng([self._seed, _STREAM, corpus, int(number)]).permutation(size)
                rows[passes == number] = order[places[passes == number]]
            found.append(start + rows)
        return np.concatenate(found)


def mix(
    train: Sequences,
    rows: np.ndarray,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    config: DataConfig,
    seed: int,
) -> tuple[Sequences, MixedRows, list[dict[str, Any]]]:
    """Join the sequences of the corpora of `data.mixture` to those of the first corpus.

    Args:
        train: the sequences of the first corpus.
        rows: int64 [n], the rows of `train` to train on.

    Returns:
        The joined sequences, the rows of each epoch, and facts about each other corpus.
    """
    share_of_first = 1 - sum(other.share for other in corpus.mixture)
    parts, counts = [train], list[int]()
    facts: list[dict[str, Any]] = []
    for other in corpus.mixture:
        part = load_sequences(other.documents, other.fingerprint, tokenizer, config, f"{other.dataset} training")
        parts.append(part)
        counts.append(max(round(len(rows) * other.share / share_of_first), 1))
        facts.append(
            {
                "dataset": other.dataset,
                "share": other.share,
                "documents": part.num_documents,
                "sequences": len(part.input_ids),
                "sequences_per_epoch": counts[-1],
            }
        )
    sizes = [len(part.input_ids) for part in parts]
    return join_sequences(parts), MixedRows(rows, np.cumsum(sizes)[:-1].tolist(), sizes[1:], counts, seed), facts
