"""Pseudo-log-likelihoods of texts and of their words (Salazar et al. 2020, Kauf and Ivanova 2023)."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from tf_mlm.errors import Refused
from tf_mlm.inference.fill_mask import MASK
from tf_mlm.inference.masked_copies import MaskedCopy, Predictor, log_probabilities
from tf_mlm.model.metrics import PERPLEXITY, perplexity

Masking = Literal["word-l2r", "word", "token"]
"""The tokens that are masked to predict a token: it and the later tokens of its word, its whole word, or it alone."""

_MAX_BAR = 30  # nats; a bar has one character per nat
_TOKENS_PER_GROUP = 1 << 15  # of masked copies that are in memory together


@dataclass(frozen=True)
class ScoredWord:
    """A word of a text.

    Attributes:
        word: its characters, empty for white space that has tokens.
        start: its first character in the text; `end` is the character after its last one.
        log_probability: sum over its tokens, in nats.
        is_unknown: whether it contains the unknown token; `log_probability` is that of the unknown token.
    """

    word: str
    start: int
    end: int
    log_probability: float
    num_tokens: int
    is_unknown: bool


@dataclass(frozen=True)
class ScoredText:
    """A text and its words. Special tokens, such as [CLS] and [SEP], are not scored."""

    text: str
    masking: Masking
    words: list[ScoredWord]

    @property
    def log_probability(self) -> float:
        """The pseudo-log-likelihood: the sum over all words, in nats."""
        return sum(word.log_probability for word in self.words)

    @property
    def num_tokens(self) -> int:
        return sum(word.num_tokens for word in self.words)

    @property
    def mean(self) -> float:
        """The pseudo-log-likelihood per token, in nats."""
        return self.log_probability / self.num_tokens

    @property
    def pseudo_perplexity(self) -> float:
        """exp(-mean): PPPL of Salazar et al. 2020, section 3, of this text alone."""
        return perplexity(-self.mean)

    def as_dict(self) -> dict[str, Any]:
        """A JSON object."""
        names = ("text", "masking", "log_probability", "mean", "pseudo_perplexity", "num_tokens")
        return {name: getattr(self, name) for name in names} | {"words": [asdict(word) for word in self.words]}

    def describe(self) -> str:
        """Log-probability of each word with a bar of its surprisal, as lines of text."""
        names = [" ".join(word.word.split()) or "(space)" for word in self.words]
        width = max(map(len, [*names, "sum"]))
        lines = [self.text]
        for name, word in zip(names, self.words, strict=True):
            bar = "█" * round(min(-word.log_probability, _MAX_BAR))
            tokens = f"{word.num_tokens} tokens" if word.num_tokens > 1 else ""
            after = "  ".join(filter(None, [bar, tokens, "unknown" if word.is_unknown else ""]))
            lines.append(f"  {name:<{width}}  {word.log_probability:8.2f}  {after}".rstrip())
        lines.append(
            f"  {'sum':<{width}}  {self.log_probability:8.2f}  nats in {self.num_tokens} tokens: {self.mean:.2f} per "
            f"token, pseudo-perplexity {PERPLEXITY.show(self.pseudo_perplexity)}"
        )
        return "\n".join(lines)


@dataclass(frozen=True)
class TokenizedText:
    """A text whose words can be scored.

    Attributes:
        input_ids: int32 [length], with special tokens.
        positions: int [scored tokens], in `input_ids`.
        words: int [scored tokens], the number of the word of each, from 0 without omissions.
        spans: first character and the character after the last one of each word.
    """

    text: str
    input_ids: np.ndarray
    positions: np.ndarray
    words: np.ndarray
    spans: list[tuple[int, int]]


def tokenize_text(tokenizer: Any, text: str, max_length: int) -> TokenizedText:
    """The tokens and words of a text.

    The tokenizer's pre-tokenizer splits the text into words (`word_ids` in transformers). For BERT and RoBERTa, letters
    and punctuation marks are separate words; for ALBERT, only spaces separate words.

    Args:
        max_length: largest number of tokens, with special tokens.

    Raises:
        Refused: the text contains a mask, no ordinary token, or too many tokens.
    """
    encoding = tokenizer([text]).encodings[0]
    input_ids = np.array(encoding.ids, np.int32)
    if MASK in text or tokenizer.mask_token_id in input_ids:
        raise Refused(
            f"score: {_shorten(text)} contains a mask, which has no probability; replace it by a word, or use "
            "fill-mask --targets"
        )
    if len(input_ids) > max_length:
        raise Refused(
            f"score: {_shorten(text)} has {len(input_ids)} tokens, and the model has {max_length} positions; "
            "shorten the text"
        )
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    positions = [
        position
        for position, word in enumerate(encoding.word_ids)
        if word is not None and encoding.ids[position] not in special
    ]
    if not positions:
        raise Refused(f"score: {_shorten(text)} has no ordinary token; pass a text with at least one word")
    _, words = np.unique([encoding.word_ids[position] for position in positions], return_inverse=True)
    offsets = np.array([encoding.offsets[position] for position in positions])
    starts, ends = np.full(words[-1] + 1, len(text)), np.zeros(words[-1] + 1, int)
    np.minimum.at(starts, words, offsets[:, 0])
    np.maximum.at(ends, words, offsets[:, 1])
    spans = [_strip(text, start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    return TokenizedText(text, input_ids, np.array(positions), words, spans)


def score_texts(
    predict: Predictor, tokenizer: Any, texts: Sequence[TokenizedText], masking: Masking = "word-l2r"
) -> Iterator[ScoredText]:
    """Score texts, in order.

    The pseudo-log-likelihood of a text is the sum over its tokens t of log P(t | the text with some tokens masked). In
    each masked copy of the text, one token is predicted. `masking` chooses the tokens that are masked with it:

    - `token`: only it (Salazar et al. 2020).
    - `word-l2r`: it and the later tokens of its word, PLL-word-l2r of Kauf and Ivanova 2023.
    - `word`: all tokens of its word, PLL-whole-word of Kauf and Ivanova 2023.

    Raises:
        Refused: `masking` is none of these.
    """
    if masking not in get_args(Masking):
        raise Refused(f"score: masking {masking!r}: must be {', '.join(get_args(Masking))}")
    for group in _groups(texts):
        copies = [copy for text in group for copy in _masked_copies(text, masking, tokenizer.mask_token_id)]
        found = log_probabilities(predict, copies, tokenizer.pad_token_id)
        ends = np.cumsum([len(text.positions) for text in group])[:-1]
        for text, of_tokens in zip(group, np.split(found, ends), strict=True):
            yield _scored(text, of_tokens, masking, tokenizer.unk_token_id)


def _masked_copies(text: TokenizedText, masking: Masking, mask_token_id: int) -> Iterator[MaskedCopy]:
    for position, is_masked in zip(text.positions, masked_together(text.words, masking), strict=True):
        input_ids = text.input_ids.copy()
        input_ids[text.positions[is_masked]] = mask_token_id
        yield MaskedCopy(input_ids, int(position), int(text.input_ids[position]))


def masked_together(words: np.ndarray, masking: Masking) -> np.ndarray:
    """bool [tokens, tokens]: row i has the tokens that are masked to predict token i.

    Args:
        words: int [tokens], the number of the word of each token.
    """
    same_word: np.ndarray = words[:, None] == words
    if masking == "word":
        return same_word
    return np.triu(same_word) if masking == "word-l2r" else np.eye(len(words), dtype=bool)


def _groups(texts: Sequence[TokenizedText]) -> Iterator[list[TokenizedText]]:
    """Groups of consecutive texts whose masked copies fill several batches and fit into memory."""
    group: list[TokenizedText] = []
    num_tokens = 0
    for text in texts:
        group.append(text)
        num_tokens += len(text.positions) * len(text.input_ids)
        if num_tokens >= _TOKENS_PER_GROUP:
            yield group
            group, num_tokens = [], 0
    if group:
        yield group


def _scored(text: TokenizedText, of_tokens: np.ndarray, masking: Masking, unk_token_id: int) -> ScoredText:
    log_probability = np.bincount(text.words, of_tokens)
    num_tokens = np.bincount(text.words)
    num_unknown = np.bincount(text.words, text.input_ids[text.positions] == unk_token_id)
    words = [
        ScoredWord(text.text[start:end], start, end, float(log_p), int(count), bool(unknown))
        for (start, end), log_p, count, unknown in zip(
            text.spans, log_probability, num_tokens, num_unknown, strict=True
        )
    ]
    return ScoredText(text.text, masking, words)


def _strip(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without white space at its ends: the offsets of some tokenizers include the space before a word."""
    inside = text[start:end]
    start += len(inside) - len(inside.lstrip())
    return start, start + len(inside.strip())


def _shorten(text: str) -> str:
    return repr(text) if len(text) <= 40 else f"{text[:40]!r}…"
