"""The Python API: `import tf_mlm`."""

import ast
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tf_mlm
from tests.conftest import ROOT
from tests.tiny_run import TINY, inside
from tf_mlm.config import Config, load_config
from tf_mlm.errors import Refused


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys; import tf_mlm; print(*sys.modules)"
    heavy = {
        "tensorflow",
        "tf_keras",
        "keras",
        "transformers",
        "datasets",
        "numpy",
        "pydantic",
        "matplotlib",
        "requests",
    }
    assert heavy & {name.partition(".")[0] for name in python(code).split()} == set()


def test_the_config_is_available_without_tensorflow() -> None:
    code = (
        "import sys, tf_mlm; print(tf_mlm.load_config().training.epochs, tf_mlm.Config().model.name); "
        "tf_mlm.train; tf_mlm.load; print('tensorflow' in sys.modules)"
    )
    assert python(code).split() == ["20", "distilbert-base-uncased", "False"]


def test_the_stub_names_what_the_package_exports() -> None:
    tree = ast.parse((ROOT / "tf_mlm" / "__init__.pyi").read_text())
    stub = {
        name
        for node in tree.body
        for name in (
            [alias.asname or alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom)
            else [node.target.id]
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
            else []
        )
    }
    assert stub - {"__all__"} == set(tf_mlm.__all__)
    assert set(tf_mlm.__all__) <= set(dir(tf_mlm))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'fit'"):
        getattr(tf_mlm, "fit")  # noqa: B009


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"training.epoch": 3}, "unknown setting training.epoch; did you mean 'training.epochs'?"),
        ({"training.epochs": 0}, "--training.epochs = 0: should be greater than or equal to 1"),
        ({"training.epochs": 2.5}, "--training.epochs = 2.5: should be a valid integer"),
        ({"training.accumulate_steps": 3}, "command line: training: accumulate_steps must divide batch_size: 32 / 3"),
    ],
)
def test_a_wrong_override_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for config in (None, "sample", Config()):
        with pytest.raises(Refused) as refused:
            tf_mlm.train(config, overrides=overrides)
        assert str(refused.value).startswith(message)
    assert list(tmp_path.iterdir()) == []


def test_data_that_does_not_exist_is_refused_and_leaves_no_run(tensorflow: None, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="nowhere.txt"):
        tf_mlm.train("sample", overrides={"data.dataset": "nowhere.txt"}, output_dir=tmp_path / "RUN")
    assert not (tmp_path / "RUN").exists()


@pytest.fixture(scope="module")
def trained(tensorflow: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[tf_mlm.Run, list[Any]]:
    """A run of two epochs trained with the API, and the arguments of the calls to a user's callback."""
    import tf_keras as keras

    folder = tmp_path_factory.mktemp("api")
    (folder / "tiny.toml").write_text(TINY)
    calls: list[Any] = []

    class Recorder(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
            calls.append((epoch, dict(logs or {})))

    with inside(folder):
        return tf_mlm.train(
            "tiny.toml", overrides={"training.epochs": 2}, callbacks=[Recorder()], output_dir="RUN"
        ), calls


def test_a_run_has_its_path_and_one_row_of_history_per_epoch(trained: tuple[tf_mlm.Run, list[Any]]) -> None:
    run, _ = trained
    assert run.path.is_absolute() and run.path.name == "RUN"
    assert [row["epoch"] for row in run.history] == [1, 2]
    assert {"step", "loss", "val_loss", "val_perplexity", "learning_rate", "seconds"} <= run.history[0].keys()
    assert "event" not in run.history[0]


def test_callbacks_of_the_user_are_called(trained: tuple[tf_mlm.Run, list[Any]]) -> None:
    run, calls = trained
    assert [epoch for epoch, _ in calls] == [0, 1]
    assert [logs["val_loss"] for _, logs in calls] == pytest.approx([row["val_loss"] for row in run.history])


def test_a_run_loads_its_model_and_tokenizer(trained: tuple[tf_mlm.Run, list[Any]]) -> None:
    run, _ = trained
    assert run.model is run.model
    assert run.model.config.vocab_size == len(run.tokenizer)


def test_the_same_settings_give_the_same_numbers_from_python_and_from_the_command(
    trained: tuple[tf_mlm.Run, list[Any]], tmp_path: Path
) -> None:
    from tests import tiny_run

    run, _ = trained
    assert tiny_run.train(tmp_path, "--epochs", "2", "--output-dir", "RUN") == 0
    ours, theirs = (
        [{name: value for name, value in row.items() if name not in tiny_run.TIMES} for row in each.history]
        for each in (run, tf_mlm.Run(tmp_path / "RUN"))
    )
    assert ours == theirs


def test_the_precision_of_the_caller_is_restored(tensorflow: None, tmp_path: Path) -> None:
    import tf_keras as keras

    (tmp_path / "tiny.toml").write_text(TINY)
    config = load_config(tmp_path / "tiny.toml")
    overrides = {"training.precision": "bfloat16", "training.num_train_steps": 1, "data.num_train_sequences": 16}
    with inside(tmp_path):
        tf_mlm.train(config, overrides=overrides, output_dir="RUN")
        assert keras.mixed_precision.global_policy().name == "float32"


def test_load_fills_encodes_and_evaluates(trained: tuple[tf_mlm.Run, list[Any]]) -> None:
    run, _ = trained
    model = tf_mlm.load(run)
    (answer,) = model.fill(["This is a great [MASK]."], top_k=3)
    assert len(answer.fills[0]) == 3
    vectors = model.encode(["This is a great film.", "A bore."])
    assert vectors.shape == (2, 32)
    alone = model.encode("A bore.")
    np.testing.assert_allclose(vectors[1:], alone, rtol=1e-4, atol=1e-6)  # padding does not count
    metrics = model.evaluate()
    assert metrics["loss"] == pytest.approx(min(row["val_loss"] for row in run.history), rel=1e-6)


@pytest.mark.slow
def test_training_in_a_thread_works(tensorflow: None, tmp_path: Path) -> None:
    """Notebook servers and web services train in threads. Only the main thread can handle signals."""
    (tmp_path / "tiny.toml").write_text(TINY)
    found: list[Any] = []

    def work() -> None:
        found.append(
            tf_mlm.train(tmp_path / "tiny.toml", overrides={"training.epochs": 1}, output_dir=tmp_path / "RUN")
        )

    with inside(tmp_path):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert found and len(found[0].history) == 1
