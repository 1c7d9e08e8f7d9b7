"""The masked tokens of a validation dataset, one by one, with the loss and the prediction of a model for each."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm.auto import tqdm

from tf_mlm.data.masking import IGNORE_INDEX
from tf_mlm.model.metrics import METRICS
from tf_mlm.model.protocol import MaskedLanguageModel


@dataclass(frozen=True)
class Predictions:
    """The predictions of one model for the tokens of a `MaskedTokens`; one element per token.

    Attributes:
        values: float32 [num_tokens] by name of each metric that is an average over tokens, such as `loss`.
        token_ids: int32 [num_tokens], the most likely token.
    """

    values: dict[str, np.ndarray]
    token_ids: np.ndarray

    @classmethod
    def join(cls, parts: Sequence["Predictions"]) -> "Predictions":
        values = {name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values}
        return cls(values, np.concatenate([part.token_ids for part in parts]))


@dataclass(frozen=True)
class MaskedTokens:
    """The tokens that were masked, in the order of the dataset; arrays of [num_tokens].

    Attributes:
        draws: int32, the number of the draw, from 0.
        rows: int64, the row of the sequence in `Sequences.input_ids`.
        positions: int32, the position in the sequence, from 0.
        token_ids: int32, the token to predict.
        shown_ids: int32, the token that the model was shown in its place.
    """

    draws: np.ndarray
    rows: np.ndarray
    positions: np.ndarray
    token_ids: np.ndarray
    shown_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.token_ids)

    @classmethod
    def join(cls, parts: Sequence["MaskedTokens"]) -> "MaskedTokens":
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def build_step(model: MaskedLanguageModel) -> Any:
    """The validation step of a compiled model, which also returns the values of each slot, as a `tf.function`."""

    @tf.function
    def step(features: dict[str, tf.Tensor], labels: tf.Tensor) -> tuple[Any, ...]:
        losses, logits, slot_labels, weights = model.validate(features, labels)
        values = {
            metric.name: tf.cast(metric.per_token(losses, logits, slot_labels), tf.float32)
            for metric in METRICS
            if metric.per_token
        }
        return values, tf.argmax(logits, -1, output_type=tf.int32), weights

    return step


def predict_masked_tokens(
    step: Any, dataset: Any, rows: np.ndarray, draw: int, description: str
) -> tuple[MaskedTokens, Predictions]:
    """Evaluate a model as Keras' `evaluate` does, and keep the result of each masked token.

    The metrics of the model, if reset before, have the same values afterwards as after `evaluate`.

    Args:
        step: as from `build_step`.
        dataset: as from `build_validation_dataset`, over `rows`.
        rows: int64 [num_sequences].
        draw: number of the draw, recorded in the result.
        description: name of the pass in the progress bar.
    """
    tokens, predictions = [], []
    bar = tqdm(dataset, description, leave=False, dynamic_ncols=True, disable=None, unit="batch", file=sys.stderr)
    for batch, (features, labels) in enumerate(bar):
        values, predicted, weights = step(features, labels)
        # The slots of a sequence are in the order of its positions (see `MaskedPositionsHead.label_outputs`).
        used = weights.numpy() > 0
        labels = labels.numpy()
        labeled = labels != IGNORE_INDEX
        in_batch, positions = np.nonzero(labeled)
        tokens.append(
            MaskedTokens(
                draws=np.full(len(positions), draw, np.int32),
                rows=rows[batch * len(labels) + in_batch],  # filler rows have no labels
                positions=positions.astype(np.int32),
                token_ids=labels[labeled],
                shown_ids=features["input_ids"].numpy()[labeled],
            )
        )
        predictions.append(
            Predictions({name: value.numpy()[used] for name, value in values.items()}, predicted.numpy()[used])
        )
    return MaskedTokens.join(tokens), Predictions.join(predictions)
