"""Tests of packing documents into sequences, of the cuts, and of the cache."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import filelock
import numpy as np
import pytest
from datasets.fingerprint import Hasher
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

from tests.data.conftest import CLS, PAD, SEP, SPECIAL, UNK
from tf_mlm.config import DataConfig
from tf_mlm.data import sequences as module
from tf_mlm.data.sequences import Sequences, load_sequences, unigram_counts, unigram_entropy
from tf_mlm.errors import Refused


def documents(*texts: str | None) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": list(texts)}, datasets.Features({"text": datasets.Value("string")}))


def load(
    tokenizer: PreTrainedTokenizerFast, *texts: str | None, fingerprint: str = "print", **config: Any
) -> Sequences:
    data_config = DataConfig(**{"sequence_length": 8} | config)
    return load_sequences(documents(*texts), fingerprint, tokenizer, data_config, "training")


def words(*numbers: int) -> str:
    return " ".join(map(str, numbers))


# --- cuts


def test_documents_are_joined_and_cut_and_the_last_remainder_is_padded(
    cache: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    found = load(tokenizer, words(10, 11, 12, 13, 14), words(20, 21), words(30, 31, 32, 33, 34, 35), words(40))
    assert found.input_ids.tolist() == [
        [CLS, 10, 11, 12, 13, 14, SEP, CLS],
        [20, 21, SEP, CLS, 30, 31, 32, 33],
        [34, 35, SEP, CLS, 40, SEP, PAD, PAD],
    ]
    assert found.lengths.tolist() == [8, 8, 6]
    assert (found.num_documents, found.num_empty, found.num_tokens) == (4, 0, 22)
    assert found.input_ids.dtype == found.lengths.dtype == np.int32


def test_no_row_of_padding_is_added_where_the_last_sequence_is_full(
    cache: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    found = load(tokenizer, words(*range(10, 16)), words(*range(20, 26)))
    assert found.input_ids.tolist() == [[CLS, *range(10, 16), SEP], [CLS, *range(20, 26), SEP]]
    assert found.lengths.tolist() == [8, 8]


def test_a_corpus_shorter_than_a_sequence_is_padded(cache: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    found = load(tokenizer, "7")
    assert found.input_ids.tolist() == [[CLS, 7, SEP, *[PAD] * 5]]
    assert found.lengths.tolist() == [3]


def test_the_remainder_of_a_batch_of_documents_continues_in_the_next(
    cache: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Trap 15: `group_texts` of transformers drops it after every 1,000 documents."""
    texts = [words(10 + number % 80) for number in range(2003)]
    found = load(tokenizer, *texts, sequence_length=64)
    joined = [token for number in range(2003) for token in (CLS, 10 + number % 80, SEP)]
    assert found.num_tokens == len(joined) == found.lengths.sum() == 6009
    real = np.arange(64) < found.lengths[:, None]
    assert found.input_ids[real].tolist() == joined
    assert found.lengths.tolist() == [64] * 93 + [57]
    assert (found.input_ids[~real] == PAD).all()


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.integers(5, 99), min_size=1, max_size=30), min_size=1, max_size=20),
    st.integers(8, 40),
    st.booleans(),
)
def test_tokens_in_are_tokens_out(
    tokenizer: PreTrainedTokenizerFast, numbers: list[list[int]], length: int, line_by_line: bool
) -> None:
    texts = [words(*each) for each in numbers]
    found = load(tokenizer, *texts, sequence_length=length, line_by_line=line_by_line, fingerprint=str(numbers))
    real = np.arange(length) < found.lengths[:, None]
    packed = found.input_ids[real]
    assert found.num_tokens == len(packed)
    assert packed[~np.isin(packed, [CLS, SEP])].tolist() == [number for each in numbers for number in each]
    if not line_by_line:
        assert found.num_tokens == sum(len(each) + 2 for each in numbers)


def test_padding_and_truncation_of_the_given_tokenizer_are_ignored(
    cache: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=7, pad_id=PAD, pad_token="[PAD]")
    found = load(tokenizer, words(10, 11, 12, 13))
    assert found.input_ids.tolist() == [[CLS, 10, 11, 12, 13, SEP, PAD, PAD]] and found.lengths.tolist() == [6]


# --- line by line


def test_line_by_line_a_long_document_continues_in_the_next_sequences(
    cache: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    found = load(tokenizer, words(*range(10, 24)), words(30, 31), line_by_line=True)
    assert found.input_ids.tolist() == [
        [CLS, 10, 11, 12, 13, 14, 15, SEP],
        [CLS, 16, 17, 18, 19, 20, 21, SEP],
        [CLS, 22, 23, SEP, *[PAD] * 4],
        [CLS, 30, 31, SEP, *[PAD] * 4],
    ]
    assert found.lengths.tolist() == [8, 8, 4, 4]
    assert (found.num_documents, found.num_tokens) == (2, 24)


def test_line_by_line_a_long_document_may_be_truncated(cache: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    found = load(tokenizer, words(*range(10, 24)), words(30, 31), line_by_line=True, overflow="truncate")
    assert found.input_ids.tolist() == [
        [CLS, 10, 11, 12, 13, 14, 15, SEP],
        [CLS, 30, 31, SEP, *[PAD] * 4],
    ]
    assert found.lengths.sum() == 12
    assert (found.num_documents, found.num_tokens) == (2, 12 + 8)  # including the tokens cut off


def test_the_tokenizer_has_no_truncation_afterwards(cache: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    load(tokenizer, words(10), line_by_line=True)
    assert tokenizer.backend_tokenizer.truncation is None


# --- starts of the documents


def test_the_starts_of_documents_are_kept_only_with_isolate_documents(
    cache: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    texts = [words(10, 11, 12, 13, 14), words(20, 21), words(*range(30, 42)), words(40)]
    found = load(tokenizer, *texts, isolate_documents=True)
    assert found.document_starts is not None and found.document_starts.dtype == np.uint8
    assert found.document_starts.tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 1],
        [0, 0, 0, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],  # the third document continues
        [0, 1, 0, 0, 0, 0, 0, 0],  # four tokens of padding
    ]
    plain = load(tokenizer, *texts)
    assert plain.document_starts is None
    np.testing.assert_array_equal(plain.input_ids, found.input_ids)


def test_a_start_token_in_the_text_starts_no_document(cache: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    found = load(tokenizer, "10 [CLS] 11", "[CLS] 12", isolate_documents=True)
    assert found.input_ids.tolist() == [[CLS, 10, CLS, 11, SEP, CLS, CLS, 12], [SEP, *[PAD] * 7]]
    assert found.document_starts is not None
    assert found.document_starts.tolist() == [[1, 0, 0, 0, 0, 1, 0, 0], [0] * 8]


def test_long_documents_and_many_batches_of_documents_have_one_start_each(
    cache: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [words(*range(10, 11 + number % 80)) for number in range(2003)]
    whole = load(tokenizer, *texts, isolate_documents=True)
    monkeypatch.setattr(module, "_CHARACTERS_PER_BATCH", 100)
    parts = load(tokenizer, *texts, isolate_documents=True, fingerprint="in parts")
    assert whole.document_starts is not None and parts.document_starts is not None
    np.testing.assert_array_equal(whole.document_starts, parts.document_starts)
    assert whole.document_starts.shape == whole.input_ids.shape
    np.testing.assert_array_equal(whole.document_starts == 1, whole.input_ids == CLS)


def test_documents_without_tokens_have_no_start(cache: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    from tokenizers import normalizers, processors

    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    found = load(tokenizer, "\u200b", words(10, 11), "\u200b", words(12), isolate_documents=True)
    assert found.input_ids.tolist() == [[10, 11, 12, *[PAD] * 5]]
    assert found.document_starts is not None and found.document_starts.tolist() == [[1, 0, 1, 0, 0, 0, 0, 0]]


# --- empty documents


@pytest.mark.parametrize("line_by_line", [False, True])
def test_documents_without_text_are_skipped_and_counted(
    cache: Path, tokenizer: PreTrainedTokenizerFast, line_by_line: bool
) -> None:
    found = load(tokenizer, "", words(10), None, " \n\t\u2003", words(11), line_by_line=line_by_line)
    assert (found.num_documents, found.num_empty) == (2, 3)
    assert found.num_tokens == found.lengths.sum() == 6
    assert found.input_ids[found.input_ids >= 5].tolist() == [10, 11]


@pytest.mark.parametrize("texts", [[], ["", None, "  "]])
def test_no_text_at_all_is_refused(cache: Path, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> None:
    with pytest.raises(Refused) as refused:
        load(tokenizer, *texts)
    assert str(refused.value) == "data.dataset: the training documents contain no text; pass a dataset with text"


def test_text_without_tokens_is_refused(cache: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    from tokenizers import normalizers, processors

    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    with pytest.raises(
        Refused, match="^data.dataset: the training documents contain no text; pass a dataset with text$"
    ):
        load(tokenizer, "\u200b\u200b", "\u200b")


# --- caps


def test_a_cap_draws_rows_by_seed_in_ascending_order_each_once(cache: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    found = load(tokenizer, *(words(*range(10, 16)) for _ in range(300)))
    drawn = found.draw_rows(100, seed=7)
    assert len(drawn) == 100 and (np.diff(drawn) > 0).all() and 0 <= drawn[0] and drawn[-1] < 300
    np.testing.assert_array_equal(found.draw_rows(100, seed=7), drawn)
    assert found.draw_rows(100, seed=8).tolist() != drawn.tolist()
    assert found.draw_rows(100, seed=0).tolist() != drawn.tolist()
    assert drawn[-1] > 250 and drawn[0] < 50  # from the whole corpus


@pytest.mark.parametrize("cap", [0, 5, 6])
def test_a_cap_of_0_or_above_the_number_takes_all_rows(
    cache: Path, tokenizer: PreTrainedTokenizerFast, cap: int
) -> None:
    found = load(tokenizer, *(words(*range(10, 16)) for _ in range(5)))
    assert found.draw_rows(cap, seed=1).tolist() == [0, 1, 2, 3, 4]


# --- the cache


def folders(cache: Path) -> list[Path]:
    """The directories of the cache, without lock files."""
    return sorted(path for path in (cache / "tf_mlm").iterdir() if path.is_dir())


@pytest.fixture
def tokenized(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The text of each call that tokenized."""
    done = []
    write = module._write

    def record(
        folder: Path, documents: datasets.Dataset, tokenizer: PreTrainedTokenizerFast, config: Any, description: Any
    ) -> None:
        done.append(" ".join(text for text in documents["text"]))
        write(folder, documents, tokenizer, config, description)

    monkeypatch.setattr(module, "_write", record)
    return done


def test_a_second_call_reads_the_cache(cache: Path, tokenizer: PreTrainedTokenizerFast, tokenized: list[str]) -> None:
    first, second = load(tokenizer, words(10, 11)), load(tokenizer, words(10, 11))
    assert tokenized == ["10 11"]
    np.testing.assert_array_equal(first.input_ids, second.input_ids)
    assert (second.num_documents, second.num_tokens) == (1, 4)


@pytest.mark.parametrize(
    "change",
    [{"fingerprint": "other"}, {"sequence_length": 9}, {"line_by_line": True}, {"isolate_documents": True}],
    ids=lambda change: [*change][0],
)
def test_a_change_tokenizes_again(
    cache: Path, tokenizer: PreTrainedTokenizerFast, tokenized: list[str], change: dict[str, Any]
) -> None:
    load(tokenizer, words(10, 11))
    load(tokenizer, words(10, 11), **change)
    load(tokenizer, words(10, 11), **change)
    assert len(tokenized) == 2


def test_a_cache_from_before_isolate_documents_is_still_read(cache: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    load(tokenizer, words(10, 11))
    expected = Hasher.hash(("2", "print", tokenizer.backend_tokenizer.to_str(), 8, False, "split"))
    assert [folder.name for folder in folders(cache)] == [f"sequences-{expected}"]
    assert {file.name for file in folders(cache)[0].iterdir()} == {"input_ids.bin", "lengths.bin", "facts.json"}


def test_another_overflow_or_tokenizer_tokenizes_again(
    cache: Path, tokenizer: PreTrainedTokenizerFast, tokenized: list[str]
) -> None:
    load(tokenizer, words(10), line_by_line=True)
    load(tokenizer, words(10), line_by_line=True, overflow="truncate")
    tokenizer.add_tokens("film")
    load(tokenizer, words(10), line_by_line=True)
    assert len(tokenized) == 3


def test_the_sequences_are_memory_mapped_and_cannot_be_written_to(
    cache: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    found = load(tokenizer, words(10, 11))
    assert isinstance(found.input_ids, np.memmap) and not found.input_ids.flags.writeable
    assert isinstance(found.lengths, np.memmap)


def test_an_exception_leaves_no_incomplete_cache(
    cache: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [words(*range(10, 16)) for _ in range(1500)]

    def stop_after_one(batches: Iterator[list[str]], total: int, description: str) -> Iterator[list[str]]:
        yield next(batches)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "_with_bar", stop_after_one)
        with pytest.raises(KeyboardInterrupt):
            load(tokenizer, *texts)
    assert folders(cache) == []
    assert len(load(tokenizer, *texts).input_ids) == 1500
    assert [folder.name.partition("-")[0] for folder in folders(cache)] == ["sequences"]


def test_a_second_process_may_finish_first(
    cache: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = module._write

    def write_twice(*arguments: Any) -> None:
        write(*arguments)
        write(*arguments)

    monkeypatch.setattr(module, "_write", write_twice)
    assert load(tokenizer, words(10)).input_ids.tolist() == [[CLS, 10, SEP, *[PAD] * 5]]
    assert len(folders(cache)) == 1


# --- unigrams


def test_unigram_counts_exclude_only_padding(cache: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    found = load(tokenizer, words(10, 10, 11), "unknown", words(99))
    counts = unigram_counts(found, 100)
    assert counts.dtype == np.int64
    assert {token: count for token, count in enumerate(counts.tolist()) if count} == {
        10: 2, 11: 1, 99: 1, UNK: 1, CLS: 3, SEP: 3,
    }  # fmt: skip


def test_unigram_counts_cover_more_rows_than_one_chunk() -> None:
    count = 25_003
    found = Sequences(np.tile(np.array([5, 6, 7], np.int32), (count, 1)), np.full(count, 2, np.int32), 0, 0, 0)
    assert unigram_counts(found, 8).tolist() == [0, 0, 0, 0, 0, count, count, 0]


def test_unigram_entropy_is_that_of_the_ordinary_tokens_in_nats() -> None:
    counts = np.zeros(100, np.int64)
    counts[SPECIAL] = 1000
    counts[10], counts[11], counts[12] = 2, 1, 1
    assert unigram_entropy(counts, SPECIAL) == pytest.approx(1.5 * math.log(2), rel=1e-12)
    counts[10:12] = 0
    assert unigram_entropy(counts, SPECIAL) == 0


def test_incomplete_entries_of_a_kill_are_removed_from_the_cache_and_others_are_kept(
    cache: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    load(tokenizer, words(10, 11))
    (folder,) = folders(cache)
    folder.rename(folder.with_name(f"{folder.name}.x1y2"))
    other = folder.with_name("sequences-other.x1y2")
    other.mkdir()
    found = load(tokenizer, words(10, 11))
    assert found.lengths.tolist() == [4]
    assert folders(cache) == sorted([folder, other])


# --- long documents


def fast_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A small tokenizer with the normalizer and the pre-tokenizer of a family of models."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    text = ["a film about the sea, isn't it", "naïve 海 films and 12 seas", "the end of the film"]
    trainer: Any
    if kind == "BERT":
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=special)
    elif kind == "RoBERTa":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    else:
        backend = Tokenizer(models.Unigram())
        backend.normalizer = normalizers.Sequence(
            [normalizers.Replace("``", '"'), normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(),
             normalizers.Replace(Regex(" {2,}"), " ")]
        )  # fmt: skip
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
        trainer = trainers.UnigramTrainer(vocab_size=80, special_tokens=special, unk_token="[UNK]")
    backend.train_from_iterator(text, trainer)
    ids = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token=AddedToken("[MASK]", lstrip=True),
    )  # fmt: skip


tricky_texts = st.lists(
    st.sampled_from(
        [" ", " ", "  ", "\n", "\t", "\u00a0", "\u0301", "\u0600", "\x1c", "\x00", "film", "a", "'s", "12", ".", "!",
         "\u2003", "ï", "¨", "海", "🎬", "[MASK]", "[SEP]", "``", "\u200b"]
    ),
    min_size=1,
    max_size=60,
).map("".join)  # fmt: skip


@pytest.mark.parametrize("kind", ["BERT", "RoBERTa", "ALBERT"])
def test_a_document_tokenized_in_parts_has_the_ids_of_the_whole(kind: str) -> None:
    tokenizer = fast_tokenizer(kind)
    assert module.can_be_split(tokenizer)

    @settings(deadline=None, max_examples=300)
    @given(tricky_texts, st.integers(1, 10), st.sampled_from([None, 8]))
    def check(text: str, characters: int, max_length: int | None) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_CHARACTERS_PER_BATCH", characters)
            backend = tokenizer.backend_tokenizer
            backend.no_truncation()
            if max_length:
                backend.enable_truncation(max_length)
            whole = backend.encode(text)
            found = module._encode_long(text, tokenizer, max_length)
            assert found.ids.tolist() == whole.ids
            assert [each.ids.tolist() for each in found.overflowing] == [each.ids for each in whole.overflowing]

    check()


@pytest.mark.parametrize("line_by_line", [False, True])
@pytest.mark.parametrize("overflow", ["split", "truncate"])
def test_long_documents_give_the_same_sequences_as_short_batches_do(
    cache: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, line_by_line: bool, overflow: str
) -> None:
    """The special tokens come from the post-processor, also for a tokenizer without its own class."""
    texts = [words(*range(10, 90)), "7", words(*range(20, 25)), words(*range(5, 99))]
    whole = load(tokenizer, *texts, line_by_line=line_by_line, overflow=overflow)
    monkeypatch.setattr(module, "_CHARACTERS_PER_BATCH", 20)
    parts = load(tokenizer, *texts, line_by_line=line_by_line, overflow=overflow, fingerprint="in parts")
    assert parts.input_ids.tolist() == whole.input_ids.tolist()
    assert parts.lengths.tolist() == whole.lengths.tolist()
    assert parts.num_tokens == whole.num_tokens


def test_the_text_tokenized_at_a_time_is_bounded(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHARACTERS_PER_BATCH", 30)
    text = words(*range(10, 99))
    parts = list(module._parts(text))
    assert "".join(parts) == text and max(map(len, parts)) <= 33
    batches = list(module.encode(["10 11 12 13"] * 100, tokenizer, None))
    assert max(map(len, batches)) == 3 and sum(map(len, batches)) == 100


def test_texts_are_not_divided_if_tokens_may_cross_a_space() -> None:
    from tokenizers import normalizers, pre_tokenizers

    def is_split(**changes: Any) -> bool:
        tokenizer = fast_tokenizer("RoBERTa")
        for name, value in changes.items():
            setattr(tokenizer.backend_tokenizer, name, value)
        return module.can_be_split(tokenizer)

    assert is_split()
    assert not is_split(pre_tokenizer=pre_tokenizers.ByteLevel(use_regex=False))
    assert not is_split(pre_tokenizer=pre_tokenizers.Metaspace())
    assert not is_split(normalizer=normalizers.Prepend("x"))
    first = pre_tokenizers.Metaspace(prepend_scheme="first")
    assert not is_split(pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), first]))
    spaced = fast_tokenizer("BERT")
    spaced.add_tokens(["new york"])
    assert not module.can_be_split(spaced)
    stripping = fast_tokenizer("BERT")
    stripping.add_tokens([AddedToken("film", rstrip=True)])
    assert not module.can_be_split(stripping)


def test_a_process_waits_for_another_one_that_tokenizes_the_same_documents(
    cache: Path, tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    load(tokenizer, "10 11 12")
    (folder,) = (path for path in (cache / "tf_mlm").iterdir() if path.is_dir())
    shutil.rmtree(folder)  # as before the first process wrote it
    message = (
        "another process has been tokenizing the training documents for more than 0.001 minutes; stop it, or raise"
    )
    with filelock.FileLock(f"{folder}.lock"), pytest.raises(Refused, match=message):
        load(tokenizer, "10 11 12", wait_minutes=0.001)
    assert "another process is tokenizing the training documents" in capsys.readouterr().out
    assert load(tokenizer, "10 11 12").num_documents == 1
