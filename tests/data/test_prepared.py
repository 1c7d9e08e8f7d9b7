"""Tests of the prepared data: facts, rows, token counts, and text without ordinary tokens."""

import math
from pathlib import Path

import datasets
import numpy as np
import pytest
from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

from tf_mlm.config import Config, DataConfig, TrainingConfig
from tf_mlm.data.corpus import Corpus
from tf_mlm.data.pipeline import build_collator, rows_of_batch, rows_of_epoch
from tf_mlm.data.prepared import describe_data, prepare_data
from tf_mlm.errors import Refused


def corpus(train: list[str], validation: list[str]) -> Corpus:
    return Corpus(
        train=datasets.Dataset.from_dict({"text": train}),
        validation=datasets.Dataset.from_dict({"text": validation}),
        num_overlap=3,
        held_out=True,
        train_fingerprint=f"train{hash(tuple(train))}",
        validation_fingerprint=f"validation{hash(tuple(validation))}",
        train_hashes=np.arange(len(train), dtype=np.uint64),
        text_column="text",
        columns=("id", "text"),
    )


def test_the_facts_count_documents_tokens_sequences_and_dropped_documents(
    cache: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    train = ["10 11 12 13 14 15"] * 4 + ["", "10"]  # 4 × 8 + 3 tokens
    validation = ["20 21", " ", "", "22"]  # 4 + 3 tokens
    config = Config(
        data=DataConfig(sequence_length=8, num_train_sequences=2, num_validation_sequences=7),
        training=TrainingConfig(seed=5),
    )
    data = prepare_data(config, corpus(train, validation), tokenizer)
    fingerprint = data.facts.pop("fingerprint")
    assert fingerprint == f"train{hash(tuple(train))}-validation{hash(tuple(validation))}"
    assert data.facts == {
        "train_documents": 5,
        "validation_documents": 2,
        "held_out": True,
        "text_column": "text",
        "columns": ["id", "text"],
        "dropped_overlap": 3,
        "dropped_empty": 3,
        "train_tokens": 35,
        "validation_tokens": 7,
        "train_tokens_packed": 35,
        "validation_tokens_packed": 7,
        "train_sequences": 5,
        "validation_sequences": 1,
        "train_sequences_used": 2,
        "validation_sequences_used": 1,
    }
    assert len(data.train_rows) == 2 and data.validation_rows.tolist() == [0]
    assert data.train.input_ids.shape == (5, 8) and data.validation.input_ids.shape == (1, 8)
    # Of the training documents' 25 ordinary tokens 5 are `10`, 4 each of `11` to `15`; of validation's, none counts.
    assert data.unigram_entropy == pytest.approx(-0.2 * math.log(0.2) - 5 * 0.16 * math.log(0.16), rel=1e-12)


def test_tokens_count_neither_padding_nor_filler_rows(cache: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """5 documents of 4, 5, 6, 7 and 8 tokens, one a sequence, in batches of 2: the third batch is half filler."""
    config = Config(
        data=DataConfig(sequence_length=8, line_by_line=True, num_train_sequences=0),
        training=TrainingConfig(batch_size=2),
    )
    data = prepare_data(config, corpus([" ".join(["10"] * number) for number in range(2, 7)], ["20"]), tokenizer)
    assert data.train.lengths.tolist() == [4, 5, 6, 7, 8]
    assert [data.count_tokens(config, 0, batches) for batches in (0, 3, 6, 9)] == [0, 30, 60, 90]
    collator = build_collator(data.train, tokenizer, config.masking, config.training.seed)
    for batch in range(7):  # over two epochs and into a third
        rows = rows_of_batch(data.train_rows, 2, config.training.seed, batch)
        mask = collator([{"epoch": 1, "index": int(row)} for row in rows])["attention_mask"]
        assert data.count_tokens(config, batch, batch + 1) == mask.sum()
    assert data.count_tokens(config, 2, 5) == sum(data.count_tokens(config, batch, batch + 1) for batch in (2, 3, 4))


def test_the_rows_are_drawn_by_the_runs_seed(cache: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    def rows(seed: int) -> list[int]:
        config = Config(data=DataConfig(sequence_length=8, num_train_sequences=10), training=TrainingConfig(seed=seed))
        return list(rows_of_epoch(prepare_data(config, texts, tokenizer).train_rows, 1))

    texts = corpus(["10 11 12 13 14 15"] * 100, ["20"])
    assert rows(1) == rows(1) != rows(2)


@pytest.mark.parametrize(
    "train, validation, split", [(["film", "[MASK]"], ["20"], "training"), (["20"], ["film"], "validation")]
)
def test_text_without_any_ordinary_token_is_refused(
    cache: Path, tokenizer: PreTrainedTokenizerFast, train: list[str], validation: list[str], split: str
) -> None:
    """`film` is unknown to this tokenizer, so nothing could be masked."""
    with pytest.raises(Refused) as refused:
        prepare_data(Config(data=DataConfig(sequence_length=8)), corpus(train, validation), tokenizer)
    assert str(refused.value) == (
        f"data.dataset: the {split} documents contain no ordinary tokens to mask; pass a dataset with text"
    )


def test_the_facts_are_printed_and_dropped_documents_only_if_there_are_any(
    cache: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    config = Config(data=DataConfig(sequence_length=8, num_train_sequences=2))
    data = prepare_data(config, corpus(["10 11 12 13 14 15"] * 4, ["20", ""]), tokenizer)
    lines = describe_data(data.facts).splitlines()
    assert [line.split() for line in lines] == [
        "training 4 documents 32 tokens in, 32 out 4 sequences, 2 used".split(),
        "validation 1 documents 3 tokens in, 3 out 1 sequences, 1 used".split(),
        "text column 'text' of id, text".split(),
        "dropped 3 validation documents that are also training documents".split(),
        "dropped 1 documents without text".split(),
    ]
    nothing = {"dropped_overlap": 0, "dropped_empty": 0, "text_column": ""}
    assert len(describe_data(data.facts | nothing).splitlines()) == 2
