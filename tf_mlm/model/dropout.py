"""Dropout whose randomness is a function of (seed, step, layer), so that there is no random state to save.

Keras' layers draw from stateful generators, which a resumed run cannot put back where they were.
"""

from collections import Counter

import tensorflow as tf
import tf_keras as keras

_LEVELS = 2**16


class ForwardPass:
    """What the Dropout layers of a model share: the update at work, and the part of its batch.

    Args:
        step: integer variable that counts the updates.
    """

    def __init__(self, step: tf.Variable):
        self.step = step
        self._part: int | tf.Tensor = 0
        self._calls: Counter[int] = Counter()

    def begin(self, part: int | tf.Tensor) -> None:
        """A pass over part number `part` of the batch, an int or an int32 scalar, begins."""
        self._part = part
        self._calls.clear()

    def draw_seed(self, layer: int, key: int) -> tf.Tensor:
        """int64 [2]: another one for each step, replica, layer, part, and call of the layer within the pass.

        Args:
            key: of the layer, below 2**31.
        """
        # ALBERT calls the same layers once for each of its depths.
        call = self._calls[layer]
        self._calls[layer] += 1
        context = tf.distribute.get_replica_context()
        replica = tf.cast(context.replica_id_in_sync_group if context else 0, tf.int64)
        part = tf.cast(self._part, tf.int64)
        # Each number has bits of its own: no sum of two can be that of two others.
        return tf.stack([tf.cast(self.step, tf.int64) + replica * 2**40, key + part * 2**31 + call * 2**51])


class StepDropout:
    """What a Keras `Dropout` layer draws from, in place of its own generator.

    Random bits are drawn as uint16, two elements to a word of the generator: half the work, and the rate is met to
    1/65,536, where a draw in bfloat16 meets it to 1/128.
    """

    def __init__(self, seed: int, layer: int, forward_pass: ForwardPass):
        self._key = (seed + 0x9E3779B1 * (layer + 1)) % 2**31  # the factor is odd, so no two layers share a key
        self._layer = layer
        self._pass = forward_pass

    def _maybe_init(self) -> None:
        """Nothing to do: Keras asks its generator to make its variable here, as the layer is built."""

    def dropout(self, inputs: tf.Tensor, rate: float, noise_shape: object = None) -> tf.Tensor:
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
    """Let every `Dropout` layer of `model` draw from (seed, step, its position among them).

    Returns:
        What each training pass has to `begin`.
    """
    forward_pass = ForwardPass(step)
    layers = [layer for layer in model.submodules if isinstance(layer, keras.layers.Dropout)]
    for number, layer in enumerate(layers):
        layer._random_generator = StepDropout(seed, number, forward_pass)
    return forward_pass
