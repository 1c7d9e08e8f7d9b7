"""Claims shown on the real reviews, with the real tokenizer."""

from pathlib import Path

import datasets
import numpy as np
import pytest

from tf_mlm.config import DataConfig, MaskingConfig
from tf_mlm.data.corpus import load_corpus
from tf_mlm.data.masking import IGNORE_INDEX
from tf_mlm.data.pipeline import build_collator
from tf_mlm.data.sequences import load_sequences


def test_the_ratios_hold_within_a_hundredth_and_no_token_is_lost(shared: Path, cache: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "distilbert-base-uncased-config")
    file = shared / "data" / "imdb" / "plain_text" / "test-00000-of-00001.parquet"
    reviews = datasets.Dataset.from_parquet(str(file), columns=["text"], cache_dir=str(cache)).take(800)
    found = load_sequences(reviews, "800 reviews", tokenizer, DataConfig(), "training")
    assert found.num_documents == 800
    assert found.num_tokens == sum(map(len, tokenizer(reviews["text"][:], verbose=False)["input_ids"]))
    assert found.num_tokens == found.lengths.sum() > 200_000

    collator = build_collator(found, tokenizer, MaskingConfig(), seed=42)
    batch = collator([{"epoch": 1, "index": index} for index in range(len(found.input_ids))])
    ordinary = ~np.isin(found.input_ids, tokenizer.all_special_ids)
    chosen = batch["labels"] != IGNORE_INDEX
    assert not (chosen & ~ordinary).any()
    assert chosen.sum() / ordinary.sum() == pytest.approx(0.15, abs=0.01)
    masked = chosen & (batch["input_ids"] == tokenizer.mask_token_id)
    replaced = chosen & ~masked & (batch["input_ids"] != found.input_ids)
    kept = chosen & (batch["input_ids"] == found.input_ids)
    assert masked.sum() / chosen.sum() == pytest.approx(0.8, abs=0.01)
    assert replaced.sum() / chosen.sum() == pytest.approx(0.1, abs=0.01)
    assert kept.sum() / chosen.sum() == pytest.approx(0.1, abs=0.01)
    assert not np.isin(batch["input_ids"][replaced], tokenizer.all_special_ids).any()
    assert len(np.unique(batch["input_ids"][replaced])) > 3000  # from the whole vocabulary


def test_test_reviews_that_are_also_training_reviews_are_dropped(shared: Path, cache: Path) -> None:
    found = load_corpus(DataConfig(dataset=str(shared / "data" / "imdb")), seed=42)
    assert (len(found.train), len(found.validation), found.num_overlap) == (25_000, 24_877, 123)
    assert not set(found.train["text"]) & set(found.validation["text"])
