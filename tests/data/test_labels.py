"""Labels of documents and words reach the right positions of a batch."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

from tests.data.conftest import CLS, PAD, SEP
from tests.labeled_data import use_token_types
from tf_mlm.config import ModelConfig
from tf_mlm.data.labels import LabelCollator, label_texts, label_words
from tf_mlm.data.masking import IGNORE_INDEX
from tf_mlm.model.tokenizer import build_tokenizer, load_tokenizer


def documents(**columns: list[Any]) -> datasets.Dataset:
    return datasets.Dataset.from_dict(columns)


def test_a_document_is_one_row_with_its_label_and_a_longer_one_is_truncated(tokenizer: PreTrainedTokenizerFast) -> None:
    found = label_texts(documents(text=["7 8", "10 11 12 13 14", ""], label=[1, 0, 2]), tokenizer, 6)
    assert found.input_ids.tolist() == [
        [CLS, 7, 8, SEP, PAD, PAD],
        [CLS, 10, 11, 12, 13, SEP],
        [CLS, SEP, PAD, PAD, PAD, PAD],
    ]
    assert found.lengths.tolist() == [4, 6, 2] and found.num_tokens == 12 and found.num_truncated == 1
    assert found.labels.tolist() == [[1], [0], [2]]


def test_the_first_token_of_a_word_has_its_tag_and_the_others_have_none(tensorflow: None) -> None:
    tokenizer = build_tokenizer(["ab abc cab"], 100)
    words = [["ab", "abcab", "abc"], ["abc"]]
    found = label_words(documents(tokens=words, tags=[[3, 1, 2], [0]]), tokenizer, 12)
    assert found.lengths[0] > 5  # the second word has several tokens
    for row, (texts, tags) in enumerate(zip(words, ([3, 1, 2], [0]), strict=True)):
        position, expected = 1, np.full(12, IGNORE_INDEX)
        for text, tag in zip(texts, tags, strict=True):
            expected[position] = tag
            position += len(tokenizer(text, add_special_tokens=False)["input_ids"])
        assert found.labels[row].tolist() == expected.tolist()


def test_a_word_without_a_tag_and_a_truncated_word_carry_no_label(tokenizer: PreTrainedTokenizerFast) -> None:
    found = label_words(documents(tokens=[["7", "8", "9", "10"]], tags=[[1, -1, 2, 3]]), tokenizer, 5)
    assert found.input_ids.tolist() == [[CLS, 7, 8, 9, SEP]]
    assert found.labels.tolist() == [[IGNORE_INDEX, 1, IGNORE_INDEX, 2, IGNORE_INDEX]]


def test_filler_rows_carry_no_label_and_attend_to_one_position(tokenizer: PreTrainedTokenizerFast) -> None:
    sequences = label_texts(documents(text=["7 8", "9"], label=[1, 0]), tokenizer, 5)
    batch = LabelCollator(sequences, PAD)([{"epoch": 0, "index": 1}, {"epoch": 0, "index": -1}])
    assert batch["input_ids"].tolist() == [[CLS, 9, SEP, PAD, PAD], [PAD] * 5]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]
    assert batch["labels"].tolist() == [[0], [IGNORE_INDEX]]


@pytest.mark.parametrize("has_types", [False, True])
def test_token_types_mark_the_second_text_of_a_pair(tensorflow: None, has_types: bool) -> None:
    tokenizer = build_tokenizer(["a b c"], 100)
    tokenizer.model_input_names = ["input_ids", *(["token_type_ids"] if has_types else []), "attention_mask"]
    use_token_types(tokenizer)
    found = label_texts(documents(text=["a b"], text_pair=["c"], label=[0]), tokenizer, 8)
    a, b, c = (tokenizer.vocab[token] for token in "abc")
    ends = [tokenizer.cls_token_id, tokenizer.sep_token_id]
    assert found.input_ids[0].tolist() == [ends[0], a, b, ends[1], c, ends[1], *[tokenizer.pad_token_id] * 2]
    if not has_types:
        assert found.token_type_ids is None
        return
    assert found.token_type_ids is not None
    assert found.token_type_ids[0].tolist() == [0, 0, 0, 0, 1, 1, 0, 0]
    batch = LabelCollator(found, tokenizer.pad_token_id)([{"epoch": 0, "index": 0}, {"epoch": 0, "index": -1}])
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 0, 0], [0] * 8]


def test_roberta_tokenizes_words_with_the_space_before_each(tensorflow: None, tmp_path: Path) -> None:
    from tests.tiny_tokenizers import tiny_tokenizer

    tiny_tokenizer("roberta").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    config = ModelConfig(name=str(tmp_path))
    tokenizer = load_tokenizer(config, (), for_words=True)
    found = label_words(documents(tokens=[["it", "was", "great"]], tags=[[1, 0, 2]]), tokenizer, 16)
    text = tokenizer(" it was great")["input_ids"]
    assert found.input_ids[0, : found.lengths[0]].tolist() == text
    assert found.labels[0][found.labels[0] >= 0].tolist() == [1, 0, 2]
    assert load_tokenizer(config, ())("it")["input_ids"] != tokenizer("it")["input_ids"]  # only for words
