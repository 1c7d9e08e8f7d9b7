"""TFLite and ONNX. Tests that need their runtimes are skipped without the extras `tflite` and `onnx`."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tf_mlm.commands.main import main
from tf_mlm.model.architectures import ARCHITECTURES

Runner = Callable[[np.ndarray, np.ndarray], np.ndarray]


def run_tflite(path: Path) -> Runner:
    run = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(str(path)).get_signature_runner()
    return lambda ids, mask: run(input_ids=ids.astype(np.int32), attention_mask=mask.astype(np.int32))["logits"]


def run_onnx(path: Path) -> Runner:
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    assert [(put.name, put.shape) for put in session.get_inputs()] == [
        ("input_ids", ["batch", "length"]),
        ("attention_mask", ["batch", "length"]),
    ]
    return lambda ids, mask: session.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0]


RUNTIMES = {"tflite": run_tflite, "onnx": run_onnx}


@pytest.mark.parametrize("kind", RUNTIMES)
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_converted_model_gives_the_models_logits_at_any_shape(
    kind: str, model_type: str, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import transformers

    from tests.model.conftest import build, tiny_config
    from tf_mlm.model.saving import save_model

    pytest.importorskip({"tflite": "ai_edge_litert", "onnx": "tf2onnx"}[kind])
    tokenizer = transformers.AutoTokenizer.from_pretrained(finished_run / "model")
    config = tiny_config(model_type)
    config.vocab_size = len(tokenizer)
    model = build(config)
    save_model(model, tokenizer, tmp_path / "model")
    folder = tmp_path / "converted"
    assert main(["export", str(tmp_path / "model"), "--output", str(folder), "--format", kind]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    inputs = "maps input_ids and attention_mask to logits"
    assert lines[0] == f"{folder}/model.{kind}: {inputs}; {folder} also has config and tokenizer"
    assert lines[1].startswith("checked in its runtime: the logits differ from the model's by at most ")
    run = RUNTIMES[kind](folder / f"model.{kind}")
    for texts in (["the film"], ["the film was long", "a story", "the"]):
        encoded = transformers.AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="np")
        expected = model(**encoded).logits.numpy()
        logits = run(encoded["input_ids"], encoded["attention_mask"])
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def refusal(capsys: pytest.CaptureFixture[str], run: Path, output: Path, kind: str) -> str:
    assert main(["export", str(run), "--output", str(output), "--format", kind]) == 2
    line, end = capsys.readouterr().err.split("\n")
    assert line.startswith("error: ") and end == ""
    assert list(output.parent.iterdir()) == []
    return line


@pytest.mark.parametrize(("kind", "module"), [("tflite", "ai_edge_litert.interpreter"), ("onnx", "tf2onnx")])
def test_a_missing_extra_is_one_line_with_a_solution(
    kind: str, module: str, finished_run: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    line = refusal(capsys, finished_run, tmp_path / "converted", kind)
    assert (
        f"--format {kind}: requires the extra '{kind}'" in line
        and f"pip install -c requirements.txt -e '.[{kind}]'" in line
    )


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replace the TFLite runtime by a fake that returns `logits`. The extra is not needed."""

    class Interpreter:
        logits: Any = 0.0

        def __init__(self, path: str):
            assert Path(path).stat().st_size > 10_000

        def get_signature_runner(self) -> Any:
            return lambda **inputs: {"logits": self.logits}

    module: Any = ModuleType("ai_edge_litert.interpreter")
    module.Interpreter = Interpreter
    monkeypatch.setitem(sys.modules, "ai_edge_litert", ModuleType("ai_edge_litert"))
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", module)
    return Interpreter


@pytest.mark.parametrize("wrong", [0.0, np.nan])
def test_different_logits_are_refused_and_no_files_remain(
    wrong: float, stand_in: Any, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in.logits = wrong
    line = refusal(capsys, finished_run, tmp_path / "converted", "tflite")
    assert "the converted model's logits differ from the model's by " in line


def test_a_failed_conversion_is_one_line_and_no_files_remain(
    stand_in: Any, finished_run: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow as tf

    from tf_mlm.export import conversion

    def with_strings(model: Any, dtype: Any) -> Any:
        signature = [tf.TensorSpec([None, None], dtype, name) for name in ("input_ids", "attention_mask")]
        return tf.function(lambda ids, mask: {"logits": tf.strings.as_string(ids)}, input_signature=signature)

    monkeypatch.setattr(conversion, "_build_logits", with_strings)
    line = refusal(capsys, finished_run, tmp_path / "converted", "tflite")
    assert "export: TensorFlow's converter to TFLite cannot convert this model: " in line


@pytest.mark.parametrize("at", ["model", "tokenizer"])
def test_a_full_disk_ends_a_conversion_with_exit_code_4(
    at: str, stand_in: Any, finished_run: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    from tf_mlm.export import conversion

    def full(*_: Any, **__: Any) -> None:
        # The writer of tokenizers raises no other error.
        raise {"model": OSError(28, "No space left on device"), "tokenizer": Exception("No space left on device")}[at]

    owner, method = {
        "model": (Path, "write_bytes"),
        "tokenizer": (transformers.DistilBertTokenizerFast, "_save_pretrained"),
    }[at]
    monkeypatch.setattr(owner, method, full)
    monkeypatch.setattr(conversion, "_deviation", lambda *_: 0.0)
    arguments = ["export", str(finished_run), "--output", str(tmp_path / "converted"), "--format", "tflite"]
    assert main(arguments) == 4
    assert "No space left on device" in capsys.readouterr().err and list(tmp_path.iterdir()) == []
