import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tf_mlm.cli import main

# Two sentences of different length, the second one padded.
INPUT_IDS = np.array([[2, 40, 41, 4, 43, 3], [2, 50, 4, 3, 0, 0]], np.int32)
ATTENTION_MASK = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]], np.int32)

TENSORFLOW_ALONE = """
import sys
import numpy as np
import tensorflow as tf
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
inputs = np.load(sys.argv[2])
outputs = serve(input_ids=tf.constant(inputs["ids"]), attention_mask=tf.constant(inputs["mask"]))
assert list(outputs) == ["logits"], outputs
np.save(sys.argv[3], outputs["logits"].numpy())
assert not {"transformers", "tf_keras", "tf_mlm"} & sys.modules.keys()
"""


def serve_elsewhere(saved_model: Path, folder: Path) -> np.ndarray:
    """The logits of the export, in a process that knows TensorFlow alone."""
    np.savez(folder / "inputs.npz", ids=INPUT_IDS, mask=ATTENTION_MASK)
    command = [sys.executable, "-c", TENSORFLOW_ALONE, saved_model, folder / "inputs.npz", folder / "logits.npy"]
    environment = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    result = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return np.load(folder / "logits.npy")


def test_the_export_gives_the_models_logits_where_there_is_only_tensorflow(finished_run: Path, tmp_path: Path) -> None:
    import transformers

    model = transformers.TFDistilBertForMaskedLM.from_pretrained(finished_run / "model")
    expected = model(input_ids=INPUT_IDS, attention_mask=ATTENTION_MASK).logits.numpy()
    logits = serve_elsewhere(finished_run / "saved_model", tmp_path)
    assert (logits.dtype, logits.shape) == (np.float32, (2, 6, 300))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_what_is_padding_has_no_part_in_the_other_logits(finished_run: Path) -> None:
    import tensorflow as tf

    serve = tf.saved_model.load(str(finished_run / "saved_model")).signatures["serving_default"]
    whole = serve(input_ids=tf.constant(INPUT_IDS), attention_mask=tf.constant(ATTENTION_MASK))["logits"]
    alone = serve(input_ids=tf.constant(INPUT_IDS[1:, :4]), attention_mask=tf.ones([1, 4], tf.int32))["logits"]
    assert np.abs(whole[1:, :4] - alone).max() < 1e-5 * np.abs(alone).max()


def test_the_export_command_writes_what_the_run_exported(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import tensorflow as tf

    output = tmp_path / "new" / "exported"
    assert main(["export", str(finished_run / "model"), "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"SavedModel in {output}\n"
    answers = [
        tf.saved_model.load(str(folder)).signatures["serving_default"](
            input_ids=tf.constant(INPUT_IDS), attention_mask=tf.constant(ATTENTION_MASK)
        )["logits"].numpy()
        for folder in (finished_run / "saved_model", output)
    ]  # fmt: skip
    np.testing.assert_array_equal(*answers)
    assert [path.name for path in output.parent.iterdir()] == ["exported"]


def test_a_full_disk_ends_the_export_with_4_and_leaves_nothing(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resource = pytest.importorskip("resource", reason="limits on the size of files are a matter of Unix")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        assert main(["export", str(finished_run), "--output", str(tmp_path / "exported")]) == 4
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    line, end = capsys.readouterr().err.split("\n")
    assert line.startswith("error: input/output failed: ") and end == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_saved_model_cli_runs_the_signature(finished_run: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "inputs.npz", ids=INPUT_IDS, mask=ATTENTION_MASK)
    inputs = f"input_ids={tmp_path}/inputs.npz[ids];attention_mask={tmp_path}/inputs.npz[mask]"
    command = [
        str(Path(sys.executable).parent / "saved_model_cli"), "run", "--dir", str(finished_run / "saved_model"),
        "--tag_set", "serve", "--signature_def", "serving_default",
        "--inputs", inputs, "--outdir", str(tmp_path),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert np.load(tmp_path / "logits.npy").shape == (2, 6, 300)
