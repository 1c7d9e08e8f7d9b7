"""The matrix products of one training step, and the time that they take alone on this machine."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tensorflow as tf

from tf_mlm.model.architectures import architecture_of

if TYPE_CHECKING:
    from transformers.configuration_utils import PretrainedConfig

_REPEATS = 5


class Product(NamedTuple):
    """`times` products [batch, rows, inner] x [batch, inner, columns] of the forward pass.

    The backward pass has two products of the same size for each of them.
    """

    times: int
    batch: int
    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> int:
        """Multiplications and additions of the forward and the backward pass."""
        return 6 * self.times * self.batch * self.rows * self.inner * self.columns


def step_products(config: "PretrainedConfig", num_sequences: int, length: int, num_slots: int) -> list[Product]:
    """The products of one update, as `MaskedPositionsHead.train_step` computes it.

    Args:
        config: the model's config.
        num_sequences: sequences in a batch.
        length: tokens in a sequence, padding included.
        num_slots: positions of a sequence that go through the head and, in most architectures, the last layer.
    """
    architecture = architecture_of(config.model_type)
    dim, heads, layers = config.hidden_size, config.num_attention_heads, config.num_hidden_layers
    hidden = getattr(config, architecture.intermediate_size_setting)
    embedding = getattr(config, architecture.embedding_size_setting)
    positions, slots = num_sequences * length, num_sequences * num_slots

    def layer(times: int, rows: int, queries: int) -> list[Product]:
        return [
            Product(2 * times, 1, positions, dim, dim),  # keys and values
            Product(2 * times, 1, rows, dim, dim),  # queries and output of the attention
            Product(times, 1, rows, dim, hidden),
            Product(times, 1, rows, hidden, dim),
            Product(times, num_sequences * heads, queries, dim // heads, length),
            Product(times, num_sequences * heads, queries, length, dim // heads),
        ]

    masked_only = 1 if architecture.last_layer_is_masked_only else 0
    products = layer(layers - masked_only, positions, length) + layer(masked_only, slots, num_slots)
    if embedding != dim:
        products.append(Product(1, 1, positions, embedding, dim))
    products += [Product(1, 1, slots, dim, embedding), Product(1, 1, slots, embedding, config.vocab_size)]
    return [product for product in products if product.times]


def measure_matmul_peak(products: list[Product], precision: str) -> float:
    """Seconds that the products of one step take in `precision`, each timed alone."""
    dtype = tf.as_dtype(precision)
    return sum(product.times * _time_product(product, dtype) for product in products)


def _time_product(product: Product, dtype: tf.DType) -> float:
    def random(rows: int, columns: int) -> tf.Tensor:
        shape = [product.batch, rows, columns] if product.batch > 1 else [rows, columns]
        return tf.cast(tf.random.stateless_normal(shape, [rows, columns]), dtype)

    inputs, weights = random(product.rows, product.inner), random(product.inner, product.columns)
    gradient = random(product.rows, product.columns)
    forward = tf.function(lambda a, b: tf.matmul(a, b))
    to_inputs = tf.function(lambda g, b: tf.matmul(g, b, transpose_b=True))
    to_weights = tf.function(lambda a, g: tf.matmul(a, g, transpose_a=True))
    return (
        _median_seconds(lambda: forward(inputs, weights))
        + _median_seconds(lambda: to_inputs(gradient, weights))
        + _median_seconds(lambda: to_weights(inputs, gradient))
    )


def _median_seconds(compute: Callable[[], tf.Tensor]) -> float:
    seconds = []
    for _ in range(_REPEATS + 1):
        start = time.perf_counter()
        tf.reshape(compute(), [-1])[0].numpy()  # waits for the result
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:]))  # without the first call, which traces
