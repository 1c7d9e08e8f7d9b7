"""Dropout as a function of (seed, step, layer), without random state.

Keras' layers draw from stateful generators, whose state a resumed run cannot restore.
"""

from collections import Counter

import tensorflow as tf
import tf_keras as keras

_LEVELS = 2**16


class ForwardPass:
    """The current update and the current part of its batch, shared by the Dropout layers of a model.

    Args:
        step: int64 variable that counts the updates.
    """

    def __init__(self, step: tf.Variable):
        self.step = step
        self._part: int | tf.Tensor = 0
        self._calls: Counter[int] = Counter()

    def begin(self, part: int | tf.Tensor) -> None:
        """Start a pass over part number `part` of the batch, an int or an int32 scalar."""
        self._part = part
        self._calls.clear()

    def draw_seed(self, layer: int, key: int) -> tf.Tensor:
        """A seed, int64 [2], that differs between steps, replicas, layers, parts, and calls of a layer within a pass.

        Args:
            layer: number of the layer in the model.
            key: key of the layer, below 2**31.
        """
        # ALBERT applies the same layers repeatedly.
        call = self._calls[layer]
        self._calls[layer] += 1
        context = tf.distribute.get_replica_context()
        replica = tf.cast(context.replica_id_in_sync_group if context else 0, tf.int64)
        part = tf.cast(self._part, tf.int64)
        # Each number has separate bits, so that different combinations have different seeds.
        return tf.stack([tf.cast(self.step, tf.int64) + replica * 2**40, key + part * 2**31 + call * 2**51])


class StepDropout:
    """Replaces the random generator of a Keras `Dropout` layer.

    Random bits are drawn as uint16, two elements per word of the generator: half the work, at a resolution of the rate
    of 1/65,536, where a draw in bfloat16 has 1/128.

    Args:
        seed: seed of the training.
        layer: number of the layer in the model.
        forward_pass: the current pass.
    """

    def __init__(self, seed: int, layer: int, forward_pass: ForwardPass):
        self._key = (seed + 0x9E3779B1 * (layer + 1)) % 2**31  # an odd factor gives each layer another key
        self._layer = layer
        self._pass = forward_pass

    def _maybe_init(self) -> None:
        """Does nothing. Keras calls it when the layer is built, for its generator to create a variable."""

    def dropout(self, inputs: tf.Tensor, rate: float, noise_shape: object = None) -> tf.Tensor:
        """`inputs` with a share `rate` of the elements set to 0 and the others scaled by 1 / (1 - rate)."""
        assert noise_shape is None, "masks shared along an axis are not supported"
        shape = tf.shape(inputs) if None in inputs.shape else inputs.shape
        size = tf.reduce_prod(shape)
        seed = self._pass.draw_seed(self._layer, self._key)
        words = tf.random.stateless_uniform([(size + 1) // 2], seed, None, None, tf.uint32, alg="philox")
        bits = tf.reshape(tf.reshape(tf.bitcast(words, tf.uint16), [-1])[:size], shape)
        dropped = round(rate * _LEVELS)
        keep = tf.cast(bits, tf.int32) >= dropped
        return tf.where(keep, inputs * tf.cast(_LEVELS / (_LEVELS - dropped), inputs.dtype), tf.zeros([], inputs.dtype))


def use_step_dropout(model: keras.Model, seed: int, step: tf.Variable) -> ForwardPass:
    """Make every `Dropout` layer of `model` draw from (seed, step, number of the layer).

    Returns:
        The pass; call its `begin` before each training pass.
    """
    forward_pass = ForwardPass(step)
    layers = [layer for layer in model.submodules if isinstance(layer, keras.layers.Dropout)]
    for number, layer in enumerate(layers):
        layer._random_generator = StepDropout(seed, number, forward_pass)
    return forward_pass
