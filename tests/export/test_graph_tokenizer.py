"""The tokenizer in the graph gives the same ids as the Hugging Face fast tokenizer."""

import random
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NUM_FUZZ = 20_000
CODE_POINTS = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]

# One text of each kind that a normalizer, a pre-tokenizer or the search for special tokens can treat differently.
BLOCKS = [
    (0x00, 0x20), (0x20, 0x7F), (0x7F, 0xA1), (0xA1, 0x250), (0x2B0, 0x370), (0x370, 0x530), (0x590, 0x700),
    (0x900, 0xE00), (0x1100, 0x1200), (0x1AB0, 0x1B80), (0x1E00, 0x2000), (0x2000, 0x2070), (0x20D0, 0x2100),
    (0x3000, 0x3100), (0x4E00, 0x5000), (0xA980, 0xAA00), (0xAC00, 0xAD00), (0xE000, 0xE020), (0xF900, 0xFB00),
    (0xFE00, 0xFE30), (0xFFF0, 0x10000), (0x1D150, 0x1D180), (0x1F1E6, 0x1F200), (0x1F300, 0x1F650),
    (0x20000, 0x20100), (0xE0000, 0xE0080), (0x10EFF8, 0x10F010), (0x10FFF0, 0x110000),
]  # fmt: skip
FRAGMENTS = [
    "[MASK]", "[MASK]", "[mask]", "[MASK", "MASK]", "[[MASK]]", "[CLS]", "[SEP]", "[PAD]", "[UNK]", "[unused3]",
    "##ing", "a [MASK] film", "the", "The", "THE", "film", "ing", "un", "believ", "able", "unaffable", "interested",
    "ed", "s", " ", " ", " ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\u2028", "\u200b", "\u200d", "\ufeff",
    "\ufffd", "\0", ".", ",", "'", "-", "!", "'s", "...", "$", "^", "`", "´", "¨", "<br />",
    "1987", "3.14", "é", "e\u0301", "É", "ﬁ", "ß", "ẞ", "İ", "I\u0307", "ı", "ΌΣΟΣ", "σς", "Å", "\u212b", "각", "北京",
    "ｆｕｌｌ", "👩\u200d👩\u200d👧", "🇩🇪", "a\u0328\u0301", "a\u0301\u0328", "\u0301", "\u1baa\u302e", "\u302e\u1baa",
    "\u0344", "नि", "ไทย", "שלום", "<covid>", "<COVID>",
]  # fmt: skip


def fuzz(seed: int, count: int) -> list[str]:
    """Texts of fragments with and without spaces, characters of every plane, and words near the maximum length."""
    numbers = random.Random(seed)

    def fragment() -> str:
        kind = numbers.random()
        if kind < 0.55:
            return numbers.choice(FRAGMENTS)
        if kind < 0.85:
            first, end = numbers.choice(BLOCKS)
            return "".join(chr(numbers.randrange(first, end)) for _ in range(numbers.randrange(1, 5)))
        if kind < 0.95:
            return numbers.choice(CODE_POINTS)
        if kind < 0.98:
            return numbers.choice(["a", "ing", "é", "the"]) * numbers.randrange(1, 60)
        return "".join(numbers.choice("abcdefgh") for _ in range(numbers.choice([99, 100, 101, 300])))

    return ["".join(fragment() for _ in range(numbers.randrange(0, 12))) for _ in range(count)]


def trained(**options: bool | None) -> Any:
    """A tokenizer whose vocabulary has pieces of fuzzed text, normalized with `options`."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(**options)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    texts = fuzz(1, 2000)
    if options["strip_accents"]:
        # Without the marks that this normalizer reorders; `why_not_in_graph` has a separate test.
        texts = ["".join(c for c in text if not unicodedata.category(c) == "Mc") for text in texts]
    learner = trainers.WordPieceTrainer(
        vocab_size=2500, special_tokens=SPECIAL, limit_alphabet=1200, show_progress=False
    )
    backend.train_from_iterator(texts, learner)
    ends = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    # The classes of BERT would replace the normalizer.
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]"
    )


@pytest.fixture(scope="module")
def uncased(shared: Path) -> Any:
    """The tokenizer of distilbert-base-uncased."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared / "models" / "distilbert-base-uncased-config")


@pytest.fixture(scope="module")
def cased(shared: Path) -> Any:
    from transformers import BertTokenizerFast

    file = shared / "models" / "distilbert-base-uncased-config" / "vocab.txt"
    return BertTokenizerFast(vocab_file=str(file), do_lower_case=False)


@pytest.fixture(scope="module")
def own(finished_run: Path) -> Any:
    """The tokenizer that a run trained."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(finished_run / "model")


@pytest.fixture(scope="module")
def trained_cased(tensorflow: None) -> Any:
    return trained(lowercase=False, strip_accents=None, clean_text=True, handle_chinese_chars=True)


@pytest.fixture(scope="module")
def trained_accents(tensorflow: None) -> Any:
    """Lower-cases, keeps accents, and has added tokens outside the WordPiece vocabulary."""
    from tokenizers import AddedToken

    tokenizer = trained(lowercase=True, strip_accents=False, clean_text=True, handle_chinese_chars=True)
    tokenizer.add_tokens([AddedToken("<covid>", normalized=False, lstrip=True, rstrip=True)])
    return tokenizer


@pytest.fixture(scope="module")
def trained_raw(tensorflow: None) -> Any:
    """Cased, strips accents, keeps control characters, and does not separate Chinese characters."""
    return trained(lowercase=False, strip_accents=True, clean_text=False, handle_chinese_chars=False)


@pytest.fixture(scope="module")
def fuzzed() -> list[str]:
    return fuzz(2, NUM_FUZZ)


TOKENIZERS = ("uncased", "cased", "own", "trained_cased", "trained_accents", "trained_raw")


@pytest.fixture(scope="module", params=TOKENIZERS)
def both(request: pytest.FixtureRequest) -> tuple[Any, Callable[[list[Any]], Any]]:
    """A Hugging Face tokenizer, and the same tokenizer in a graph."""
    tokenizer = request.getfixturevalue(request.param)
    return tokenizer, in_graph(tokenizer)


def in_graph(tokenizer: Any) -> Callable[[list[Any]], tuple[list[list[int]], list[bool]]]:
    import tensorflow as tf

    from tf_mlm.export.graph_tokenizer import GraphTokenizer, why_not_in_graph

    assert why_not_in_graph(tokenizer) == ""
    module = GraphTokenizer(tokenizer)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def tokenize(texts: Any) -> tuple[Any, Any, Any]:
        ids, is_valid = module(texts)
        return ids.values, ids.row_splits, is_valid

    def call(texts: list[Any]) -> tuple[list[list[int]], list[bool]]:
        values, splits, is_valid = (output.numpy() for output in tokenize(tf.constant(texts, tf.string)))
        return [values[i:j].tolist() for i, j in zip(splits[:-1], splits[1:], strict=True)], is_valid.tolist()

    call.module = module  # type: ignore[attr-defined]  # otherwise it is freed, and its table with it
    return call


def differences(both: tuple[Any, Any], texts: list[str]) -> Iterator[tuple[str, list[int], list[int]]]:
    """Texts whose ids differ, with the ids of both tokenizers."""
    tokenizer, tokenize = both
    for first in range(0, len(texts), 20_000):
        part = texts[first : first + 20_000]
        ours, is_valid = tokenize(part)
        assert all(is_valid)
        theirs = tokenizer(part, verbose=False)["input_ids"]
        yield from (row for row in zip(part, ours, theirs, strict=True) if row[1] != row[2])


def test_fuzzed_texts_have_the_same_ids(both: tuple[Any, Any], fuzzed: list[str]) -> None:
    assert list(differences(both, fuzzed))[:3] == []


def words_of(encoding: Any) -> list[tuple[int, int, list[int]]]:
    """The first character, the character after the last one, and the ids of each word of an encoding."""
    words: dict[int, tuple[int, int, list[int]]] = {}
    for index, word in enumerate(encoding.word_ids):
        if word is not None:
            start, end = encoding.offsets[index]
            first, _, ids = words.get(word, (start, end, []))
            words[word] = (first, end, [*ids, encoding.ids[index]])
    return list(words.values())


@pytest.mark.parametrize("both", ["uncased", "trained_cased", "trained_raw"], indirect=True)
def test_the_words_of_fuzzed_texts_have_the_same_ids_and_positions(both: tuple[Any, Any], fuzzed: list[str]) -> None:
    """The positions are not compared where the normalizer reorders combining marks: the order of the text is kept."""
    import tensorflow as tf

    tokenizer, tokenize = both
    texts = fuzzed[:2000]
    ids, starts, ends, is_valid = tf.function(tokenize.module.split_words)(tf.constant(texts))
    assert is_valid.numpy().all()
    found = zip(starts.to_list(), ends.to_list(), ids.to_list(), strict=True)
    num_compared = 0
    for text, ours, encoding in zip(texts, found, tokenizer(texts).encodings, strict=True):
        mine, theirs = list(zip(*ours, strict=True)), words_of(encoding)
        assert [word for _, _, word in mine] == [word for _, _, word in theirs]
        if unicodedata.normalize("NFD", text) == "".join(unicodedata.normalize("NFD", c) for c in text):
            assert mine == theirs, ascii(text)
            num_compared += 1
    assert num_compared > 1700


def test_the_fuzzed_texts_cover_every_kind(fuzzed: list[str]) -> None:
    assert {ord(c) >> 16 for text in fuzzed for c in text} == set(range(17))
    assert "" in fuzzed and max(len(word) for text in fuzzed for word in text.split()) > 300
    assert sum("[MASK]" in text for text in fuzzed) > NUM_FUZZ / 10


def test_the_vocabularies_contain_tokens_of_the_texts(both: tuple[Any, Any], fuzzed: list[str]) -> None:
    """Otherwise every word would be unknown, and any tokenizer would pass."""
    tokenizer, _ = both
    ids = np.concatenate(tokenizer(fuzzed[:500])["input_ids"])
    assert (ids == tokenizer.unk_token_id).mean() < 0.5
    assert len(np.unique(ids)) > 60


def test_code_points_have_the_same_ids_between_letters_and_between_spaces(both: tuple[Any, Any]) -> None:
    """The first three planes and the last one. A slow test covers all planes, one code point at a time."""
    chosen = CODE_POINTS[:0x20000] + CODE_POINTS[-0x1100:]
    rows = [chosen[first : first + 64] for first in range(0, len(chosen), 64)]
    texts = [f"a{'b a'.join(row)}b {' '.join(row)}" for row in rows]
    assert list(differences(both, texts))[:3] == []


@pytest.mark.slow
@pytest.mark.parametrize("form", ["{}", "a{}b"])
def test_every_code_point_has_the_same_ids_alone_and_between_letters(both: tuple[Any, Any], form: str) -> None:
    assert list(differences(both, [form.format(c) for c in CODE_POINTS]))[:3] == []


def load_reviews(shared: Path, split: str) -> list[str]:
    import pyarrow.parquet

    file = shared / "data" / "imdb" / "plain_text" / f"{split}-00000-of-00001.parquet"
    return pyarrow.parquet.read_table(file, columns=["text"])["text"].to_pylist()


@pytest.mark.parametrize("both", ["uncased", "cased", "own"], indirect=True)
def test_reviews_have_the_same_ids(both: tuple[Any, Any], shared: Path) -> None:
    assert list(differences(both, load_reviews(shared, "test")[::25]))[:1] == []


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "test", "unsupervised"])
@pytest.mark.parametrize("both", ["uncased", "cased", "own"], indirect=True)
def test_all_reviews_have_the_same_ids(both: tuple[Any, Any], shared: Path, split: str) -> None:
    reviews = load_reviews(shared, split)
    assert len(reviews) == {"unsupervised": 50_000}.get(split, 25_000)
    for first in range(0, len(reviews), 1000):
        assert list(differences(both, reviews[first : first + 1000]))[:1] == []


@pytest.fixture(scope="module")
def tokenize(trained_cased: Any) -> Any:
    return in_graph(trained_cased)


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(st.one_of(st.binary(max_size=6), st.text(max_size=6).map(str.encode)), min_size=1, max_size=20))
def test_invalid_utf8_is_reported_and_does_not_affect_other_texts(
    tokenize: Any, trained_cased: Any, texts: list[bytes]
) -> None:
    def decoded(text: bytes) -> str | None:
        try:
            return text.decode()
        except UnicodeDecodeError:
            return None

    ids, is_valid = tokenize(texts)
    assert is_valid == [decoded(text) is not None for text in texts]
    assert ids == trained_cased([decoded(text) or "" for text in texts])["input_ids"]


@pytest.mark.parametrize(
    "text",
    [b"\xc0\x80", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x80", b"a\xff", b"\xe2\x82"],
)  # fmt: skip
def test_overlong_surrogate_out_of_range_and_truncated_characters_are_invalid(tokenize: Any, text: bytes) -> None:
    assert tokenize(["a", text, "\ufffd"])[1] == [True, False, True]


def test_an_empty_batch_has_no_ids(tokenize: Any) -> None:
    assert tokenize([]) == ([], [])


def test_one_graph_takes_any_batch_size_and_length(tokenize: Any) -> None:
    import tensorflow as tf

    traces = []

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def count(texts: Any) -> Any:
        traces.append(texts.shape)
        return tokenize.module(texts)[0].row_lengths()

    for texts in (["a"], ["a b", ""], fuzz(3, 50)):
        assert len(count(tf.constant(texts))) == len(texts)
    assert len(traces) == 1


def test_only_core_ops_are_used(tokenize: Any) -> None:
    """The C, Go and Java loaders have only these: no Python ops and none of tensorflow_text."""
    import tensorflow as tf

    concrete = tf.function(tokenize.module.__call__).get_concrete_function(tf.TensorSpec([None], tf.string))
    graph = concrete.graph.as_graph_def()
    used = {node.op for node in graph.node} | {node.op for f in graph.library.function for node in f.node_def}
    assert "UnicodeDecode" in used
    assert not {op for op in used if "Py" in op or "Fast" in op or "Tokenize" in op}


# Reasons why a tokenizer cannot be in the graph.


def byte_level_bpe() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.BPE({"<s>": 0, "</s>": 1, "<unk>": 2, "a": 3}, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    return backend


def sentence_piece() -> Any:
    from tokenizers import Tokenizer, models

    return Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))


def other_normalizer() -> Any:
    from tokenizers import normalizers

    backend = bert()
    backend.normalizer = normalizers.NFC()
    return backend


def other_template() -> Any:
    from tokenizers import processors

    backend = bert()
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    return backend


def bert(*more: str) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocab = {token: number for number, token in enumerate([*SPECIAL, "a", *more])}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return backend


def with_added(content: str, **flags: bool) -> Any:
    from tokenizers import AddedToken

    backend = bert()
    backend.add_tokens([AddedToken("[MASK]", normalized=False), AddedToken(content, **flags)])
    return backend


def without_unknown() -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    backend = Tokenizer(models.WordPiece({"[CLS]": 2, "[SEP]": 3, "a": 0}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return backend


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (byte_level_bpe, "its tokenizer's model is BPE"),
        (sentence_piece, "its tokenizer's model is Unigram"),
        (other_normalizer, "its tokenizer's normalizer is NFC"),
        (other_template, "does not add exactly one [CLS] and one [SEP] to a text"),
        (without_unknown, "its vocabulary has no token for unknown words"),
        (lambda: with_added("covid", normalized=True), "its added token 'covid' is matched in normalized text"),
        (lambda: with_added("covid", normalized=False, single_word=True), "its added token 'covid' is"),
        (lambda: with_added("[MASK]s", normalized=False), "its added tokens '[MASK]' and '[MASK]s' can overlap"),
        (lambda: with_added("K]x", normalized=False), "its added tokens '[MASK]' and 'K]x' can overlap"),
        (lambda: bert("a\u1baa", "##\u302e"), "its vocabulary contains combining marks that the normalizer reorders"),
    ],
)
def test_a_tokenizer_that_cannot_be_in_the_graph_has_a_reason(
    tensorflow: None, build: Callable[[], Any], reason: str
) -> None:
    from transformers import PreTrainedTokenizerFast

    from tf_mlm.export.graph_tokenizer import why_not_in_graph

    special = {"cls_token": "[CLS]", "sep_token": "[SEP]"} if build not in (byte_level_bpe, sentence_piece) else {}
    assert reason in why_not_in_graph(PreTrainedTokenizerFast(tokenizer_object=build(), **special))


def test_combining_marks_of_one_class_are_supported(tensorflow: None) -> None:
    """They keep the order of the text, as does a mark that the normalizer drops."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bert("##\u1baa", "##\u0301"), cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )
    texts = ["a\u1baa\u0301", "a\u0301\u1baa", "a\u302e\u1baa", "a\u1baa\u1baa"]
    assert list(differences((tokenizer, in_graph(tokenizer)), texts)) == []
