"""Hugging Face's sequence and token classification models, trained with the shared training step."""

import functools
from typing import Any

import tensorflow as tf
import tf_keras as keras
import transformers

from tf_mlm.data.masking import IGNORE_INDEX
from tf_mlm.model.architectures import architecture_of
from tf_mlm.model.label_metrics import ClassCounts, EntityCounts
from tf_mlm.model.metrics import metrics_of
from tf_mlm.model.training_step import TrainingStep

HEADS = {"classification": "ForSequenceClassification", "token_classification": "ForTokenClassification"}


class LabelModel(TrainingStep):
    """Mixin of a TF...ForSequenceClassification or TF...ForTokenClassification."""

    def compile(
        self,
        optimizer: keras.optimizers.Optimizer,
        objective: str,
        *,
        accumulate_steps: int = 1,
        clip_norm: float = 0.0,
        seed: int = 0,
        jit_compile: bool = False,
    ) -> None:
        """Configure training.

        Args:
            objective: a value of `objective.name` other than `masked`.
            accumulate_steps: see `TrainingStep.compile_step`, as all other arguments.
        """
        names = [self.config.id2label[index] for index in range(self.config.num_labels)]
        counts = ClassCounts(len(names)) if objective == "classification" else EntityCounts(names)
        self.compile_step(
            optimizer,
            metrics_of(objective),
            accumulate_steps=accumulate_steps,
            clip_norm=clip_norm,
            seed=seed,
            jit_compile=jit_compile,
            validation_metrics=(counts,),
        )

    def label_outputs(
        self, features: dict[str, tf.Tensor], labels: tf.Tensor, training: bool
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        logits = tf.cast(self(**features, training=training).logits, tf.float32)
        if logits.shape.rank == 2:  # one label per sequence
            logits = logits[:, tf.newaxis]
        else:  # the labeled positions first, in order, so that the tags of a text are adjacent
            labeled = tf.cast(labels != IGNORE_INDEX, tf.int32)
            positions = tf.math.top_k(labeled, labels.shape[1], sorted=True).indices
            labels, logits = (tf.gather(each, positions, batch_dims=1) for each in (labels, logits))
        weights = tf.cast(labels != IGNORE_INDEX, tf.float32)
        labels = tf.maximum(labels, 0)
        losses = weights * tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        return losses, logits, labels, weights


@functools.cache
def label_model_class(model_type: str, objective: str) -> Any:
    """The trainable class of an architecture, a subclass of transformers' class and named like its PyTorch class.

    Args:
        objective: a value of `objective.name` other than `masked`.

    Raises:
        KeyError: the architecture is not supported.
    """
    stock_name = architecture_of(model_type).stock_class_name.replace("ForMaskedLM", HEADS[objective])
    stock = getattr(transformers, stock_name)
    return type(stock_name.removeprefix("TF"), (LabelModel, stock), {"__module__": __name__})
