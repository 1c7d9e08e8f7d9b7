"""The table of metrics of each objective, and the sums from which they are computed.

To add a metric, add an entry to a table: events, `history.csv`, progress lines, TensorBoard, the model card and
`evaluate` read the table. A metric is a sum over all labels divided once by their number, not a mean of batch means.

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
        per_token: maps losses, logits and labels of a batch (see `AveragedMetrics.sums`) to one value per slot,
            [batch, slots], to be averaged over the slots with a label. None if the metric is computed otherwise.
        from_loss: maps the mean loss to the metric. A metric with neither is one of the model's validation metrics
            (see `TrainingStep.compile_step`).
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
"""The metrics of masked language modeling, in the order of files and tables."""

CLASSIFICATION_METRICS: tuple[Metric, ...] = (
    Metric("loss", "Loss (nats per example)", ".4f", per_token=_cross_entropy, hub_name="loss"),
    Metric("accuracy", "Accuracy", ".2%", per_token=_is_most_likely, hub_name="accuracy"),
    Metric("macro_f1", "Macro F1", ".2%", hub_name="f1"),
)
TOKEN_CLASSIFICATION_METRICS: tuple[Metric, ...] = (
    Metric("loss", "Loss (nats per word)", ".4f", per_token=_cross_entropy, hub_name="loss"),
    Metric("accuracy", "Accuracy per word", ".2%", per_token=_is_most_likely, hub_name="accuracy"),
    Metric("entity_precision", "Entity precision", ".2%", hub_name="precision"),
    Metric("entity_recall", "Entity recall", ".2%", hub_name="recall"),
    Metric("entity_f1", "Entity F1", ".2%", hub_name="f1"),
)


def metrics_of(objective: str) -> tuple[Metric, ...]:
    """The table of metrics of an objective.

    Args:
        objective: a value of `objective.name`.
    """
    return {
        "masked": METRICS,
        "classification": CLASSIFICATION_METRICS,
        "token_classification": TOKEN_CLASSIFICATION_METRICS,
    }[objective]


def find_metric(name: str) -> Metric | None:
    """The metric of this name in any table; None if there is none."""
    tables = (*METRICS, *CLASSIFICATION_METRICS, *TOKEN_CLASSIFICATION_METRICS)
    return next((metric for metric in tables if metric.name == name), None)


NUM_LABELS = "num_labels"
"""Key of the number of labels in `AveragedMetrics.sums`."""


def metric_values(logs: Mapping[str, Any], prefix: str = "", objective: str = "masked") -> dict[str, float]:
    """All metrics by name that are in the logs or computed from them.

    Args:
        logs: the metrics by `prefix` + name, as `fit` and `evaluate` report them.
        prefix: "val_" for those of the validation.
        objective: a value of `objective.name`.
    """
    values = {}
    for metric in metrics_of(objective):
        if metric.from_loss:
            values[metric.name] = metric.from_loss(float(logs[prefix + LOSS.name]))
        elif prefix + metric.name in logs:
            values[metric.name] = float(logs[prefix + metric.name])
    return values


class AveragedMetrics:
    """The Keras metrics of a table that are averages over labels, updated with sums over batches.

    Keras' `Mean` keeps a weighted sum and the sum of the weights. In float64 the latter is exact over any epoch.

    Attributes:
        all: a Keras `Mean` for each metric with `per_token`, in the order of the table.
        not_averaged: other Keras metrics of the model. As attributes of the model, Keras would count their variables
            as weights.
    """

    def __init__(self, table: tuple[Metric, ...], not_averaged: tuple[Any, ...] = ()) -> None:
        import tensorflow as tf
        import tf_keras as keras

        class Average(keras.metrics.Mean):
            """Has the same sums on all replicas, because `add` receives sums over all of them."""

            def add_weight(self, name: str, **options: Any) -> Any:
                options |= {
                    "synchronization": tf.VariableSynchronization.ON_WRITE,
                    "aggregation": tf.VariableAggregation.NONE,
                }
                return super().add_weight(name, **options)

        self._averaged = [(metric.name, metric.per_token) for metric in table if metric.per_token]
        self.all = [Average(name, dtype=tf.float64) for name, _ in self._averaged]
        self.not_averaged = not_averaged

    def names(self) -> list[str]:
        """Names of the elements of `sums`: the averaged metrics, and `NUM_LABELS`."""
        return [*(name for name, _ in self._averaged), NUM_LABELS]

    def by_name(self, sums: Any) -> dict[str, Any]:
        """The elements of `sums`, scalars by name."""
        return {name: sums[i] for i, name in enumerate(self.names())}

    def sums(self, losses: Any, logits: Any, labels: Any, weights: Any) -> Any:
        """The sum of each averaged metric over the slots with a label, and their number: float64 [len(names())].

        One vector and not one tensor per metric: XLA would then choose other clusters of operations, and the weights
        of a bfloat16 training would differ in the last digits.

        Args:
            losses: float32 [batch, slots], cross-entropy in nats.
            logits: float32 [batch, slots, classes].
            labels: int32 [batch, slots].
            weights: float32 [batch, slots], 1 for a slot with a label, else 0.
        """
        import tensorflow as tf

        weights = tf.cast(weights, tf.float64)
        sums = [
            tf.reduce_sum(tf.cast(per_token(losses, logits, labels), tf.float64) * weights)
            for _, per_token in self._averaged
        ]
        return tf.stack([*sums, tf.reduce_sum(weights)])

    def add(self, sums: Any) -> None:
        """Add the sums of a batch, over all replicas."""
        by_name = self.by_name(sums)
        for metric in self.all:
            metric.total.assign_add(by_name[metric.name])
            metric.count.assign_add(by_name[NUM_LABELS])

    def results(self) -> dict[str, Any]:
        """The averages so far, scalar tensors by name."""
        return {metric.name: metric.result() for metric in self.all}


def total_and_count(metric: Any) -> tuple[float, float]:
    """The sum and the number of tokens of one of `AveragedMetrics.all`."""
    import tensorflow as tf

    return float(tf.convert_to_tensor(metric.total)), float(tf.convert_to_tensor(metric.count))


def metric_results(model: Any) -> dict[str, float]:
    """The averaged metrics of a model by name, over all replicas.

    Args:
        model: a compiled `TrainingStep`.
    """
    return {name: float(value) for name, value in model._averages.results().items()}
