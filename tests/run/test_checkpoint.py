"""Checkpoints have all state that training changes, and a damaged one is never used."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tf_mlm.atomic_files import atomic_directory
from tf_mlm.errors import NonFiniteLoss, Refused
from tf_mlm.run.checkpoint import (
    Progress,
    load_checkpoint,
    model_variables,
    restore_best_model,
    restore_variables,
    save_checkpoint,
)


class Variable:
    """A fake of a TensorFlow variable."""

    def __init__(self, value: Any) -> None:
        self.value = np.asarray(value)

    def numpy(self) -> Any:
        return self.value[()]  # like TensorFlow, a scalar for a variable without axes

    def assign(self, value: Any) -> None:
        assert value.shape == self.value.shape and value.dtype == self.value.dtype
        self.value = np.array(value)


def load(folder: Path, **options: Any) -> tuple[Progress, dict[str, np.ndarray]]:
    """The newest intact checkpoint, which must exist."""
    found = load_checkpoint(folder, "mine", **options)
    assert found is not None
    return found


def progress_at(step: int) -> Progress:
    return Progress(step, (step * 2.5, step * 3.0), step * 100, step * 0.5, "mine")


def variables_at(step: int) -> dict[str, Variable]:
    return {
        "weight/0": Variable(np.full((2, 3), step, np.float32)),
        "optimizer/0": Variable(np.int64(step)),
        "metric/0": Variable(np.float64(step + 0.1)),
    }


def save(folder: Path, *steps: int, keep: int = 9) -> None:
    for step in steps:
        save_checkpoint(folder, progress_at(step), variables_at(step), keep)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_saved_checkpoint_is_loaded_unchanged(tmp_path: Path) -> None:
    save(tmp_path / "checkpoints", 7)
    progress, arrays = load(tmp_path / "checkpoints")
    assert progress == progress_at(7)
    saved = {name: variable.numpy() for name, variable in variables_at(7).items()}
    assert arrays.keys() == saved.keys()
    for name, value in saved.items():
        assert arrays[name].shape == value.shape and arrays[name].dtype == value.dtype
        np.testing.assert_array_equal(arrays[name], value)
    restored = variables_at(0)
    restore_variables(restored, arrays)
    assert {name: variable.numpy().tolist() for name, variable in restored.items()} == {
        "weight/0": [[7.0] * 3] * 2, "optimizer/0": 7, "metric/0": 7.1,
    }  # fmt: skip


def test_the_newest_checkpoint_is_loaded_and_keep_checkpoints_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 1, 9, 10, 200, keep=2)
    assert names(tmp_path) == ["step-0000000010", "step-0000000200"]
    assert load(tmp_path)[0] == progress_at(200)
    save(tmp_path, 201, keep=1)
    assert names(tmp_path) == ["step-0000000201"]


def test_saving_a_step_again_replaces_its_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 3)
    save_checkpoint(tmp_path, progress_at(3), variables_at(4), keep=2)
    assert names(tmp_path) == ["step-0000000003"]
    assert load(tmp_path)[1]["optimizer/0"] == 4


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir])
def test_loading_without_checkpoints_gives_none(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "checkpoints")
    assert load_checkpoint(tmp_path / "checkpoints", "mine") is None


def test_a_checkpoint_of_another_run_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    save(tmp_path / "run" / "checkpoints", 1)
    with pytest.raises(Refused, match=rf"^--resume {tmp_path}/run: its checkpoint belongs to another text, model or"):
        load_checkpoint(tmp_path / "run" / "checkpoints", "other")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a flipped bit": flip,
    "a lost end": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "a longer end": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "empty": lambda path: path.write_bytes(b""),
    "removed": Path.unlink,
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "another's": lambda path: shutil.copy(path.parent.parent / "step-0000000004" / path.name, path),
}


@pytest.mark.parametrize("file", ["arrays.safetensors", "state.json"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_skipped_for_the_previous_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, damage: Callable[[Path], object]
) -> None:
    save(tmp_path, 4, 5)
    damage(tmp_path / "step-0000000005" / file)
    progress, arrays = load(tmp_path)
    assert progress == progress_at(4)
    assert arrays["optimizer/0"] == 4
    output = capsys.readouterr().out
    assert re.fullmatch(r"checkpoint step-0000000005 is damaged and skipped: \w+: \S.*\n", output)


def test_a_flipped_bit_in_the_state_is_detected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, 4, 5)
    path = tmp_path / "step-0000000005" / "state.json"
    whole = path.read_bytes()
    skipped = 0
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        loaded = load(tmp_path)
        skipped += loaded[0] == progress_at(4)
        assert loaded[0] in (progress_at(4), progress_at(5))
    assert skipped > len(whole) - 10  # except for white space
    assert len(capsys.readouterr().out.splitlines()) == skipped


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, 4, 5)
    for path in tmp_path.iterdir():
        (path / "state.json").unlink()
    with pytest.raises(Refused, match="none of its checkpoints can be read; start a new run"):
        load_checkpoint(tmp_path, "mine")
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["step-0000000005", "step-0000000004"]


def test_a_checkpoint_of_another_package_version_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 5)
    monkeypatch.setattr("tf_mlm.run.checkpoint.asdict", lambda progress: {"step": 6})
    save(tmp_path, 6)
    assert load(tmp_path)[0] == progress_at(5)
    assert capsys.readouterr().out.startswith("checkpoint step-0000000006 is damaged and skipped: ")


def test_an_incomplete_checkpoint_is_ignored(tmp_path: Path) -> None:
    save(tmp_path, 4)
    half = tmp_path / ".step-0000000009.x1y2.tmp"
    half.mkdir()
    (half / "arrays.safetensors").write_bytes(b"half")
    assert load(tmp_path)[0] == progress_at(4)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_non_finite_number_is_never_saved(tmp_path: Path, number: float) -> None:
    save(tmp_path, 4)
    variables = variables_at(5) | {"weight/0": Variable(np.array([1.0, number], np.float32))}
    with pytest.raises(NonFiniteLoss, match="a value of the weight is not finite after step 5"):
        save_checkpoint(tmp_path, progress_at(5), variables, keep=1)
    assert names(tmp_path) == ["step-0000000004"]


def test_damaged_checkpoints_of_later_steps_are_removed_before_intact_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 3, 8, 9)
    for name in ("step-0000000008", "step-0000000009"):
        (tmp_path / name / "state.json").unlink()
    assert load(tmp_path)[0] == progress_at(3)
    save(tmp_path, 5, keep=1)
    assert names(tmp_path) == ["step-0000000005"]


def test_a_rollback_skips_checkpoints_between_bad_steps_if_it_can(tmp_path: Path) -> None:
    save(tmp_path, 4)
    between = replace(progress_at(5), bad_steps=1, skipped_steps=3)
    save_checkpoint(tmp_path, between, variables_at(5), keep=2)
    assert load(tmp_path)[0] == between
    assert load(tmp_path, before_bad_steps=True)[0] == progress_at(4)
    save_checkpoint(tmp_path, between, variables_at(5), keep=1)
    assert load(tmp_path, before_bad_steps=True)[0] == between


def test_the_best_model_is_restored_with_its_checkpoint(tmp_path: Path) -> None:
    folder, model = tmp_path / "checkpoints", tmp_path / "model"

    def keep(step: int, text: str = "") -> None:
        if text:
            with atomic_directory(model) as temporary:
                (temporary / "weights").write_text(text)
        save_checkpoint(folder, progress_at(step), variables_at(step), 9, model)

    keep(1)
    keep(5, "of epoch 1")
    assert (folder / "step-0000000005" / "model" / "weights").stat().st_ino == (model / "weights").stat().st_ino
    keep(9, "of epoch 2")
    restore_best_model(folder, progress_at(5), model)
    assert (model / "weights").read_text() == "of epoch 1"
    restore_best_model(folder, progress_at(9), model)
    assert (model / "weights").read_text() == "of epoch 2"
    restore_best_model(folder, progress_at(1), model)
    assert not model.exists()


def test_after_a_rollback_the_next_batch_skips_the_bad_batches(tmp_path: Path) -> None:
    progress = replace(progress_at(5), rolled_back=(9, 4))
    assert (progress_at(5).next_batch, progress.next_batch) == (5, 10)
    save_checkpoint(tmp_path, progress, variables_at(5), keep=2)
    assert load(tmp_path)[0] == progress


def test_a_failed_save_leaves_only_the_previous_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 4)

    class Unreadable(Variable):
        def numpy(self) -> Any:
            raise OSError("device removed")

    with pytest.raises(OSError, match="device removed"):
        save_checkpoint(tmp_path, progress_at(5), {"weight/0": Unreadable(0)}, keep=1)
    assert names(tmp_path) == ["step-0000000004"]


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_all_variables_that_training_changes_are_restored_exactly(
    tensorflow: None, tmp_path: Path, precision: str
) -> None:
    import tensorflow as tf
    import tf_keras as keras

    from tests.model.conftest import build, compile_model, make_batch, tiny_config
    from tf_mlm.config import OptimizerConfig
    from tf_mlm.model.optimizer import build_optimizer

    def build_model(seed: int) -> Any:
        optimizer = build_optimizer(OptimizerConfig(learning_rate=1e-2), 10, precision)
        return compile_model(build(tiny_config("distilbert"), seed=seed), optimizer=optimizer)

    batch = make_batch()
    trained, other = build_model(1), build_model(2)
    if precision == "float16":
        trained.optimizer._loss_scale.current_loss_scale.assign(2.0**8)
    for _ in range(3):
        trained.train_step(batch)
    save_checkpoint(tmp_path, progress_at(3), model_variables(trained), keep=1)
    _, arrays = load(tmp_path)
    num_weights = len(trained.weights)
    groups = {"weight": num_weights, "optimizer": 1 + 2 * num_weights, "metric": 6}
    groups |= {"loss_scale": 2} if precision == "float16" else {}
    assert {group: sum(name.startswith(f"{group}/") for name in arrays) for group in groups} == groups
    assert len(arrays) == sum(groups.values())

    restore_variables(model_variables(other), arrays)
    before, after = model_variables(trained), model_variables(other)
    assert before.keys() == after.keys()
    for name, variable in before.items():
        np.testing.assert_array_equal(after[name].numpy(), variable.numpy(), err_msg=name)
    assert int(other.optimizer.iterations) == 3
    assert float(other.metrics[0].count) == 45
    if precision == "float16":
        assert isinstance(other.optimizer, keras.mixed_precision.LossScaleOptimizer)
        assert float(other.optimizer.loss_scale) == 2.0**8
        assert int(other.optimizer._loss_scale.counter) == 3
    for model in (trained, other):
        model.train_step(batch)
    assert all(tf.reduce_all(a == b) for a, b in zip(trained.weights, other.weights, strict=True))
    assert model_variables(other, only="metric").keys() == {f"metric/{i}" for i in range(6)}
