"""Parts of words and readable context, for each kind of tokenizer."""

from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tf_mlm.data.sequences import Sequences
from tf_mlm.inference.words import WORD_PARTS, Words

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# The tokens of two documents, with the first letter of the part of each token: w(hole), f(irst), l(ater).
WORD_PIECES = "[CLS]w un f ##believ l ##able l film w , w that w ' w s w it w ? w [SEP]w [CLS]w cafe w [UNK]w x w"
BYTE_PIECES = "[CLS]w un f believ l able l Ġfilm w , w Ġthat w 's w Ġit w ? w [SEP]w [CLS]w caf f Ã© l Ġ w s w"
UNIGRAM_PIECES = (
    "[CLS]w ▁un f believ l able l ▁film w , w ▁th f at l ' w s w ▁it w ? w [SEP]w [CLS]w ▁caf f é l ▁ w s w"
)


def build(kind: str) -> tuple[Any, list[str], str]:
    """A tokenizer, the tokens of a sequence and their parts."""
    pieces = {"WordPiece": WORD_PIECES, "BPE": BYTE_PIECES, "Unigram": UNIGRAM_PIECES}[kind]
    cells = pieces.replace("]w", "] w").split()
    tokens, parts = cells[::2], "".join(cells[1::2])
    vocabulary = list(dict.fromkeys((*SPECIAL, *tokens)))
    ids = {token: index for index, token in enumerate(vocabulary)}
    if kind == "WordPiece":
        backend = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
        backend.decoder = decoders.WordPiece()
    elif kind == "BPE":
        backend = Tokenizer(models.BPE(ids, [], unk_token="[UNK]"))
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    else:
        backend = Tokenizer(models.Unigram([(token, -1.0) for token in vocabulary], unk_id=1))
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer_class: Any = PreTrainedTokenizerFast
    names = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    return tokenizer_class(tokenizer_object=backend, **names), tokens, parts


def sequence(tokenizer: Any, tokens: list[str], padding: int = 0) -> Sequences:
    ids = np.array([tokenizer.convert_tokens_to_ids(tokens) + [tokenizer.pad_token_id] * padding], np.int32)
    return Sequences(ids, np.array([len(tokens)], np.int32), num_documents=2, num_empty=0, num_tokens=len(tokens))


def parts_of(words: Words, sequences: Sequences) -> str:
    length = int(sequences.lengths[0])
    found = words.parts(sequences, np.zeros(length, np.int64), np.arange(length))
    return "".join(WORD_PARTS[part][0] for part in found)


@pytest.mark.parametrize("kind", ["WordPiece", "BPE", "Unigram"])
def test_each_piece_of_a_word_is_recognized(kind: str) -> None:
    tokenizer, tokens, parts = build(kind)
    assert parts_of(Words(tokenizer), sequence(tokenizer, tokens)) == parts


def test_a_sequence_that_begins_inside_a_word_continues_it_and_a_word_ends_with_its_sequence() -> None:
    for kind, tokens in (("WordPiece", ["##able", "film", "un"]), ("BPE", ["able", "Ġfilm", "Ġthat"])):
        tokenizer, *_ = build(kind)
        assert parts_of(Words(tokenizer), sequence(tokenizer, tokens, padding=2)) == "lww"


@pytest.mark.parametrize(
    ("kind", "token", "text"),
    [
        ("WordPiece", "##believ", "un[believ]able film, that's it?"),
        ("WordPiece", "film", "unbelievable [film], that's it?"),
        ("WordPiece", "x", "cafe [UNK] [x]"),
        ("WordPiece", "that", "unbelievable film, [that]'s it?"),
        ("WordPiece", "s", "unbelievable film, that'[s] it?"),
        ("BPE", "un", "[un]believable film, that's it?"),
        ("BPE", "Ġfilm", "unbelievable [film], that's it?"),
        ("BPE", "Ġ", "café [Ġ]s"),
        ("Unigram", "▁film", "unbelievable [film], that's it?"),
        ("Unigram", "at", "unbelievable film, th[at]'s it?"),
        ("Unigram", "▁caf", "[caf]é s"),
    ],
)
def test_a_token_is_shown_in_brackets_in_its_document(kind: str, token: str, text: str) -> None:
    tokenizer, tokens, _ = build(kind)
    ids = sequence(tokenizer, tokens).input_ids[0]
    assert Words(tokenizer).context(ids, tokens.index(token)) == text


def test_a_long_context_is_cut_at_words() -> None:
    tokenizer, *_ = build("WordPiece")
    word = ["un", "##believ", "##able"]
    tokens = word * 4 + ["film"] + word * 4
    ids = sequence(tokenizer, tokens).input_ids[0]
    assert Words(tokenizer).context(ids, 12) == f"{'unbelievable ' * 3}[film]{' unbelievable' * 3}"
    tokens[11:12] = []  # now nine tokens before the film begin inside a word
    ids = sequence(tokenizer, tokens).input_ids[0]
    assert Words(tokenizer).context(ids, 11).startswith("unbelievable unbelievable unbelievable unbeliev [film]")
