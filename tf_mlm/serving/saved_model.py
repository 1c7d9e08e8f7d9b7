"""The export: a SavedModel from ids and mask to logits."""

from pathlib import Path
from typing import Any

import tensorflow as tf

from tf_mlm.errors import writing_failed


def export_saved_model(model: Any, folder: Path) -> None:
    """Write a masked language model to `folder` as a SavedModel that TensorFlow alone can load.

    Signature `serving_default`: input_ids and attention_mask, int32 [batch, length], to logits, float32 [batch, length,
    vocabulary].
    """
    ids = tf.TensorSpec([None, None], tf.int32, "input_ids")
    mask = tf.TensorSpec([None, None], tf.int32, "attention_mask")

    @tf.function(input_signature=[ids, mask])
    def serve(input_ids: tf.Tensor, attention_mask: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"logits": model(input_ids=input_ids, attention_mask=attention_mask, training=False).logits}

    module = tf.Module()
    module.model = model
    with writing_failed(tf.errors.OpError):
        tf.saved_model.save(module, str(folder), signatures={"serving_default": serve})
