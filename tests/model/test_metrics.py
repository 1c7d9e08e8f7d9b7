"""Metrics are exact over masked tokens, however unevenly those lie in the batches."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tests.model.conftest import VOCAB_SIZE, build, compile_model, make_batch, tiny_config
from tf_mlm.model.metrics import MaskedLMMetrics, perplexity, scalar_results


def logits_with_ranks(ranks: list[list[int]], labels: list[list[int]], vocabulary: int = 12) -> tf.Tensor:
    """Logits under which the label of each slot is the `rank`-th likeliest token, counted from 1."""
    logits = np.zeros([*np.shape(labels), vocabulary], np.float32)
    for slot in np.ndindex(np.shape(labels)):
        label, rank = np.array(labels)[slot], np.array(ranks)[slot]
        others = [token for token in range(vocabulary) if token != label]
        order = others[: rank - 1] + [label] + others[rank - 1 :]
        logits[slot][order] = np.arange(vocabulary, 0, -1)
    return tf.constant(logits)


def add(metrics: MaskedLMMetrics, *batch: tf.Tensor) -> None:
    metrics.add(metrics.sums(*batch))


def test_every_masked_token_weighs_the_same():
    """6.0 would be the mean of the batches' means."""
    metrics = MaskedLMMetrics()
    labels = [[3, 0], [7, 0]]
    first = logits_with_ranks([[1, 5], [6, 1]], labels)
    second = logits_with_ranks([[2, 1], [1, 1]], labels)
    metrics.add(
        metrics.sums(tf.constant([[1.0, 2.0], [3.0, 0.0]]), first, tf.constant(labels), tf.constant([[1.0, 1], [1, 0]]))
    )
    assert float(metrics.loss.result()) == 2.0
    metrics.add(
        metrics.sums(
            tf.constant([[10.0, 0.0], [0.0, 0.0]]), second, tf.constant(labels), tf.constant([[1.0, 0], [0, 0]])
        )
    )
    assert [metric.name for metric in metrics.all] == ["loss", "masked_accuracy", "masked_accuracy_top_5"]
    assert float(metrics.loss.result()) == 4.0
    assert float(metrics.accuracy.result()) == 0.25  # of ranks 1, 5, 6, 2; the slots without a label are at rank 1
    assert float(metrics.top_5_accuracy.result()) == 0.75


def test_the_label_0_counts():
    metrics = MaskedLMMetrics()
    labels = [[0, 0, 0]]
    logits = logits_with_ranks([[1, 2, 1]], labels)
    metrics.add(
        metrics.sums(tf.constant([[1.0, 2.0, 0.0]]), logits, tf.constant(labels), tf.constant([[1.0, 1.0, 0.0]]))
    )
    assert float(metrics.loss.result()) == 1.5
    assert float(metrics.accuracy.result()) == 0.5


def test_no_label_at_all_is_0_and_not_nan():
    metrics = MaskedLMMetrics()
    nothing = tf.zeros([2, 3])
    add(metrics, nothing, tf.zeros([2, 3, 12]), tf.zeros([2, 3], tf.int32), nothing)
    assert [float(metric.result()) for metric in metrics.all] == [0.0, 0.0, 0.0]


def test_sums_stay_exact_where_float32_would_lose_a_token():
    metrics = MaskedLMMetrics()
    metrics.loss.count.assign(2.0**24)
    metrics.loss.total.assign(2.0**24)
    label = tf.constant([[1]])
    add(metrics, tf.constant([[1.0]]), tf.zeros([1, 1, 12]), label, tf.constant([[1.0]]))
    assert float(metrics.loss.count) == float(metrics.loss.total) == 2.0**24 + 1


@pytest.mark.parametrize("policy_name", ["float32", "mixed_bfloat16"])
def test_evaluation_is_one_mean_over_all_tokens_and_no_mean_of_means(policy, policy_name):
    """An uneven mask: 15 labels in the first batch, 1 in the second, 4 of which... none in the third."""
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
    results = model.evaluate(dataset, verbose=0, return_dict=True)
    tolerance = 1e-6 if policy_name == "float32" else 1e-2
    assert results["loss"] == pytest.approx(sum(sums) / 16, rel=tolerance)
    assert abs(results["loss"] - np.mean(means)) > 0.1
    assert results["masked_accuracy"] == pytest.approx(sum(right) / 16, abs=1e-9)
    assert scalar_results(model) == pytest.approx(results, rel=1e-6)


def test_accuracy_is_1_where_every_masked_token_is_right():
    """Keras' "accuracy" counts the positions without a label and reports a fraction of this."""
    model = compile_model(build(tiny_config("distilbert")))
    features, labels = make_batch((3, 1, 0, 5, 2, 4))
    best = tf.argmax(model(features).logits, -1, output_type=tf.int32)
    labels = tf.where(labels != -100, best, -100)
    assert int(tf.reduce_max(best)) < VOCAB_SIZE
    model.test_step((features, labels))
    assert scalar_results(model)["masked_accuracy"] == scalar_results(model)["masked_accuracy_top_5"] == 1.0


def test_perplexity_is_exp_of_the_loss_and_infinite_beyond_a_float():
    assert perplexity(0.0) == 1.0
    assert perplexity(2.5) == pytest.approx(12.182493960703473)
    assert perplexity(709.0) < math.inf
    assert perplexity(710.0) == perplexity(1e30) == math.inf
    assert math.isnan(perplexity(math.nan))
