"""Training on several workers gives the numbers of one process; a lost worker loses no work."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_run import read_metrics, timeless
from tests.workers import Ended, Failure, train_with_workers

FLAGS = ("--output-dir", "RUN", "--resume", "--checkpoint.every_steps", "3")
SHORT = (*FLAGS, "--training.num_train_steps", "14")
STEP = "tf_mlm.training.callbacks.checkpoints:Checkpoints.on_train_batch_end"


def train(folder: Path, number: int, *flags: str, devices: int = 1) -> list[dict[str, Any]]:
    """The events of a finished run."""
    strategy = ["--distribution.strategy", "mirrored"] if devices > 1 else []
    ended = train_with_workers(folder, number, *(flags or SHORT), *strategy, devices=devices)
    assert [each.returncode for each in ended] == [0] * number, [each.stderr for each in ended]
    return read_metrics(folder / "RUN")


def numbers(events: list[dict[str, Any]]) -> dict[tuple[int, str], float]:
    """All numbers of the events that depend on the weights, by step and name."""
    names = ("loss", "val_loss", "val_masked_accuracy", "val_masked_accuracy_top_5", "best_val_loss")
    return {
        (event["step"], name): event[name] for event in events for name in names if isinstance(event.get(name), float)
    }


def assert_same_training(events: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """The numbers agree within the rounding of float32; dropout is on."""
    assert numbers(events) == pytest.approx(numbers(expected), rel=1e-5)
    assert [event["step"] for event in events] == [event["step"] for event in expected]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return train(tmp_path_factory.mktemp("one"), 1)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Ended]]:
    folder = tmp_path_factory.mktemp("two")
    return folder, train_with_workers(folder, 2, *SHORT)


def test_two_workers_train_as_one_process(one: list[dict[str, Any]], two: tuple[Path, list[Ended]]) -> None:
    folder, ended = two
    assert [each.returncode for each in ended] == [0, 0], [each.stderr for each in ended]
    assert_same_training(read_metrics(folder / "RUN"), one)


def test_the_chief_writes_the_run_and_the_other_worker_nothing(two: tuple[Path, list[Ended]]) -> None:
    folder, ended = two
    assert json.loads((folder / "RUN" / "environment.json").read_text())["num_workers"] == 2
    assert (folder / "RUN" / "saved_model" / "saved_model.pb").exists()
    assert sorted(path.name for path in folder.iterdir()) == ["RUN", "plots", "tiny.toml"]
    assert "batch 16 (8 per replica, 2 replicas on 2 workers)" in ended[0].stdout
    assert "step 12/14" in ended[0].stderr
    assert ended[1].stderr == ""
    assert ended[1].stdout.endswith("finished   worker 0 has written the run directory\n")


def test_a_finished_run_ends_all_workers(two: tuple[Path, list[Ended]]) -> None:
    folder, _ = two
    ended = train_with_workers(folder, 2, *SHORT)
    assert [each.returncode for each in ended] == [0, 0], [each.stderr for each in ended]
    assert all("RUN is a finished run; nothing to do" in each.stdout for each in ended)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "devices"), [(1, 2), (1, 4), (2, 1), (4, 1)])
def test_50_steps_are_the_same_on_any_number_of_replicas(tmp_path: Path, number: int, devices: int) -> None:
    flags = (*FLAGS, "--training.num_train_steps", "50", "--training.log_every", "1")
    events = train(tmp_path / "several", number, *flags, devices=devices)
    assert_same_training(events, train(tmp_path / "one", 1, *flags))
    assert len([event for event in events if event["event"] == "step"]) == 50


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 4), (2, 2)])
def test_a_run_is_resumed_on_another_number_of_workers(
    tmp_path: Path, one: list[dict[str, Any]], before: int, after: int
) -> None:
    failure = Failure(before - 1, signal.SIGTERM, STEP, call=8)
    ended = train_with_workers(tmp_path, before, *SHORT, failure=failure)
    assert [each.returncode for each in ended] == [143] * before, [each.stderr for each in ended]
    assert all("stopped after a checkpoint; continue with --resume" in each.stderr for each in ended)
    (checkpoint, *_) = sorted((tmp_path / "RUN" / "checkpoints").iterdir(), reverse=True)
    assert checkpoint.name in ("step-0000000008", "step-0000000009")
    assert_same_training(train(tmp_path, after), one)


PHASES = {
    "tokenization": "tf_mlm.training.objectives.masked:prepare_data",
    "before the first validation": "tf_mlm.training.train:restore",
    "first validation": "tf_mlm.training.beginning:_start_event",
    "first step": STEP,
    "step": STEP,
    "validation": "tf_mlm.training.callbacks.checkpoints:Checkpoints.on_test_batch_end",
    "end of an epoch": "tf_mlm.training.callbacks.checkpoints:Checkpoints.on_epoch_end",
    "end of training": "tf_mlm.training.callbacks.checkpoints:Checkpoints.on_train_end",
}
OF_THE_CHIEF = {
    "checkpoint": "tf_mlm.training.callbacks.checkpoints:save_checkpoint",
    "best model": "tf_mlm.training.callbacks.best_model:save_best_model",
    "export": "tf_mlm.training.train:export",
}
KILLS = [(worker, phase) for worker in (0, 1) for phase in PHASES] + [(0, phase) for phase in OF_THE_CHIEF]


@pytest.mark.slow
@pytest.mark.parametrize(("worker", "phase"), KILLS)
def test_after_a_kill_the_other_worker_stops_and_the_run_is_resumed(
    tmp_path: Path, two: tuple[Path, list[Ended]], worker: int, phase: str
) -> None:
    at = (PHASES | OF_THE_CHIEF)[phase]
    failure = Failure(worker, signal.SIGKILL, at, call=7 if phase == "step" else 1)
    ended = train_with_workers(tmp_path, 2, *SHORT, failure=failure, seconds=300)
    assert ended[worker].returncode == -signal.SIGKILL
    other = ended[1 - worker]
    if phase == "end of training" and worker == 1:  # the chief finishes the run without it
        assert other.returncode == 0, other.stderr
    else:
        assert other.returncode == 4, other.stderr
        last_line = other.stderr.splitlines()[-1]
        assert last_line.startswith(f"error: worker {1 - worker}: another worker failed or cannot be reached")
        assert "Traceback" not in other.stderr
        train(tmp_path, 2)
    assert timeless(read_metrics(tmp_path / "RUN")) == timeless(read_metrics(two[0] / "RUN"))


@pytest.mark.slow
def test_workers_roll_back_together(tmp_path: Path) -> None:
    """The loss of the steps 7 to 9 is not a number, also after the rollback, which ends the run."""
    flags = (*SHORT, "--training.log_every", "1")  # the times in the events differ between the workers
    ended = train_with_workers(tmp_path, 2, *flags, bad_steps=(6, 9), seconds=300)
    assert [each.returncode for each in ended] == [3, 3], [each.stderr for each in ended]
    assert all("rolled back to step 6: " in each.stdout for each in ended)
    assert all("the run had already rolled back from step 9 to 6" in each.stderr for each in ended)


@pytest.mark.slow
def test_two_workers_read_the_same_stream_as_one_process(finished_run: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train-0", "train-1", "test"):
        lines = [f"{name}: film {number} was {number % 7} times a delight and a bore" for number in range(80)]
        (data / f"{name}.txt").write_text("\n".join(lines))
    flags = [*SHORT, "--model", str(finished_run / "model"), "--dataset", str(data), "--data.streaming"]
    flags += ["--data.shuffle_buffer_size", "40", "--training.validate_every_steps", "5"]
    expected = train(tmp_path / "one", 1, *flags)
    assert_same_training(train(tmp_path / "two", 2, *flags), expected)
    stopped = train_with_workers(tmp_path / "again", 2, *flags, failure=Failure(1, signal.SIGTERM, STEP, call=8))
    assert [each.returncode for each in stopped] == [143, 143], [each.stderr for each in stopped]
    assert_same_training(train(tmp_path / "again", 2, *flags), expected)
