"""The table of metrics over masked tokens, and the sums from which they are computed.

To add a metric, add an entry to `METRICS`: events, `history.csv`, progress lines, TensorBoard, the model card and
`evaluate` read the table. A metric is a sum over all masked tokens divided once by their number, not a mean of batch
means.

TensorFlow is imported inside the functions, because modules that run before `runtime.prepare` read the table.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Metric:
    """One metric of training and validation.

    Attributes:
        name: key in Keras' logs, events and files; there the validation metric is `val_<name>`.
        title: name in tables and plots.
        format: format specification of a value, such as `.4f`.
        per_token: maps losses, logits and labels of a batch (see `MaskedLMMetrics.sums`) to one value per slot,
            [batch, slots], to be averaged over the slots with a label. None if `from_loss` computes the metric.
        from_loss: maps the mean loss to the metric.
        hub_name: metric type in the front matter of a model card; "" leaves the metric out.
    """

    name: str
    title: str
    format: str
    per_token: Callable[[Any, Any, Any], Any] | None = None
    from_loss: Callable[[float], float] | None = None
    hub_name: str = ""

    def show(self, value: float | None) -> str:
        """The value as text; an en dash for a missing value."""
        if value is None:
            return "–"
        if not math.isfinite(value):
            return "not finite"
        return format(value, self.format) if abs(value) < 1e7 else f"{value:.2e}"


def perplexity(loss: float) -> float:
    """exp of a token-weighted loss in nats; infinite if it exceeds the largest float."""
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
METRICS: tuple[Metric, ...] = (
    LOSS,
    PERPLEXITY,
    Metric("masked_accuracy", "Masked accuracy (top 1)", ".2%", per_token=_is_most_likely, hub_name="accuracy"),
    Metric("masked_accuracy_top_5", "Masked accuracy (top 5)", ".2%", per_token=_is_among_top_5),
)
"""All metrics, in the order of files and tables."""

NUM_LABELS = "num_labels"
"""Key of the number of labels in `MaskedLMMetrics.sums`."""


def metric_values(logs: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """All metrics by name.

    Args:
        logs: the averaged metrics by `prefix` + name, as `fit` and `evaluate` report them.
        prefix: "val_" for those of the validation.
    """
    values = {}
    for metric in METRICS:
        if metric.from_loss:
            values[metric.name] = metric.from_loss(float(logs[prefix + LOSS.name]))
        else:
            values[metric.name] = float(logs[prefix + metric.name])
    return values


class MaskedLMMetrics:
    """The Keras metrics of `METRICS`, updated with sums over batches.

    Keras' `Mean` keeps a weighted sum and the sum of the weights. In float64 the latter is exact over any epoch.

    Attributes:
        all: a Keras `Mean` for each metric with `per_token`, in the order of `METRICS`.
    """

    def __init__(self) -> None:
        import tensorflow as tf
        import tf_keras as keras

        self.all = [keras.metrics.Mean(metric.name, dtype=tf.float64) for metric in METRICS if metric.per_token]

    @staticmethod
    def names() -> list[str]:
        """Names of the elements of `sums`: the averaged metrics, and `NUM_LABELS`."""
        return [*(metric.name for metric in METRICS if metric.per_token), NUM_LABELS]

    @classmethod
    def by_name(cls, sums: Any) -> dict[str, Any]:
        """The elements of `sums`, scalars by name."""
        return {name: sums[i] for i, name in enumerate(cls.names())}

    @staticmethod
    def sums(losses: Any, logits: Any, labels: Any, weights: Any) -> Any:
        """The sum of each averaged metric over the slots with a label, and their number: float64 [len(names())].

        One vector and not one tensor per metric: XLA would then choose other clusters of operations, and the weights
        of a bfloat16 training would differ in the last digits.

        Args:
            losses: float32 [batch, slots], cross-entropy in nats.
            logits: float32 [batch, slots, vocabulary].
            labels: int32 [batch, slots].
            weights: float32 [batch, slots], 1 for a slot with a label, else 0.
        """
        import tensorflow as tf

        weights = tf.cast(weights, tf.float64)
        sums = [
            tf.reduce_sum(tf.cast(metric.per_token(losses, logits, labels), tf.float64) * weights)
            for metric in METRICS
            if metric.per_token
        ]
        return tf.stack([*sums, tf.reduce_sum(weights)])

    def add(self, sums: Any) -> None:
        """Add the sums of a batch."""
        by_name = self.by_name(sums)
        for metric in self.all:
            metric.total.assign_add(by_name[metric.name])
            metric.count.assign_add(by_name[NUM_LABELS])


def total_and_count(metric: Any) -> tuple[float, float]:
    """The sum and the number of tokens of a Keras `Mean`, over all replicas.

    Under a mirrored strategy both are `SyncOnReadVariable`s, which `float` refuses.
    """
    import tensorflow as tf

    return float(tf.convert_to_tensor(metric.total)), float(tf.convert_to_tensor(metric.count))


def metric_results(model: Any) -> dict[str, float]:
    """The averaged metrics of a model by name, over all replicas.

    Args:
        model: a compiled `MaskedLanguageModel`.
    """
    return {metric.name: float(metric.result()) for metric in model.metrics}
