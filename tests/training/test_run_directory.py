"""The run directory: whole files, one process, nobody else's work touched."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from tf_mlm.config import Config, load_config
from tf_mlm.errors import Refused
from tf_mlm.training import run_directory
from tf_mlm.training.run_directory import (
    RunDirectory,
    new_run_path,
    newest_unfinished_run,
    read_events,
    write_whole,
    written_aside,
)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def begin(path, *events) -> RunDirectory:
    run = RunDirectory.create(path)
    run.write_config(Config())
    for event in events:
        run.append_event(event)
    return run


def refusal(call, path) -> str:
    with pytest.raises(Refused) as refused:
        call(path)
    assert len(str(refused.value).splitlines()) == 1
    return str(refused.value)


# ---- whole files ---------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "loss.png"
    write_whole(path, b"\x89old")
    write_whole(path, "new, ä")
    assert path.read_text(encoding="utf-8") == "new, ä"
    assert os.listdir(tmp_path) == ["loss.png"]


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_failure_leaves_the_old_content_and_nothing_beside_it(tmp_path, monkeypatch, fails):
    path = tmp_path / "README.md"
    write_whole(path, "old")

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, fails, fail)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["README.md"]


@pytest.mark.parametrize(("mask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750)])
def test_modes_follow_the_umask(tmp_path, umask, mask, file_mode, folder_mode):
    umask(mask)
    write_whole(tmp_path / "file", "x")
    with written_aside(tmp_path / "folder") as aside:
        (aside / "inner").write_text("x")
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"file": file_mode, "folder": folder_mode, "inner": file_mode}


@pytest.mark.parametrize("is_there", [True, False])
def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path, is_there):
    folder = tmp_path / "model"
    if is_there:
        folder.mkdir()
        (folder / "old").write_text("old")
    with pytest.raises(KeyboardInterrupt), written_aside(folder) as aside:
        (aside / "half").write_text("half")
        raise KeyboardInterrupt
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == (
        ["model", "model/old"] if is_there else []
    )
    with written_aside(folder) as aside:
        (aside / "new").write_text("new")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["model", "model/new"]


# ---- creating and opening ------------------------------------------------------------------------------------------


def test_a_new_run_may_have_a_new_folder_or_an_empty_one(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "a" / "b" / "new", tmp_path / "empty"):
        run = RunDirectory.create(path)
        run.write_config(Config())
        run.release()
        assert load_config(run.config_path) == Config()


def test_a_folder_that_holds_a_run_is_refused_with_the_way_on(tmp_path):
    begin(tmp_path / "unfinished", {"event": "start"}).release()
    begin(tmp_path / "finished", {"event": "start"}, {"event": "end"}).release()
    assert "holds an unfinished run; continue it with --resume" in refusal(RunDirectory.create, tmp_path / "unfinished")
    assert "holds a finished run" in refusal(RunDirectory.create, tmp_path / "finished")
    assert RunDirectory.open(tmp_path / "finished").is_finished()
    assert not RunDirectory.open(tmp_path / "unfinished").is_finished()


def test_a_folder_with_anything_in_it_is_refused_and_left_as_it_was(tmp_path):
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "thesis.tex").write_text("work of years")
    assert "is not empty (thesis.tex is there)" in refusal(RunDirectory.create, tmp_path / "documents")
    assert os.listdir(tmp_path / "documents") == ["thesis.tex"]


def test_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "is a file; name a folder" in refusal(RunDirectory.create, tmp_path / "file")
    assert "cannot be written: Not a directory" in refusal(RunDirectory.create, tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_refused(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    assert "cannot be written: Permission denied" in refusal(RunDirectory.create, tmp_path / "locked" / "run")


def test_there_is_nothing_to_resume_where_there_is_no_run(tmp_path):
    assert "holds no run (no config.toml)" in refusal(RunDirectory.open, tmp_path)
    assert "holds no run (no config.toml)" in refusal(RunDirectory.open, tmp_path / "nothing")
    assert os.listdir(tmp_path) == []


def test_what_a_refused_run_made_is_removed_and_nothing_else(tmp_path):
    run = begin(tmp_path / "run")
    run.write_environment({})
    run.discard()
    assert os.listdir(tmp_path) == []
    run = begin(tmp_path / "run")
    (tmp_path / "run" / "note.txt").write_text("mine")
    run.discard()
    assert os.listdir(tmp_path / "run") == ["note.txt"]


HOLD = """
import sys, time
from pathlib import Path
from tf_mlm.training.run_directory import RunDirectory
run = RunDirectory.open(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def test_two_processes_never_share_a_run_and_a_killed_one_leaves_no_obstacle(tmp_path):
    begin(tmp_path / "run", {"event": "start"}).release()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        assert "another process is running there" in refusal(RunDirectory.open, tmp_path / "run")
        assert "another process is running there" in refusal(RunDirectory.create, tmp_path / "run")
        holder.send_signal(signal.SIGKILL)
        holder.wait(30)
        assert (tmp_path / "run" / ".lock").exists()
        RunDirectory.open(tmp_path / "run").release()
    finally:
        holder.kill()
        holder.communicate()


@pytest.fixture
def killed_at_rename(monkeypatch):
    """Writes as a process killed just before it renames: what it wrote aside stays."""

    def write(call):
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", lambda *paths: pytest.fail("killed"))
            patch.setattr(os, "unlink", lambda path: None)
            patch.setattr(run_directory.shutil, "rmtree", lambda path, ignore_errors: None)
            with pytest.raises(pytest.fail.Exception):
                call()

    return write


def test_a_run_killed_while_its_first_file_was_written_can_be_started_again(tmp_path, killed_at_rename):
    run = RunDirectory.create(tmp_path / "run")
    killed_at_rename(lambda: run.write_config(Config()))
    run.release()
    assert [name[:13] for name in os.listdir(run.path) if name != ".lock"] == [".config.toml."]
    run = begin(tmp_path / "run")
    assert sorted(os.listdir(run.path)) == [".lock", "config.toml"]


def test_what_a_kill_left_written_aside_is_removed_on_resume(tmp_path, killed_at_rename):
    run = begin(tmp_path / "run")

    def export():
        with written_aside(run.saved_model_path) as aside:
            (aside / "weights").write_text("half of a gigabyte")

    curve = run.choose_curve()
    curve.parent.mkdir()
    for call in (export, run.write_history, lambda: write_whole(curve, b"png")):
        killed_at_rename(call)
    run.write_environment({"curve": str(curve)})
    (run.path / ".my.settings").write_text("not ours")
    run.release()
    assert len(os.listdir(run.path)) == 6 and len(os.listdir(curve.parent)) == 1
    RunDirectory.open(run.path)
    assert sorted(os.listdir(run.path)) == [".lock", ".my.settings", "config.toml", "environment.json"]
    assert os.listdir(curve.parent) == []


def test_a_released_run_can_be_opened_again(tmp_path):
    run = begin(tmp_path / "run")
    assert "another process" in refusal(RunDirectory.open, tmp_path / "run")
    run.release()
    RunDirectory.open(tmp_path / "run").release()


# ---- events --------------------------------------------------------------------------------------------------------


def test_events_are_read_as_they_were_written_and_half_a_line_is_none(tmp_path):
    events = [{"event": "start", "val_loss": 10.9}, {"event": "step", "fills": [["é", 0.5]]}]
    run = begin(tmp_path / "run", *events)
    assert run.read_events() == events
    with open(run.metrics_path, "ab") as file:
        file.write('{"event": "end", "text": "é'.encode()[:-1])
    assert run.read_events() == events
    assert not run.is_finished()
    assert read_events(tmp_path / "nothing.jsonl") == []


def test_a_damaged_line_is_named_and_not_passed_over(tmp_path):
    run = begin(tmp_path / "run", {"event": "start"})
    run.metrics_path.write_text('{"event": "start"}\n{"event": "st\n{"event": "end"}\n')
    with pytest.raises(Refused, match=r"metrics.jsonl: line 2 is damaged: .*; start a new run$"):
        run.read_events()


def test_events_beyond_the_checkpoint_are_cut(tmp_path):
    run = begin(tmp_path / "run", {"event": "start"}, {"event": "step", "step": 10})
    size = run.metrics_path.stat().st_size
    run.append_event({"event": "step", "step": 20})
    run.cut_events(size)
    assert run.read_events() == [{"event": "start"}, {"event": "step", "step": 10}]
    assert run.metrics_path.stat().st_size == size
    run.cut_events(0)
    assert run.read_events() == []


def test_nothing_to_cut_is_no_error(tmp_path):
    begin(tmp_path / "run").cut_events(0)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_events_that_the_system_lost_are_not_made_up(tmp_path):
    """A crash of the machine may lose what no fsync wrote: cutting to a length beyond the end would add zeros."""
    run = begin(tmp_path / "run", {"event": "start"}, {"event": "step", "step": 10})
    size = run.metrics_path.stat().st_size
    os.truncate(run.metrics_path, size - 4)
    run.cut_events(size)
    run.append_event({"event": "step", "step": 20})
    assert run.read_events() == [{"event": "start"}, {"event": "step", "step": 20}]


def test_history_has_one_row_an_epoch_and_these_columns(tmp_path):
    epoch = {
        "event": "epoch", "epoch": 1, "step": 94, "loss": 5.5, "val_loss": 4.25, "val_perplexity": 70.1,
        "val_masked_accuracy": 0.3, "val_masked_accuracy_top_5": 0.5, "learning_rate": 2e-05,
        "tokens_per_second": 1500.5, "seconds": 80.123,
    }  # fmt: skip
    run = begin(
        tmp_path / "run", {"event": "start"}, {"event": "step", "step": 10}, epoch, epoch | {"epoch": 2, "step": 188}
    )
    run.write_history()
    assert (tmp_path / "run" / "history.csv").read_bytes().decode() == (
        "epoch,step,loss,val_loss,val_perplexity,val_masked_accuracy,learning_rate,tokens_per_second,seconds\n"
        "1,94,5.5,4.25,70.1,0.3,2e-05,1500.5,80.123\n"
        "2,188,5.5,4.25,70.1,0.3,2e-05,1500.5,80.123\n"
    )


def test_environment_is_json(tmp_path):
    run = begin(tmp_path / "run")
    run.write_environment({"python": "3.11", "data": {"train": 3}})
    assert json.loads((tmp_path / "run" / "environment.json").read_text()) == {"python": "3.11", "data": {"train": 3}}


# ---- the curve -----------------------------------------------------------------------------------------------------


def test_no_run_takes_the_curve_of_another_of_its_name(tmp_path):
    curves = []
    for parent in ("a", "b", "c"):
        run = begin(tmp_path / parent / "imdb")
        curve = run.choose_curve()
        run.write_environment({"curve": str(curve)})
        curves.append(str(curve))
        curve.parent.mkdir(exist_ok=True)
        write_whole(curve, parent.encode())
    assert curves == ["plots/imdb.png", "plots/imdb-2.png", "plots/imdb-3.png"]
    assert (tmp_path / "plots" / "imdb.png").read_bytes() == b"a"


def test_a_resumed_run_finds_its_own_curve(tmp_path):
    for parent in ("a", "b"):
        run = begin(tmp_path / parent / "imdb")
        curve = run.choose_curve()
        run.write_environment({"curve": str(curve)})
        curve.parent.mkdir(exist_ok=True)
        curve.touch()
        run.release()
    (tmp_path / "plots" / "imdb.png").unlink()
    assert str(RunDirectory.open(tmp_path / "b" / "imdb").choose_curve()) == "plots/imdb-2.png"


# ---- names ---------------------------------------------------------------------------------------------------------


def test_a_run_is_named_by_config_and_time_and_never_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda form: "20300102-030405")
    for name in ("sample-20300102-030405", "sample-20300102-030405-2", "sample-20300102-030405-3"):
        assert str(new_run_path("sample")) == f"runs/{name}"
        (tmp_path / "runs" / name).mkdir(parents=True)


def test_the_newest_unfinished_run_is_the_one_begun_last(tmp_path):
    assert newest_unfinished_run(tmp_path / "runs") is None
    for i, name in enumerate(("older", "newer", "finished")):
        run = begin(tmp_path / "runs" / name, {"event": "start"}, *([{"event": "end"}] if name == "finished" else []))
        run.release()
        os.utime(run.config_path, (1000 + i, 1000 + i))
    (tmp_path / "runs" / "no run").mkdir()
    (tmp_path / "runs" / "older" / "touched").touch()
    assert newest_unfinished_run(tmp_path / "runs") == tmp_path / "runs" / "newer"
    os.utime(tmp_path / "runs" / "older" / "config.toml", (2000, 2000))
    assert newest_unfinished_run(tmp_path / "runs") == tmp_path / "runs" / "older"


def test_a_run_knows_its_name_however_it_was_written(tmp_path, monkeypatch):
    monkeypatch.chdir((tmp_path / "here").mkdir() or tmp_path / "here")
    assert RunDirectory(run_directory.Path(".")).name == "here"
