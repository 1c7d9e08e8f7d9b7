"""Converts a model to TFLite and ONNX: input_ids and attention_mask in, logits out.

A converted model is run in its runtime and compared with the original. The packages are optional extras.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tf_mlm import runtime
from tf_mlm.errors import Refused
from tf_mlm.model.architectures import max_sequence_length
from tf_mlm.model.saving import save_config_and_tokenizer

_ONNX_OPSET = 18
_TOLERANCE = 1e-4  # of the largest logit
_SHAPES = ((1, 5), (3, 12), (2, 64))  # batch and length


def export_tflite(model: Any, tokenizer: Any, folder: Path) -> float:
    """Write `model.tflite` with config and tokenizer.

    Its one signature takes input_ids and attention_mask, int32 [batch, length], and gives logits, float32
    [batch, length, vocabulary].

    Returns:
        The largest deviation from the model's logits, over the largest logit.

    Raises:
        Refused: the extra is not installed, the conversion failed, or the logits differ from the model's.
        OSError: the files cannot be written.
    """
    with _needing_extra("tflite"):
        from ai_edge_litert.interpreter import Interpreter
    path = folder / "model.tflite"
    with _converting("TensorFlow's converter to TFLite"):
        module = tf.Module()
        module.weights = model.weights
        logits = _build_logits(model, tf.int32).get_concrete_function()
        path.write_bytes(tf.lite.TFLiteConverter.from_concrete_functions([logits], module).convert())
        run = Interpreter(str(path)).get_signature_runner()
        deviation = _deviation(model, lambda inputs: run(**inputs)["logits"], np.int32)
    return _finish(model, tokenizer, folder, deviation)


def export_onnx(model: Any, tokenizer: Any, folder: Path) -> float:
    """Write `model.onnx` with config and tokenizer; as `export_tflite`, but input_ids and attention_mask are int64."""
    with _needing_extra("onnx"):
        import onnxruntime
        import tf2onnx
    path = folder / "model.onnx"
    with _converting("tf2onnx"):
        logits = _build_logits(model, tf.int64)
        graph, _ = tf2onnx.convert.from_function(
            logits, logits.input_signature, opset=_ONNX_OPSET, custom_op_handlers={"Erfc": (_convert_erfc, [])}
        )
        for tensor in [*graph.graph.input, *graph.graph.output]:
            for dimension, name in zip(tensor.type.tensor_type.shape.dim, ("batch", "length"), strict=False):
                dimension.dim_param = name
        path.write_bytes(graph.SerializeToString())
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        deviation = _deviation(model, lambda inputs: session.run(["logits"], inputs)[0], np.int64)
    return _finish(model, tokenizer, folder, deviation)


def _build_logits(model: Any, dtype: tf.DType) -> Any:
    signature = [tf.TensorSpec([None, None], dtype, name) for name in ("input_ids", "attention_mask")]

    @tf.function(input_signature=signature, autograph=False)
    def logits(input_ids: tf.Tensor, attention_mask: tf.Tensor) -> dict[str, tf.Tensor]:
        input_ids, attention_mask = tf.cast(input_ids, tf.int32), tf.cast(attention_mask, tf.int32)
        return {"logits": model(input_ids=input_ids, attention_mask=attention_mask, training=False).logits}

    return logits


def _convert_erfc(graph: Any, node: Any, name: str, _: Any) -> None:
    """Replace Erfc, which TensorFlow's GELU uses and ONNX lacks, by 1 - Erf."""
    erf, (output,) = graph.make_node("Erf", node.input), node.output
    one = graph.make_const(f"{name}_one", np.float32(1))
    graph.remove_node(name)
    graph.make_node("Sub", [one.output[0], erf.output[0]], outputs=[output], name=name)


def _deviation(model: Any, run: Callable[[dict[str, np.ndarray]], np.ndarray], dtype: type) -> float:
    numbers = np.random.default_rng(0)
    deviations = []
    for batch, length in _SHAPES:
        length = min(length, max_sequence_length(model.config))
        input_ids = numbers.integers(0, model.config.vocab_size, (batch, length))
        attention_mask: np.ndarray = (np.arange(length) < length - np.arange(batch)[:, np.newaxis]).astype(
            dtype
        )  # each row one shorter
        expected = model(input_ids=input_ids.astype(np.int32), attention_mask=attention_mask.astype(np.int32)).logits
        logits = run({"input_ids": input_ids.astype(dtype), "attention_mask": attention_mask})
        deviations.append(np.abs(logits - expected).max() / np.abs(expected).max())
    return float(np.max(deviations))  # nan if one of them is


def _finish(model: Any, tokenizer: Any, folder: Path, deviation: float) -> float:
    if not deviation <= _TOLERANCE:  # also refuses nan
        raise Refused(
            f"export: the converted model's logits differ from the model's by {deviation:.1e} of the largest, more "
            f"than {_TOLERANCE:.0e}; use another --format"
        )
    save_config_and_tokenizer(model, tokenizer, folder)
    return deviation


@contextlib.contextmanager
def _needing_extra(extra: str) -> Iterator[None]:
    try:
        with runtime.captured_stderr():
            yield
    except ImportError as error:
        raise Refused(
            f"--format {extra}: requires the extra {extra!r} ({error}); install it with: "
            f"pip install -c requirements.txt -e '.[{extra}]'"
        ) from None


@contextlib.contextmanager
def _converting(converter: str) -> Iterator[None]:
    """Capture the output of converter and runtime, and refuse with one line if they raise."""
    failure = None
    with runtime.captured_stderr():
        try:
            yield
        except Exception as error:  # they raise built-in exceptions of many kinds
            failure = error
    if isinstance(failure, OSError):
        raise failure
    if failure:
        reason = " ".join(str(failure).split())[:300] or type(failure).__name__
        raise Refused(f"export: {converter} cannot convert this model: {reason}; use another --format")
