"""A smoothed trigram model of token ids, the baseline that uses only left context."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np


class Trigram:
    """Interpolated modified Kneser-Ney (Chen and Goodman 1998), down to a uniform distribution."""

    def __init__(self, sequences: Iterable[np.ndarray], vocab_size: int) -> None:
        trigrams: Counter[tuple[int, ...]] = Counter()
        pairs: Counter[tuple[int, ...]] = Counter()
        for sequence in sequences:
            ids = sequence.tolist()
            trigrams.update(zip(ids, ids[1:], ids[2:], strict=False))
            pairs.update(zip(ids, ids[1:], strict=False))
        # Lower orders count the distinct contexts of a token, not its occurrences.
        bigrams: Counter[tuple[int, ...]] = Counter((second, third) for _, second, third in trigrams)
        unigrams: Counter[tuple[int, ...]] = Counter((second,) for _, second in pairs)
        self._orders = [_Order(counts) for counts in (unigrams, bigrams, trigrams)]
        self._uniform = 1 / vocab_size

    def probability(self, context: tuple[int, ...], token: int) -> float:
        """The probability of `token` after the one or two tokens of `context`."""
        probability = self._uniform
        for length, order in enumerate(self._orders[: len(context) + 1]):
            probability = order.interpolate(context[len(context) - length :], token, probability)
        return probability


class _Order:
    def __init__(self, counts: Counter[tuple[int, ...]]) -> None:
        self._counts = counts
        of_count = Counter(min(count, 4) for count in counts.values())
        share = of_count[1] / max(of_count[1] + 2 * of_count[2], 1)
        # A discount of 0 would leave no probability for unseen tokens.
        self._discounts = [0.0] + [
            max(k - (k + 1) * share * of_count[k + 1] / max(of_count[k], 1), 0.05) for k in (1, 2, 3)
        ]
        self._totals: defaultdict[tuple[int, ...], int] = defaultdict(int)
        self._discounted: defaultdict[tuple[int, ...], float] = defaultdict(float)
        for gram, count in counts.items():
            self._totals[gram[:-1]] += count
            self._discounted[gram[:-1]] += self._discounts[min(count, 3)]

    def interpolate(self, context: tuple[int, ...], token: int, lower: float) -> float:
        total = self._totals.get(context)
        if not total:
            return lower
        count = self._counts[(*context, token)]
        return (count - self._discounts[min(count, 3)]) / total + self._discounted[context] / total * lower


def trigram_loss(model: Trigram, sequences: np.ndarray, labels: np.ndarray) -> float:
    """Mean -ln p in nats of the labels, int32 [n, length] with -100 elsewhere, after the true tokens to their left."""
    rows, positions = np.nonzero(labels >= 0)
    losses = [
        -math.log(model.probability(tuple(sequences[row, max(0, at - 2) : at].tolist()), int(labels[row, at])))
        for row, at in zip(rows, positions, strict=True)
    ]
    return sum(losses) / len(losses)
