"""Unusual environments: another process, the clock, the locale, paths, the home directory, the output directory."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.faults.conftest import Disk
from tests.faults.kills import Life
from tests.tiny_run import TINY, inside, train
from tests.training.test_train import assert_same_run
from tf_mlm.commands.main import main
from tf_mlm.config import load_config

Capture = pytest.CaptureFixture[str]
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}


def command(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command of tf_mlm in a separate process, in `folder`."""
    environment = {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=os.environ | environment, capture_output=True)


def train_in_process(folder: Path, *flags: str, **environment: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "tiny.toml").write_text(TINY)
    flags = ("--config", "tiny.toml", "--output-dir", "RUN", "--resume", *flags)
    done = command(folder, str(ROOT / "train.py"), *flags, **environment)
    assert done.returncode == 0, done.stderr.decode()
    assert all(line.startswith((b"step ", b"epoch ")) for line in done.stderr.splitlines()), done.stderr.decode()


# --- another process


@pytest.mark.slow
def test_a_second_process_is_refused_only_while_the_first_is_running(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    first = Life(tmp_path, ("--config", "tiny.toml", "--checkpoint.every_steps", "3"))
    assert first.wait_until(lambda: first.phase() not in ("start", "data preparation")), first.log
    flags = ("--config", "tiny.toml", "--output-dir", "RUN")
    for flag, more in (("--output-dir", ()), ("--resume", ("--resume",))):
        second = command(tmp_path, str(ROOT / "train.py"), *flags, *more)
        assert second.returncode == 2
        assert second.stderr.decode().splitlines() == [
            f"error: {flag} RUN: another process is training there; wait for it or stop it"
        ]
    assert first.process.poll() is None, first.log
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    assert (tmp_path / "RUN" / ".lock").exists()
    assert train(tmp_path, "--output-dir", "RUN", "--resume", "--checkpoint.every_steps", "3") == 0
    assert_same_run(tmp_path / "RUN", finished_run)


# --- the clock

JUMPING_CLOCK = """
import random, time
real = time.time
def jumping():
    return real() + random.choice([-1e8, -3600, 0, 3600, 1e8])
time.time = jumping
time.time_ns = lambda: int(jumping() * 1e9)
"""


@pytest.mark.slow
def test_nothing_depends_on_a_clock_that_jumps(finished_run: Path, tmp_path: Path) -> None:
    """The clock jumps by an hour or three years between two readings, also during a kill and a resume."""
    clock = tmp_path / "clock"
    clock.mkdir()
    (clock / "sitecustomize.py").write_text(JUMPING_CLOCK)
    (tmp_path / "tiny.toml").write_text(TINY)
    path = f"{clock}{os.pathsep}{ROOT}"
    look = "import time; print(len({round(time.time() / 3600) for _ in range(99)}))"
    assert command(tmp_path, "-c", look, PYTHONPATH=path).stdout == b"5\n"
    flags = ("--checkpoint.every_steps", "3")
    life = Life(tmp_path, ("--config", "tiny.toml", *flags), PYTHONPATH=path)
    assert life.wait_until(lambda: life.phase() == "checkpoint"), life.log
    life.kill("", "")
    train_in_process(tmp_path, *flags, PYTHONPATH=path)
    assert_same_run(tmp_path / "RUN", finished_run)


# --- the locale


def test_settings_are_printed_as_toml_in_any_locale(tmp_path: Path) -> None:
    sentence = "Die grüne [MASK], 緑 \U0001f600."
    (tmp_path / "my.toml").write_text(f'[training]\nexample_sentences = ["{sentence}"]\n', encoding="utf-8")
    printed = command(tmp_path, str(ROOT / "train.py"), "--config", "my.toml", "--print-config", **ASCII)
    assert (printed.returncode, printed.stderr) == (0, b"")
    (tmp_path / "printed.toml").write_bytes(printed.stdout)
    assert load_config(tmp_path / "printed.toml").training.example_sentences == (sentence,)


def test_an_argument_that_the_locale_cannot_decode_is_refused_in_one_line(tmp_path: Path) -> None:
    for script in (["train.py", "--dataset"], ["-m", "tf_mlm", "fill-mask"]):
        script[0] = str(ROOT / "train.py") if script[0] == "train.py" else script[0]
        refused = command(tmp_path, *script, "größe.txt", **ASCII)
        assert refused.returncode == 2
        assert refused.stderr.decode("ascii").splitlines() == [
            r"error: 'gr\udcc3\udcb6\udcc3\udc9fe.txt': is not valid in this locale (ascii); set PYTHONUTF8=1"
        ]
    assert list(tmp_path.iterdir()) == []


GERMAN = "".join(f"Der grüne Bär Nr. {n} läuft über die Straße und trinkt süßen Tee.\n" for n in range(300))


@pytest.mark.slow
def test_non_ascii_texts_and_directories_in_an_ascii_locale(tmp_path: Path) -> None:
    folder = tmp_path / "Bär 緑"
    folder.mkdir()
    (folder / "texts.txt").write_text(GERMAN, encoding="utf-8")
    config = TINY.replace("This is a [MASK] film.", "Der grüne [MASK] läuft über die Straße.")
    (folder / "tiny.toml").write_text(config, encoding="utf-8")
    flags = ["--config", "tiny.toml", "--dataset", "texts.txt", "--epochs", "1"]
    done = command(folder, str(ROOT / "train.py"), *flags, "--output-dir", "RUN", **ASCII)
    assert done.returncode == 0, done.stderr.decode()
    assert rb"gr\xfcne [MASK] l\xe4uft" in done.stdout
    assert "Der grüne [MASK] läuft" in (folder / "RUN" / "README.md").read_text(encoding="utf-8")
    filled = command(folder, "-m", "tf_mlm", "fill-mask", "RUN", "Der [MASK] trinkt Tee.", **ASCII)
    assert filled.returncode == 0, filled.stderr.decode()
    assert filled.stdout.isascii() and rb"\u2588" in filled.stdout


@pytest.mark.slow
def test_a_non_ascii_run_directory_in_an_ascii_locale(tmp_path: Path) -> None:
    """The run directory is the working directory, so that no argument must be decoded."""
    folder = tmp_path / "Bär 緑"
    folder.mkdir()
    (tmp_path / "tiny.toml").write_text(TINY)
    flags = ("--config", "../tiny.toml", "--epochs", "1", "--output-dir", ".")
    done = command(folder, str(ROOT / "train.py"), *flags, **ASCII)
    assert done.returncode == 0, done.stderr.decode()
    assert "Bär 緑" in (folder / "README.md").read_text(encoding="utf-8")
    assert (folder / "plots" / "Bär 緑.png").exists()


# --- paths


@pytest.mark.slow
def test_paths_with_spaces_quotes_and_non_ascii_letters(tmp_path: Path, capsys: Capture, tensorflow: None) -> None:
    folder = tmp_path / "mein Ordner, d'été #1 [緑]"
    folder.mkdir()
    (folder / "größe 50%.txt").write_text(GERMAN, encoding="utf-8")
    flags = ("--dataset", "größe 50%.txt", "--epochs", "1", "--output-dir", "Lauf ä [1]")
    assert train(folder, *flags, name="Einstellungen é") == 0
    with inside(folder):
        capsys.readouterr()
        assert main(["fill-mask", "Lauf ä [1]", "Der grüne [MASK]."]) == 0
        assert main(["evaluate", "Lauf ä [1]", "--dataset", "größe 50%.txt"]) == 0
        assert main(["export", "Lauf ä [1]", "--output", "Ausfuhr ü"]) == 0
    assert (folder / "Ausfuhr ü" / "saved_model.pb").exists()
    assert (folder / "plots" / "Lauf ä [1].png").exists()
    assert train(folder, *flags, "--resume", name="Einstellungen é") == 0


# --- the home directory


def test_the_cache_is_a_temporary_directory_if_the_home_directory_is_not_writable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import os, pathlib; from tf_mlm import runtime; runtime.require_writable_cache(); "
        "folder = os.environ.get('HF_DATASETS_CACHE', ''); print(folder, pathlib.Path(folder).is_dir())"
    )
    for name in ("HF_HOME", "HF_DATASETS_CACHE", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
        monkeypatch.delenv(name, raising=False)
    folder, exists = command(tmp_path, "-c", code, HOME="/dev/null/home").stdout.decode().split()
    assert "tf_mlm-cache-" in folder and exists == "True" and not Path(folder).exists()
    assert command(tmp_path, "-c", code, HOME=str(tmp_path / "new")).stdout.decode().split() == ["True"]  # unset
    assert (tmp_path / "new" / ".cache" / "huggingface" / "datasets").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["missing", "read-only"])
def test_a_run_with_a_home_directory_that_is_not_writable_has_the_same_results(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, kind: str
) -> None:
    for name in ("HF_HOME", "HF_DATASETS_CACHE", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
        monkeypatch.delenv(name, raising=False)
    home = Path("/dev/null/home")
    if kind == "read-only":
        disk = request.getfixturevalue("disk")
        disk.remount("ro")
        home = disk.path
    train_in_process(tmp_path / "work", HOME=str(home))
    assert_same_run(tmp_path / "work" / "RUN", finished_run)


# --- the output directory


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["checkpoint", "plot", "export"])
def test_a_deleted_output_directory_ends_the_run_with_exit_code_4(tmp_path: Path, capsys: Capture, moment: str) -> None:
    from tf_mlm.training import ending
    from tf_mlm.training.callbacks.checkpoints import Checkpoints
    from tf_mlm.training.callbacks.curves import Curves

    owner, name = {
        "checkpoint": (Checkpoints, "save"),
        "plot": (Curves, "draw"),
        "export": (ending, "export_saved_model"),
    }[moment]
    original = getattr(owner, name)

    def vanished(*arguments: Any, **options: Any) -> Any:
        shutil.rmtree(tmp_path / "RUN")
        return original(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, vanished)
        capsys.readouterr()
        assert train(tmp_path, "--checkpoint.every_steps", "3", "--epochs", "1", "--output-dir", "RUN") == 4
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("step ", "epoch "))]
    assert len(lines) == 1 and lines[0].startswith("error: I/O error: ")


def test_a_read_only_output_directory_is_refused(disk: Disk, tensorflow: None, capsys: Capture, tmp_path: Path) -> None:
    started = disk.path / "started"
    started.mkdir()
    (started / "config.toml").write_text(TINY)
    disk.remount("ro")
    capsys.readouterr()
    for flags in (("--output-dir", str(disk.path / "new")), ("--output-dir", str(started), "--resume")):
        assert train(tmp_path, *flags) == 2
        line, end = capsys.readouterr().err.split("\n")
        assert "cannot be written: Read-only file system" in line and end == ""
    assert [path.name for path in disk.path.iterdir()] == ["started"]
