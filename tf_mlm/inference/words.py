"""The words that tokens belong to, and readable text around a token, for any tokenizer.

A word is a run of letters, digits and combining marks. A token continues a word if the tokenizer's decoder writes it
without a space after the token before it, and both touch with such a character. This covers WordPiece, which marks the
continuing pieces (`##`), and byte-level BPE and Unigram, which mark the beginnings of words (`Ġ`, `▁`).
"""

import re
import unicodedata

import numpy as np
from tokenizers import decoders
from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

from tf_mlm.data.sequences import Sequences

WORD_PARTS = ("whole word", "first piece", "later piece")

_CONTEXT = 9  # tokens on each side
_CONTRACTION = re.compile(r"(\w\]?) ' (?=\[?(?:s|t|m|d|re|ve|ll)\b)")  # as WordPiece writes it: "it ' s"
_LETTER = "a"  # a token after which the decoder is asked for the text of others


class Words:
    """The words of one tokenizer.

    Attributes:
        joins: bool [vocab_size], tokens that continue a word that is open before them.
        is_open: bool [vocab_size], tokens after which the word may continue.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        backend = tokenizer.backend_tokenizer
        self._tokenizer = tokenizer
        self._decoder = backend.decoder or decoders.WordPiece()
        special = set(tokenizer.all_special_ids)
        # Sequences of documents are joined by these; an unknown token is part of its sentence.
        self._separators = np.array(sorted(special - {tokenizer.unk_token_id}), np.int64)
        texts = ["" if index in special else self._follow([index]) for index in range(len(tokenizer))]
        self.joins = np.array([_is_of_word(text[:1]) for text in texts])
        self.is_open = np.array([_is_of_word(text[-1:]) for text in texts])

    def parts(self, sequences: Sequences, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """int64 [n], indices of `WORD_PARTS`, for the tokens at (row, position).

        A sequence that begins inside a word continues it. A word ends with its sequence.
        """
        ids = sequences.input_ids
        tokens = ids[rows, positions]
        is_first = positions == 0
        is_last = positions + 1 >= sequences.lengths[rows]
        before = ids[rows, np.where(is_first, 0, positions - 1)]
        after = ids[rows, np.where(is_last, positions, positions + 1)]
        is_later = self.joins[tokens] & (is_first | self.is_open[before])
        is_split = ~is_last & self.is_open[tokens] & self.joins[after]
        parts: np.ndarray = np.where(is_later, 2, np.where(is_split, 1, 0))
        return parts

    def name(self, token_id: int) -> str:
        """The token as the tokenizer writes it."""
        return str(self._tokenizer.convert_ids_to_tokens(int(token_id)))

    def context(self, ids: np.ndarray, position: int) -> str:
        """The text around a token, which is in brackets: "a [great] film".

        Args:
            ids: int32 [length], a sequence without padding. The text ends where its document ends.
        """
        separators = np.flatnonzero(np.isin(ids, self._separators))
        first = max([0, *(separators[separators < position] + 1)])
        last = min([len(ids), *separators[separators > position]])
        start, end = max(first, position - _CONTEXT), min(last, position + 1 + _CONTEXT)
        first, last = max(first, start - _CONTEXT), min(last, end + _CONTEXT)
        while start > first and self.joins[ids[start]]:  # do not cut a word, unless it is long
            start -= 1
        while end < last and self.joins[ids[end]]:
            end += 1
        before, after = ids[start:position], ids[position + 1 : end]
        token = self._follow([ids[position]])
        text = self._follow(before).strip()
        space = " " if token[:1].isspace() and text else ""
        marked = f"{text}{space}[{token.strip() or self.name(ids[position])}]{self._follow(after)}"
        return _CONTRACTION.sub(r"\1'", " ".join(marked.split()))

    def _follow(self, ids: "np.ndarray | list[int]") -> str:
        """The text of tokens after a letter, with the space between them, if any."""
        return self._decode([_LETTER, *(self.name(each) for each in ids)])[len(_LETTER) :]

    def _decode(self, tokens: list[str]) -> str:
        return str(self._decoder.decode(tokens))


def _is_of_word(character: str) -> bool:
    """Whether a character is part of a word; an incomplete UTF-8 sequence counts as a letter."""
    return character == "\ufffd" or unicodedata.category(character or " ")[0] in "LNM"
