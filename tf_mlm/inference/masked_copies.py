"""Log-probabilities of masked tokens, computed for many masked copies of texts in batches."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_mlm.inference.features import batch_by_length

Predictor = Callable[[Any, Any, Any, Any], Any]
"""Maps input_ids and attention_mask, int32 [batch, length], positions and token_ids, int32 [batch], to the
log-probabilities of these tokens at these positions, float32 [batch]."""


class MaskedCopy(NamedTuple):
    """A text in which some tokens are masked.

    Attributes:
        input_ids: int32 [length].
        position: the masked position to predict.
        token_id: the token whose probability is computed.
    """

    input_ids: np.ndarray
    position: int
    token_id: int


def build_predictor(model: Any) -> Predictor:
    """The predictor of a model, a function that is traced once for all shapes.

    The head computes the logits of one position per row.
    """
    ids = tf.TensorSpec([None, None], tf.int32)
    row = tf.TensorSpec([None], tf.int32)

    @tf.function(input_signature=[ids, ids, row, row], autograph=False)
    def predict(
        input_ids: tf.Tensor, attention_mask: tf.Tensor, positions: tf.Tensor, token_ids: tf.Tensor
    ) -> tf.Tensor:
        # Without XLA, which would compile its clusters again for each shape.
        with tf.xla.experimental.jit_scope(compile_ops=False):
            hidden_states = model.encode_positions(input_ids, attention_mask, positions[:, None], training=False)
            logits = tf.cast(model.predict_tokens(hidden_states, training=False)[:, 0], tf.float32)
            return -tf.nn.sparse_softmax_cross_entropy_with_logits(token_ids, logits)

    return predict


def log_probabilities(predict: Predictor, copies: Sequence[MaskedCopy], pad_token_id: int) -> np.ndarray:
    """float64 [copies]: the log-probability, in nats, of the token at the position of each copy."""
    found = np.zeros(len(copies), np.float64)
    for batch, length in batch_by_length([len(copy.input_ids) for copy in copies]):
        ids = np.full([len(batch), length], pad_token_id, np.int32)
        mask = np.zeros_like(ids)
        for row, index in enumerate(batch):
            given = copies[index].input_ids
            ids[row, : len(given)], mask[row, : len(given)] = given, 1
        positions, token_ids = (
            tf.constant([getattr(copies[index], name) for index in batch], tf.int32)
            for name in ("position", "token_id")
        )
        found[batch] = predict(tf.constant(ids), tf.constant(mask), positions, token_ids).numpy()
    return found
