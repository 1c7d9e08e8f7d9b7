"""Metrics are exact averages over masked tokens, also where batches have different numbers of them."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.model.conftest import VOCAB_SIZE, build, compile_model, make_batch, tiny_config
from tf_mlm.model import metrics as metrics_module
from tf_mlm.model.metrics import (
    METRICS,
    PERPLEXITY,
    AveragedMetrics,
    Metric,
    metric_results,
    metric_values,
    perplexity,
    total_and_count,
)


def logits_with_ranks(ranks: list[list[int]], labels: list[list[int]], vocabulary: int = 12) -> tf.Tensor:
    """Logits under which the label of each slot is the `rank`-th likeliest token, counted from 1."""
    logits = np.zeros([*np.shape(labels), vocabulary], np.float32)
    for slot in np.ndindex(np.shape(labels)):
        label, rank = int(np.array(labels)[slot]), int(np.array(ranks)[slot])
        others = [token for token in range(vocabulary) if token != label]
        order = others[: rank - 1] + [label] + others[rank - 1 :]
        logits[slot][order] = np.arange(vocabulary, 0, -1)
    return tf.constant(logits)


def add(metrics: AveragedMetrics, *batch: tf.Tensor) -> None:
    metrics.add(metrics.sums(*batch))


def results(metrics: AveragedMetrics) -> dict[str, float]:
    return {metric.name: float(metric.result()) for metric in metrics.all}


def test_every_masked_token_weighs_the_same() -> None:
    """The mean of the means of the batches would be 6.0."""
    metrics = AveragedMetrics(METRICS)
    labels = [[3, 0], [7, 0]]
    first = logits_with_ranks([[1, 5], [6, 1]], labels)
    second = logits_with_ranks([[2, 1], [1, 1]], labels)
    metrics.add(
        metrics.sums(tf.constant([[1.0, 2.0], [3.0, 0.0]]), first, tf.constant(labels), tf.constant([[1.0, 1], [1, 0]]))
    )
    assert results(metrics)["loss"] == 2.0
    metrics.add(
        metrics.sums(
            tf.constant([[10.0, 0.0], [0.0, 0.0]]), second, tf.constant(labels), tf.constant([[1.0, 0], [0, 0]])
        )
    )
    assert [metric.name for metric in metrics.all] == ["loss", "masked_accuracy", "masked_accuracy_top_5"]
    # The labels have the ranks 1, 5, 6 and 2; the slots without a label have rank 1.
    assert results(metrics) == {"loss": 4.0, "masked_accuracy": 0.25, "masked_accuracy_top_5": 0.75}


def test_the_label_0_counts() -> None:
    metrics = AveragedMetrics(METRICS)
    labels = [[0, 0, 0]]
    logits = logits_with_ranks([[1, 2, 1]], labels)
    metrics.add(
        metrics.sums(tf.constant([[1.0, 2.0, 0.0]]), logits, tf.constant(labels), tf.constant([[1.0, 1.0, 0.0]]))
    )
    assert results(metrics) == {"loss": 1.5, "masked_accuracy": 0.5, "masked_accuracy_top_5": 1.0}


def test_without_labels_the_metrics_are_0() -> None:
    metrics = AveragedMetrics(METRICS)
    nothing = tf.zeros([2, 3])
    add(metrics, nothing, tf.zeros([2, 3, 12]), tf.zeros([2, 3], tf.int32), nothing)
    assert [float(metric.result()) for metric in metrics.all] == [0.0, 0.0, 0.0]


def test_sums_stay_exact_where_float32_would_lose_a_token() -> None:
    metrics = AveragedMetrics(METRICS)
    loss = metrics.all[0]
    loss.count.assign(2.0**24)
    loss.total.assign(2.0**24)
    label = tf.constant([[1]])
    add(metrics, tf.constant([[1.0]]), tf.zeros([1, 1, 12]), label, tf.constant([[1.0]]))
    assert total_and_count(loss) == (2.0**24 + 1, 2.0**24 + 1)


@pytest.mark.parametrize("policy_name", ["float32", "mixed_bfloat16"])
def test_evaluation_averages_over_all_tokens_not_over_batches(policy: Callable[[str], None], policy_name: str) -> None:
    """An uneven mask: 15 labels in the first batch, 1 in the second, none in the third."""
    policy(policy_name)
    model = compile_model(build(tiny_config("distilbert")))
    batches = [make_batch((3, 1, 0, 5, 2, 4), seed=1), make_batch((0, 0, 1, 0, 0, 0), seed=2), make_batch((0,) * 6)]
    sums, counts, right, means = [], [], [], []
    for features, labels in batches:
        logits = tf.cast(model(features).logits, tf.float32).numpy().astype(np.float64)
        chosen = labels.numpy() != -100
        logits, targets = logits[chosen], labels.numpy()[chosen]
        losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(targets)), targets]
        sums.append(losses.sum())
        counts.append(len(targets))
        right.append((logits.argmax(-1) == targets).sum())
        means.append(losses.mean() if len(targets) else 0)
    assert counts == [15, 1, 0]
    dataset = tf.data.Dataset.from_generator(
        lambda: iter(batches),
        output_signature=tf.nest.map_structure(lambda value: tf.TensorSpec(value.shape, value.dtype), batches[0]),
    )
    logs = model.evaluate(dataset, verbose=0, return_dict=True)
    tolerance = 1e-6 if policy_name == "float32" else 1e-2
    assert logs["loss"] == pytest.approx(sum(sums) / 16, rel=tolerance)
    assert abs(logs["loss"] - np.mean(means)) > 0.1
    assert logs["masked_accuracy"] == pytest.approx(sum(right) / 16, abs=1e-9)
    assert metric_results(model) == pytest.approx(logs, rel=1e-6)


def test_accuracy_is_1_if_every_masked_token_is_predicted() -> None:
    """Keras' "accuracy" counts positions without a label as well and would be lower."""
    model = compile_model(build(tiny_config("distilbert")))
    features, labels = make_batch((3, 1, 0, 5, 2, 4))
    best = tf.argmax(model(features).logits, -1, output_type=tf.int32)
    labels = tf.where(labels != -100, best, -100)
    assert int(tf.reduce_max(best)) < VOCAB_SIZE
    model.test_step((features, labels))
    assert metric_results(model)["masked_accuracy"] == metric_results(model)["masked_accuracy_top_5"] == 1.0


def test_perplexity_is_exp_of_the_loss_and_infinite_beyond_the_largest_float() -> None:
    assert perplexity(0.0) == 1.0
    assert perplexity(2.5) == pytest.approx(12.182493960703473)
    assert perplexity(709.0) < math.inf
    assert perplexity(710.0) == perplexity(1e30) == math.inf
    assert math.isnan(perplexity(math.nan))


def test_the_averaged_metrics_keep_the_order_of_the_table() -> None:
    names = [metric.name for metric in METRICS if metric.per_token]
    assert names == ["loss", "masked_accuracy", "masked_accuracy_top_5"]
    assert [metric.name for metric in AveragedMetrics(METRICS).all] == names
    assert AveragedMetrics(METRICS).names() == [*names, "num_labels"]


def test_all_metrics_are_computed_from_the_logs_by_name() -> None:
    logs = {"val_loss": 2.5, "val_masked_accuracy": np.float32(0.5), "val_masked_accuracy_top_5": 0.75, "loss": 7.0}
    values = metric_values(logs, "val_")
    assert values == {
        "loss": 2.5,
        "perplexity": perplexity(2.5),
        "masked_accuracy": 0.5,
        "masked_accuracy_top_5": 0.75,
    }
    assert list(values) == [metric.name for metric in METRICS]


def test_values_are_shown_with_the_format_of_the_metric() -> None:
    shown = [metric.show(0.123456) for metric in METRICS]
    assert shown == ["0.1235", "0.12", "12.35%", "12.35%"]
    assert PERPLEXITY.show(18_267_768.22) == "1.83e+07"
    assert PERPLEXITY.show(None) == "–"
    assert PERPLEXITY.show(math.inf) == PERPLEXITY.show(math.nan) == "not finite"


def test_a_metric_added_to_the_table_is_computed_in_training_and_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adding top-3 accuracy does not change top 1 and top 5; also with an accumulated gradient."""

    def is_among_top_3(losses: Any, logits: Any, labels: Any) -> Any:
        best = tf.math.top_k(logits, k=3).indices
        return tf.reduce_any(best == labels[..., tf.newaxis], axis=-1)

    def is_improbable(loss: float) -> float:
        return float(loss > 1)

    features, labels = make_batch((3, 1, 0, 5, 2, 4))
    model = build(tiny_config("distilbert"))
    logits = model(features).logits.numpy()
    ranks = (logits > np.take_along_axis(logits, np.maximum(labels, 0)[..., None], -1)).sum(-1)[labels.numpy() != -100]
    assert 0 < (ranks < 3).sum() != (ranks < 1).sum()
    before = metric_results(compile_and_test(build(tiny_config("distilbert")), (features, labels)))

    added = (
        Metric("top_3", "Top 3", ".2%", per_token=is_among_top_3),
        Metric("x", "X", ".1f", from_loss=is_improbable),
    )
    monkeypatch.setattr(metrics_module, "METRICS", (*METRICS[:2], *added, *METRICS[2:]))
    after = metric_results(compile_and_test(model, (features, labels)))
    assert list(after) == ["loss", "top_3", "masked_accuracy", "masked_accuracy_top_5"]
    assert after.pop("top_3") == (ranks < 3).mean()
    assert after == before
    assert metric_values(after | {"top_3": 0.5})["x"] == 1.0

    for parts in (1, 2):
        trained = compile_model(build(tiny_config("distilbert")), accumulate_steps=parts)
        logs = trained.train_step((features, labels))  # without dropout
        assert float(logs["top_3"]) == pytest.approx((ranks < 3).mean())
        assert total_and_count(trained.metrics[1]) == ((ranks < 3).sum(), 15)


def compile_and_test(model: Any, batch: Any) -> Any:
    compile_model(model).test_step(batch)
    return model
