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

    def update(self, losses: tf.Tensor, logits: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor) -> None:
        """Add a batch.

        Args:
            losses: float32 [batch, slots], cross-entropy in nats.
            logits: float32 [batch, slots, vocabulary].
            labels: int32 [batch, slots].
            weights: float32 [batch, slots], 1 where the slot holds a label, else 0.
        """
        self.loss.update_state(losses, weights)
        self.accuracy.update_state(tf.argmax(logits, -1, output_type=labels.dtype) == labels, weights)
        flat = tf.math.in_top_k(tf.reshape(labels, [-1]), tf.reshape(logits, [-1, logits.shape[-1]]), k=5)
        self.top_5_accuracy.update_state(flat, tf.reshape(weights, [-1]))


def perplexity(loss: float) -> float:
    """exp of a token-weighted loss in nats; infinite where that is beyond a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def scalar_results(model: Any) -> dict[str, float]:
    """The model's metrics as Python floats, by name."""
    return {metric.name: float(metric.result()) for metric in model.metrics}
