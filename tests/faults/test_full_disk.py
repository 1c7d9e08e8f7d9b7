"""A disk becomes full during a run: exit code 4, one line, intact files; the run resumes when space is free."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Disk
from tests.tiny_run import train
from tests.training.test_train import assert_same_run

FLAGS = ("--checkpoint.every_steps", "6", "--output-dir", "RUN", "--resume")


def fill_at(patch: pytest.MonkeyPatch, disk: Disk, owner: Any, method: str, call: int) -> None:
    """Fill the disk immediately before call number `call` of `owner.method`."""
    original, calls = getattr(owner, method), [0]

    def filled(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            disk.fill()
        return original(*arguments, **options)

    patch.setattr(owner, method, filled)


def checkpoint_of_step_18() -> tuple[Any, str, int]:
    from tf_mlm.training.callbacks.checkpoints import Checkpoints

    return Checkpoints, "save", 3


def plot_of_epoch_2() -> tuple[Any, str, int]:
    from tf_mlm.training.callbacks.curves import Curves

    return Curves, "draw", 2


def model_of_epoch_2() -> tuple[Any, str, int]:
    from tf_mlm.training.callbacks import best_model

    return best_model, "save_model", 3


def event_of_step_16() -> tuple[Any, str, int]:
    from tf_mlm.run.directory import RunDirectory

    return RunDirectory, "append_event", 6  # the start, two steps, an epoch, and of the second the second


def curves_for_tensorboard() -> tuple[Any, str, int]:
    from tf_mlm.run.tensorboard import TensorBoardFiles

    return TensorBoardFiles, "write", 6


def export() -> tuple[Any, str, int]:
    from tf_mlm.training import ending

    return ending, "export_saved_model", 1


def model_card() -> tuple[Any, str, int]:
    from tf_mlm.training import ending

    return ending, "build_model_card", 1


def assert_run_survives_full_disk(
    disk: Disk, uninterrupted: Path, capsys: pytest.CaptureFixture[str], moment: Callable[[], tuple[Any, str, int]]
) -> None:
    run = disk.path / "RUN"
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        fill_at(patch, disk, *moment())
        assert train(disk.path, *FLAGS) == 4
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("step ", "epoch "))]
    assert len(lines) == 1, lines
    assert re.fullmatch("error: I/O error: .*; files already written are intact", lines[0])
    assert list(run.glob("checkpoints/step-*")) and not list(run.rglob(".*.????????"))
    disk.free_space()
    assert train(disk.path, *FLAGS) == 0
    assert "skipped" not in capsys.readouterr().out
    assert_same_run(run, uninterrupted)


@pytest.mark.slow
def test_a_disk_full_at_a_checkpoint(finished_run: Path, disk: Disk, capsys: pytest.CaptureFixture[str]) -> None:
    assert_run_survives_full_disk(disk, finished_run, capsys, checkpoint_of_step_18)


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    [plot_of_epoch_2, model_of_epoch_2, event_of_step_16, curves_for_tensorboard, export, model_card],
)
def test_a_disk_full_at_any_other_moment(
    finished_run: Path, disk: Disk, capsys: pytest.CaptureFixture[str], moment: Callable[[], tuple[Any, str, int]]
) -> None:
    assert_run_survives_full_disk(disk, finished_run, capsys, moment)
