"""Train KerasHub's DistilBertMaskedLM on the TensorFlow backend, with its own mask generator on the same ids."""

import json
import os

os.environ.update(KERAS_BACKEND="tensorflow", TF_CPP_MIN_LOG_LEVEL="3")

import keras
import keras_hub
import numpy as np
import tensorflow as tf
from measure import StepClock, keras_callback, load_sequences, parse_arguments

arguments = parse_arguments()
clock = StepClock(arguments.warmup, arguments.steps)
if arguments.precision == "bfloat16":
    keras.config.set_dtype_policy("mixed_bfloat16")
config = json.loads((arguments.model / "config.json").read_text())
vocabulary = json.loads((arguments.model / "tokenizer.json").read_text())["model"]["vocab"]
sequences = load_sequences(arguments)[: clock.total_steps * arguments.batch_size]
masker = keras_hub.layers.MaskedLMMaskGenerator(
    vocabulary_size=config["vocab_size"],
    mask_selection_rate=0.15,
    mask_selection_length=int(np.ceil(0.15 * sequences.shape[1])),
    mask_token_id=vocabulary["[MASK]"],
    unselectable_token_ids=[vocabulary[token] for token in ("[PAD]", "[CLS]", "[SEP]")],
)


def mask(token_ids):
    masked = masker(token_ids)
    features = {
        "token_ids": masked["token_ids"],
        "padding_mask": token_ids != vocabulary["[PAD]"],
        "mask_positions": masked["mask_positions"],
    }
    return features, masked["mask_ids"], masked["mask_weights"]


dataset = tf.data.Dataset.from_tensor_slices(np.array(sequences)).shuffle(1000)
dataset = dataset.batch(arguments.batch_size, drop_remainder=True).map(mask).prefetch(tf.data.AUTOTUNE)
backbone = keras_hub.models.DistilBertBackbone(
    vocabulary_size=config["vocab_size"],
    num_layers=config["n_layers"],
    num_heads=config["n_heads"],
    hidden_dim=config["dim"],
    intermediate_dim=config["hidden_dim"],
    dropout=config["dropout"],
    max_sequence_length=config["max_position_embeddings"],
)
model = keras_hub.models.DistilBertMaskedLM(backbone, preprocessor=None)
model.compile(
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    optimizer=keras.optimizers.AdamW(2e-5, weight_decay=0.01),
    jit_compile=arguments.compile,  # off by default: compiling the whole step with XLA is slower on CPU
)
model.fit(dataset, epochs=1, verbose=0, callbacks=[keras_callback(keras.callbacks.Callback, clock)])
clock.report(parameters=model.count_params())
