"""Evaluates a fine-tuned model on labeled documents, with the validation metrics of training."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import tf_keras as keras

from tf_mlm import runtime
from tf_mlm.config import Config
from tf_mlm.data.labeled import LabeledSplit, load_labeled, load_labeled_split
from tf_mlm.data.labels import LabelCollator, draw_labeled
from tf_mlm.data.pipeline import build_validation_dataset
from tf_mlm.inference.evaluate import describe_own_documents
from tf_mlm.model.loading import load_trained_label_model, objective_of
from tf_mlm.model.metrics import metric_values, metrics_of


@dataclass(frozen=True)
class LabelEvaluation:
    """The metrics of a fine-tuned model on some documents.

    Attributes:
        metrics: value of each metric of the objective, by name.
        documents: description of the documents, for display.
        num_documents: number of scored documents.
        num_in_training: number of documents that are also training documents of the run; None if unknown.
    """

    objective: str
    metrics: dict[str, float]
    documents: str
    num_documents: int
    num_in_training: int | None

    def as_dict(self) -> dict[str, Any]:
        """One flat object, for JSON."""
        return {
            **self.metrics,
            "documents": self.documents,
            "num_documents": self.num_documents,
            "num_in_training": self.num_in_training,
        }

    def describe(self) -> str:
        """The metrics and the evaluated data, as lines of text."""
        lines = [
            f"{metric.title:<28}  {metric.show(self.metrics[metric.name])}" for metric in metrics_of(self.objective)
        ]
        lines.append(f"{'scored':<28}  {self.num_documents:,} documents: {self.documents}")
        if self.num_in_training:
            lines.append(
                f"{'warning':<28}  {self.num_in_training:,} of these documents are training documents of the run: "
                "the model has seen them"
            )
        return "\n".join(lines)


def evaluate_labels(config: Config, *, own_data: bool, train_hashes: np.ndarray | None = None) -> LabelEvaluation:
    """Evaluate `config.model` on labeled documents, at the precision and batch size of `config`.

    Args:
        own_data: True evaluates on exactly the validation data of a run with this config. False evaluates on the
            documents of `data.validation_split`, or on all if it is "" or the data has no splits.
        train_hashes: uint64, hashes of the training documents of the model; None if unknown.

    Raises:
        Refused: the data is missing or malformed, a label is unknown to the model, or the model is not a
            classification model.
    """
    policy = runtime.choose_precision(config.training.precision).policy
    keras.mixed_precision.set_global_policy(policy)
    model, tokenizer = load_trained_label_model(config.model.name, policy=policy)
    objective = objective_of(model.config, type(model).__name__)
    assert objective == config.objective.name, (objective, config.objective.name)
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    scored = _own_documents(config) if own_data else load_labeled_split(config, names, train_hashes)
    sequences = draw_labeled(config, scored.documents, tokenizer, config.data.num_validation_sequences)
    model.compile(keras.optimizers.legacy.SGD(), objective)  # required by Keras, never used
    dataset = build_validation_dataset(
        LabelCollator(sequences, tokenizer.pad_token_id),
        np.arange(len(sequences.input_ids)),
        batch_size=config.training.batch_size,
    )
    logs = model.evaluate(dataset, verbose=0, return_dict=True)
    return LabelEvaluation(
        objective=objective,
        metrics=metric_values(logs, objective=objective),
        documents=scored.description,
        num_documents=len(sequences.input_ids),
        num_in_training=scored.num_in_training,
    )


def _own_documents(config: Config) -> LabeledSplit:
    documents = load_labeled(config)
    description = describe_own_documents(config.data, documents.held_out)
    return LabeledSplit(documents.validation, documents.validation_fingerprint, description, num_in_training=0)
