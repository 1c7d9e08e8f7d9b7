"""`tf-mlm find-lr`: the numbers of its steps, its files, and its refusals."""

import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.commands.test_main import directory_state, refusal
from tests.conftest import ROOT
from tests.labeled_data import write_classification, write_tags
from tests.tiny_run import TINY
from tf_mlm.commands.main import main, train_main
from tf_mlm.config import load_config
from tf_mlm.run.range_test_results import show_rate

Capture = pytest.CaptureFixture[str]
TINY_TEST = ("find-lr", "--config", "tiny.toml", "--num-steps", "60")


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(TINY)
    return tmp_path


def find_rate(capsys: Capture, *flags: str | Path) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*TINY_TEST, *map(str, flags), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_only_the_plot_is_written_with_the_same_numbers_each_time(finished_run: Path, capsys: Capture) -> None:
    before = files(finished_run)
    model = ("--model", str(finished_run / "model"))
    assert main([*TINY_TEST, *model]) == 0
    assert sorted(os.listdir()) == ["find-lr.png", "tiny.toml"]
    lines = capsys.readouterr().out.splitlines()
    names = [re.split(r"\s{2,}", line)[0] for line in lines]
    table = ["steps", "loss", "steepest descent", "blow-up", "suggestion", "config", "written"]
    assert [name for name in names if name in table] == table

    found = find_rate(capsys, *model, "--plot", "again.png")
    assert files(finished_run) == before
    assert Path("again.png").read_bytes() == Path("find-lr.png").read_bytes()
    assert found["rates"][0] == 1e-7 and found["config_rate"] == 5e-3
    assert len(found["losses"]) == len(found["smoothed"]) == len(found["rates"]) <= 60
    assert lines[names.index("blow-up")].split()[1] == show_rate(found["blow_up_rate"])


def test_each_loss_is_that_of_its_batch_alone(tensorflow: None) -> None:
    """At rates that change no digit of the loss, without dropout, over the end of an epoch of ten batches."""
    from tf_mlm.run.directory import RunDirectory
    from tf_mlm.training.range_test import range_test
    from tf_mlm.training.train import build_job

    config = load_config(Path("tiny.toml"), {"model.dropout": "0"})
    job = build_job(config, RunDirectory(Path("unused")))
    batches = job.data.train_dataset(config, job.tokenizer, epochs=2).take(12)
    expected = [
        job.model.evaluate(*batch, batch_size=16, verbose=0, return_dict=True)["loss"]
        for batch in batches.as_numpy_iterator()
    ]
    found = range_test(job, num_steps=20, min_learning_rate=1e-12, max_learning_rate=2e-12)
    np.testing.assert_allclose(found.losses[:12], expected, rtol=1e-5)
    assert np.ptp(expected) > 0.01
    assert float(job.model.optimizer.learning_rate(19)) == pytest.approx(2e-12)
    assert not Path("unused").exists()


@pytest.mark.slow
def test_steps_that_are_not_finite_end_the_test_as_a_blow_up(tensorflow: None) -> None:
    import tensorflow as tf

    from tf_mlm.run.directory import RunDirectory
    from tf_mlm.training.range_test import range_test
    from tf_mlm.training.train import build_job

    job = build_job(load_config(Path("tiny.toml")), RunDirectory(Path("unused")))
    label_outputs = job.model.label_outputs

    def failing(features: Any, labels: Any, training: bool) -> Any:
        losses, *others = label_outputs(features, labels, training)
        return (tf.where(job.model.optimizer.iterations < 40, losses, math.inf), *others)

    job.model.label_outputs = failing
    found = range_test(job, num_steps=60, min_learning_rate=1e-6, max_learning_rate=1e-3)
    assert len(found.losses) == 43 and found.losses[40:] == [math.inf] * 3  # training.max_bad_steps
    assert found.blow_up_rate == found.rates[40]
    assert "of 60, up to the rate 1.4e-4, where the loss or its gradient was not finite" in found.describe()


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["classification", "token_classification"])
def test_fine_tuning_objectives_are_tested_on_their_labels(finished_run: Path, capsys: Capture, objective: str) -> None:
    (write_classification if objective == "classification" else write_tags)(Path("texts"))
    flags = ("--model", finished_run / "model", "--dataset", "texts", "--objective.name", objective)
    found = find_rate(capsys, *flags)
    num_classes = {"classification": 2, "token_classification": 5}[objective]
    assert found["objective"] == objective
    assert found["losses"][0] == pytest.approx(math.log(num_classes), abs=0.5)
    assert found["suggestion"] is not None and 1e-5 < found["suggestion"] < 0.1
    arguments = shlex.split(found["command"])
    assert arguments[:4] == ["python", "-m", "tf_mlm", "train"]
    capsys.readouterr()
    assert train_main([*arguments[4:], "--print-config"]) == 0
    Path("printed.toml").write_text(capsys.readouterr().out)
    printed = load_config(Path("printed.toml"))
    assert printed.optimizer.learning_rate == found["suggestion"] and printed.objective.name == objective
    assert printed.model.name == str(finished_run / "model") and printed.training.seed == 7


def test_the_next_command_quotes_its_values_and_replaces_the_rate() -> None:
    from tf_mlm.commands.find_lr import train_command

    settings = {
        "data.dataset": "my texts/",
        "optimizer.learning_rate": "1e-5",
        "model.name": "",
        "training.example_sentences": ["A [MASK].", "The [MASK]."],
    }
    assert train_command("imdb", settings, 3.1e-4) == (
        "python -m tf_mlm train --config imdb --dataset 'my texts/' --model '' --training.example_sentences "
        "'A [MASK].' 'The [MASK].' --learning-rate 0.00031"
    )
    assert train_command(None, {}, 2e-6) == "python -m tf_mlm train --learning-rate 2e-06"


@pytest.mark.slow
def test_a_signal_ends_the_test_with_the_usual_line_and_leaves_no_file(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tensorflow: None
) -> None:
    from tf_mlm.training import range_test

    record = range_test._StepLosses.on_train_batch_end

    def interrupted(self: Any, batch: int, logs: Any = None) -> None:
        record(self, batch, logs)
        if batch == 5:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(range_test._StepLosses, "on_train_batch_end", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background process of a shell
    try:
        assert main([*TINY_TEST]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"
    assert os.listdir() == ["tiny.toml"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-steps", "49"], "--num-steps 49: must be at least 50"),
        (["--min-learning-rate", "0"], "--min-learning-rate 0: must be greater than 0"),
        (["--min-learning-rate", "nan"], "--min-learning-rate nan: must be greater than 0"),
        (["--min-learning-rate", "1e-3", "--max-learning-rate", "1e-3"], "must be greater than --min-learning-rate"),
        (["--max-learning-rate", "2"], "--max-learning-rate 2: must be greater than --min-learning-rate 1e-07, and at"),
        (["--plot", "missing/curve.png"], "--plot missing/curve.png: cannot be written: No such file or directory"),
        (["--plot", "."], "--plot .: cannot be written: it is a directory; choose another file"),
        (["--plot", "tiny.toml/curve.png"], "--plot tiny.toml/curve.png: cannot be written: Not a directory"),
        (["--resume"], "unknown flag --resume"),
        (["--training.epochs", "0"], "--training.epochs = 0"),
        (["--config", "missing.toml"], "missing.toml: no such file"),
    ],
)
def test_a_wrong_request_is_refused_in_one_line(capsys: Capture, flags: list[str], message: str) -> None:
    assert message in refusal(capsys, main, "find-lr", *flags)


def test_a_plot_that_is_read_only_is_refused(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("curve.png").write_bytes(b"mine")
    Path("curve.png").chmod(0o444)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the superuser may write any file
    line = refusal(capsys, main, "find-lr", "--plot", "curve.png")
    assert line == "error: --plot curve.png: cannot be written: it is read-only; choose another file"
    assert Path("curve.png").read_bytes() == b"mine"


def test_refusals_do_not_import_tensorflow() -> None:
    script = """
import sys
from tf_mlm.commands.main import main
assert main(["find-lr", "--num-steps", "1"]) == 2
assert main(["find-lr", "--max-learning-rate", "0"]) == 2
assert main(["find-lr", "--plot", "missing/curve.png"]) == 2
assert main(["find-lr", "--training.batch_size", "x"]) == 2
assert not {"tensorflow", "transformers", "datasets", "matplotlib"} & sys.modules.keys()
"""
    before = directory_state()
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(result.stderr.splitlines()) == 4 and directory_state() == before
