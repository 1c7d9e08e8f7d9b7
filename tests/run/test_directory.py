"""The run directory: locked by one process; files of other runs are never changed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT
from tf_mlm.atomic_files import write_atomically
from tf_mlm.config import Config, load_config
from tf_mlm.errors import Refused
from tf_mlm.run import directory
from tf_mlm.run.directory import RunDirectory, new_run_path, newest_unfinished_run
from tf_mlm.run.events import EndEvent, Event, Events, NonFiniteEvent, StartEvent, StepEvent


@pytest.fixture(autouse=True)
def in_its_own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def begin(path: Path, *events: Event) -> RunDirectory:
    run = RunDirectory.create(path)
    run.write_config(Config())
    for event in events:
        run.append_event(event)
    return run


def refusal(call: Callable[[Any], object], argument: object) -> str:
    with pytest.raises(Refused) as refused:
        call(argument)
    assert len(str(refused.value).splitlines()) == 1
    return str(refused.value)


# Creating and opening


def test_opening_a_run_removes_incomplete_files(tmp_path: Path) -> None:
    run = begin(tmp_path / "run", StartEvent())
    run.write_environment({"curve": "plots/run.png"})
    run.release()
    (tmp_path / "plots").mkdir()
    mine = [
        tmp_path / "run" / ".config.toml.x1y2.tmp",
        tmp_path / "run" / ".model.x1y2.tmp" / "model.safetensors",
        tmp_path / "run" / "checkpoints" / ".step-0000000009.x1y2.tmp" / "arrays.safetensors",
        tmp_path / "plots" / ".run.png.x1y2.tmp",
    ]
    others = [tmp_path / "plots" / ".run-2.png.x1y2.tmp", tmp_path / "run" / ".notes"]
    for path in mine + others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    RunDirectory.open(tmp_path / "run").release()
    assert not any(path.exists() or path.parent.name.endswith(".tmp") and path.parent.exists() for path in mine)
    assert all(path.exists() for path in others)


def test_a_run_killed_during_its_first_write_can_be_started_again(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()
    (tmp_path / "run" / ".config.toml.x1y2.tmp").touch()
    begin(tmp_path / "run").release()
    assert sorted(os.listdir(tmp_path / "run")) in (["config.toml"], [".lock", "config.toml"])


def test_a_new_run_takes_a_new_or_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "a" / "b" / "new", tmp_path / "empty"):
        run = RunDirectory.create(path)
        run.write_config(Config())
        run.release()
        assert load_config(run.config_path) == Config()


def test_a_directory_with_a_run_is_refused_with_a_solution(tmp_path: Path) -> None:
    begin(tmp_path / "unfinished", StartEvent()).release()
    begin(tmp_path / "finished", StartEvent(), EndEvent()).release()
    assert "contains an unfinished run; continue it with --resume" in refusal(
        RunDirectory.create, tmp_path / "unfinished"
    )
    assert "contains a finished run" in refusal(RunDirectory.create, tmp_path / "finished")
    assert RunDirectory.open(tmp_path / "finished").is_finished()
    assert not RunDirectory.open(tmp_path / "unfinished").is_finished()


def test_a_directory_that_is_not_empty_is_refused_and_unchanged(tmp_path: Path) -> None:
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "thesis.tex").write_text("work of years")
    assert "is not empty (it contains thesis.tex)" in refusal(RunDirectory.create, tmp_path / "documents")
    assert os.listdir(tmp_path / "documents") == ["thesis.tex"]


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "is a file; pass a directory" in refusal(RunDirectory.create, tmp_path / "file")
    assert "cannot be written: Not a directory" in refusal(RunDirectory.create, tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    assert "cannot be written: Permission denied" in refusal(RunDirectory.create, tmp_path / "locked" / "run")


def test_resuming_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    assert "is not a run directory (it has no config.toml)" in refusal(RunDirectory.open, tmp_path)
    assert "is not a run directory (it has no config.toml)" in refusal(RunDirectory.open, tmp_path / "nothing")
    assert os.listdir(tmp_path) == []


def test_discard_removes_only_the_files_of_the_refused_run(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    run.write_environment({})
    run.write_train_hashes(np.zeros(3, np.uint64))
    run.discard()
    assert os.listdir(tmp_path) == []
    run = begin(tmp_path / "run")
    (tmp_path / "run" / "note.txt").write_text("mine")
    run.discard()
    assert os.listdir(tmp_path / "run") == ["note.txt"]
    (tmp_path / "empty").mkdir()
    begin(tmp_path / "empty").discard()
    assert os.listdir(tmp_path / "empty") == []  # created by the user, so it is kept


def test_a_disk_with_too_little_space_is_refused_and_existing_files_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin(tmp_path / "run")
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / "arrays").write_bytes(bytes(2**20))
    monkeypatch.setattr(directory, "free_bytes", lambda path: 2**20)
    run.check_disk(2 * 2**20)
    assert "the run needs 9.0 MiB more, and 1.0 MiB are available; free disk space" in refusal(
        run.check_disk, 10 * 2**20
    )
    assert directory.describe_bytes(3 * 2**29) == "1.5 GiB"


def test_free_space_is_that_of_the_nearest_existing_directory(tmp_path: Path) -> None:
    assert directory.free_bytes(tmp_path / "a" / "b") == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)


HOLD = """
import sys, time
from pathlib import Path
from tf_mlm.run.directory import RunDirectory
run = RunDirectory.open(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def test_two_processes_never_share_a_run_and_a_kill_releases_the_lock(tmp_path: Path) -> None:
    begin(tmp_path / "run", StartEvent()).release()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        assert "another process is training in this directory" in refusal(RunDirectory.open, tmp_path / "run")
        assert "another process is training in this directory" in refusal(RunDirectory.create, tmp_path / "run")
        holder.send_signal(signal.SIGKILL)
        holder.wait(30)
        assert (tmp_path / "run" / ".lock").exists()
        RunDirectory.open(tmp_path / "run").release()
    finally:
        holder.kill()
        holder.communicate()


def test_a_released_run_can_be_opened_again(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    assert "--resume" in refusal(RunDirectory.open, tmp_path / "run")
    run.release()
    RunDirectory.open(tmp_path / "run").release()


# Events and derived files


def test_events_after_the_checkpoint_are_removed(tmp_path: Path) -> None:
    run = begin(tmp_path / "run", StartEvent(), StepEvent(step=10))
    size = run.metrics_path.stat().st_size
    run.append_event(StepEvent(step=20))
    run.cut_events(size)
    assert run.read_events() == (StartEvent(), StepEvent(step=10))
    assert run.metrics_path.stat().st_size == size
    run.cut_events(0)
    assert run.read_events() == ()


def test_cutting_without_later_events_changes_nothing(tmp_path: Path) -> None:
    begin(tmp_path / "run").cut_events(0)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_cutting_never_extends_the_file(tmp_path: Path) -> None:
    """After a crash of the machine, the file can be shorter than recorded. Extending it would add zeros."""
    run = begin(tmp_path / "run", StartEvent(), StepEvent(step=10))
    size = run.metrics_path.stat().st_size
    os.truncate(run.metrics_path, size - 4)
    run.cut_events(size)
    run.append_event(StepEvent(step=20))
    assert run.read_events() == (StartEvent(), StepEvent(step=20))


def test_history_has_one_row_per_epoch_and_these_columns(tmp_path: Path) -> None:
    epoch = {
        "event": "epoch", "epoch": 1, "step": 94, "loss": 5.5, "val_loss": 4.25, "val_perplexity": 70.1,
        "val_masked_accuracy": 0.3, "val_masked_accuracy_top_5": 0.5, "learning_rate": 2e-05,
        "tokens_per_second": 1500.5, "seconds": 80.123,
    }  # fmt: skip
    events: list[dict[str, Any]] = [
        {"event": "start"},
        {"event": "step", "step": 10},
        epoch,
        epoch | {"epoch": 2, "step": 188},
    ]
    run = begin(tmp_path / "run", *Events.from_dicts(events))
    run.write_history()
    assert (tmp_path / "run" / "history.csv").read_bytes().decode() == (
        "epoch,step,loss,val_loss,val_perplexity,val_masked_accuracy,val_masked_accuracy_top_5,learning_rate,"
        "tokens_per_second,seconds\n"
        "1,94,5.5,4.25,70.1,0.3,0.5,2e-05,1500.5,80.123\n"
        "2,188,5.5,4.25,70.1,0.3,0.5,2e-05,1500.5,80.123\n"
    )


def test_the_environment_file_is_json(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    run.write_environment({"python": "3.11", "data": {"train": 3}})
    written = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert written == {
        "python": "3.11",
        "data": {"train": 3},
        "curve": "plots/run.png",
        "directory": str(tmp_path / "run"),
    }


def test_a_name_that_is_not_utf_8_is_recorded_as_valid_text_and_keeps_its_curve(tmp_path: Path) -> None:
    run = begin(tmp_path / os.fsdecode(b"B\xffr"))
    for _ in range(2):
        run.write_environment({})
        written = json.loads((run.path / "environment.json").read_text())
        assert written["curve"] == "plots/B\ufffdr.png" and written["directory"] == str(tmp_path / "B\ufffdr")


# The curve


def test_runs_of_the_same_name_have_different_curve_files(tmp_path: Path) -> None:
    curves = []
    for parent in ("a", "b", "c"):
        run = begin(tmp_path / parent / "imdb")
        curve = run.choose_curve()
        run.write_environment({"curve": str(curve)})
        curves.append(str(curve))
        curve.parent.mkdir(exist_ok=True)
        write_atomically(curve, parent.encode())
    assert curves == ["plots/imdb.png", "plots/imdb-2.png", "plots/imdb-3.png"]
    assert (tmp_path / "plots" / "imdb.png").read_bytes() == b"a"


def test_a_resumed_run_finds_its_own_curve(tmp_path: Path) -> None:
    for parent in ("a", "b"):
        run = begin(tmp_path / parent / "imdb")
        curve = run.choose_curve()
        run.write_environment({"curve": str(curve)})
        curve.parent.mkdir(exist_ok=True)
        curve.touch()
        run.release()
    (tmp_path / "plots" / "imdb.png").unlink()
    assert str(RunDirectory.open(tmp_path / "b" / "imdb").choose_curve()) == "plots/imdb-2.png"


# Names


def test_run_names_have_config_and_time_and_are_unique(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda form: "20300102-030405")
    for name in ("sample-20300102-030405", "sample-20300102-030405-2", "sample-20300102-030405-3"):
        assert str(new_run_path("sample")) == f"runs/{name}"
        (tmp_path / "runs" / name).mkdir(parents=True)


def test_the_newest_unfinished_run_is_the_one_started_last(tmp_path: Path) -> None:
    assert newest_unfinished_run(tmp_path / "runs") is None
    for i, name in enumerate(("older", "newer", "finished")):
        run = begin(tmp_path / "runs" / name, StartEvent(), *([EndEvent()] if name == "finished" else []))
        run.release()
        os.utime(run.config_path, (1000 + i, 1000 + i))
    (tmp_path / "runs" / "no run").mkdir()
    (tmp_path / "runs" / "older" / "touched").touch()
    assert newest_unfinished_run(tmp_path / "runs") == tmp_path / "runs" / "newer"
    os.utime(tmp_path / "runs" / "older" / "config.toml", (2000, 2000))
    assert newest_unfinished_run(tmp_path / "runs") == tmp_path / "runs" / "older"


def test_runs_that_are_running_damaged_or_diverged_are_skipped(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    begin(root / "oldest", StartEvent()).release()
    begin(root / "stopped", StartEvent(), NonFiniteEvent(step=7)).release()
    begin(root / "damaged", StartEvent()).release()
    (root / "damaged" / "metrics.jsonl").write_text("{\n")
    held = begin(root / "running", StartEvent())
    for i, name in enumerate(("oldest", "stopped", "damaged", "running")):
        os.utime(root / name / "config.toml", (1000 + i, 1000 + i))
    assert newest_unfinished_run(root) == root / "oldest"
    held.release()
    assert newest_unfinished_run(root) == root / "running"


def test_the_run_name_is_the_same_for_any_form_of_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert RunDirectory(directory.Path(".")).name == "here"
