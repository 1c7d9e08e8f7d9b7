"""The table of metrics over masked tokens, and the sums that they are computed from.

To add a metric, add an entry to `METRICS`: events, `history.csv`, progress lines, TensorBoard, the model card and
`evaluate` read the table. Every metric is a sum over all masked tokens divided once by their number, never a mean of
batch means.

TensorFlow is imported inside the functions, because code that runs before `runtime.prepare` reads the table.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Metric:
    """One metric of training and validation.

    Attributes:
        name: its name in Keras' logs; `val_<name>` in events and files.
        title: its name for a reader.
        format: format specification of a value, such as `.4f`.
        per_token: from (losses, logits, labels) of a batch to one value for each slot, averaged over the slots that
            carry a label. None where `from_loss` computes the metric.
        from_loss: from the mean loss to the metric.
        hub_name: metric type in a model card's front matter; "" leaves the metric out there.
    """

    name: str
    title: str
    format: str
    per_token: Callable[[Any, Any, Any], Any] | None = None
    from_loss: Callable[[float], float] | None = None
    hub_name: str = ""

    def show(self, value: float | None) -> str:
        """The value for a reader."""
        if value is None:
            return "–"
        if not math.isfinite(value):
            return "not finite"
        return format(value, self.format) if abs(value) < 1e7 else f"{value:.2e}"


def perplexity(loss: float) -> float:
    """exp of a token-weighted loss in nats; infinite where a float cannot hold it."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _cross_entropy(losses: Any, logits: Any, labels: Any) -> Any:
    return losses


def _is_most_likely(losses: Any, logits: Any, labels: Any) -> Any:
    import tensorflow as tf

    return tf.argmax(logits, -1, output_type=labels.dtype) == labels


def _is_among_top_5(losses: Any, logits: Any, labels: Any) -> Any:
    import tensorflow as tf

    flat = tf.math.in_top_k(tf.reshape(labels, [-1]), tf.reshape(logits, [-1, logits.shape[-1]]), k=5)
    return tf.reshape(flat, tf.shape(labels))


LOSS = Metric("loss", "Loss (nats per masked token)", ".4f", per_token=_cross_entropy, hub_name="loss")
PERPLEXITY = Metric("perplexity", "Perplexity", ",.2f", from_loss=perplexity, hub_name="perplexity")
METRICS = (
    LOSS,
    PERPLEXITY,
    Metric("masked_accuracy", "Masked accuracy (top 1)", ".2%", per_token=_is_most_likely, hub_name="accuracy"),
    Metric("masked_accuracy_top_5", "Masked accuracy (top 5)", ".2%", per_token=_is_among_top_5),
)
"""Every metric, in the order in which files and tables list them."""

NUM_LABELS = "num_labels"
"""Key of the number of masked tokens in `MaskedLMMetrics.sums`."""


def metric_values(logs: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Every metric by name, from Keras' logs of the averaged ones.

    Args:
        logs: metric values by `prefix` + name.
    """
    values = {}
    for metric in METRICS:
        if metric.from_loss:
            values[metric.name] = metric.from_loss(float(logs[prefix + LOSS.name]))
        else:
            values[metric.name] = float(logs[prefix + metric.name])
    return values


class MaskedLMMetrics:
    """Keras metrics for `METRICS`, fed with sums.

    Keras' `Mean` keeps a weighted sum and the sum of the weights; in float64 both stay exact over any epoch.
    """

    def __init__(self) -> None:
        import tensorflow as tf
        import tf_keras as keras

        self.all = [keras.metrics.Mean(metric.name, dtype=tf.float64) for metric in METRICS if metric.per_token]

    @staticmethod
    def names() -> list[str]:
        """Keys of what `sums` returns."""
        return [*(metric.name for metric in METRICS if metric.per_token), NUM_LABELS]

    @staticmethod
    def sums(losses: Any, logits: Any, labels: Any, weights: Any) -> dict[str, Any]:
        """Sums over the labelled slots of a batch, float64 scalars by metric, and their number under `NUM_LABELS`.

        Args:
            losses: float32 [batch, slots], cross-entropy in nats.
            logits: float32 [batch, slots, vocabulary].
            labels: int32 [batch, slots].
            weights: float32 [batch, slots], 1 where the slot carries a label, else 0.
        """
        import tensorflow as tf

        weights = tf.cast(weights, tf.float64)
        sums = {
            metric.name: tf.reduce_sum(tf.cast(metric.per_token(losses, logits, labels), tf.float64) * weights)
            for metric in METRICS
            if metric.per_token
        }
        return sums | {NUM_LABELS: tf.reduce_sum(weights)}

    def add(self, sums: Mapping[str, Any]) -> None:
        """Add what `sums` returned."""
        for metric in self.all:
            metric.total.assign_add(sums[metric.name])
            metric.count.assign_add(sums[NUM_LABELS])


def total_and_count(metric: Any) -> tuple[float, float]:
    """The sum and the number of tokens that a Keras `Mean` holds, over all replicas."""
    import tensorflow as tf

    return float(tf.convert_to_tensor(metric.total)), float(tf.convert_to_tensor(metric.count))
