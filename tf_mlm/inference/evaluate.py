"""Evaluates a model on the masked tokens of a text, with the validation metrics of training."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tf_keras as keras

from tf_mlm import runtime
from tf_mlm.config import Config, DataConfig
from tf_mlm.data.corpus import ScoredDocuments, load_corpus, load_documents
from tf_mlm.data.masking import VALIDATION_PROBABILITY, num_slots
from tf_mlm.data.pipeline import build_collator, build_validation_dataset
from tf_mlm.data.sequences import load_sequences
from tf_mlm.errors import Refused
from tf_mlm.model.loading import load_trained
from tf_mlm.model.metrics import METRICS, metric_values, total_and_count


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a model on some documents.

    Attributes:
        metrics: value of each metric of the table, by name.
        masked_tokens: tokens that were masked and predicted.
        documents: description of the documents, for display.
        num_documents: number of documents.
        num_in_training: number of documents that are also in the training text of the run; None if unknown.
    """

    metrics: dict[str, float]
    sequences: int
    masked_tokens: int
    documents: str
    num_documents: int
    num_in_training: int | None

    def as_dict(self) -> dict[str, Any]:
        """One flat object, for JSON."""
        return {
            **self.metrics,
            "sequences": self.sequences,
            "masked_tokens": self.masked_tokens,
            "documents": self.documents,
            "num_documents": self.num_documents,
            "num_in_training": self.num_in_training,
        }

    def describe(self) -> str:
        """The metrics and the evaluated data, as lines of text."""
        lines = [f"{metric.title:<28}  {metric.show(self.metrics[metric.name])}" for metric in METRICS]
        lines.append(
            f"{'scored':<28}  {self.masked_tokens:,} masked tokens ({VALIDATION_PROBABILITY:.0%} of all) in "
            f"{self.sequences:,} sequences of {self.num_documents:,} documents: {self.documents}"
        )
        if self.num_in_training:
            lines.append(
                f"{'warning':<28}  {self.num_in_training:,} of these documents are in the run's training text: "
                "the model has seen them"
            )
        return "\n".join(lines)


def evaluate_model(config: Config, *, own_data: bool, train_hashes: np.ndarray | None = None) -> Evaluation:
    """Evaluate `config.model` on the validation data of `config.data`, at the precision and batch size of `config`.

    Args:
        own_data: True evaluates on exactly the validation data of a run with this config. False evaluates on the
            documents of `data.validation_split`, or on all if it is "" or the data has no splits.
        train_hashes: uint64, hashes of the training documents of the model; None if unknown.
    """
    policy = runtime.choose_precision(config.training.precision).policy
    keras.mixed_precision.set_global_policy(policy)
    seed = config.training.seed
    scored = _own_documents(config) if own_data else load_documents(config.data, train_hashes)
    model, tokenizer = load_trained(config.model.name, sequence_length=config.data.sequence_length, policy=policy)
    sequences = load_sequences(scored.documents, scored.fingerprint, tokenizer, config.data, "validation")
    rows = sequences.draw_rows(config.data.num_validation_sequences, seed)
    model.compile(
        keras.optimizers.legacy.SGD(),  # required by Keras, never used
        max_masked_per_sequence=num_slots(config.data.sequence_length, config.masking.mlm_probability),
    )
    collator = build_collator(sequences, tokenizer, config.masking, seed, validation=True)
    dataset = build_validation_dataset(collator, rows, batch_size=config.training.batch_size)
    logs = model.evaluate(dataset, verbose=0, return_dict=True)
    _, num_masked = total_and_count(model.metrics[0])
    if not num_masked:
        raise Refused("data.dataset: the documents contain no ordinary tokens to mask; pass a dataset with text")
    return Evaluation(
        metrics=metric_values(logs),
        sequences=len(rows),
        masked_tokens=int(num_masked),
        documents=scored.description,
        num_documents=len(scored.documents),
        num_in_training=scored.num_in_training,
    )


def other_data(config: Config, data: DataConfig) -> Config:
    """`config` with `data`, except for the settings that determine how sequences are built."""
    kept = ("sequence_length", "num_validation_sequences", "line_by_line", "overflow")
    return replace(config, data=replace(data, **{name: getattr(config.data, name) for name in kept}))


def _own_documents(config: Config) -> ScoredDocuments:
    corpus = load_corpus(config.data, config.training.seed)
    share = f"the {100 * config.data.validation_fraction:.4g}% of {config.data.dataset} held out of training"
    split = f"split {config.data.validation_split} of {config.data.dataset}, without training documents"
    return ScoredDocuments(
        corpus.validation,
        corpus.validation_fingerprint,
        description=share if corpus.held_out else split,
        num_in_training=0,
    )
