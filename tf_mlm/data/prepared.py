"""The prepared data of a run: sequences, the rows drawn from them, and facts about both."""

import textwrap
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

from tf_mlm.config import Config
from tf_mlm.data.corpus import Corpus, load_second_validation
from tf_mlm.data.masking import MaskingCollator
from tf_mlm.data.mixture import MixedRows, mix
from tf_mlm.data.pipeline import (
    Collator,
    Share,
    TrainRows,
    build_collator,
    build_train_dataset,
    build_validation_dataset,
    rows_in_order,
    rows_of_epoch,
    steps_per_epoch,
)
from tf_mlm.data.sequences import Sequences, load_sequences, unigram_counts, unigram_entropy
from tf_mlm.data.shards import Shards
from tf_mlm.data.streamed_sequences import StreamedRows, StreamedSequences
from tf_mlm.data.streams import DocumentStream
from tf_mlm.errors import Refused, refusing_setting
from tf_mlm.hub import Source

_ROWS_PER_CHUNK = 2**20  # rows whose lengths are read at a time


@dataclass(frozen=True)
class PreparedData(ABC):
    """Training and validation sequences of an objective.

    Attributes:
        train: sequences with input_ids, int32 [num_sequences, length], and lengths, int32 [num_sequences]; likewise
            `validation`.
        train_rows: int64 [n], the rows of `train` used for training, or those of each epoch; likewise
            `validation_rows`, int64 [n].
        facts: counts and fingerprint, for the run's environment.json and its model card.
        train_hashes: uint64 [num_documents], one hash per training document; None if the documents are streamed.
    """

    train: Any
    validation: Any
    train_rows: TrainRows
    validation_rows: np.ndarray
    facts: dict[str, Any]
    train_hashes: np.ndarray | None
    _token_counts: dict[int, np.ndarray] = field(default_factory=dict, repr=False)
    _epoch_tokens: dict[int, int] = field(default_factory=dict, repr=False)

    @property
    def read_error(self) -> Exception | None:
        """The error that ended the reading of training data, if any."""
        return None

    def position_before(self, config: Config, batch: int) -> dict[str, Any] | None:
        """The position from which a resumed run reads training batch `batch`, as a JSON object.

        None if the data is not streamed.
        """
        return None

    def continue_at(self, position: dict[str, Any] | None) -> None:
        """Read from a result of `position_before` on, possibly of an earlier process."""
        assert position is None

    @abstractmethod
    def collator(self, config: Config, tokenizer: PreTrainedTokenizerFast, *, validation: bool = False) -> Collator:
        """The collator of the training or the validation sequences."""

    def train_dataset(
        self,
        config: Config,
        tokenizer: PreTrainedTokenizerFast,
        epochs: int,
        first_batch: int = 0,
        share: Share | None = None,
    ) -> Any:
        """Batches of `train_rows`: see `build_train_dataset`."""
        return build_train_dataset(
            self.collator(config, tokenizer),
            self.train_rows,
            batch_size=config.training.batch_size,
            seed=config.training.seed,
            epochs=epochs,
            first_batch=first_batch,
            share=share,
        )

    def validation_dataset(self, config: Config, tokenizer: PreTrainedTokenizerFast, share: Share | None = None) -> Any:
        """One pass over `validation_rows`: see `build_validation_dataset`."""
        return build_validation_dataset(
            self.collator(config, tokenizer, validation=True),
            self.validation_rows,
            batch_size=config.training.batch_size,
            share=share,
        )

    def count_tokens(self, config: Config, first_batch: int, end_batch: int) -> int:
        """Real tokens of the training batches from `first_batch` up to `end_batch`, counted from 0 over all epochs.

        Padding and filler rows do not count.
        """
        per_epoch = steps_per_epoch(len(self.train_rows), config.training.batch_size)

        def count_until(batch: int) -> int:
            epoch, number = divmod(batch, per_epoch)
            within = int(self._tokens_until(config, epoch)[number - 1]) if number else 0
            return self._tokens_before(epoch) + within

        return count_until(end_batch) - count_until(first_batch)

    def _tokens_before(self, epoch: int) -> int:
        """Real tokens of all epochs before `epoch`, counted from 0."""
        if isinstance(self.train_rows, MixedRows):  # its epochs have different sequences
            return sum(self._tokens_in(each) for each in range(epoch))
        return epoch * self._tokens_in(0)

    def _tokens_in(self, epoch: int) -> int:
        if epoch not in self._epoch_tokens:
            chunks = self._lengths(rows_of_epoch(self.train_rows, epoch + 1), _ROWS_PER_CHUNK)
            self._epoch_tokens[epoch] = sum(int(lengths.sum()) for lengths in chunks)
        return self._epoch_tokens[epoch]

    def _lengths(self, rows: np.ndarray, chunk: int) -> Iterator[np.ndarray]:
        """The lengths of the training sequences `rows`, `chunk` at a time, to limit the memory."""
        for start in range(0, len(rows), chunk):
            yield self.train.lengths[rows[start : start + chunk]]

    def _tokens_until(self, config: Config, epoch: int) -> np.ndarray:
        """int64 [steps_per_epoch]: real tokens of the batches up to each one of `epoch`, counted from 0."""
        if epoch not in self._token_counts:
            rows = rows_in_order(self.train_rows, config.training.seed, epoch + 1)
            batch_size = config.training.batch_size
            chunk = batch_size * (_ROWS_PER_CHUNK // batch_size + 1)
            counts = [
                np.add.reduceat(lengths, np.arange(0, len(lengths), batch_size), dtype=np.int64)
                for lengths in self._lengths(rows, chunk)
            ]
            self._token_counts.clear()  # training visits the epochs in order, so one entry is enough
            self._token_counts[epoch] = np.cumsum(np.concatenate(counts))
        return self._token_counts[epoch]


class SecondValidation(NamedTuple):
    """The sequences of `data.second_validation_dataset`, and their rows that are used."""

    sequences: Sequences
    rows: np.ndarray


@dataclass(frozen=True, kw_only=True)
class MaskedData(PreparedData):
    """Sequences for masked language modeling.

    Attributes:
        second_validation: another dataset to validate on; None if there is none.
        unigram_entropy: of the training documents, or of the validation documents if the former are streamed, in nats
            per token.
    """

    unigram_entropy: float
    second_validation: SecondValidation | None

    def collator(
        self, config: Config, tokenizer: PreTrainedTokenizerFast, *, validation: bool = False
    ) -> MaskingCollator:
        sequences = self.validation if validation else self.train
        return build_collator(sequences, tokenizer, config.masking, config.training.seed, validation=validation)

    def second_validation_dataset(
        self, config: Config, tokenizer: PreTrainedTokenizerFast, share: Share | None = None
    ) -> Any:
        """One pass over the second validation dataset: see `build_validation_dataset`."""
        assert self.second_validation is not None
        sequences, rows = self.second_validation
        collator = build_collator(sequences, tokenizer, config.masking, config.training.seed, validation=True)
        return build_validation_dataset(collator, rows, batch_size=config.training.batch_size, share=share)


@dataclass(frozen=True, kw_only=True)
class StreamedData(MaskedData):
    """Training sequences that are read while training."""

    train: StreamedSequences

    @property
    def read_error(self) -> Exception | None:
        return self.train.error

    def count_tokens(self, config: Config, first_batch: int, end_batch: int) -> int:
        return (end_batch - first_batch) * config.training.batch_size * config.data.sequence_length

    def position_before(self, config: Config, batch: int) -> dict[str, Any]:
        return self.train.position_before(batch * config.training.batch_size)

    def continue_at(self, position: dict[str, Any] | None) -> None:
        if position is not None:
            self.train.continue_at(position)


def prepare_stream(config: Config, stream: DocumentStream, tokenizer: PreTrainedTokenizerFast) -> StreamedData:
    """Tokenize the validation documents, and build the reader of the training documents.

    Raises:
        Refused: a split has no text, or a document cannot be read.
    """
    seed, training = config.training.seed, config.training
    validation = load_sequences(stream.validation, stream.validation_fingerprint, tokenizer, config.data, "validation")
    counts = unigram_counts(validation, len(tokenizer))
    _require_ordinary_tokens(counts, tokenizer, "validation")
    validation_rows = validation.draw_rows(config.data.num_validation_sequences, seed)
    num_used = training.num_train_steps * training.batch_size
    facts = {
        "train_documents": None,
        "validation_documents": validation.num_documents,
        "held_out": stream.held_out,
        "text_column": stream.text_column,
        "columns": list(stream.columns),
        "dropped_overlap": None,
        "dropped_empty": None,
        "train_tokens": None,
        "validation_tokens": validation.num_tokens,
        "train_tokens_packed": num_used * config.data.sequence_length,
        "validation_tokens_packed": int(validation.lengths.sum()),
        "train_sequences": None,
        "validation_sequences": len(validation.input_ids),
        "train_sequences_used": num_used,
        "validation_sequences_used": len(validation_rows),
        "streamed_shards": len(stream.shards),
        "fingerprint": f"{stream.fingerprint}-{stream.validation_fingerprint}",
    }
    return StreamedData(
        train=StreamedSequences(stream, tokenizer, config.data, seed),
        validation=validation,
        train_rows=StreamedRows(
            training.validate_every_steps * training.batch_size, config.data.shuffle_buffer_size, seed
        ),
        validation_rows=validation_rows,
        facts=facts,
        train_hashes=None,
        unigram_entropy=unigram_entropy(counts, tokenizer.all_special_ids),
        second_validation=_load_second_validation(config, tokenizer, None, facts),
    )


def prepare_data(config: Config, corpus: Corpus | Shards, tokenizer: PreTrainedTokenizerFast) -> MaskedData:
    """Tokenize both splits, or load them if they are prepared, and draw their rows.

    Raises:
        Refused: a split has no ordinary tokens.
    """
    seed = config.training.seed
    if isinstance(corpus, Shards):
        train, validation = corpus.load("train"), corpus.load("validation")
        train_counts, validation_counts = corpus.unigram_counts("train"), corpus.unigram_counts("validation")
    else:
        train = load_sequences(corpus.train, corpus.train_fingerprint, tokenizer, config.data, "training")
        validation = load_sequences(
            corpus.validation, corpus.validation_fingerprint, tokenizer, config.data, "validation"
        )
        train_counts, validation_counts = (unigram_counts(each, len(tokenizer)) for each in (train, validation))
    for counts, split in ((train_counts, "training"), (validation_counts, "validation")):
        _require_ordinary_tokens(counts, tokenizer, split)
    first_rows = train.draw_rows(config.data.num_train_sequences, seed)
    train_rows: TrainRows = first_rows
    validation_rows = validation.draw_rows(config.data.num_validation_sequences, seed)
    facts = {
        "train_documents": train.num_documents,
        "validation_documents": validation.num_documents,
        "held_out": corpus.held_out,
        "text_column": corpus.text_column,
        "columns": list(corpus.columns),
        "dropped_overlap": corpus.num_overlap,
        "dropped_empty": train.num_empty + validation.num_empty,
        "train_tokens": train.num_tokens,
        "validation_tokens": validation.num_tokens,
        "train_tokens_packed": int(train_counts.sum()),
        "validation_tokens_packed": int(validation_counts.sum()),
        "train_sequences": len(train.input_ids),
        "validation_sequences": len(validation.input_ids),
        "train_sequences_used": len(first_rows),
        "validation_sequences_used": len(validation_rows),
        "fingerprint": f"{corpus.train_fingerprint}-{corpus.validation_fingerprint}",
    }
    if isinstance(corpus, Corpus) and corpus.mixture:
        train, train_rows, facts["mixture"] = mix(train, first_rows, corpus, tokenizer, config.data, seed)
        facts["fingerprint"] = "-".join([str(facts["fingerprint"]), *(other.fingerprint for other in corpus.mixture)])
    if isinstance(corpus, Shards):
        facts |= {"prepared_from": corpus.origin, "dropped_repeated": sum(corpus.num_repeated.values())}
    return MaskedData(
        train,
        validation,
        train_rows,
        validation_rows,
        facts,
        corpus.train_hashes,
        unigram_entropy=unigram_entropy(train_counts, tokenizer.all_special_ids),
        second_validation=_load_second_validation(config, tokenizer, corpus.train_hashes, facts),
    )


def _load_second_validation(
    config: Config, tokenizer: PreTrainedTokenizerFast, train_hashes: np.ndarray | None, facts: dict[str, Any]
) -> SecondValidation | None:
    """Tokenize `data.second_validation_dataset`, draw its rows, and add facts about it."""
    if not config.data.second_validation_dataset:
        return None
    documents, fingerprint, num_overlap = load_second_validation(config.data, train_hashes)
    with refusing_setting("data.second_validation_dataset"):
        sequences = load_sequences(documents, fingerprint, tokenizer, config.data, "second validation")
        _require_ordinary_tokens(unigram_counts(sequences, len(tokenizer)), tokenizer, "second validation")
    rows = sequences.draw_rows(config.data.num_validation_sequences, config.training.seed)
    facts["fingerprint"] += f"-{fingerprint}"
    facts["second_validation"] = {
        "dataset": Source.of(config.data.second_validation_dataset).short_name,
        "documents": sequences.num_documents,
        "sequences": len(sequences.input_ids),
        "sequences_used": len(rows),
        "dropped_overlap": None if train_hashes is None else num_overlap,
    }
    return SecondValidation(sequences, rows)


def _require_ordinary_tokens(counts: np.ndarray, tokenizer: PreTrainedTokenizerFast, split: str) -> None:
    if np.delete(counts, tokenizer.all_special_ids).sum() == 0:
        raise Refused(
            f"data.dataset: the {split} documents contain no ordinary tokens to mask; pass a dataset with text"
        )


def describe_data(facts: dict[str, Any]) -> str:
    """The facts as printed lines."""
    lines = [
        f"{split:<11}{facts[f'{short}_documents']:>10,} documents  "
        f"{facts[f'{short}_tokens']:>12,} tokens in, {facts[f'{short}_tokens_packed']:,} out  "
        f"{facts[f'{short}_sequences']:>9,} sequences, {facts[f'{short}_sequences_used']:,} used"
        for split, short in (("training", "train"), ("validation", "validation"))
        if facts[f"{short}_documents"] is not None
    ]
    if shards := facts.get("streamed_shards"):
        used = f"{facts['train_tokens_packed']:,} tokens, {facts['train_sequences_used']:,} sequences"
        lines.insert(0, f"training   {shards:>10,} shards, read while training: {used}")
    lines += [
        f"mixture    {other['documents']:>10,} documents of {other['dataset']}, {other['share']:.0%} of an epoch: "
        f"{other['sequences']:,} sequences, {other['sequences_per_epoch']:,} used in each epoch"
        for other in facts.get("mixture", [])
    ]
    if second := facts.get("second_validation"):
        lines.append(
            f"second     {second['documents']:>10,} validation documents of {second['dataset']}: "
            f"{second['sequences']:,} sequences, {second['sequences_used']:,} used"
        )
        if second["dropped_overlap"]:
            lines.append(
                f"dropped    {second['dropped_overlap']:>10,} documents of {second['dataset']} that are also training "
                "documents"
            )
    if facts["text_column"]:
        lines.append(f"text       column {facts['text_column']!r} of {', '.join(facts['columns'])}")
    if facts["dropped_overlap"]:
        lines.append(
            f"dropped    {facts['dropped_overlap']:>10,} validation documents that are also training documents"
        )
    if facts.get("dropped_repeated"):
        lines.append(f"dropped    {facts['dropped_repeated']:>10,} documents that repeat an earlier one")
    if facts.get("dropped_unlabeled"):
        lines.append(f"dropped    {facts['dropped_unlabeled']:>10,} documents without a label")
    if "label_names" in facts:
        shown = ", ".join(
            f"{name} {count:,}" for name, count in zip(facts["label_names"], facts["train_labels"], strict=True)
        )
        lines.append(f"labels     {textwrap.shorten(shown, 200, placeholder=' …')} (in training)")
    for split, short in (("training", "train"), ("validation", "validation")):
        if facts.get(f"{short}_truncated"):
            lines.append(
                f"truncated  {facts[f'{short}_truncated']:>10,} {split} documents to data.sequence_length tokens"
            )
    if facts["dropped_empty"]:
        lines.append(f"dropped    {facts['dropped_empty']:>10,} documents without text")
    return "\n".join(lines)
