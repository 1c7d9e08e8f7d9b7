"""Dropout as a function of (seed, step, layer, example), without random state.

Keras' layers draw from stateful generators, whose state a resumed run cannot restore. Here each example of a batch has
the same dropout on any number of replicas and with any `accumulate_steps`.
"""

import math
from collections import Counter

import tensorflow as tf
import tf_keras as keras

_LEVELS = 2**16
_ELEMENTS_PER_BLOCK = 8  # a block of the Philox generator is four uint32, each split into two uint16
_PHILOX = 1  # number of the algorithm in TensorFlow's operations


class ForwardPass:
    """The current update and the examples of the current pass, shared by the Dropout layers of a model.

    Args:
        step: int64 variable that counts the updates.
    """

    def __init__(self, step: tf.Variable):
        self.step = step
        self._first_example: int | tf.Tensor = 0
        self._calls: Counter[int] = Counter()

    def begin(self, first_example: int | tf.Tensor) -> None:
        """Start a pass.

        Args:
            first_example: position of the first example of the pass in the batch of all replicas, an int or an int32
                scalar.
        """
        self._first_example = first_example
        self._calls.clear()

    def draw_bits(self, layer: int, key: int, num_examples: int | tf.Tensor, num_blocks: int) -> tf.Tensor:
        """Random bits, uint16 [num_examples, num_blocks * 8].

        They differ between steps, layers, examples, and calls of a layer within a pass.

        Args:
            layer: number of the layer in the model.
            key: key of the layer, below 2**31.
            num_blocks: blocks of the generator that an example needs.
        """
        # ALBERT applies the same layers repeatedly.
        call = self._calls[layer]
        self._calls[layer] += 1
        # Each number has separate bits, so that different combinations have different seeds.
        seed = tf.stack([tf.cast(self.step, tf.int64), tf.constant(key + call * 2**51, tf.int64)])
        generator_key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
        if not (isinstance(self._first_example, int) and self._first_example == 0):
            # The counter numbers the blocks, so that an example has the same blocks in any pass that contains it.
            skipped = tf.cast(self._first_example, tf.uint64) * tf.constant(num_blocks, tf.uint64)
            counter += tf.stack([skipped, tf.zeros([], tf.uint64)])
        words = tf.raw_ops.StatelessRandomUniformFullIntV2(
            shape=tf.reshape(num_examples * (num_blocks * _ELEMENTS_PER_BLOCK // 2), [1]),
            key=generator_key,
            counter=counter,
            alg=_PHILOX,
            dtype=tf.uint32,
        )
        return tf.reshape(tf.bitcast(words, tf.uint16), [num_examples, num_blocks * _ELEMENTS_PER_BLOCK])


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
        """`inputs` with a share `rate` of the elements set to 0 and the others scaled by 1 / (1 - rate).

        Args:
            inputs: [batch, ...]; all dimensions except the first one are static.
        """
        assert noise_shape is None, "masks shared along an axis are not supported"
        shape = tf.shape(inputs) if None in inputs.shape else inputs.shape
        num_elements = math.prod(inputs.shape[1:])  # of an example
        num_blocks = -(-num_elements // _ELEMENTS_PER_BLOCK)
        bits = self._pass.draw_bits(self._layer, self._key, shape[0], num_blocks)
        bits = tf.reshape(bits[:, :num_elements], shape)
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
