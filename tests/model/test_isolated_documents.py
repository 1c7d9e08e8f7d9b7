"""With position_ids, the documents of a sequence do not influence each other, in all architectures."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.model.conftest import (
    LENGTH,
    VOCAB_SIZE,
    assert_same_gradients,
    build,
    build_pair,
    compile_model,
    gradients_of,
    tiny_config,
)
from tf_mlm.model.architectures import max_sequence_length
from tf_mlm.model.metrics import metric_results

SIZES = ((5, 4, 3), (1, 9), (12,), (2, 3, 1, 6))  # tokens of the documents of each row; the second row has padding
NUM_LABELS = (2, 1, 0, 1, 3, 4, 1, 0, 1, 2)  # of each document


def pack(sizes: tuple[tuple[int, ...], ...] = SIZES, length: int = LENGTH, seed: int = 7) -> dict[str, Any]:
    """The features of rows that have documents of these sizes, of random ids."""
    numbers = np.random.default_rng(seed)
    used = np.array([sum(row) for row in sizes])
    mask = (np.arange(length) < used[:, None]).astype(np.int32)
    ends = [[*np.cumsum(row)[:-1], length] for row in sizes]  # padding continues the positions of the last document
    positions = [np.concatenate([np.arange(end - start) for start, end in zip([0, *e], e, strict=False)]) for e in ends]
    return {
        "input_ids": np.where(mask, numbers.integers(5, VOCAB_SIZE, mask.shape), 0).astype(np.int32),
        "attention_mask": mask,
        "position_ids": np.array(positions, np.int32),
    }


def documents(packed: np.ndarray) -> list[np.ndarray]:
    """The part of each document of `SIZES` in an array [row, column, ...]."""
    return [
        row[end - size : end]
        for row, of_row in zip(packed, SIZES, strict=False)
        for size, end in zip(of_row, np.cumsum(of_row), strict=True)
    ]


def alone(values: list[np.ndarray], fill: int = 0) -> np.ndarray:
    """One document per row, padded: int32 [document, column]."""
    return np.array([np.pad(each, (0, LENGTH - len(each)), constant_values=fill) for each in values], np.int32)


def logits(model: Any, features: dict[str, Any], mode: str = "eager") -> np.ndarray:
    """Float32 [row, column, vocabulary], computed in `eager`, `graph` or `xla` mode."""
    rows, length = features["input_ids"].shape
    positions = tf.tile(tf.range(length)[None], [rows, 1])

    def compute(features: dict[str, Any]) -> Any:
        return model.predict_tokens(model.encode_positions(**features, positions=positions, training=False), False)

    tensors = {name: tf.constant(value) for name, value in features.items()}
    run = compute if mode == "eager" else tf.function(compute, jit_compile=mode == "xla")
    return np.asarray(tf.cast(run(tensors), tf.float32))


def without_isolation(features: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in features.items() if name != "position_ids"}


@pytest.mark.parametrize(
    ("precision", "mode"),
    [("float32", "graph"), ("mixed_bfloat16", "graph"), pytest.param("float32", "xla", marks=pytest.mark.slow)],
)
def test_a_changed_document_leaves_the_logits_of_its_neighbors_bit_equal(
    model_type: str, precision: str, mode: str, policy: Any
) -> None:
    policy(precision)
    model = build(tiny_config(model_type))
    features = pack()
    changed = features | {"input_ids": features["input_ids"].copy()}
    changed["input_ids"][:, 1:5] = changed["input_ids"][:, 1:5] % (VOCAB_SIZE - 5) + 5  # other ordinary tokens
    is_changed = [True, False, False, False, True, True, True, True, False, False]
    before, after = (documents(logits(model, each, mode)) for each in (features, changed))
    assert [(a != b).any() for a, b in zip(before, after, strict=True)] == is_changed
    before, after = (documents(logits(model, without_isolation(each))) for each in (features, changed))
    assert all((a != b).any() for a, b in zip(before, after, strict=True))


def test_the_logits_of_a_document_are_those_of_the_document_alone_in_a_sequence(model_type: str) -> None:
    """The stock model computes the document alone, so the positions are the stock ones."""
    ours, stock = build_pair(tiny_config(model_type))
    features = pack()
    input_ids = alone(documents(features["input_ids"]))
    mask = alone([np.ones(len(each)) for each in documents(features["input_ids"])])
    expected = stock(input_ids=input_ids, attention_mask=mask).logits.numpy()
    for packed, single in zip(documents(logits(ours, features)), expected, strict=True):
        assert np.abs(packed - single[: len(packed)]).max() <= 1e-5 * np.abs(single).max()
    joined = documents(logits(ours, without_isolation(features)))
    far = [np.abs(each - one[: len(each)]).max() > 1e-2 for each, one in zip(joined, expected, strict=True)]
    assert far == [size != LENGTH for row in SIZES for size in row]


def test_one_document_per_sequence_gives_the_logits_of_no_isolation_bit_for_bit(model_type: str) -> None:
    model, _ = build_pair(tiny_config(model_type))
    features = pack(((12,), (7,), (1,)))
    np.testing.assert_array_equal(logits(model, features), logits(model, without_isolation(features)))


@pytest.mark.parametrize("num_parts", [1, 2])
def test_a_step_has_the_loss_and_the_gradients_of_its_documents_alone(model_type: str, num_parts: int) -> None:
    ours, _ = build_pair(tiny_config(model_type))
    features = pack((*SIZES, (1,), (1,)))
    features["input_ids"][len(SIZES) :] = 0  # filler rows
    numbers = np.random.default_rng(3)
    parts = []
    for ids, count in zip(documents(features["input_ids"]), NUM_LABELS, strict=True):
        part = np.full(len(ids), -100)
        part[numbers.choice(len(ids), count, replace=False)] = numbers.integers(5, VOCAB_SIZE, count)
        parts.append(part)
    labels = np.full(features["input_ids"].shape, -100, np.int32)
    for row, of_row in enumerate(SIZES):
        labels[row, : sum(of_row)] = np.concatenate([parts.pop(0) for _ in of_row])
    single = {
        "input_ids": alone(documents(features["input_ids"])),
        "attention_mask": alone([np.ones(len(each)) for each in documents(features["input_ids"])]),
    }
    single_labels = alone(documents(labels), fill=-100)
    expected = gradients_of(compile_model(ours), *as_tensors(single, single_labels))
    loss = metric_results(ours)["loss"]
    gradients = gradients_of(compile_model(ours, accumulate_steps=num_parts), *as_tensors(features, labels))
    assert_same_gradients(gradients, expected)
    assert metric_results(ours)["loss"] == pytest.approx(loss, rel=1e-6)
    assert float(ours.metrics[0].count) == sum(NUM_LABELS)


def as_tensors(features: dict[str, Any], labels: np.ndarray) -> Any:
    return {name: tf.constant(value) for name, value in features.items()}, tf.constant(labels)


def test_a_document_may_use_all_positions_of_the_model(model_type: str) -> None:
    config = tiny_config(model_type)
    length = max_sequence_length(config)
    ours, stock = build_pair(config)
    features = pack(((length,), (1, length - 1)), length)
    expected = stock(input_ids=features["input_ids"], attention_mask=features["attention_mask"]).logits.numpy()
    found = logits(ours, features)
    assert np.isfinite(found).all()
    assert np.abs(found[0] - expected[0]).max() <= 1e-5 * np.abs(expected[0]).max()
