"""Fills the masks of sentences, with a model or with a SavedModel that takes strings."""

import functools
import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_mlm.errors import Refused
from tf_mlm.export.saved_model import NO_MASK, TOO_LONG
from tf_mlm.model.architectures import max_sequence_length
from tf_mlm.model.loading import load_trained

MASK = "[MASK]"
"""A mask in a sentence, for any model; it is replaced by the mask token of the tokenizer."""

_BAR, _HALF_BAR = 20, 10  # characters of a bar for 100 %
_ALL_MASKS = " all masks, filled one at a time, most confident first"


class Fill(NamedTuple):
    token: str
    probability: float
    sentence: str  # as given, with the token in place of its mask


class Mask(NamedTuple):
    """A mask in a text: its position in the tokens, its first character and the character after its last one."""

    position: int
    start: int
    end: int


class MaskedText(NamedTuple):
    """A tokenized text with masks.

    Attributes:
        text: with the mask token of the tokenizer.
        input_ids: int32 [length].
    """

    text: str
    input_ids: np.ndarray
    masks: list[Mask]


class Answer(NamedTuple):
    """The fills of one sentence.

    Attributes:
        fills: for each mask the most likely tokens, best first, while the other masks stay masked.
        filled: the sentence with all masks filled one at a time, most confident first.
        probability: probability of `filled`, the product over its masks.
    """

    sentence: str
    fills: list[list[Fill]]
    filled: str
    probability: float

    def as_dict(self) -> dict[str, Any]:
        return self._asdict() | {"fills": [[fill._asdict() for fill in fills] for fills in self.fills]}


Filler = Callable[[str, int], list[list[Fill]]]
"""Maps a sentence and `top_k` to `Answer.fills`. Refuses a sentence without a mask or with too many tokens."""


def load_filler(name: str) -> Filler:
    """The filler of a model directory or a model on the Hub.

    Raises:
        Refused: there is no such model, or it has no trained head.
    """
    return functools.partial(fill_masks, *load_trained(name))


def load_served_filler(folder: str) -> Filler:
    """The filler of a SavedModel.

    Raises:
        Refused: it cannot be loaded, or takes no strings.
    """
    signatures, prefix = load_signatures(folder)

    def fill(sentence: str, top_k: int) -> list[list[Fill]]:
        k = tf.constant(min(top_k, tf.int32.max))
        answers = signatures["fill_mask"](text=tf.constant([sentence]), k=k)
        return read_fills(sentence, prefix, {name: value.numpy()[0] for name, value in answers.items()})

    return fill


def load_signatures(folder: str) -> tuple[Any, str]:
    """The signatures of a SavedModel by name, and the prefix of the tokens that continue a word.

    Raises:
        Refused: it cannot be loaded, or takes no strings.
    """
    try:
        saved_model = tf.saved_model.load(folder)
        signatures = saved_model.signatures
        prefix = saved_model.tokenizer.continuing_subword_prefix.numpy().decode() if "fill_mask" in signatures else ""
    except Exception as error:  # TensorFlow's readers and parsers raise many types
        reason = " ".join(str(error).split())[:300]
        raise Refused(f"{folder}: this SavedModel cannot be loaded: {reason}") from None
    if "fill_mask" not in signatures:
        raise Refused(
            f"{folder}: this SavedModel takes no strings (it has no signature fill_mask, only "
            f"{', '.join(sorted(signatures)) or 'none'}); pass the run or the model directory that it was exported from"
        )
    return signatures, prefix


def answer(fill: Filler, sentence: str, top_k: int) -> Answer:
    fills = fill(sentence, top_k)
    probability, remaining = 1.0, fills
    for num_left in reversed(range(len(fills))):
        best = max((each[0] for each in remaining), key=lambda fill: fill.probability)
        probability *= best.probability
        if num_left:
            remaining = fill(best.sentence, 1)
    return Answer(sentence, fills, best.sentence, probability)


def fill_masks(model: Any, tokenizer: Any, sentence: str, top_k: int) -> list[list[Fill]]:
    """See `Filler`."""
    text, input_ids, masks = find_masks(model, tokenizer, sentence)
    probabilities = predict_probabilities(model, input_ids, np.array([mask.position for mask in masks]))
    return [
        [
            Fill(word, float(row[token_id]), filled)
            for token_id in np.argsort(-row, kind="stable")[:top_k].tolist()
            for word, filled in [fill_in(tokenizer, text, mask, token_id)]
        ]
        for mask, row in zip(masks, probabilities, strict=True)
    ]


def fill_in(tokenizer: Any, text: str, mask: Mask, token_id: int) -> tuple[str, str]:
    """The word of a token, and `text` with this word in place of a mask."""
    prefix = getattr(tokenizer.backend_tokenizer.model, "continuing_subword_prefix", None) or ""
    word = tokenizer.decode([token_id], clean_up_tokenization_spaces=False).strip()
    token = tokenizer.convert_ids_to_tokens(token_id) or ""  # a model may have more ids than its tokenizer has tokens
    begins_word = _begins_word(prefix, token)
    return word, _filled(text, mask.start, mask.end, word, prefix, begins_word)


def find_masks(model: Any, tokenizer: Any, sentence: str) -> MaskedText:
    """The tokens and masks of a sentence.

    Raises:
        Refused: the sentence has no mask, or more tokens than the model has positions.
    """
    text = sentence.replace(MASK, tokenizer.mask_token)
    encoded = tokenizer(text, return_offsets_mapping=True)
    input_ids = np.array(encoded["input_ids"], np.int32)
    ends = [
        (position, encoded["offset_mapping"][position][1])  # the start may include white space
        for position in np.flatnonzero(input_ids == tokenizer.mask_token_id).tolist()
    ]
    if not ends:
        raise _no_mask(sentence)
    positions = max_sequence_length(model.config)
    if len(input_ids) > positions:
        raise Refused(
            f"fill-mask: the sentence {sentence[:40]!r}… has {len(input_ids)} tokens, and the model has {positions} "
            "positions; shorten the sentence"
        )
    masks = [Mask(position, end - len(tokenizer.mask_token), end) for position, end in ends]
    return MaskedText(text, input_ids, masks)


def predict_probabilities(model: Any, input_ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """float64 [positions, vocabulary]: the model's probabilities at `positions` of input_ids, int32 [length]."""
    logits = model(input_ids=input_ids[None], training=False).logits.numpy()[0, positions].astype(np.float64)
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    return probabilities / probabilities.sum(-1, keepdims=True)


def read_fills(sentence: str, prefix: str, outputs: Mapping[str, Any]) -> list[list[Fill]]:
    """`Answer.fills` from the outputs of the signature fill_mask for one sentence of a batch.

    Args:
        prefix: prefix of the tokens that continue a word.
        outputs: tokens and probabilities, [masks, k], which may be padded after the last mask, and num_masks and
            status, scalars.

    Raises:
        Refused: the sentence has no mask or too many tokens.
    """
    masks = [match.span() for match in re.finditer(re.escape(MASK), sentence)]
    if outputs["status"] == TOO_LONG:
        raise Refused(
            f"fill-mask: the sentence {sentence[:40]!r}… has more tokens than the model has positions; shorten it"
        )
    if outputs["status"] == NO_MASK or len(masks) != outputs["num_masks"]:
        raise _no_mask(sentence)
    fills = []
    tokens, probabilities = outputs["tokens"].tolist(), outputs["probabilities"].tolist()
    for (start, end), words, row in zip(masks, tokens, probabilities, strict=False):
        best = []
        for word, probability in zip(map(bytes.decode, words), row, strict=True):
            filled = _filled(sentence, start, end, word, prefix, begins_word=not word.startswith(prefix))
            best.append(Fill(word, probability, filled))
        fills.append(best)
    return fills


def _begins_word(prefix: str, token: str) -> bool:
    """WordPiece marks the tokens that continue a word, byte-level BPE and SentencePiece those that begin one."""
    return not token.startswith(prefix) if prefix else token.startswith(("Ġ", "▁"))


def _filled(text: str, start: int, end: int, word: str, prefix: str, begins_word: bool) -> str:
    """`text` with `word` between `start` and `end`; a word piece is joined to the word before it, without `prefix`."""
    if begins_word:
        return f"{text[:start]}{word}{text[end:]}"
    return f"{text[:start].rstrip()}{word.removeprefix(prefix)}{text[end:]}"


def _no_mask(sentence: str) -> Refused:
    shown = repr(sentence) if len(sentence) <= 80 else f"{sentence[:80]!r}…"
    return Refused(f"fill-mask: {shown} has no {MASK}; write {MASK} in place of a word")


def describe_answer(answer: Answer) -> str:
    """Token, probability as number and bar, and sentence of each fill, as lines of text."""
    lines = [answer.sentence]
    for number, fills in enumerate(answer.fills, start=1):
        rows = zip(_rows(fills, _BAR), fills, strict=True)
        lines += [*heading(number, len(answer.fills)), *(f"  {row}  {fill.sentence}" for row, fill in rows)]
    if len(answer.fills) > 1:
        lines += [_ALL_MASKS, f"  {_all_filled(answer)}"]
    return "\n".join(lines)


def describe_side_by_side(names: list[str], answers: list[Answer]) -> str:
    """The answers of several models to one sentence, one column each."""
    columns = [[_rows(fills, _HALF_BAR) for fills in answer.fills] for answer in answers]
    lines = [answers[0].sentence, *columns_of_masks(names, columns)]
    if len(answers[0].fills) > 1:
        width = max(map(len, names))
        lines.append(_ALL_MASKS)
        lines += [f"  {name:<{width}}  {_all_filled(answer)}" for name, answer in zip(names, answers, strict=True)]
    return "\n".join(lines)


def columns_of_masks(names: list[str], columns: list[list[list[str]]]) -> list[str]:
    """Lines with one column per name. Each column has the rows of each mask."""
    widths = [max(map(len, [name, *itertools.chain(*tables)])) for name, tables in zip(names, columns, strict=True)]

    def line(*cells: str) -> str:
        return "  " + "   ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()

    lines = [line(*names)]
    for number, tables in enumerate(zip(*columns, strict=True), start=1):
        rows = itertools.zip_longest(*tables, fillvalue="")  # a small vocabulary may have fewer tokens than top_k
        lines += [*heading(number, len(columns[0])), *(line(*cells) for cells in rows)]
    return lines


def heading(number: int, num_masks: int) -> list[str]:
    return [f" mask {number}, the others masked"] if num_masks > 1 else []


def _rows(fills: list[Fill], bar: int) -> list[str]:
    width = max(len(fill.token) for fill in fills)
    return [
        f"{fill.token:<{width}}  {fill.probability:7.2%}  {'█' * round(bar * fill.probability):<{bar}}"
        for fill in fills
    ]


def _all_filled(answer: Answer) -> str:
    return f"{answer.probability:7.2%}  {answer.filled}"
