"""Hugging Face's masked language models, trained and evaluated with the head on masked positions alone.

Only the positions that carry a label, 15 % of them, go through the vocabulary projection: a fixed number of slots per
sequence, so that every shape is static. The queries of the last layer are also restricted to these positions, because
its outputs at other positions are never used. Weights, their names, `from_pretrained` and a call without labels are
those of transformers' class.
"""

import functools
from typing import Any

import tensorflow as tf
import tf_keras as keras
import transformers

from tf_mlm.data.masking import IGNORE_INDEX
from tf_mlm.model.architectures import Architecture, architecture_of
from tf_mlm.model.metrics import metrics_of
from tf_mlm.model.training_step import TrainingStep


class MaskedPositionsHead(Architecture, TrainingStep):
    """Mixin of a TF...ForMaskedLM: the computations of `fit` and `evaluate`, on top of an `Architecture`."""

    def compile(
        self,
        optimizer: keras.optimizers.Optimizer,
        *,
        max_masked_per_sequence: int,
        accumulate_steps: int = 1,
        clip_norm: float = 0.0,
        seed: int = 0,
        jit_compile: bool = False,
    ) -> None:
        """Configure training.

        Args:
            max_masked_per_sequence: slots of the head; a sequence must not carry more labels.
            accumulate_steps: number of equal parts into which a batch is split to save memory.
            clip_norm: largest global norm of the gradient; 0 turns clipping off.
            seed: seed of dropout.
            jit_compile: compile the whole step with XLA.
        """
        self._max_masked = max_masked_per_sequence
        self.compile_step(
            optimizer,
            metrics_of("masked"),
            accumulate_steps=accumulate_steps,
            clip_norm=clip_norm,
            seed=seed,
            jit_compile=jit_compile,
        )

    def label_outputs(
        self, features: dict[str, tf.Tensor], labels: tf.Tensor, training: bool
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        labeled = tf.cast(labels != IGNORE_INDEX, tf.int32)
        positions = tf.math.top_k(labeled, self._max_masked, sorted=True).indices
        slot_labels = tf.gather(labels, positions, batch_dims=1)
        weights = tf.cast(slot_labels != IGNORE_INDEX, tf.float32)
        slot_labels = tf.maximum(slot_labels, 0)
        hidden_states = self.encode_positions(**features, positions=positions, training=training)
        logits = self.predict_tokens(hidden_states, training)
        logits = tf.cast(logits, tf.float32)
        losses = weights * tf.nn.sparse_softmax_cross_entropy_with_logits(slot_labels, logits)
        return losses, logits, slot_labels, weights


@functools.cache
def model_class(model_type: str) -> Any:
    """The trainable class of an architecture, a subclass of transformers' class and named like its PyTorch class.

    Returns:
        A class of `MaskedLanguageModel`s that are built from a config or with `from_pretrained`.

    Raises:
        KeyError: the architecture is not supported.
    """
    architecture = architecture_of(model_type)
    stock = getattr(transformers, architecture.stock_class_name)
    name = architecture.stock_class_name.removeprefix("TF")  # Keras names the model, and so its variables, after it
    return type(name, (architecture, MaskedPositionsHead, stock), {"__module__": __name__})
