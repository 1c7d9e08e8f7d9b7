"""Dropout whose randomness is a function of (seed, step, layer), so that there is no random state to save.

Keras' layers draw from stateful generators, which a resumed run cannot put back where they were.
"""

from typing import Any

import tensorflow as tf
import tf_keras as keras

_LEVELS = 2**16


class StepDropout:
    """What a Keras `Dropout` layer draws from, in place of its own generator.

    Random bits are drawn as uint16, two elements to a word of the generator: half the work, and the rate is met to
    1/65,536, where a draw in bfloat16 meets it to 1/128.
    """

    def __init__(self, seed: int, layer: int, step: tf.Variable, part: list[Any]):
        self._key = (seed + 0x9E3779B1 * (layer + 1)) % 2**31
        self._step = step
        self._part = part

    def _maybe_init(self) -> None:
        """Nothing to do: Keras asks its generator to make its variable here, as the layer is built."""

    def dropout(self, inputs: tf.Tensor, rate: float, noise_shape: object = None) -> tf.Tensor:
        shape = tf.shape(inputs) if None in inputs.shape else inputs.shape
        size = tf.reduce_prod(shape)
        replica = tf.distribute.get_replica_context()
        part = self._part[-1] + 4096 * (replica.replica_id_in_sync_group if replica else 0)
        seed = tf.stack([tf.cast(self._step, tf.int32), part * 65_537 + self._key])
        words = tf.random.stateless_uniform([(size + 1) // 2], seed, None, None, tf.uint32, alg="philox")
        bits = tf.reshape(tf.reshape(tf.bitcast(words, tf.uint16), [-1])[:size], shape)
        dropped = round(rate * _LEVELS)
        keep = tf.cast(bits, tf.int32) >= dropped
        return tf.where(keep, inputs * tf.cast(_LEVELS / (_LEVELS - dropped), inputs.dtype), tf.zeros([], inputs.dtype))


def use_step_dropout(model: keras.Model, seed: int, step: tf.Variable, part: list[Any]) -> None:
    """Let every `Dropout` layer of `model` draw from (seed, step, its position among them).

    Args:
        step: integer variable that counts the updates.
        part: its last element is the part of the batch at work, an int or an int32 scalar.
    """
    layers = [layer for layer in model.submodules if isinstance(layer, keras.layers.Dropout)]
    for number, layer in enumerate(layers):
        layer._random_generator = StepDropout(seed, number, step, part)
