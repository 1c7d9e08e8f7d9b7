"""Runs are compared by what differs, and a comparison of different validations is marked."""

import struct
from pathlib import Path
from typing import Any

import pytest

from tf_mlm.config import load_config
from tf_mlm.errors import Refused
from tf_mlm.run.comparison import (
    ComparedRun,
    describe_comparison,
    differing_settings,
    plot_comparison,
    why_not_comparable,
)
from tf_mlm.run.directory import RunDirectory
from tf_mlm.run.events import EndEvent, EpochEvent, StartEvent
from tf_mlm.run.probe_results import ProbedSize, ProbeResults, Score, write_probe


@pytest.fixture(autouse=True)
def in_its_own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make_run(name: str, *losses: float, is_finished: bool = True, text: str = "abc", **overrides: Any) -> ComparedRun:
    """A run whose epochs of 10 steps and 30 seconds have these validation losses; the first is before training."""
    run = RunDirectory.create(Path(name))
    run.write_config(load_config(None, {key.replace("__", "."): value for key, value in overrides.items()}))
    run.write_environment({"data": {"fingerprint": f"train-{text}"}})
    start, *rest = [{"loss": loss, "perplexity": 2.0, "masked_accuracy": 0.5} for loss in losses]
    run.append_event(StartEvent(validation=start, unigram_entropy=6.9, steps_per_epoch=10))
    for number, validation in enumerate(rest, start=1):
        run.append_event(
            EpochEvent(epoch=number, step=10 * number, validation=validation, seconds=30.0, tokens_per_second=1000.0)
        )
    if is_finished:
        run.append_event(EndEvent(epoch=len(rest), step=10 * len(rest), seconds=100.0))
    run.release()
    return ComparedRun.load(name)


def test_only_the_settings_that_differ_are_listed() -> None:
    runs = [make_run("a", 5.0, 4.0), make_run("b", 5.0, 3.0, optimizer__learning_rate=1e-3, training__epochs=1)]
    assert differing_settings(runs) == {"optimizer.learning_rate": [2e-5, 1e-3], "training.epochs": [20, 1]}
    assert why_not_comparable(runs) == ""


def test_the_table_has_best_and_last_loss_time_and_speed_of_each_run() -> None:
    runs = [make_run("a", 5.0, 4.0, 4.5), make_run("b", 5.0, 5.5, is_finished=False)]
    rows = {line.split("  ")[0]: line.split()[-2:] for line in describe_comparison(runs).splitlines()[1:]}
    assert rows["state"] == ["finished", "unfinished"]
    assert rows["best epoch"] == ["1", "0"]  # no epoch of b was better than the model before training
    assert rows["best val_loss"] == ["4.0000", "5.0000"]
    assert rows["last val_loss"] == ["4.5000", "5.5000"]
    assert rows["steps"] == ["20", "10"]
    assert rows["seconds"] == ["0:01:40", "0:00:30"]
    assert rows["tokens/s"] == ["1,000", "1,000"]
    assert "warning" not in describe_comparison(runs)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"text": "xyz"}, "the text or its tokens"),
        ({"training__seed": 7}, "training.seed"),
        ({"data__sequence_length": 64}, "data.sequence_length"),
        ({"masking__mask_replace_prob": 0.9, "masking__random_replace_prob": 0.05}, "masking.mask_replace_prob"),
    ],
)
def test_different_validation_data_or_masks_are_reported(changes: dict[str, Any], reason: str) -> None:
    runs = [make_run("a", 5.0, 4.0), make_run("b", 5.0, 4.0, **changes)]
    assert why_not_comparable(runs).startswith(reason)
    last = describe_comparison(runs).splitlines()[-1]
    assert last.startswith(f"warning: the validation losses are not comparable, because these differ: {reason}")
    assert plot_comparison(runs) != plot_comparison([runs[0], runs[0]])


def make_probe(accuracy: float, dataset: str = "reviews") -> ProbeResults:
    scores = {"adapted": {name: Score.of([accuracy]) for name in ("accuracy", "macro_f1")}}
    sizes = [ProbedSize(size, 16, 1, scores, {}) for size in (8, None)]
    return ProbeResults({"adapted": "m"}, dataset, ["0", "1"], 100, 50, 128, "mean", "float32", 42, sizes, [])


def test_the_probes_of_the_runs_are_compared() -> None:
    for name, accuracy in (("a", 0.75), ("b", 0.8)):
        make_run(name, 5.0, 4.0)
        write_probe(make_probe(accuracy), Path(name))
    runs = [ComparedRun.load("a"), ComparedRun.load("b"), make_run("c", 5.0, 4.0)]
    text = describe_comparison(runs)
    for labels in ("8", "all"):
        (line,) = [line for line in text.splitlines() if line.startswith(f"probe accuracy, {labels} labels per class ")]
        assert line.split()[-3:] == ["75.00%", "80.00%", "–"]
    assert "warning" not in text
    write_probe(make_probe(0.8, dataset="films"), Path("b"))
    text = describe_comparison([ComparedRun.load("a"), ComparedRun.load("b")])
    assert text.splitlines()[-1] == "warning: the probes are not comparable, because these differ: dataset"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"models": {}}'])
def test_a_damaged_probe_is_refused(content: str) -> None:
    make_run("a", 5.0, 4.0)
    Path("a/probe.json").write_text(content)
    with pytest.raises(Refused, match="a/probe.json: is damaged: .*; run tf-mlm probe again"):
        ComparedRun.load("a")


def test_the_plot_has_the_promised_size_for_any_runs() -> None:
    for runs in ([make_run("a", 5.0, 4.0), make_run("b", 5.0)], [make_run(f"r{n}", 5.0, 4.0) for n in range(9)]):
        picture = plot_comparison(runs)
        assert struct.unpack(">II", picture[16:24]) == (1600, 880)


def test_a_directory_that_is_not_a_run_or_has_not_begun_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="nowhere: is not a run directory"):
        ComparedRun.load("nowhere")
    run = RunDirectory.create(Path("new"))
    run.write_config(load_config())
    with pytest.raises(Refused, match="new: this run has not begun to train"):
        ComparedRun.load("new")
