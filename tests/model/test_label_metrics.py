"""Macro F1 and entity F1 equal scikit-learn's and seqeval's."""

import numpy as np
import pytest
import seqeval.metrics
import sklearn.metrics
import tensorflow as tf

from tf_mlm.model.label_metrics import ClassCounts, EntityCounts

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def test_macro_f1_is_that_of_scikit_learn_over_several_batches() -> None:
    numbers = np.random.default_rng(0)
    labels, predictions = numbers.integers(0, 4, (2, 6, 5, 1))
    weights = (numbers.random((6, 5, 1)) < 0.8).astype(np.float32)
    metric = ClassCounts(5)  # class 4 never occurs
    for batch in zip(labels, predictions, weights, strict=True):
        metric.update_state(*map(tf.constant, batch))
    kept = weights > 0
    expected = sklearn.metrics.f1_score(labels[kept], predictions[kept], average="macro")
    assert float(metric.result()["macro_f1"]) == pytest.approx(expected)
    metric.reset_state()
    assert float(metric.result()["macro_f1"]) == 0.0


@pytest.mark.parametrize("seed", range(20))
def test_entity_metrics_are_those_of_seqeval(seed: int) -> None:
    """Random tags, so that all malformed orders occur, and predictions that agree in about half of the words."""
    numbers = np.random.default_rng(seed)
    labels = numbers.integers(0, len(TAGS), (3, 8, 11))
    predictions = np.where(numbers.random(labels.shape) < 0.5, labels, numbers.integers(0, len(TAGS), labels.shape))
    lengths = numbers.integers(0, 12, (3, 8))
    weights = (np.arange(11) < lengths[..., None]).astype(np.float32)
    metric = EntityCounts(TAGS)
    for batch in zip(labels.astype(np.int32), predictions.astype(np.int32), weights, strict=True):
        metric.update_state(*map(tf.constant, batch))

    def texts(ids: np.ndarray) -> list[list[str]]:
        return [[TAGS[tag] for tag in row[:n]] for row, n in zip(ids.reshape(-1, 11), lengths.flat, strict=True) if n]

    true, predicted = texts(labels), texts(predictions)
    found = {name: float(value) for name, value in metric.result().items()}
    assert found == {
        "entity_precision": pytest.approx(seqeval.metrics.precision_score(true, predicted)),
        "entity_recall": pytest.approx(seqeval.metrics.recall_score(true, predicted)),
        "entity_f1": pytest.approx(seqeval.metrics.f1_score(true, predicted)),
    }
    assert 0 < found["entity_f1"] < 1


def test_an_entity_is_correct_only_if_its_span_and_type_are() -> None:
    def f1(true: list[int], predicted: list[int]) -> float:
        metric = EntityCounts(TAGS)
        metric.update_state(tf.constant([true]), tf.constant([predicted]), tf.ones([1, len(true)]))
        return float(metric.result()["entity_f1"])

    assert f1([1, 2, 0], [1, 2, 0]) == 1.0
    assert f1([1, 2, 0], [1, 0, 0]) == 0.0  # too short
    assert f1([1, 2, 0], [1, 2, 2]) == 0.0  # too long
    assert f1([1, 2, 0], [3, 4, 0]) == 0.0  # another type
    assert f1([0, 0, 0], [0, 0, 0]) == 0.0  # nothing to find, as seqeval
