"""Encodes texts with the encoder of a model: one vector per text."""

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import tensorflow as tf
import xxhash

from tf_mlm.atomic_files import write_atomically

Pooling = Literal["mean", "cls"]
Encoder = Callable[[Any, Any], Any]
"""Maps input_ids and attention_mask, int32 [batch, length], to hidden states [batch, length, dim]."""

_TOKENS_PER_BATCH = 4096


def build_encoder(model: Any) -> Encoder:
    """The encoder of a model as a function that is compiled once for all shapes."""
    encoder = getattr(model, model.base_model_prefix)
    ids = tf.TensorSpec([None, None], tf.int32)

    @tf.function(input_signature=[ids, ids], autograph=False)
    def encode(input_ids: tf.Tensor, attention_mask: tf.Tensor) -> tf.Tensor:
        return encoder(input_ids=input_ids, attention_mask=attention_mask, training=False)[0]

    return encode


def encode_texts(
    encoder: Encoder,
    tokenizer: Any,
    texts: Sequence[str],
    dim: int,
    max_length: int,
    pooling: Pooling = "mean",
    on_progress: Callable[[int], object] = lambda num_texts: None,
) -> np.ndarray:
    """One vector per text: float32 [texts, dim].

    Args:
        max_length: largest number of tokens of a text, with [CLS] and [SEP]; a longer text is truncated.
        pooling: `mean` averages the last hidden states of the tokens of a text; `cls` takes that of the first token.
        on_progress: called with the number of texts of each finished batch.
    """
    encodings = (
        tokenizer(
            list(texts),
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        if texts
        else []
    )
    vectors = np.zeros([len(texts), dim], np.float32)
    for batch, length in batch_by_length([len(encoding) for encoding in encodings]):
        lengths = np.array([len(encodings[index]) for index in batch])
        mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
        ids = np.full(mask.shape, tokenizer.pad_token_id, np.int32)
        ids[mask > 0] = np.concatenate([encodings[index] for index in batch])
        hidden_states = tf.cast(encoder(tf.constant(ids), tf.constant(mask)), tf.float32).numpy()
        if pooling == "cls":
            vectors[batch] = hidden_states[:, 0]
        else:
            vectors[batch] = (hidden_states * mask[:, :, None]).sum(1) / lengths[:, None]
        on_progress(len(batch))
    return vectors


def batch_by_length(lengths: Sequence[int]) -> Iterator[tuple[list[int], int]]:
    """Batches of rows of similar length, to reduce padding: the indices of the rows and the largest length.

    A batch has at most 4,096 tokens with padding, or one row. The longest rows come first.
    """
    by_length = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    while by_length:
        length = lengths[by_length[0]]
        size = max(_TOKENS_PER_BATCH // length, 1)
        yield by_length[:size], length
        by_length = by_length[size:]


def cached_features(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    max_length: int,
    pooling: Pooling,
    on_progress: Callable[[int], object] = lambda num_texts: None,
) -> np.ndarray:
    """As `encode_texts`, or loaded from the cache if the same model has encoded the same texts."""
    digest = xxhash.xxh3_128(repr(("1", max_length, pooling, model.dtype_policy.name)).encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    for weight in getattr(model, model.base_model_prefix).weights:
        digest.update(weight.numpy().tobytes())
    for text in texts:
        digest.update(xxhash.xxh3_128_digest(text.encode()))
    path = Path(datasets.config.HF_DATASETS_CACHE) / "tf_mlm" / f"features-{digest.hexdigest()}.npy"
    shape = (len(texts), model.config.hidden_size)
    try:
        features = np.load(path, allow_pickle=False)
        if features.shape == shape and features.dtype == np.float32:
            on_progress(len(texts))
            return features
    except (OSError, ValueError, EOFError):
        pass  # missing or damaged
    features = encode_texts(build_encoder(model), tokenizer, texts, shape[1], max_length, pooling, on_progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, _as_npy(features))
    return features


def _as_npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
