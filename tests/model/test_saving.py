"""Saved models are read by other libraries."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import tensorflow as tf
import tf_keras as keras
import transformers
from transformers.pipelines import pipeline

from tests.model.conftest import (
    build,
    compile_model,
    make_batch,
    one_layer_config,
    pytorch_arrays,
    read_arrays,
    tiny_config,
)
from tf_mlm.model.loading import load_trained
from tf_mlm.model.saving import save_model


def test_the_file_has_the_names_of_pytorch_and_each_weight_once(tmp_path: Path, tokenizer: Any) -> None:
    save_model(build(one_layer_config()), tokenizer, tmp_path)
    with safetensors.safe_open(tmp_path / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
    written, expected = read_arrays(tmp_path), pytorch_arrays(np.random.default_rng(1))
    assert {name: array.shape for name, array in written.items()} == {
        name: array.shape for name, array in expected.items()
    }
    assert {array.dtype for array in written.values()} == {np.dtype(np.float32)}


def test_the_stock_class_loads_a_saved_model_with_the_same_logits(
    tmp_path: Path, tokenizer: Any, model_type: str
) -> None:
    model = compile_model(build(tiny_config(model_type)), optimizer=keras.optimizers.legacy.Adam(1e-2))
    batch = make_batch()
    model.train_step(batch)
    save_model(model, tokenizer, tmp_path)
    stock = getattr(transformers, f"TF{type(model).__name__}")
    again, info = stock.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == info["unexpected_keys"] == info["mismatched_keys"] == []
    np.testing.assert_array_equal(again(batch[0]).logits, model(batch[0]).logits)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == [type(model).__name__]
    assert config["model_type"] == model_type
    auto_tokenizer: Any = transformers.AutoTokenizer
    assert len(auto_tokenizer.from_pretrained(tmp_path)) == len(tokenizer)


def test_the_trained_bias_of_albert_is_saved_under_both_names(tmp_path: Path, tokenizer: Any) -> None:
    """PyTorch has one bias and reads it under either name; TensorFlow has two and trains one."""
    model = compile_model(build(tiny_config("albert")), optimizer=keras.optimizers.legacy.Adam(1e-2))
    model.train_step(make_batch())
    save_model(model, tokenizer, tmp_path)
    arrays = read_arrays(tmp_path)
    assert np.abs(arrays["predictions.decoder.bias"]).max() > 0
    np.testing.assert_array_equal(arrays["predictions.bias"], arrays["predictions.decoder.bias"])


def test_a_model_in_mixed_precision_is_saved_in_float32(
    tmp_path: Path, tokenizer: Any, policy: Callable[[str], None]
) -> None:
    policy("mixed_bfloat16")
    save_model(build(one_layer_config()), tokenizer, tmp_path)
    assert {array.dtype for array in read_arrays(tmp_path).values()} == {np.dtype(np.float32)}
    model, _ = load_trained(str(tmp_path))
    assert model(make_batch()[0]).logits.dtype == tf.float32
    assert keras.mixed_precision.global_policy().name == "mixed_bfloat16"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_the_files_have_the_modes_that_the_umask_gives(tmp_path: Path, tokenizer: Any, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        save_model(build(one_layer_config()), tokenizer, tmp_path / "model")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= modes.keys()
    assert modes == dict.fromkeys(modes, mode)


def test_a_tokenizer_that_cannot_be_written_is_an_os_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Any
) -> None:
    def full(folder: Path) -> None:
        raise Exception("No space left on device (os error 28)")  # as the tokenizers' own writer says it

    monkeypatch.setattr(tokenizer, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left on device"):
        save_model(build(one_layer_config()), tokenizer, tmp_path)


def test_the_fill_mask_pipeline_runs_on_a_saved_model(folder: Path, tokenizer: Any) -> None:
    # torch_dtype: its default, "auto", is looked up in PyTorch, which need not be installed.
    fill = pipeline("fill-mask", model=str(folder), framework="tf", torch_dtype=None)
    answers = fill("the plot made no [MASK]", top_k=3)
    encoded = tokenizer("the plot made no [MASK]", return_tensors="tf")
    model, _ = load_trained(str(folder))
    at_mask = tf.nn.softmax(model(dict(encoded)).logits[0, -2])
    best = np.argsort(at_mask)[::-1][:3]
    assert [answer["token"] for answer in answers] == best.tolist()
    assert [answer["score"] for answer in answers] == pytest.approx(at_mask.numpy()[best].tolist(), rel=1e-5)
