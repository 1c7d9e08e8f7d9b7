"""Claims about cutting documents into sequences: every token is kept, where the cuts fall, and what is cached."""

import math

import datasets
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.conftest import CLS, PAD, SEP, SPECIAL, UNK
from tf_mlm.config import DataConfig
from tf_mlm.data import sequences as module
from tf_mlm.data.sequences import Sequences, load_sequences, unigram_counts, unigram_entropy
from tf_mlm.errors import Refused


def documents(*texts: str | None) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": list(texts)}, datasets.Features({"text": datasets.Value("string")}))


def load(tokenizer, *texts: str | None, fingerprint: str = "print", **config) -> Sequences:
    config = DataConfig(**{"sequence_length": 8} | config)
    return load_sequences(documents(*texts), fingerprint, tokenizer, config, "training")


def words(*numbers: int) -> str:
    return " ".join(map(str, numbers))


# --- where the cuts fall


def test_documents_are_joined_and_cut_and_the_last_remainder_is_padded(cache, tokenizer):
    found = load(tokenizer, words(10, 11, 12, 13, 14), words(20, 21), words(30, 31, 32, 33, 34, 35), words(40))
    assert found.input_ids.tolist() == [
        [CLS, 10, 11, 12, 13, 14, SEP, CLS],
        [20, 21, SEP, CLS, 30, 31, 32, 33],
        [34, 35, SEP, CLS, 40, SEP, PAD, PAD],
    ]
    assert found.lengths.tolist() == [8, 8, 6]
    assert (found.num_documents, found.num_empty, found.num_tokens) == (4, 0, 22)
    assert found.input_ids.dtype == found.lengths.dtype == np.int32


def test_no_row_of_padding_is_added_where_the_last_sequence_is_full(cache, tokenizer):
    found = load(tokenizer, words(*range(10, 16)), words(*range(20, 26)))
    assert found.input_ids.tolist() == [[CLS, *range(10, 16), SEP], [CLS, *range(20, 26), SEP]]
    assert found.lengths.tolist() == [8, 8]


def test_a_corpus_shorter_than_a_sequence_is_padded_not_refused(cache, tokenizer):
    found = load(tokenizer, "7")
    assert found.input_ids.tolist() == [[CLS, 7, SEP, *[PAD] * 5]]
    assert found.lengths.tolist() == [3]


def test_the_remainder_of_a_batch_of_documents_goes_on_in_the_next(cache, tokenizer):
    """Trap 15: the usual recipe drops it after every 1,000 documents."""
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
def test_tokens_in_are_tokens_out(tokenizer, numbers, length, line_by_line):
    texts = [words(*each) for each in numbers]
    found = load(tokenizer, *texts, sequence_length=length, line_by_line=line_by_line, fingerprint=str(numbers))
    real = np.arange(length) < found.lengths[:, None]
    packed = found.input_ids[real]
    assert found.num_tokens == len(packed)
    assert packed[~np.isin(packed, [CLS, SEP])].tolist() == [number for each in numbers for number in each]
    if not line_by_line:
        assert found.num_tokens == sum(len(each) + 2 for each in numbers)


def test_the_callers_padding_and_truncation_do_not_reach_the_sequences(cache, tokenizer):
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=7, pad_id=PAD, pad_token="[PAD]")
    found = load(tokenizer, words(10, 11, 12, 13))
    assert found.input_ids.tolist() == [[CLS, 10, 11, 12, 13, SEP, PAD, PAD]] and found.lengths.tolist() == [6]


# --- line by line


def test_line_by_line_a_long_document_goes_on_in_further_sequences(cache, tokenizer):
    found = load(tokenizer, words(*range(10, 24)), words(30, 31), line_by_line=True)
    assert found.input_ids.tolist() == [
        [CLS, 10, 11, 12, 13, 14, 15, SEP],
        [CLS, 16, 17, 18, 19, 20, 21, SEP],
        [CLS, 22, 23, SEP, *[PAD] * 4],
        [CLS, 30, 31, SEP, *[PAD] * 4],
    ]
    assert found.lengths.tolist() == [8, 8, 4, 4]
    assert (found.num_documents, found.num_tokens) == (2, 24)


def test_line_by_line_a_long_document_may_be_truncated(cache, tokenizer):
    found = load(tokenizer, words(*range(10, 24)), words(30, 31), line_by_line=True, overflow="truncate")
    assert found.input_ids.tolist() == [
        [CLS, 10, 11, 12, 13, 14, 15, SEP],
        [CLS, 30, 31, SEP, *[PAD] * 4],
    ]
    assert found.lengths.sum() == 12
    assert (found.num_documents, found.num_tokens) == (2, 12 + 8)  # what was cut off is told


def test_the_tokenizer_is_handed_back_without_truncation(cache, tokenizer):
    load(tokenizer, words(10), line_by_line=True)
    assert tokenizer.backend_tokenizer.truncation is None


# --- empty documents


@pytest.mark.parametrize("line_by_line", [False, True])
def test_documents_without_text_are_left_out_and_counted(cache, tokenizer, line_by_line):
    found = load(tokenizer, "", words(10), None, " \n\t\u2003", words(11), line_by_line=line_by_line)
    assert (found.num_documents, found.num_empty) == (2, 3)
    assert found.num_tokens == found.lengths.sum() == 6
    assert found.input_ids[found.input_ids >= 5].tolist() == [10, 11]


@pytest.mark.parametrize("texts", [[], ["", None, "  "]])
def test_no_text_at_all_is_refused(cache, tokenizer, texts):
    with pytest.raises(Refused) as refused:
        load(tokenizer, *texts)
    assert str(refused.value) == "data.dataset: the training documents hold no text; name data with text in it"


def test_text_of_which_the_tokenizer_makes_nothing_is_refused(cache, tokenizer):
    from tokenizers import normalizers, processors

    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    with pytest.raises(Refused, match="^data.dataset: the training documents hold no text; name data with text in it$"):
        load(tokenizer, "\u200b\u200b", "\u200b")


# --- caps


def test_a_cap_draws_rows_by_seed_in_ascending_order_each_once(cache, tokenizer):
    found = load(tokenizer, *(words(*range(10, 16)) for _ in range(300)))
    drawn = found.draw_rows(100, seed=7)
    assert len(drawn) == 100 and (np.diff(drawn) > 0).all() and 0 <= drawn[0] and drawn[-1] < 300
    np.testing.assert_array_equal(found.draw_rows(100, seed=7), drawn)
    assert found.draw_rows(100, seed=8).tolist() != drawn.tolist()
    assert found.draw_rows(100, seed=0).tolist() != drawn.tolist()
    assert drawn[-1] > 250 and drawn[0] < 50  # from all over


@pytest.mark.parametrize("cap", [0, 5, 6])
def test_a_cap_of_0_or_beyond_all_takes_all(cache, tokenizer, cap):
    found = load(tokenizer, *(words(*range(10, 16)) for _ in range(5)))
    assert found.draw_rows(cap, seed=1).tolist() == [0, 1, 2, 3, 4]


# --- the cache


def folders(cache) -> list:
    """Of the cache, without the files that lock them."""
    return sorted(path for path in (cache / "tf_mlm").iterdir() if path.is_dir())


@pytest.fixture
def tokenised(monkeypatch) -> list[str]:
    """What was tokenised: the description of each call that did."""
    done = []
    write = module._write

    def record(folder, documents, tokenizer, config, description):
        done.append(" ".join(text for text in documents["text"]))
        write(folder, documents, tokenizer, config, description)

    monkeypatch.setattr(module, "_write", record)
    return done


def test_a_second_time_nothing_is_tokenised(cache, tokenizer, tokenised):
    first, second = load(tokenizer, words(10, 11)), load(tokenizer, words(10, 11))
    assert tokenised == ["10 11"]
    np.testing.assert_array_equal(first.input_ids, second.input_ids)
    assert (second.num_documents, second.num_tokens) == (1, 4)


@pytest.mark.parametrize(
    "change",
    [{"fingerprint": "other"}, {"sequence_length": 9}, {"line_by_line": True}],
    ids=lambda change: [*change][0],
)
def test_a_change_is_tokenised_anew(cache, tokenizer, tokenised, change):
    load(tokenizer, words(10, 11))
    load(tokenizer, words(10, 11), **change)
    load(tokenizer, words(10, 11), **change)
    assert len(tokenised) == 2


def test_another_overflow_or_tokenizer_is_tokenised_anew(cache, tokenizer, tokenised):
    load(tokenizer, words(10), line_by_line=True)
    load(tokenizer, words(10), line_by_line=True, overflow="truncate")
    tokenizer.add_tokens("film")
    load(tokenizer, words(10), line_by_line=True)
    assert len(tokenised) == 3


def test_the_sequences_are_memory_mapped_and_cannot_be_written_to(cache, tokenizer):
    found = load(tokenizer, words(10, 11))
    assert isinstance(found.input_ids, np.memmap) and not found.input_ids.flags.writeable
    assert isinstance(found.lengths, np.memmap)


def test_an_exception_leaves_nothing_half_written_and_the_next_time_is_whole(cache, tokenizer, monkeypatch):
    texts = [words(*range(10, 16)) for _ in range(1500)]

    def stop_after_one(batches, total, description):
        yield next(batches)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "_with_bar", stop_after_one)
        with pytest.raises(KeyboardInterrupt):
            load(tokenizer, *texts)
    assert folders(cache) == []
    assert len(load(tokenizer, *texts).input_ids) == 1500
    assert [folder.name.partition("-")[0] for folder in folders(cache)] == ["sequences"]


def test_a_second_process_that_finishes_first_does_no_harm(cache, tokenizer, monkeypatch):
    write = module._write

    def write_twice(*arguments):
        write(*arguments)
        write(*arguments)

    monkeypatch.setattr(module, "_write", write_twice)
    assert load(tokenizer, words(10)).input_ids.tolist() == [[CLS, 10, SEP, *[PAD] * 5]]
    assert len(folders(cache)) == 1


# --- unigrams


def test_unigram_counts_leave_padding_out_and_count_every_other_token(cache, tokenizer):
    found = load(tokenizer, words(10, 10, 11), "unknown", words(99))
    counts = unigram_counts(found, 100)
    assert counts.dtype == np.int64
    assert {token: count for token, count in enumerate(counts.tolist()) if count} == {
        10: 2, 11: 1, 99: 1, UNK: 1, CLS: 3, SEP: 3,
    }  # fmt: skip


def test_unigram_counts_cover_more_rows_than_one_chunk():
    count = 25_003
    found = Sequences(np.tile(np.array([5, 6, 7], np.int32), (count, 1)), np.full(count, 2, np.int32), 0, 0, 0)
    assert unigram_counts(found, 8).tolist() == [0, 0, 0, 0, 0, count, count, 0]


def test_unigram_entropy_is_that_of_the_ordinary_tokens_in_nats():
    counts = np.zeros(100, np.int64)
    counts[SPECIAL] = 1000
    counts[10], counts[11], counts[12] = 2, 1, 1
    assert unigram_entropy(counts, SPECIAL) == pytest.approx(1.5 * math.log(2), rel=1e-12)
    counts[10:12] = 0
    assert unigram_entropy(counts, SPECIAL) == 0


def test_what_a_kill_left_half_written_in_the_cache_is_removed_and_another_works_cache_is_not(cache, tokenizer):
    load(tokenizer, words(10, 11))
    (folder,) = folders(cache)
    folder.rename(folder.with_name(f"{folder.name}.x1y2"))
    other = folder.with_name("sequences-other.x1y2")
    other.mkdir()
    found = load(tokenizer, words(10, 11))
    assert found.lengths.tolist() == [4]
    assert folders(cache) == sorted([folder, other])
