"""Dropout is a function of (seed, step, layer, example)."""

import itertools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tests.model.conftest import build, build_pair, compile_model, gradients_of, make_batch, tiny_config
from tf_mlm.model.dropout import ForwardPass, StepDropout, use_step_dropout


def drop(
    shape: tuple[int, ...] = (64, 1000),
    rate: float = 0.5,
    *,
    seed: int = 1,
    step: int = 0,
    layer: int = 0,
    first_example: int = 0,
    dtype: tf.DType = tf.float32,
    value: float = 1.0,
) -> np.ndarray:
    forward_pass = ForwardPass(tf.Variable(step, dtype=tf.int64))
    forward_pass.begin(first_example)
    dropped = StepDropout(seed, layer, forward_pass).dropout(tf.fill(shape, tf.constant(value, dtype)), rate)
    return np.asarray(dropped)


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16, tf.float16])
def test_the_rate_is_met(rate: float, dtype: tf.DType) -> None:
    dropped = drop((1000, 1000), rate, dtype=dtype) == 0
    assert abs(dropped.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / 1e6) + 2**-17
    # Evenly: each half of a generator's word, each row and each column has its share.
    assert abs(dropped.reshape(-1)[::2].mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / 5e5) + 2**-17
    for axis in (0, 1):
        assert np.abs(dropped.mean(axis) - rate).max() < 6 * np.sqrt(rate * (1 - rate) / 1e3) + 1e-3


@pytest.mark.parametrize("rate", [0.1, 0.25, 1 / 3])
def test_kept_elements_are_scaled_to_keep_the_expectation(rate: float) -> None:
    kept_levels = 2**16 - round(rate * 2**16)
    result = drop((100, 100), rate, value=3.0)
    assert set(np.unique(result)) == {np.float32(0), np.float32(3) * np.float32(2**16 / kept_levels)}
    assert result.max() / 3.0 * kept_levels / 2**16 == pytest.approx(1, rel=1e-7)


@pytest.mark.parametrize("shape", [(1,), (3,), (3, 5, 7), (2, 2), (1, 1, 1)])
def test_any_size_works_also_an_odd_one(shape: tuple[int, ...]) -> None:
    result = drop(shape)
    assert result.shape == shape
    assert set(np.unique(result)) <= {0.0, 2.0}


def test_an_unknown_batch_size_gives_the_mask_of_a_known_one() -> None:
    forward_pass = ForwardPass(tf.Variable(0, dtype=tf.int64))
    layer = StepDropout(1, 0, forward_pass)
    unknown = tf.function(lambda x: layer.dropout(x, 0.5), input_signature=[tf.TensorSpec([None, 7])])
    np.testing.assert_array_equal(unknown(tf.ones([5, 7])), drop((5, 7)))


def test_the_same_seed_step_layer_and_examples_give_the_same_mask() -> None:
    here: dict[str, Any] = {"seed": 5, "step": 17, "layer": 3, "first_example": 64}
    np.testing.assert_array_equal(drop(**here), drop(**here))


@pytest.mark.parametrize(
    "other", [{"seed": 6}, {"step": 18}, {"layer": 4}, {"first_example": 128}, {"step": 17 + 2**32}]
)
def test_another_seed_step_layer_or_example_gives_an_independent_mask(other: dict[str, Any]) -> None:
    here: dict[str, Any] = {"seed": 5, "step": 17, "layer": 3, "first_example": 64}
    agree = (drop(**here) == drop(**here | other)).mean()
    assert abs(agree - 0.5) < 5 * 0.5 / np.sqrt(64_000)


@pytest.mark.parametrize("shape", [(12, 8), (12, 5, 7), (12, 3), (12, 2, 16)])
def test_an_example_has_the_same_mask_in_any_pass_that_contains_it(shape: tuple[int, ...]) -> None:
    """So training has the same dropout on any number of replicas and with any accumulate_steps."""
    whole = drop(shape)
    for first, size in ((0, 6), (6, 6), (3, 4), (11, 1)):
        np.testing.assert_array_equal(drop((size, *shape[1:]), first_example=first), whole[first : first + size])
    assert len({row.tobytes() for row in drop((12, 64))}) == 12


def test_no_two_draws_of_a_run_share_their_bits() -> None:
    """Layers, examples, calls of one layer (ALBERT) and steps beyond 32 bits."""
    drawn = set()
    steps, examples, layers, calls = (0, 1, 2**31, 2**32), (0, 1, 2, 63, 4096), range(0, 60, 7), 3
    for step, example in itertools.product(steps, examples):
        forward_pass = ForwardPass(tf.constant(step, tf.int64))
        forward_pass.begin(example)
        for layer in layers:
            key = StepDropout(2**32 - 1, layer, forward_pass)._key
            drawn |= {forward_pass.draw_bits(layer, key, 1, 1).numpy().tobytes() for _ in range(calls)}
    assert len(drawn) == len(steps) * len(examples) * len(layers) * calls


def test_each_call_of_a_layer_in_a_pass_has_its_own_mask_and_the_next_pass_repeats_them() -> None:
    forward_pass = ForwardPass(tf.Variable(0, dtype=tf.int64))
    layer = StepDropout(1, 0, forward_pass)
    passes = []
    for _ in range(2):
        forward_pass.begin(0)
        passes.append([layer.dropout(tf.ones([64, 1000]), 0.5).numpy() for _ in range(2)])
    assert abs((passes[0][0] == passes[0][1]).mean() - 0.5) < 0.01
    np.testing.assert_array_equal(passes[0], passes[1])


def test_every_dropout_layer_of_a_model_has_its_own_key(model_type: str) -> None:
    model = build(tiny_config(model_type, dropout=0.1))
    use_step_dropout(model, 1, tf.Variable(0, dtype=tf.int64))
    layers = [layer for layer in model.submodules if isinstance(layer, keras.layers.Dropout)]
    assert len(layers) >= 4
    assert all(isinstance(layer._random_generator, StepDropout) for layer in layers)
    assert len({layer._random_generator._key for layer in layers}) == len(layers)


def test_inference_drops_nothing(model_type: str) -> None:
    with_dropout, stock = build_pair(tiny_config(model_type, dropout=0.5))
    compile_model(with_dropout)
    features, labels = make_batch()
    np.testing.assert_array_equal(with_dropout(features).logits, stock(features, training=False).logits)
    first, second = (with_dropout.label_outputs(features, labels, training=False)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("model_type", ["distilbert", "albert"])
def test_a_training_step_is_a_function_of_seed_and_step(model_type: str) -> None:
    features, labels = make_batch()

    def gradients(seed: int, step: Any, parts: Any = 1) -> Any:
        model = compile_model(build(tiny_config(model_type, dropout=0.5)), seed=seed, accumulate_steps=parts)
        gradients_of(model, features, labels)  # what was drawn before has no bearing
        model.optimizer.iterations.assign(step)
        return np.concatenate([gradient.reshape(-1) for gradient in gradients_of(model, features, labels).values()])

    np.testing.assert_array_equal(gradients(1, 3), gradients(1, 3))
    np.testing.assert_allclose(gradients(1, 3, parts=2), gradients(1, 3), atol=1e-6 * np.abs(gradients(1, 3)).max())
    for other in (gradients(1, 4), gradients(2, 3)):
        assert np.abs(other - gradients(1, 3)).max() > 0.01


def test_parts_of_a_batch_have_different_masks() -> None:
    """Two parts of equal rows: with equal masks the gradient would be that of the first part."""
    features, labels = make_batch((3, 1, 2))
    twice = {name: tf.concat([value, value], 0) for name, value in features.items()}
    config = tiny_config("distilbert", dropout=0.5)
    alone = gradients_of(compile_model(build(config)), features, labels)
    both = gradients_of(compile_model(build(config), accumulate_steps=2), twice, tf.concat([labels, labels], 0))
    assert max(np.abs(both[name] - alone[name]).max() for name in alone) > 0.01


def test_a_model_can_be_called_in_training_mode_outside_a_step() -> None:
    """The loop over the parts must leave none of its tensors in the layers."""
    config = tiny_config("distilbert", dropout=0.5)
    config.n_layers = 1
    model = compile_model(build(config), accumulate_steps=2)
    features, labels = make_batch()
    model.fit(tf.data.Dataset.from_tensors((features, labels)), verbose=0)
    logits = [model(features, training=True).logits.numpy() for _ in range(2)]
    assert np.abs(logits[0] - logits[1]).max() > 0.1
