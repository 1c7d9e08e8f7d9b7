"""BERT's tokenizer as a TensorFlow graph, with the ids of the Hugging Face tokenizer.

A SavedModel with this tokenizer takes strings and needs neither tensorflow_text nor Python.
"""

import itertools
import json
import re
from typing import Any

import numpy as np
import tensorflow as tf
from tokenizers import Tokenizer, normalizers

_NUM_CODE_POINTS = 0x110000
_SURROGATES = range(0xD800, 0xE000)  # not valid in text
_PAGE = 256
_PRIVATE_USE = range(0x10F000, 0x10FFFE)
_NO_KEY = -2


class GraphTokenizer(tf.Module):
    """Callable in a graph, and saved with it.

    BERT's normalizer and pre-tokenizer handle each code point separately, so a table built from the tokenizer replaces
    them. A code point that no token contains makes its word unknown, so all of these share one entry.
    """

    def __init__(self, tokenizer: Any):
        """`tokenizer`: a fast one for which `why_not_in_graph` returns ""."""
        super().__init__()
        backend = tokenizer.backend_tokenizer
        settings = json.loads(backend.to_str())
        vocab, prefix = settings["model"]["vocab"], settings["model"]["continuing_subword_prefix"]
        self.continuing_subword_prefix = tf.Variable(prefix, trainable=False)  # read by `fill_mask.load_served_filler`
        alphabet = set().union(*vocab)
        added = {token["content"]: token["id"] for token in settings["added_tokens"]}
        private = (chr(code) for code in _PRIVATE_USE if chr(code) not in alphabet)
        # Sentinels in the text are replaced by `unknown`, because the tokenizer drops them or does not know them.
        self._unknown = next(private)
        self._sentinels = {token: next(private) for token in added}
        entries = _replacements(backend, alphabet, self._unknown)
        for sentinel in self._sentinels.values():
            entries[ord(sentinel)] = f" {sentinel} "
        # Most pages are equal.
        pages = [tuple(entries[first : first + _PAGE]) for first in range(0, _NUM_CODE_POINTS, _PAGE)]
        page_numbers = {page: number for number, page in enumerate(dict.fromkeys(pages))}
        numbers = {entry: number for number, entry in enumerate(dict.fromkeys(itertools.chain(*page_numbers)))}
        self._entries = tf.constant(list(numbers))
        self._pages = tf.constant([[numbers[entry] for entry in page] for page in page_numbers])
        self._page_of = tf.constant([page_numbers[page] for page in pages])
        # A space, which no word contains, marks the start of a word. A token inside a word has no prefix here.
        keys = {f" {token}": id for token, id in vocab.items() if " " not in token}
        keys |= {t.removeprefix(prefix): id for t, id in vocab.items() if t.startswith(prefix) and " " not in t}
        keys |= {f" {sentinel}": added[token] for token, sentinel in self._sentinels.items()}
        keys.pop("", None)
        self._longest_key = max(len(key.encode()) for key in keys)
        self._ids = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(list(keys), np.array(list(keys.values()), np.int32)), _NO_KEY
        )
        self._unknown_id = vocab[settings["model"]["unk_token"]]
        self._max_characters = settings["model"]["max_input_chars_per_word"]
        self._first_id, self._last_id = tokenizer.cls_token_id, tokenizer.sep_token_id

    def __call__(self, texts: tf.Tensor) -> tuple[tf.RaggedTensor, tf.Tensor]:
        """Ids of each text with [CLS] and [SEP] around, int32 [batch, (length)], and whether it is valid, bool [batch].

        Args:
            texts: string [batch]. A text that is not strict UTF-8 is not valid and gets the ids of an empty text.
        """
        code_points, replaced, is_valid = self._replace(texts)
        words = tf.strings.split(
            tf.strings.unsorted_segment_join(replaced, code_points.value_rowids(), code_points.nrows())
        )
        return self.with_ends(words.with_values(self._match(words.values)).merge_dims(1, 2)), is_valid

    def with_ends(self, *parts: tf.RaggedTensor) -> tf.RaggedTensor:
        """[CLS], and each part followed by [SEP]: int32 [batch, (length)].

        Args:
            parts: ids, int32 [batch, (length)], without [CLS] and [SEP].
        """
        ends = tf.ones([parts[0].nrows(), 1], tf.int32)
        pieces = [piece for part in parts for piece in (part, ends * self._last_id)]
        return tf.concat([ends * self._first_id, *pieces], axis=1)

    def split_words(self, texts: tf.Tensor) -> tuple[tf.RaggedTensor, tf.RaggedTensor, tf.RaggedTensor, tf.Tensor]:
        """The words of each text, their ids and their positions in the text.

        Returns:
            ids: int32 [batch, (words), (pieces)], without [CLS] and [SEP].
            starts: int32 [batch, (words)], first character (code point) of each word in the text.
            ends: int32 [batch, (words)], the character after the last one of each word.
            is_valid: bool [batch]; a text that is not strict UTF-8 is not valid and has no words.
        """
        code_points, replaced, is_valid = self._replace(texts)
        rows = tf.cast(code_points.value_rowids(), tf.int32)
        # A sentinel stands for all characters of its token.
        lengths = tf.ones_like(code_points.values)
        for token, sentinel in self._sentinels.items():
            lengths = tf.where(code_points.values == ord(sentinel), len(token), lengths)
        ends = code_points.with_values(tf.cumsum(lengths))
        ends -= tf.gather(tf.concat([[0], ends.values], 0), code_points.row_starts())[:, tf.newaxis]
        # A space before or after a character separates words, as does the end of a text.
        before, after = (
            tf.cast(tf.strings.regex_full_match(replaced, pattern), tf.int32) for pattern in (" .*", ".* ")
        )
        breaks = tf.cumsum(before) + tf.cumsum(after, exclusive=True)
        kept = tf.where(tf.strings.strip(replaced) != "")[:, 0]
        replaced, rows, breaks, lengths, ends = (
            tf.gather(each, kept) for each in (tf.strings.strip(replaced), rows, breaks, lengths, ends.values)
        )
        is_first = tf.concat(
            [tf.ones_like(rows[:1]), tf.cast((breaks[1:] > breaks[:-1]) | (rows[1:] > rows[:-1]), tf.int32)], 0
        )
        word_of = tf.cumsum(is_first) - 1
        num_words = tf.reduce_sum(is_first)
        words = tf.strings.unsorted_segment_join(replaced, word_of, num_words)
        firsts = tf.where(is_first > 0)[:, 0]
        counts = tf.math.bincount(tf.gather(rows, firsts), minlength=tf.shape(texts)[0], dtype=tf.int64)
        last_ends = tf.math.segment_max(ends, word_of)

        def by_text(values: Any) -> tf.RaggedTensor:
            return tf.RaggedTensor.from_row_lengths(values, counts, validate=False)

        return by_text(self._match(words)), by_text(tf.gather(ends - lengths, firsts)), by_text(last_ends), is_valid

    def _replace(self, texts: tf.Tensor) -> tuple[tf.RaggedTensor, tf.Tensor, tf.Tensor]:
        """The code points of each text, int32 [batch, (length)], with a sentinel for each added token, and for all of
        them the replacements, string [all]; and whether a text is valid, bool [batch]."""
        is_valid = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="ignore") == texts
        texts = tf.where(is_valid, texts, "")
        texts = tf.strings.regex_replace(texts, f"[{''.join(self._sentinels.values())}]", self._unknown)
        for token, sentinel in self._sentinels.items():
            texts = tf.strings.regex_replace(texts, re.escape(token), sentinel)
        code_points = tf.strings.unicode_decode(texts, "UTF-8")
        codes = code_points.values
        places = tf.stack([tf.gather(self._page_of, codes // _PAGE), codes % _PAGE], axis=1)
        return code_points, tf.gather(self._entries, tf.gather_nd(self._pages, places)), is_valid

    def _match(self, words: tf.Tensor) -> tf.RaggedTensor:
        """Ids of each word, int32 [words, (pieces)], by longest match. Each step finds one piece of every word."""
        # Columns of id + 1: 0 after the end of a word, negative for an unknown word.
        is_too_long = tf.strings.length(words, unit="UTF8_CHAR") > self._max_characters
        pieces = tf.where(is_too_long, -1, 0)[:, tf.newaxis]
        unmatched = tf.where(~is_too_long)

        def match_next(rest: tf.Tensor, unmatched: tf.Tensor, pieces: tf.Tensor) -> tuple[tf.Tensor, ...]:
            num_bytes = tf.strings.length(rest)
            lengths = tf.range(tf.minimum(self._longest_key, tf.reduce_max(num_bytes)), 0, -1)
            # A cut inside a character matches no key, since keys are valid UTF-8.
            starts = tf.strings.substr(
                rest[:, tf.newaxis], tf.zeros_like(lengths)[tf.newaxis], lengths[tf.newaxis], unit="BYTE"
            )
            ids = self._ids.lookup(starts)
            longest = tf.argmax(tf.cast(ids != _NO_KEY, tf.int32), axis=1)
            ids = tf.gather(ids, longest, batch_dims=1)
            column = tf.scatter_nd(unmatched, ids + 1, tf.shape(pieces, tf.int64)[:1])
            rest = tf.strings.substr(rest, tf.minimum(tf.gather(lengths, longest), num_bytes), num_bytes)
            continues = (ids != _NO_KEY) & (rest != "")
            return (
                tf.boolean_mask(rest, continues),
                tf.boolean_mask(unmatched, continues),
                tf.concat([pieces, column[:, tf.newaxis]], axis=1),
            )

        rest = tf.strings.join([" ", tf.gather_nd(words, unmatched)])
        _, _, pieces = tf.while_loop(
            lambda rest, *_: tf.size(rest) > 0,
            match_next,
            [rest, unmatched, pieces],
            shape_invariants=[tf.TensorShape([None]), tf.TensorShape([None, 1]), tf.TensorShape([None, None])],
        )
        is_unknown = tf.reduce_any(pieces < 0, axis=1, keepdims=True)
        only_unknown = tf.one_hot(0, tf.shape(pieces)[1], self._unknown_id + 1, 0)
        pieces = tf.where(is_unknown, only_unknown, pieces)
        is_piece = pieces > 0
        return tf.RaggedTensor.from_row_lengths(
            tf.boolean_mask(pieces, is_piece) - 1, tf.math.count_nonzero(is_piece, axis=1), validate=False
        )


def why_not_in_graph(tokenizer: Any) -> str:
    """Why `tokenizer`, a fast one, cannot be a GraphTokenizer, as a clause; "" if it can."""
    backend = tokenizer.backend_tokenizer
    settings = json.loads(backend.to_str())
    parts = {"model": "WordPiece", "normalizer": "BertNormalizer", "pre_tokenizer": "BertPreTokenizer"}
    for part, kind in parts.items():
        found = (settings[part] or {}).get("type")
        if found != kind:
            return f"its tokenizer's {part} is {found}, and the graph supports only BERT's {kind}"
    if backend.encode("").ids != [tokenizer.cls_token_id, tokenizer.sep_token_id]:
        return "its tokenizer does not add exactly one [CLS] and one [SEP] to a text"
    if settings["model"]["unk_token"] not in settings["model"]["vocab"]:
        return "its vocabulary has no token for unknown words"
    added = settings["added_tokens"]
    # lstrip and rstrip remove only white space, which WordPiece ignores.
    for token in added:
        if token["normalized"] or token["single_word"]:
            return f"its added token {token['content']!r} is matched in normalized text or as a whole word"
    contents = [token["content"] for token in added]
    for one in contents:
        for other in contents:
            if one is not other and (one in other or any(one.endswith(other[:n]) for n in range(1, len(other)))):
                return f"its added tokens {one!r} and {other!r} can overlap"
    # Unicode orders combining marks by class. The marks of the vocabulary must not be reordered.
    marks = [c for c in set().union(*settings["model"]["vocab"]) if _moves(c) and c in _normalized(backend, c)]
    if any(_normalized(backend, one + other) != one + other for one in marks for other in marks):
        return "its vocabulary contains combining marks that the normalizer reorders"
    return ""


def _moves(character: str) -> bool:
    """Whether Unicode's canonical order moves `character` after U+0334, whose class is the lowest."""
    return normalizers.NFD().normalize_str(f"{character}\u0334").startswith("\u0334")


def _normalized(backend: Tokenizer, text: str) -> str:
    """The normal form of `text` after a letter."""
    return backend.normalizer.normalize_str(f"a{text}")[1:]


def _replacements(backend: Tokenizer, alphabet: set[str], unknown: str) -> list[str]:
    """The replacement of each code point, with spaces at word ends; `unknown` for characters outside `alphabet`."""
    entries = [""] * _NUM_CODE_POINTS
    kept = alphabet - {" "}
    for first in range(0, _NUM_CODE_POINTS, _PAGE):
        # Zeros separate the code points: no character combines with them or is normalized to them.
        codes = [code for code in range(first, first + _PAGE) if code not in _SURROGATES and code != ord("0")]
        if not codes:
            continue
        row = f"0{'0'.join(map(chr, codes))}0"
        pieces = backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(row))
        if len(pieces) == 1 and pieces[0][0] == row and kept.isdisjoint(row[1::2]):
            entries[first : first + _PAGE] = [unknown] * _PAGE  # the fast path, for most pages
            continue
        found = " ".join(piece for piece, _ in pieces).split("0")[1:-1]
        for code, text in zip(codes, found, strict=True):
            entries[code] = "".join(c if c in kept or c == " " else unknown for c in text)
    entries[ord("0")] = "0" if "0" in kept else unknown
    return entries
