"""Training on several devices from the command line: train, checkpoint, kill, resume, evaluate, export."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.tiny_run import TINY, read_metrics

FLAGS = ["--config", "tiny.toml", "--output-dir", "RUN", "--resume", "--checkpoint.every_steps", "3"]
FLAGS += ["--training.num_train_steps", "14"]
KILLED_AT_STEP_12 = """
import os, signal, sys
from tf_mlm import runtime
from tf_mlm.config import TrainingConfig
runtime.prepare(TrainingConfig())
from tf_mlm.training.callbacks.checkpoints import Checkpoints
original = Checkpoints.on_train_batch_end
def killed(self, *arguments):
    original(self, *arguments)
    if self._log.step == 12:
        os.kill(os.getpid(), signal.SIGKILL)
Checkpoints.on_train_batch_end = killed
from tf_mlm.commands.main import train_main
sys.exit(train_main(sys.argv[1:]))
"""


def command(folder: Path, num_devices: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` in `folder`, in a process with `num_devices` logical devices."""
    folder.mkdir(exist_ok=True)
    (folder / "tiny.toml").write_text(TINY)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TF_MLM_LOGICAL_DEVICES": str(num_devices)}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def train(folder: Path, num_devices: int, *flags: str) -> list[dict[str, Any]]:
    """The events of a run in `folder`."""
    strategy = ["--distribution.strategy", "mirrored" if num_devices > 1 else "none"]
    finished = command(folder, num_devices, str(ROOT / "train.py"), *FLAGS, *strategy, *flags)
    assert finished.returncode == 0, finished.stderr
    return read_metrics(folder / "RUN")


def validation_losses(events: list[dict[str, Any]]) -> list[float]:
    return [event["val_loss"] for event in events if "val_loss" in event]


@pytest.fixture(scope="module")
def one_device(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return train(tmp_path_factory.mktemp("one"), 1)


def test_a_run_on_two_devices_is_killed_resumed_evaluated_and_exported(
    one_device: list[dict[str, Any]], tmp_path: Path
) -> None:
    killed = command(tmp_path, 2, "-c", KILLED_AT_STEP_12, *FLAGS, "--distribution.strategy", "mirrored")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    events = train(tmp_path, 2)
    assert json.loads((tmp_path / "RUN" / "environment.json").read_text())["num_replicas"] == 2
    np.testing.assert_allclose(validation_losses(events), validation_losses(one_device), rtol=1e-5)
    for event, same in zip(events, one_device, strict=True):
        if event["event"] in ("step", "epoch"):
            assert event["loss"] == pytest.approx(same["loss"], rel=1e-5)
            assert event["skipped_steps"] == 0

    evaluated = command(tmp_path, 1, "-m", "tf_mlm", "evaluate", "RUN", "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["loss"] == pytest.approx(events[-1]["best_val_loss"], rel=1e-5)
    exported = command(tmp_path, 1, "-m", "tf_mlm", "export", "RUN", "--output", "again")
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "again" / "saved_model.pb").exists()

    import transformers

    model = transformers.TFDistilBertForMaskedLM.from_pretrained(tmp_path / "RUN" / "model")
    assert all(np.isfinite(weight.numpy()).all() for weight in model.weights)


def test_four_devices_give_the_losses_of_one_device(one_device: list[dict[str, Any]], tmp_path: Path) -> None:
    events = train(tmp_path, 4)
    np.testing.assert_allclose(validation_losses(events), validation_losses(one_device), rtol=1e-5)


def test_gradients_can_be_exchanged_in_bfloat16(one_device: list[dict[str, Any]], tmp_path: Path) -> None:
    """The losses differ more from those of one device than with an exchange in float32, but little."""
    expected = validation_losses(one_device)

    def difference(name: str, *flags: str) -> float:
        losses = validation_losses(train(tmp_path / name, 2, *flags))
        return max(abs(loss / same - 1) for loss, same in zip(losses, expected, strict=True))

    rounded = difference("bfloat16", "--distribution.gradient_precision", "bfloat16")
    assert 5 * difference("float32") < rounded < 1e-2


def test_a_batch_that_cannot_be_divided_among_the_devices_is_refused(tmp_path: Path) -> None:
    refused = command(
        tmp_path, 3, str(ROOT / "train.py"), "--config", "tiny.toml", "--distribution.strategy", "mirrored"
    )
    assert refused.returncode == 2
    assert refused.stderr.splitlines() == [
        "error: training.batch_size = 16: must be a multiple of 3 (training.accumulate_steps x 3 devices)"
    ]
