"""Predicts labels of texts, and tags of words, with a fine-tuned model."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tf_mlm.errors import Refused
from tf_mlm.model.architectures import max_sequence_length

_BAR = 30  # characters of a probability of 1


@dataclass(frozen=True)
class LabeledText:
    """The probabilities of all labels of a text, most likely first.

    Attributes:
        is_truncated: whether the text has more tokens than the model has positions, so that its end was cut off.
    """

    text: str
    text_pair: str | None
    probabilities: dict[str, float]
    is_truncated: bool

    @property
    def label(self) -> str:
        return next(iter(self.probabilities))

    def as_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {"label": self.label} | {name: value for name, value in asdict(self).items() if value is not None}

    def describe(self) -> str:
        """The labels with their probabilities, as lines of text."""
        width = max(map(len, self.probabilities))
        lines = [self.text if self.text_pair is None else f"{self.text} | {self.text_pair}"]
        lines += [
            f"  {label:<{width}}  {probability:7.2%}  {'█' * round(_BAR * probability)}".rstrip()
            for label, probability in self.probabilities.items()
        ]
        return "\n".join(lines + [f"  {_TRUNCATED}"] * self.is_truncated)


@dataclass(frozen=True)
class TaggedWord:
    """A word, its first character in the text, the character after its last one, and its most likely tag."""

    word: str
    start: int
    end: int
    tag: str
    probability: float


@dataclass(frozen=True)
class TaggedText:
    """The tagged words of a text.

    Attributes:
        is_truncated: whether the text has more tokens than the model has positions, so that its last words have no tag.
    """

    text: str
    words: list[TaggedWord]
    is_truncated: bool

    def as_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)

    def describe(self) -> str:
        """One line per word."""
        words, tags = (max((len(getattr(word, name)) for word in self.words), default=0) for name in ("word", "tag"))
        lines = [self.text]
        lines += [
            f"  {word.word:<{words}}  {word.tag:<{tags}}  {word.probability:7.2%}  {word.start}-{word.end}"
            for word in self.words
        ]
        return "\n".join(lines + [f"  {_TRUNCATED}"] * self.is_truncated)


_TRUNCATED = "(truncated: the text has more tokens than the model has positions)"


def predict_labels(
    model: Any, tokenizer: Any, texts: Sequence[str], text_pairs: Sequence[str] | None = None
) -> list[LabeledText]:
    """The labels of texts, or of pairs of texts.

    Args:
        model: a sequence classification model.
        text_pairs: the second text of each pair, or None.
    """
    names = model.config.id2label
    found = []
    for number, text in enumerate(texts):
        pair = text_pairs[number] if text_pairs is not None else None
        logits, _, is_truncated = _compute(model, tokenizer, text, pair)
        probabilities = tf.nn.softmax(logits).numpy()
        best_first = {names[index]: float(probabilities[index]) for index in np.argsort(-probabilities, kind="stable")}
        found.append(LabeledText(text, pair, best_first, is_truncated))
    return found


def predict_tags(model: Any, tokenizer: Any, texts: Sequence[str]) -> list[TaggedText]:
    """The tags of the words of texts. The tag of a word is that of its first token.

    Args:
        model: a token classification model.
    """
    found = []
    for text in texts:
        logits, encoding, is_truncated = _compute(model, tokenizer, text)
        probabilities = tf.nn.softmax(logits).numpy()
        words: list[TaggedWord] = []
        last = None
        for token, word in enumerate(encoding.word_ids):
            start, end = encoding.offsets[token]
            if word is None:
                continue
            if word == last:
                words[-1] = TaggedWord(**asdict(words[-1]) | {"end": end, "word": text[words[-1].start : end]})
                continue
            best, last = int(probabilities[token].argmax()), word
            tag = model.config.id2label[best]
            words.append(TaggedWord(text[start:end], start, end, tag, float(probabilities[token, best])))
        found.append(TaggedText(text, words, is_truncated))
    return found


def _compute(model: Any, tokenizer: Any, text: str, text_pair: str | None = None) -> tuple[Any, Any, bool]:
    """The logits of one text, its encoding, and whether it was truncated.

    Raises:
        Refused: the text is empty.
    """
    if not text.strip():
        raise Refused("predict: a text is empty; pass a text with at least one word")
    length = max_sequence_length(model.config)
    encoding = tokenizer([text], [text_pair] if text_pair is not None else None, truncation=True, max_length=length)
    features = {
        name: tf.constant(encoding[name], tf.int32)
        for name in ("input_ids", "attention_mask", "token_type_ids")
        if name in encoding
    }
    logits = tf.cast(model(**features, training=False).logits[0], tf.float32)
    return logits, encoding.encodings[0], bool(encoding.encodings[0].overflowing)
