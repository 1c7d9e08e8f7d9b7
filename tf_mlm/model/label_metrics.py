"""Validation metrics of classification that are not averages: macro F1 and entity F1.

Both are computed from counts that are summed over batches and replicas.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

OUTSIDE = "O"


class _Counts(keras.metrics.Metric):
    """Sums of (correct, predicted, true) for each kind of thing: float64 [kinds, 3]."""

    def __init__(self, name: str, num_kinds: int):
        super().__init__(name=name, dtype=tf.float64)
        self.counts = self.add_weight("counts", shape=(num_kinds, 3), initializer="zeros", dtype=tf.float64)

    def reset_state(self) -> None:
        self.counts.assign(tf.zeros_like(self.counts))  # Keras' own assigns a scalar


def _divide(numerator: Any, denominator: Any) -> Any:
    return tf.math.divide_no_nan(numerator, denominator)


class ClassCounts(_Counts):
    """Macro F1: the mean F1 of the classes that occur in the labels or the predictions."""

    def __init__(self, num_classes: int):
        super().__init__("class_counts", num_classes)

    def update_state(self, labels: tf.Tensor, predictions: tf.Tensor, weights: tf.Tensor) -> None:
        """Args: labels and predictions int32, weights float32, 0 for a slot without a label; each [batch, slots]."""
        num_classes = self.counts.shape[0]
        weights = tf.cast(weights, tf.float64)[..., tf.newaxis]
        true, predicted = (tf.one_hot(each, num_classes, dtype=tf.float64) * weights for each in (labels, predictions))
        kinds = [tf.reduce_sum(each, [0, 1]) for each in (true * predicted, predicted, true)]
        self.counts.assign_add(tf.stack(kinds, axis=1))

    def result(self) -> dict[str, Any]:
        correct, predicted, true = tf.unstack(self.counts, axis=1)
        occurs = tf.cast(predicted + true > 0, tf.float64)
        f1 = _divide(2 * correct, predicted + true)
        return {"macro_f1": _divide(tf.reduce_sum(f1), tf.reduce_sum(occurs))}


class EntityCounts(_Counts):
    """Precision, recall and F1 of entities over all types: an entity is correct if its span and its type are.

    Entities are read from IOB2 tags as `conlleval` and seqeval do: a tag I-X that follows no tag of type X begins an
    entity.

    Args:
        tags: the names of the classes: `O`, `B-TYPE` and `I-TYPE`.
    """

    def __init__(self, tags: Sequence[str]):
        types = list(dict.fromkeys(tag[2:] for tag in tags if tag != OUTSIDE))
        super().__init__("entity_counts", len(types))
        self._is_begin = np.array([tag.startswith("B-") for tag in tags])
        self._type_of = np.array([types.index(tag[2:]) if tag != OUTSIDE else -1 for tag in tags], np.int32)

    def update_state(self, labels: tf.Tensor, predictions: tf.Tensor, weights: tf.Tensor) -> None:
        """Args: labels and predictions int32, weights float32, 0 after the last word of a row; each [batch, words]."""
        true_types, true_ends = self._entities(labels, weights > 0)
        types, ends = self._entities(predictions, weights > 0)
        is_correct = (types == true_types) & (ends == true_ends)
        num_types = self.counts.shape[0]

        def count(types: tf.Tensor) -> tf.Tensor:
            return tf.reduce_sum(tf.one_hot(types, num_types, dtype=tf.float64), [0, 1])  # a type of -1 adds nothing

        kinds = [count(tf.where(is_correct, types, -1)), count(types), count(true_types)]
        self.counts.assign_add(tf.stack(kinds, axis=1))

    def result(self) -> dict[str, Any]:
        correct, predicted, true = tf.unstack(tf.reduce_sum(self.counts, axis=0))
        return {
            "entity_precision": _divide(correct, predicted),
            "entity_recall": _divide(correct, true),
            "entity_f1": _divide(2 * correct, predicted + true),
        }

    def _entities(self, tags: tf.Tensor, is_word: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """int32 [batch, words]: at the first word of an entity its type, else -1; and the entity's last word."""
        types = tf.where(is_word, tf.gather(self._type_of, tags), -1)
        is_begin = tf.gather(self._is_begin, tags)
        before = tf.pad(types[:, :-1], [[0, 0], [1, 0]], constant_values=-1)
        begins = (types >= 0) & (is_begin | (types != before))
        continues = tf.pad(((types >= 0) & ~begins)[:, 1:], [[0, 0], [0, 1]])  # the next word is in the same entity
        words = tf.range(tf.shape(tags)[1])
        # The last word is the first one from here on whose entity does not continue.
        is_last = ~continues[:, tf.newaxis, :] & (words[tf.newaxis, :] >= words[:, tf.newaxis])
        return tf.where(begins, types, -1), tf.argmax(is_last, axis=2, output_type=tf.int32)
