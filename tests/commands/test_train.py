"""`tf-mlm train`: recipes, paths relative to any directory, copied runs and locked runs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import filelock
import pytest

from tests.conftest import ROOT
from tests.tiny_run import TINY, inside, train
from tests.training.test_train import send_signal
from tf_mlm.commands.main import main, train_main
from tf_mlm.config import load_config

Capture = pytest.CaptureFixture[str]
FLAGS = ("--model.vocab_size", "100", "--training.num_train_steps", "6", "--checkpoint.every_steps", "2")


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    path = tmp_path / "reviews.txt"
    path.write_text("".join(f"The film of {number} scenes was a delight.\n" for number in range(40)))
    return path


def test_a_recipe_is_found_by_name_from_any_directory(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--config", "imdb-10k", "--print-config"]) == 0
    Path("printed.toml").write_text(capsys.readouterr().out)
    assert load_config(Path("printed.toml")) == load_config(ROOT / "configs" / "imdb-10k.toml")


def test_help_lists_the_values_of_the_settings_that_have_them(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        train_main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "one of auto, float32, bfloat16, float16 ['auto']" in text
    assert "one of line, paragraph, file ['line']" in text
    assert "usage: train.py [--config NAME_OR_FILE]" in text


def test_a_run_is_resumed_from_another_directory_with_a_relative_or_absolute_data_path(
    tmp_path: Path, reviews: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        send_signal(patch, "on_train_batch_end", at_step=3)
        assert train(tmp_path, "--dataset", "reviews.txt", *FLAGS, "--output-dir", "RUN") == 143
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "reviews.txt").write_text("Another file of the same name.\nIt must not be read.\n")
    with inside(elsewhere), pytest.MonkeyPatch.context() as patch:
        send_signal(patch, "on_train_batch_end", at_step=5)
        assert train_main(["--resume", "../RUN"]) == 143
    with inside(elsewhere):
        capsys.readouterr()
        assert train_main(["--resume", "../RUN", "--plan"]) == 0
        assert "training (5 steps done)" in capsys.readouterr().out  # only the remaining steps are priced
        assert train_main(["--resume", "../RUN", "--dataset", "reviews.txt", "--epochs", "3"]) == 0  # unchanged
        assert train_main(["--resume", "../RUN", "--dataset", str(reviews)]) == 0  # finished; refers to the same file
        assert train_main(["--resume", "../RUN", "--dataset", str(elsewhere / "reviews.txt")]) == 2
    assert "data.dataset = " in capsys.readouterr().err
    assert load_config(tmp_path / "RUN" / "config.toml").data.dataset == "reviews.txt"


def test_a_copied_run_gets_a_new_curve_file_and_a_moved_run_keeps_its_file(tmp_path: Path, reviews: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        send_signal(patch, "on_train_batch_end", at_step=3)
        assert train(tmp_path, "--dataset", "reviews.txt", *FLAGS, "--output-dir", "RUN") == 143
    shutil.copytree(tmp_path / "RUN", tmp_path / "COPY")
    with inside(tmp_path):
        assert train_main(["--resume", "RUN"]) == 0
        original = Path("plots/RUN.png").read_bytes()
        assert train_main(["--resume", "COPY"]) == 0
    assert (tmp_path / "plots" / "RUN.png").read_bytes() == original
    assert (tmp_path / "plots" / "COPY.png").read_bytes() == (tmp_path / "COPY" / "loss.png").read_bytes()

    (tmp_path / "COPY").rename(tmp_path / "MOVED")
    from tf_mlm.run.directory import RunDirectory

    assert RunDirectory(tmp_path / "MOVED").choose_curve() == Path("plots/COPY.png")


def test_a_csv_file_without_a_header_is_refused_with_a_solution(tmp_path: Path, capsys: Capture) -> None:
    rows = [f"The film of {number} scenes was a delight, and so was the music" for number in range(40)]
    (tmp_path / "bare.csv").write_text("".join(f'"{row}"\n' for row in rows))
    flags = ("--dataset", "bare.csv", *FLAGS, "--output-dir", "RUN")
    assert train(tmp_path, *flags) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "bare.csv: the first line has the text 'The film of 0 scenes" in line
    assert line.endswith("pass --data.csv_header false if the first line is a row")
    assert train(tmp_path, *flags, "--data.csv_header", "false") == 0
    assert "text       column 'column_1' of column_1" in capsys.readouterr().out
    facts = json.loads((tmp_path / "RUN" / "environment.json").read_text())["data"]
    assert facts["train_documents"] + facts["validation_documents"] == 40  # including the first row


def test_resuming_a_locked_run_is_refused_with_the_name_of_the_flag(tmp_path: Path, capsys: Capture) -> None:
    run = tmp_path / "RUN"
    run.mkdir()
    (run / "config.toml").write_text(TINY)
    with filelock.FileLock(run / ".lock"), inside(tmp_path):
        assert train_main(["--resume", "RUN"]) == 2
    assert capsys.readouterr().err == (
        "error: --resume RUN: another process is training in this directory; wait for it or stop it\n"
    )


EXPORT_THEN_TRAIN = """
import sys
from tf_mlm.commands.main import main
assert main(["fill-mask", sys.argv[1], "A [MASK]."]) == 0
sys.exit(main(["train", "--config", "tiny.toml", "--output-dir", "RUN", "--training.num_train_steps", "2"]))
"""


def test_training_after_tensorflow_was_initialized_reports_missing_xla_clusters(
    finished_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    command = [sys.executable, "-c", EXPORT_THEN_TRAIN, str(finished_run / "model")]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment())
    assert result.returncode == 0, result.stderr
    assert "XLA off (TensorFlow was initialized before; train in a new process for about 1.2 times" in result.stdout
    assert json.loads((tmp_path / "RUN" / "environment.json").read_text())["xla"] == "off"
    own = json.loads((finished_run / "environment.json").read_text())
    assert own["xla"] in ("clusters", "step")


def environment() -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name != "TF_XLA_FLAGS"}  # set by other tests
    return inherited | {"PYTHONPATH": str(ROOT)}
