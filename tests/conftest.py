"""Fixtures of all tests. The tests use separate Hugging Face caches."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Set before any Hugging Face library is imported, because they read it on import.
_HF_HOME = tempfile.TemporaryDirectory(prefix="tf_mlm-tests-")
os.environ["HF_HOME"] = _HF_HOME.name
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # as the commands do if stderr is not a terminal

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture(autouse=True)
def _float32() -> Iterator[None]:
    """Reset the global precision policy, which a command sets, after each test."""
    yield
    if "tf_keras" in sys.modules:
        sys.modules["tf_keras"].mixed_precision.set_global_policy("float32")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The directory of real reviews, tokenizer and weights next to the checkout."""
    if not SHARED.is_dir():
        pytest.skip("the directory ../shared (real reviews and weights) does not exist")
    return SHARED


@pytest.fixture(scope="session")
def tensorflow() -> None:
    """Import TensorFlow as training does: the first import sets the XLA flags, which affect the last digits."""
    from tf_mlm import runtime
    from tf_mlm.config import TrainingConfig

    runtime.prepare(TrainingConfig())


@pytest.fixture(scope="session")
def finished_run(tensorflow: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory `RUN` of a finished run. Read-only."""
    from tests import tiny_run

    folder = tmp_path_factory.mktemp("finished")
    assert tiny_run.train(folder, "--output-dir", "RUN") == 0
    return folder / "RUN"
