"""Several training corpora in fixed shares."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

from tf_mlm.config import Config, load_config
from tf_mlm.data.corpus import load_corpus
from tf_mlm.data.mixture import MixedRows
from tf_mlm.data.pipeline import rows_of_batch, rows_of_epoch
from tf_mlm.data.prepared import MaskedData, describe_data, prepare_data
from tf_mlm.errors import Refused

FIRST = np.array([1, 3, 4, 6, 8, 9])


def mixed(sizes: list[int], counts: list[int], seed: int = 1) -> MixedRows:
    starts = np.cumsum([10, *sizes])[:-1].tolist()
    return MixedRows(FIRST, starts, sizes, counts, seed)


def test_every_epoch_has_all_rows_of_the_first_corpus_and_the_share_of_the_others() -> None:
    rows = mixed([7, 5], [3, 2])
    assert len(rows) == 11
    for epoch in range(1, 9):
        found = rows_of_epoch(rows, epoch)
        assert found[:6].tolist() == FIRST.tolist()
        assert ((10 <= found[6:9]) & (found[6:9] < 17)).all() and ((17 <= found[9:]) & (found[9:] < 22)).all()


def test_all_rows_of_another_corpus_are_read_before_one_is_read_again() -> None:
    rows = mixed([7], [3])
    read = [int(row) for epoch in range(1, 15) for row in rows_of_epoch(rows, epoch)[6:]]
    passes = [read[start : start + 7] for start in range(0, 42, 7)]
    assert all(sorted(each) == list(range(10, 17)) for each in passes)
    assert len({tuple(each) for each in passes}) > 1


def test_a_small_corpus_is_repeated_within_an_epoch() -> None:
    assert set(Counter(rows_of_epoch(mixed([2], [6]), 1)[6:].tolist()).values()) == {3}


def test_the_rows_are_a_function_of_seed_and_epoch() -> None:
    def read(seed: int, epoch: int) -> list[int]:
        return list(rows_of_epoch(mixed([50], [20], seed), epoch))

    assert read(1, 3) == read(1, 3) != read(2, 3)
    assert read(1, 3) != read(1, 4)


@pytest.fixture
def texts(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with `domain` (40 documents) and `general` (100 documents) of two tokens each."""
    monkeypatch.chdir(tmp_path)
    for name, number, first in (("domain", 40, 10), ("general", 100, 20)):
        (tmp_path / name).mkdir()
        lines = [f"{first + index % 5} {first + index // 5}" for index in range(number)]
        (tmp_path / name / "texts.txt").write_text("\n".join(lines))
    return tmp_path


def prepare(tokenizer: PreTrainedTokenizerFast, *mixture: str, **settings: object) -> tuple[Config, MaskedData]:
    overrides = {f"data.{name}": value for name, value in settings.items()}
    config = load_config(
        None,
        {
            "data.dataset": "domain",
            "data.mixture": list(mixture),
            "data.sequence_length": 8,
            "data.num_train_sequences": 12,
            "training.batch_size": 4,
            **overrides,
        },
    )
    return config, prepare_data(config, load_corpus(config.data, config.training.seed), tokenizer)


def test_the_batches_have_the_shares_of_the_setting(texts: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    config, data = prepare(tokenizer, "0.25 general")
    (other,) = data.facts["mixture"]
    assert (other["documents"], other["sequences_per_epoch"], len(data.train_rows)) == (100, 4, 16)
    first_of_general = len(data.train.input_ids) - other["sequences"]
    for epoch in range(3):
        rows = np.concatenate([rows_of_batch(data.train_rows, 4, 42, 4 * epoch + batch) for batch in range(4)])
        assert (rows >= first_of_general).sum() == 4
    ids = data.train.input_ids[np.arange(first_of_general, len(data.train.input_ids))]
    assert not np.isin(ids, data.train.input_ids[:first_of_general]).all()
    assert "100 documents of general, 25% of an epoch" in describe_data(data.facts)


def test_the_token_counts_of_a_mixture_are_those_of_its_batches(
    texts: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    config, data = prepare(tokenizer, "0.4 general", line_by_line=True)
    counted = [data.count_tokens(config, batch, batch + 1) for batch in range(10)]
    read = [int(data.train.lengths[rows_of_batch(data.train_rows, 4, 42, batch)].sum()) for batch in range(10)]
    assert counted == read
    assert data.count_tokens(config, 0, 10) == sum(read)


def test_validation_documents_of_the_first_corpus_that_another_one_has_are_dropped(
    texts: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    _, alone = prepare(tokenizer)
    _, mixed_in = prepare(tokenizer, "0.2 general")
    validation = load_corpus(load_config(None, {"data.dataset": "domain"}).data, 42).validation["text"]
    (texts / "general" / "more.txt").write_text(validation[0])
    _, with_overlap = prepare(tokenizer, "0.2 general")
    assert [data.facts["dropped_overlap"] for data in (alone, mixed_in, with_overlap)] == [0, 0, 1]
    assert len({data.facts["fingerprint"] for data in (alone, mixed_in, with_overlap)}) == 3


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        (["general"], "mixture has 'general'; write a share below 1 and a dataset"),
        (["1.5 general"], "mixture has '1.5 general'; write a share below 1"),
        (["0 general"], "mixture has '0 general'; write a share below 1"),
        (["0.6 general", "0.4 domain"], "the shares in mixture must add up to less than 1"),
    ],
)
def test_a_wrong_mixture_is_refused(mixture: list[str], message: str) -> None:
    with pytest.raises(Refused, match=f"data: {message}"):
        load_config(None, {"data.mixture": mixture})


def test_a_dataset_that_does_not_exist_is_refused(texts: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(Refused, match="missing"):
        prepare(tokenizer, "0.2 ./missing")
