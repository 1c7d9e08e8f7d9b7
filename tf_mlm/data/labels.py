"""Tokenizes labeled documents and batches them, for classification and token classification."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import datasets
import numpy as np
from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

from tf_mlm.config import Config
from tf_mlm.data.labeled import NO_LABEL, LabeledDocuments
from tf_mlm.data.masking import IGNORE_INDEX
from tf_mlm.data.prepared import PreparedData
from tf_mlm.data.sequences import draw_rows

_ROWS_PER_BATCH = 1000


@dataclass(frozen=True)
class LabeledSequences:
    """One padded row of token ids for each document.

    Attributes:
        input_ids: int32 [num_sequences, sequence_length].
        lengths: int32 [num_sequences], tokens before the padding.
        token_type_ids: int32 [num_sequences, sequence_length]; None if the model has no token types.
        labels: int32 [num_sequences, 1], or [num_sequences, sequence_length] for tags, `IGNORE_INDEX` where there is
            no label.
        num_truncated: number of documents that were truncated to the length of a sequence.
    """

    input_ids: np.ndarray
    lengths: np.ndarray
    token_type_ids: np.ndarray | None
    labels: np.ndarray
    num_truncated: int

    @cached_property
    def num_tokens(self) -> int:
        return int(self.lengths.sum())


@dataclass(frozen=True, kw_only=True)
class LabeledData(PreparedData):
    """Sequences with labels.

    Attributes:
        label_names: names of the labels; a label is an index into them.
    """

    label_names: tuple[str, ...]

    def collator(
        self, config: Config, tokenizer: PreTrainedTokenizerFast, *, validation: bool = False
    ) -> "LabelCollator":
        assert tokenizer.pad_token_id is not None
        return LabelCollator(self.validation if validation else self.train, tokenizer.pad_token_id)


@dataclass(frozen=True)
class LabelCollator:
    """Maps rows of (epoch, index) to a batch: the `collate_fn` of `to_tf_dataset`.

    An index of -1 gives a filler row: all padding, attention only to the first position, no labels.
    """

    sequences: LabeledSequences
    pad_token_id: int

    def __call__(self, rows: list[dict[str, int]]) -> dict[str, np.ndarray]:
        """Returns input_ids, attention_mask and token_type_ids (if any), int32 [batch, length], and the labels."""
        sequences = self.sequences
        index = np.array([row["index"] for row in rows], np.int64)
        is_filler = (index < 0)[:, None]
        lengths = np.where(index < 0, 1, sequences.lengths[index])  # softmax is undefined without attention
        attention_mask = np.arange(sequences.input_ids.shape[1]) < lengths[:, None]
        batch = {
            "input_ids": np.where(is_filler, np.int32(self.pad_token_id), sequences.input_ids[index]),
            "attention_mask": attention_mask.astype(np.int32),
            "labels": np.where(is_filler, np.int32(IGNORE_INDEX), sequences.labels[index]),
        }
        if sequences.token_type_ids is not None:
            batch["token_type_ids"] = np.where(is_filler, np.int32(0), sequences.token_type_ids[index])
        return batch


def prepare_labeled(config: Config, documents: LabeledDocuments, tokenizer: PreTrainedTokenizerFast) -> LabeledData:
    """Draw the documents of both splits and tokenize them."""
    splits = (
        ("train", documents.train, config.data.num_train_sequences),
        ("validation", documents.validation, config.data.num_validation_sequences),
    )
    facts: dict[str, Any] = {
        "held_out": documents.held_out,
        "text_column": documents.text_column,
        "columns": list(documents.columns),
        "dropped_overlap": documents.num_overlap,
        "dropped_unlabeled": documents.num_unlabeled,
        "dropped_empty": documents.num_empty,
        "label_names": list(documents.label_names),
        "fingerprint": f"{documents.train_fingerprint}-{documents.validation_fingerprint}",
    }
    sequences, rows = {}, {}
    for split, found, cap in splits:
        sequences[split] = draw_labeled(config, found, tokenizer, cap)
        rows[split] = np.arange(len(sequences[split].input_ids))
        labels = sequences[split].labels
        facts |= {
            f"{split}_documents": len(found),
            f"{split}_tokens": sequences[split].num_tokens,
            f"{split}_tokens_packed": sequences[split].num_tokens,
            f"{split}_sequences": len(found),
            f"{split}_sequences_used": len(labels),
            f"{split}_truncated": sequences[split].num_truncated,
            f"{split}_labels": np.bincount(labels[labels >= 0], minlength=len(documents.label_names)).tolist(),
        }
    return LabeledData(
        sequences["train"],
        sequences["validation"],
        rows["train"],
        rows["validation"],
        facts,
        documents.train_hashes,
        label_names=documents.label_names,
    )


def draw_labeled(
    config: Config, documents: datasets.Dataset, tokenizer: PreTrainedTokenizerFast, cap: int
) -> LabeledSequences:
    """Tokenize at most `cap` documents, drawn at random; all if `cap` is 0."""
    tokenize = label_words if config.objective.name == "token_classification" else label_texts
    rows = draw_rows(len(documents), cap, config.training.seed)
    return tokenize(documents.select(rows), tokenizer, config.data.sequence_length)


def label_texts(
    documents: datasets.Dataset, tokenizer: PreTrainedTokenizerFast, sequence_length: int
) -> LabeledSequences:
    """Tokenize documents with one label each.

    Args:
        documents: columns `text` (string), `label` (int) and, for pairs, `text_pair` (string).
    """

    def encode(batch: dict[str, list[Any]]) -> Any:
        return tokenizer(
            batch["text"],
            batch.get("text_pair"),
            truncation=True,
            max_length=sequence_length,
            return_overflowing_tokens=False,
            return_length=False,
        )

    def labels(batch: dict[str, list[Any]], encodings: Any) -> np.ndarray:
        return np.array(batch["label"], np.int32)[:, None]

    return _tokenize(documents, encode, labels, tokenizer, sequence_length)


def label_words(
    documents: datasets.Dataset, tokenizer: PreTrainedTokenizerFast, sequence_length: int
) -> LabeledSequences:
    """Tokenize documents with one tag for each word. The first token of a word has its tag, the others have none.

    Args:
        documents: columns `tokens` (list of words) and `tags` (list of int, `NO_LABEL` for a word without a tag).
    """

    def encode(batch: dict[str, list[Any]]) -> Any:
        return tokenizer(batch["tokens"], is_split_into_words=True, truncation=True, max_length=sequence_length)

    def labels(batch: dict[str, list[Any]], encodings: Any) -> np.ndarray:
        rows = np.full((len(encodings), sequence_length), IGNORE_INDEX, np.int32)
        for row, (encoding, tags) in enumerate(zip(encodings, batch["tags"], strict=True)):
            words = np.array([-1 if word is None else word for word in encoding.word_ids])
            is_first = (words >= 0) & (words != np.concatenate([[-1], words[:-1]]))
            labels_of_words = np.array([IGNORE_INDEX if tag == NO_LABEL else tag for tag in tags], np.int32)
            rows[row, np.flatnonzero(is_first)] = labels_of_words[words[is_first]]
        return rows

    return _tokenize(documents, encode, labels, tokenizer, sequence_length)


def _tokenize(
    documents: datasets.Dataset,
    encode: Callable[[dict[str, list[Any]]], Any],
    labels_of: Callable[[dict[str, list[Any]], Any], np.ndarray],
    tokenizer: PreTrainedTokenizerFast,
    sequence_length: int,
) -> LabeledSequences:
    num_sequences = len(documents)
    input_ids = np.full((num_sequences, sequence_length), tokenizer.pad_token_id, np.int32)
    token_types = np.zeros_like(input_ids) if "token_type_ids" in tokenizer.model_input_names else None
    lengths = np.zeros(num_sequences, np.int32)
    labels, num_truncated, row = [], 0, 0
    for batch in documents.iter(_ROWS_PER_BATCH):
        encodings = encode(batch).encodings
        labels.append(labels_of(batch, encodings))
        for encoding in encodings:
            lengths[row] = len(encoding.ids)
            input_ids[row, : lengths[row]] = encoding.ids
            if token_types is not None:
                token_types[row, : lengths[row]] = encoding.type_ids
            num_truncated += bool(encoding.overflowing)
            row += 1
    return LabeledSequences(input_ids, lengths, token_types, np.concatenate(labels), num_truncated)
