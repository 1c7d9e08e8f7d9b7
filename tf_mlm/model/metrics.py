"""Metrics over masked tokens, exact over a whole data set: sums divided once, never means of means.

Keras' `Mean` keeps a weighted sum and the sum of the weights; in float64 both stay exact over any epoch.
"""

import math
from typing import Any

import tensorflow as tf
import tf_keras as keras


class MaskedLMMetrics:
    """Loss, perplexity and accuracies, each over the tokens that carry a label."""

    def __init__(self) -> None:
        self.loss = keras.metrics.Mean("loss", dtype=tf.float64)
        self.accuracy = keras.metrics.Mean("masked_accuracy", dtype=tf.float64)
        self.top_5_accuracy = keras.metrics.Mean("masked_accuracy_top_5", dtype=tf.float64)

    @property
    def all(self) -> list[keras.metrics.Metric]:
        return [self.loss, self.accuracy, self.top_5_accuracy]

    @staticmethod
    def sums(losses: tf.Tensor, logits: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """float64 [4]: of a batch the summed loss, the labels met first, those among the first five, and their number.

        Args:
            losses: float32 [batch, slots], cross-entropy in nats.
            logits: float32 [batch, slots, vocabulary].
            labels: int32 [batch, slots].
            weights: float32 [batch, slots], 1 where the slot holds a label, else 0.
        """
        weights = tf.cast(weights, tf.float64)
        first = tf.argmax(logits, -1, output_type=labels.dtype) == labels
        flat = tf.math.in_top_k(tf.reshape(labels, [-1]), tf.reshape(logits, [-1, logits.shape[-1]]), k=5)
        return tf.stack(
            [
                tf.reduce_sum(tf.cast(losses, tf.float64) * weights),
                tf.reduce_sum(tf.cast(first, tf.float64) * weights),
                tf.reduce_sum(tf.cast(flat, tf.float64) * tf.reshape(weights, [-1])),
                tf.reduce_sum(weights),
            ]
        )

    def add(self, sums: tf.Tensor) -> None:
        """Add what `sums` returned."""
        for i, metric in enumerate(self.all):
            metric.total.assign_add(sums[i])
            metric.count.assign_add(sums[3])


def perplexity(loss: float) -> float:
    """exp of a token-weighted loss in nats; infinite where that is beyond a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def scalar_results(model: Any) -> dict[str, float]:
    """The model's metrics as Python floats, by name."""
    return {metric.name: float(metric.result()) for metric in model.metrics}
