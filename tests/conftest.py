"""Fixtures that all tests share. Hugging Face's caches are kept apart from the user's."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Set before any Hugging Face library is imported, which is when they read it.
_HF_HOME = tempfile.TemporaryDirectory(prefix="tf_mlm-tests-")
os.environ["HF_HOME"] = _HF_HOME.name
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # as the commands do where stderr is no terminal

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture(autouse=True)
def _float32() -> Iterator[None]:
    """A command leaves its precision in force, and the next test would compute in it."""
    yield
    if "tf_keras" in sys.modules:
        sys.modules["tf_keras"].mixed_precision.set_global_policy("float32")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real reviews, tokenizer and weights beside the project; not part of it."""
    if not SHARED.is_dir():
        pytest.skip("the folder ../shared (real reviews and weights) is not there")
    return SHARED


@pytest.fixture(scope="session")
def tensorflow() -> None:
    """TensorFlow imported as training does it: the first to import it decides on XLA, and so on the last digits."""
    from tf_mlm import runtime
    from tf_mlm.config import TrainingConfig

    runtime.prepare(TrainingConfig())


@pytest.fixture(scope="session")
def finished_run(tensorflow: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a finished run, `RUN` in its own folder. Not to be written to."""
    from tests import tiny_run

    folder = tmp_path_factory.mktemp("finished")
    assert tiny_run.train(folder, "--output-dir", "RUN") == 0
    return folder / "RUN"
