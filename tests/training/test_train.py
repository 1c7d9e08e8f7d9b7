import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from tests.tiny_run import STEPS_PER_EPOCH, TINY, inside, read_metrics, timeless, train
from tf_mlm.commands.main import main, train_main
from tf_mlm.config import load_config

ROOT = Path(__file__).resolve().parents[2]
STEP_KEYS = ["event", "epoch", "step", "loss", "learning_rate", "skipped_steps", "tokens_per_second"]
EPOCH_KEYS = [
    "event", "epoch", "step", "loss", "val_loss", "val_perplexity", "val_masked_accuracy",
    "val_masked_accuracy_top_5", "learning_rate", "skipped_steps", "tokens_per_second", "seconds",
]  # fmt: skip


def send_signal(monkeypatch: pytest.MonkeyPatch, method: str, at_step: int, number: int = signal.SIGTERM) -> None:
    """Send a signal to the process when `Checkpoints.method` is called after `at_step` updates."""
    from tf_mlm.training.callbacks.checkpoints import Checkpoints

    original = getattr(Checkpoints, method)

    def signalled(self: Any, *arguments: Any) -> None:
        if self._log.step == at_step:
            os.kill(os.getpid(), number)
        original(self, *arguments)

    monkeypatch.setattr(Checkpoints, method, signalled)


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def read_history(run: Path) -> list[dict[str, str]]:
    with open(run / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def assert_same_run(run: Path, other: Path) -> None:
    """Check that all values except times are equal to the last digit."""
    assert timeless(read_metrics(run)) == timeless(read_metrics(other))
    assert weights(run) == weights(other)
    for left, right in zip(read_history(run), read_history(other), strict=True):
        for name in left.keys() - {"tokens_per_second", "seconds"}:
            assert left[name] == right[name]


# Files of a finished run


def test_a_finished_run_has_all_files_and_no_checkpoints(finished_run: Path) -> None:
    visible = sorted(path.name for path in finished_run.iterdir() if not path.name.startswith("."))
    assert visible == [
        "README.md", "config.toml", "environment.json", "history.csv", "loss.png", "loss.svg", "metrics.jsonl",
        "model", "saved_model", "tensorboard", "train_hashes.npy",
    ]  # fmt: skip
    # No temporary file is left in the run directory or its parent.
    assert [path.name for path in finished_run.rglob(".*")] in ([], [".lock"])
    assert (finished_run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (finished_run / "loss.svg").read_text()
    assert (finished_run.parent / "plots" / "RUN.png").read_bytes() == (finished_run / "loss.png").read_bytes()


def test_the_config_file_loads_back_to_the_settings_of_the_run(finished_run: Path) -> None:
    assert load_config(finished_run / "config.toml") == load_config(finished_run.parent / "tiny.toml")


def test_metrics_have_the_start_the_logged_steps_and_the_epochs_in_order(finished_run: Path) -> None:
    events = read_metrics(finished_run)
    assert [(event["event"], event["epoch"], event["step"]) for event in events] == [
        ("start", 0, 0),
        ("step", 1, 4), ("step", 1, 8), ("epoch", 1, 10),
        ("step", 2, 12), ("step", 2, 16), ("step", 2, 20), ("epoch", 2, 20),
        ("step", 3, 24), ("step", 3, 28), ("epoch", 3, 30),
        ("end", 3, 30),
    ]  # fmt: skip
    for event in events:
        if event["event"] == "step":
            assert list(event) == STEP_KEYS
        if event["event"] == "epoch":
            assert list(event) == EPOCH_KEYS
            assert event["val_perplexity"] == pytest.approx(np.exp(event["val_loss"]), rel=1e-12)
            assert 0 <= event["val_masked_accuracy"] <= event["val_masked_accuracy_top_5"] <= 1


def test_an_epochs_loss_is_the_token_weighted_mean_of_its_steps(finished_run: Path) -> None:
    # The three step events of the second epoch cover steps 11 and 12, 13 to 16, and 17 to 20: the whole epoch. Each row
    # of about 30 ordinary tokens has about 5 labels, so the mean lies between the smallest and the largest loss.
    events = [event for event in read_metrics(finished_run) if event["epoch"] == 2]
    losses, epoch = [event["loss"] for event in events[:-1]], events[-1]
    assert min(losses) < epoch["loss"] < max(losses)
    assert epoch["loss"] == pytest.approx(np.average(losses, weights=[2, 4, 3.7]), abs=0.02)


@pytest.mark.slow
def test_a_frozen_encoder_keeps_its_weights_also_when_the_run_is_resumed(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--model", str(finished_run / "model"), "--model.train", "head", "--epochs", "2")
    assert train(tmp_path, *flags, "--output-dir", "WHOLE") == 0
    with monkeypatch.context() as patch:
        send_signal(patch, "on_train_batch_end", at_step=13)
        assert train(tmp_path, *flags, "--output-dir", "RUN") == 143
    with inside(tmp_path):
        assert main(["train", "--resume", "RUN"]) == 0
    assert_same_run(tmp_path / "RUN", tmp_path / "WHOLE")
    before, after = (
        safetensors.numpy.load_file(run / "model" / "model.safetensors") for run in (finished_run, tmp_path / "RUN")
    )
    changed = {name.split(".")[0] for name in before if (before[name] != after[name]).any()}
    assert changed == {"vocab_transform", "vocab_layer_norm", "vocab_projector"}


def test_the_loss_decreases_from_that_before_training(finished_run: Path) -> None:
    start, *_, last, end = read_metrics(finished_run)
    assert start["val_loss"] == pytest.approx(np.log(300), abs=0.3)  # random weights predict 300 tokens uniformly
    assert last["val_loss"] < start["val_loss"] - 0.4
    assert last["loss"] < start["val_loss"] - 0.4
    assert end["best_val_loss"] == min(e["val_loss"] for e in read_metrics(finished_run) if e["event"] == "epoch")


def test_the_learning_rate_of_each_event_is_that_of_its_update(finished_run: Path) -> None:
    # Warmup is 6 % of 30 steps: 1 step. Update n, counted from 1, has the rate 5e-3 * (30 - n) / 29, shifted by the
    # warmup step.
    for event in read_metrics(finished_run)[1:-1]:
        assert event["learning_rate"] == pytest.approx(5e-3 * (1 - (event["step"] - 2) / 29), rel=1e-5)


def test_history_has_one_row_per_epoch_with_the_values_of_metrics_jsonl(finished_run: Path) -> None:
    rows = read_history(finished_run)
    epochs = [event for event in read_metrics(finished_run) if event["event"] == "epoch"]
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    for row, event in zip(rows, epochs, strict=True):
        assert {name: float(text) for name, text in row.items()} == {name: event[name] for name in row}


def test_tensorboard_shows_the_validation_loss_of_every_epoch(finished_run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorflow import make_ndarray

    curves = EventAccumulator(str(finished_run / "tensorboard" / "validation"))
    curves.Reload()
    shown = [(event.step, float(make_ndarray(event.tensor_proto))) for event in curves.Tensors("loss")]
    expected = [(e["step"], e["val_loss"]) for e in read_metrics(finished_run) if e["event"] in ("start", "epoch")]
    assert [step for step, _ in shown] == [0, 10, 20, 30]
    np.testing.assert_allclose([loss for _, loss in shown], [loss for _, loss in expected], rtol=1e-6)


def test_the_model_card_has_a_row_for_each_epoch(finished_run: Path) -> None:
    card = (finished_run / "README.md").read_text()
    for event in read_metrics(finished_run):
        if event["event"] == "epoch":
            assert f"{event['val_loss']:.4f}" in card


def test_the_stock_class_loads_the_model_and_its_full_logits_give_the_validation_loss(finished_run: Path) -> None:
    """The loss over the slots of the head equals the cross-entropy over all logits, in numpy, on the same masks."""
    import transformers

    from tf_mlm.data.corpus import load_corpus
    from tf_mlm.data.pipeline import build_collator
    from tf_mlm.data.sequences import load_sequences

    config = load_config(finished_run / "config.toml")
    tokenizer = transformers.AutoTokenizer.from_pretrained(finished_run / "model")
    model = transformers.TFDistilBertForMaskedLM.from_pretrained(finished_run / "model")
    corpus = load_corpus(config.data, config.training.seed)
    sequences = load_sequences(corpus.validation, corpus.validation_fingerprint, tokenizer, config.data, "validation")
    collator = build_collator(sequences, tokenizer, config.masking, config.training.seed, validation=True)
    batch = collator([{"epoch": 0, "index": int(i)} for i in sequences.draw_rows(60, config.training.seed)])
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.numpy()
    labels = batch["labels"]
    rows = logits[labels != -100].astype(np.float64)
    targets = labels[labels != -100]
    losses = np.log(np.exp(rows).sum(-1)) - rows[np.arange(len(rows)), targets]
    best = min((e for e in read_metrics(finished_run) if e["event"] == "epoch"), key=lambda e: e["val_loss"])
    assert best["val_loss"] == pytest.approx(losses.mean(), rel=1e-5)  # float32, and XLA has a different tanh
    assert best["val_masked_accuracy"] == pytest.approx((rows.argmax(-1) == targets).mean(), rel=1e-12)


def test_evaluate_gives_the_validation_metrics_of_the_best_epoch_exactly(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with inside(finished_run.parent):
        assert main(["evaluate", "RUN", "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    best = min((e for e in read_metrics(finished_run) if e["event"] == "epoch"), key=lambda e: e["val_loss"])
    assert metrics["loss"] == best["val_loss"]
    assert metrics["perplexity"] == best["val_perplexity"]
    assert metrics["masked_accuracy"] == best["val_masked_accuracy"]
    assert metrics["masked_accuracy_top_5"] == best["val_masked_accuracy_top_5"]
    assert metrics["sequences"] == 60


def test_the_huggingface_export_has_the_model_and_a_card_that_is_valid_on_the_hub(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "to publish"
    assert main(["export", str(finished_run), "--output", str(folder), "--format", "huggingface"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == f"hf upload YOUR_NAME/RUN '{folder}'"
    for file in (finished_run / "model").iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes()
    assert (folder / "loss.png").exists()
    card, whole = (folder / "README.md").read_text(), (finished_run / "README.md").read_text()
    assert "saved_model" in whole and "saved_model" not in card and "![Loss" in card
    assert card.split("## How to load it")[0] == whole.split("## How to load it")[0]
    assert card.split("## Examples")[1:] == whole.split("## Examples")[1:]
    code = card.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(folder)
    exec(code, {})
    assert "'token_str'" in capsys.readouterr().out


def test_the_huggingface_export_requires_a_finished_run(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished_run, tmp_path / "RUN")
    metrics = (tmp_path / "RUN" / "metrics.jsonl").read_text()
    (tmp_path / "RUN" / "metrics.jsonl").write_text(metrics[: metrics.rindex('{"event": "end"')])
    for name, words in (
        ("RUN", "this run has not finished"),
        ("RUN/model", "is not a run directory; the model card is generated from one"),
    ):
        arguments = ["export", str(tmp_path / name), "--output", str(tmp_path / "published"), "--format", "huggingface"]
        assert main(arguments) == 2
        assert words in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["RUN"]


# Interrupted and resumed


def test_a_stopped_and_resumed_run_equals_an_uninterrupted_run(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("--output-dir", "RUN", "--resume")
    run = tmp_path / "RUN"

    with pytest.MonkeyPatch.context() as patch:  # between two logged steps
        send_signal(patch, "on_train_batch_end", at_step=7)
        assert train(tmp_path, *command) == 143
    assert capsys.readouterr().err.splitlines()[-1] == (
        "SIGTERM at step 7: stopped after a checkpoint; continue with --resume RUN"
    )
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-0000000000", "step-0000000007"]
    assert [event["event"] for event in read_metrics(run)] == ["start", "step"]
    assert read_metrics(run)[0]["val_loss"] > 5.6  # the best model is still the one before training
    assert (run / "model").exists()

    with pytest.MonkeyPatch.context() as patch:  # Ctrl-C during the validation of the first epoch
        send_signal(patch, "on_test_batch_end", at_step=10, number=signal.SIGINT)
        assert train(tmp_path, *command) == 130
    assert read_metrics(run)[-1]["event"] == "step"  # the epoch has no event yet

    with pytest.MonkeyPatch.context() as patch:  # at the last update of an epoch
        send_signal(patch, "on_train_batch_end", at_step=20)
        assert train(tmp_path, *command) == 143

    with pytest.MonkeyPatch.context() as patch:  # after the last epoch, before the export
        send_signal(patch, "on_train_end", at_step=30)
        assert train(tmp_path, *command) == 143
    assert not (run / "saved_model").exists()

    assert train(tmp_path, *command) == 0
    assert_same_run(run, finished_run)
    assert not (run / "checkpoints").exists()

    before = weights(run), (run / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert train(tmp_path, *command) == 0
    assert "finished run" in capsys.readouterr().out
    assert (weights(run), (run / "metrics.jsonl").read_bytes()) == before


@pytest.mark.slow
def test_the_seconds_of_an_epoch_include_those_before_an_interruption(tmp_path: Path) -> None:
    from tf_mlm.training.callbacks import checkpoints, metrics_log

    flags = ("--output-dir", "RUN", "--epochs", "1")
    with pytest.MonkeyPatch.context() as patch:
        ahead = [0.0]
        monotonic = time.monotonic
        for module in (checkpoints, metrics_log):
            patch.setattr(module, "time", SimpleNamespace(monotonic=lambda: monotonic() + ahead[0]))
        batch_end = metrics_log.MetricsLog.on_train_batch_end

        def slow(self: Any, *arguments: Any) -> None:
            ahead[0] += 100  # seconds per step
            batch_end(self, *arguments)

        patch.setattr(metrics_log.MetricsLog, "on_train_batch_end", slow)
        with pytest.MonkeyPatch.context() as inner:
            send_signal(inner, "on_train_batch_end", at_step=7)
            assert train(tmp_path, *flags) == 143
        ahead[0] += 10_000  # the time between the two processes does not count
        assert train(tmp_path, *flags, "--resume") == 0
    *_, epoch, end = read_metrics(tmp_path / "RUN")
    assert 1000 <= epoch["seconds"] < 1500 and 1000 <= end["seconds"] < 1500
    assert 5120 / 1500 < epoch["tokens_per_second"] <= 5120 / 1000


def test_an_interrupted_run_has_a_curve(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        send_signal(patch, "on_train_batch_end", at_step=9)
        assert train(tmp_path, "--output-dir", "RUN") == 143
    assert (tmp_path / "RUN" / "loss.png").exists()
    assert (tmp_path / "plots" / "RUN.png").exists()

    # Only some settings may change on resume. A deleted curve is drawn again.
    run = tmp_path / "RUN"
    (run / "loss.png").unlink()
    with inside(tmp_path):
        assert train_main(["--resume", "RUN", "--learning-rate", "0.001"]) == 2
        assert train_main(["--resume", "RUN", "--output-dir", "ELSEWHERE"]) == 2
        assert train_main(["--resume", "RUN", "--plan"]) == 0
        assert len(read_metrics(run)) == 3 and not (tmp_path / "ELSEWHERE").exists()
    with pytest.MonkeyPatch.context() as patch, inside(tmp_path):
        send_signal(patch, "on_train_batch_end", at_step=11)
        assert train_main(["--resume", "RUN", "--epochs", "3", "--training.log_every", "11"]) == 143
    assert (run / "loss.png").exists()
    assert [event["step"] for event in read_metrics(run)] == [0, 4, 8, 10, 11]


@pytest.mark.slow
def test_resuming_is_exact_with_accumulate_steps_and_bfloat16(tmp_path: Path) -> None:
    flags = ("--training.accumulate_steps", "2", "--training.precision", "bfloat16", "--output-dir", "RUN")
    assert train(tmp_path / "whole", *flags) == 0
    with pytest.MonkeyPatch.context() as patch:
        send_signal(patch, "on_train_batch_end", at_step=13)
        assert train(tmp_path / "halved", *flags) == 143
    assert train(tmp_path / "halved", *flags, "--resume") == 0
    assert_same_run(tmp_path / "halved" / "RUN", tmp_path / "whole" / "RUN")


KILLED_AT_STEP_17 = """
import os, signal, sys
from tf_mlm import runtime
from tf_mlm.config import TrainingConfig
runtime.prepare(TrainingConfig())
from tf_mlm.training.callbacks.checkpoints import Checkpoints
original = Checkpoints.on_train_batch_end
def killed(self, *arguments):
    original(self, *arguments)
    if self._log.step == 17:
        os.kill(os.getpid(), signal.SIGKILL)
Checkpoints.on_train_batch_end = killed
from tf_mlm.commands.main import train_main
sys.exit(train_main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_killed_run_resumes_from_its_last_checkpoint_with_the_same_results(
    finished_run: Path, tmp_path: Path
) -> None:
    """This also tests that the same command in two processes gives the same numbers."""
    shutil.copy(finished_run.parent / "tiny.toml", tmp_path)
    flags = ["--config", "tiny.toml", "--output-dir", "RUN", "--resume", "--checkpoint.every_steps", "3"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", KILLED_AT_STEP_17, *flags], cwd=tmp_path, env=environment)
    assert killed.returncode == -signal.SIGKILL
    run = tmp_path / "RUN"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-0000000012", "step-0000000015"]
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"event": "step", "st')  # the incomplete file of a kill during a write
    resumed = subprocess.run([sys.executable, ROOT / "train.py", *flags], cwd=tmp_path, env=environment)
    assert resumed.returncode == 0
    assert_same_run(run, finished_run)


# Durations


def test_num_train_steps_ends_training_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    flags = ("--training.num_train_steps", "14", "--output-dir", "RUN")
    with pytest.MonkeyPatch.context() as patch:  # a signal arrives at the end of the incomplete epoch
        send_signal(patch, "on_train_batch_end", at_step=14)
        assert train(tmp_path, *flags) == 143
    assert train(tmp_path, *flags, "--resume") == 0
    events = read_metrics(tmp_path / "RUN")
    assert [(e["epoch"], e["step"]) for e in events if e["event"] == "epoch"] == [(1, STEPS_PER_EPOCH), (2, 14)]
    assert events[-1]["event"] == "end" and events[-1]["step"] == 14
    assert events[-2]["loss"] < events[0]["val_loss"]  # of the four training steps, not of the validation
    assert events[-2]["learning_rate"] == pytest.approx(5e-3 * 1 / 14, rel=1e-4)  # decayed over 14 steps


def test_mfu_is_reported_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--training.num_train_steps", "14", "--training.measure_matmul_peak", "true", "--output-dir", "RUN")
    with pytest.MonkeyPatch.context() as patch:
        send_signal(patch, "on_train_batch_end", at_step=6)
        assert train(tmp_path, *flags) == 143
    assert train(tmp_path, *flags, "--resume") == 0  # relative to the peak measured at the start
    start, *events, _ = read_metrics(tmp_path / "RUN")
    peak = start["matmul_peak_tokens_per_second"]
    assert peak > 0
    for event in events:
        assert event["mfu"] >= event["tokens_per_second"] / peak - 1e-4  # counts positions, including padding
    assert "% MFU)" in capsys.readouterr().err
    card = (tmp_path / "RUN" / "README.md").read_text()
    assert "| Speed relative to the matrix products alone, with padding (MFU) |" in card


def test_early_stopping_ends_the_run_after_patience_epochs_and_keeps_the_best_model(tmp_path: Path) -> None:
    # At this small rate, float32 weights hardly change, so that some epoch is not better. With a rate of exactly 0 from
    # the second epoch on, the second and the third epoch equal the first, which is not an improvement.
    flags = ("--training.early_stopping_patience", "2", "--epochs", "9", "--optimizer.weight_decay_rate", "0")
    with pytest.MonkeyPatch.context() as patch:
        import tensorflow as tf

        from tf_mlm.model.optimizer import WarmUp

        rate = WarmUp.__call__
        patch.setattr(WarmUp, "__call__", lambda self, step: rate(self, step) * tf.cast(step < 10, tf.float32))
        assert train(tmp_path, *flags, "--output-dir", "RUN") == 0
    events = read_metrics(tmp_path / "RUN")
    losses = [event["val_loss"] for event in events if event["event"] == "epoch"]
    assert len(losses) == 3 and losses[0] == losses[1] == losses[2]
    assert events[-1] == events[-1] | {"event": "end", "epoch": 3, "best_epoch": 1}


def test_early_stopping_is_reported_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tf_mlm.model.optimizer import WarmUp

    monkeypatch.setattr(WarmUp, "__call__", lambda self, step: 0.0 * step)  # all epochs are equal
    flags = ("--training.early_stopping_patience", "1", "--epochs", "9", "--optimizer.weight_decay_rate", "0")
    assert train(tmp_path, *flags, "--output-dir", "RUN") == 0
    output = capsys.readouterr().out
    assert "stopped    after epoch 2 of 9: val_loss has not improved for 1 epochs" not in output
    assert "stopped    after epoch 2 of 9: val_loss has not improved for 1 epoch (training.early_stopping" in output
    assert read_metrics(tmp_path / "RUN")[-1]["stopped_early"] is True


def test_tokens_count_neither_padding_nor_filler_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three documents, one per sequence of 512 positions: 32 rows have few real tokens."""
    texts = ["a film about a sheriff", "a comedy", "we loved this long western about two cowboys"]
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n")
    flags: tuple[str, ...] = ("--dataset", "texts.txt", "--data.line_by_line", "true", "--data.sequence_length", "512")
    flags += ("--data.validation_fraction", "0.34", "--model.vocab_size", "100", "--epochs", "2")
    flags += ("--training.measure_matmul_peak", "true", "--training.log_every", "1", "--output-dir", "RUN")
    assert train(tmp_path, *flags) == 0
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "RUN" / "model")
    lengths = [len(tokenizer(text)["input_ids"]) for text in texts]
    start, *_, epoch, end = read_metrics(tmp_path / "RUN")
    facts = json.loads((tmp_path / "RUN" / "environment.json").read_text())["data"]
    assert facts["train_tokens"] + facts["validation_tokens"] == sum(lengths)
    assert end["num_tokens"] == 2 * facts["train_tokens"]
    assert f"{2 * facts['train_tokens']:,} in training, without padding" in capsys.readouterr().out
    positions_per_second = epoch["mfu"] * start["matmul_peak_tokens_per_second"]
    assert positions_per_second / epoch["tokens_per_second"] == pytest.approx(16 * 512 / facts["train_tokens"], rel=0.1)


# Runs that end early


def test_a_run_with_infinite_perplexity_finishes_and_keeps_the_starting_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--learning-rate", "0.99", "--model.dim", "256", "--output-dir", "RUN", "--training.log_every", "1")
    with pytest.MonkeyPatch.context() as patch:
        send_signal(patch, "on_train_batch_end", at_step=23)
        assert train(tmp_path, *flags) == 143
    assert train(tmp_path, *flags, "--resume") == 0  # TensorBoard's files are written again
    start, *events, end = read_metrics(tmp_path / "RUN")
    assert max(event["val_loss"] for event in events if event["event"] == "epoch") > 88.8
    assert end["best_epoch"] == 0 and end["best_val_loss"] == start["val_loss"]
    output = capsys.readouterr().out
    assert "warning    no epoch was better than the model before training" in output
    assert "best epoch 0 of 3" in output
    assert "before training" in (tmp_path / "RUN" / "README.md").read_text()
    with inside(tmp_path):
        assert main(["evaluate", "RUN", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(start["val_loss"], rel=1e-6)


def test_a_run_in_a_thread_trains_without_handling_signals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codes: list[int] = []
    flags = ("--training.num_train_steps", "4", "--output-dir", "RUN")
    thread = threading.Thread(target=lambda: codes.append(train(tmp_path, *flags)))
    thread.start()
    thread.join()
    assert codes == [0]
    assert "signals    not handled: training does not run in the main thread" in capsys.readouterr().out


def spoil_batches(patch: pytest.MonkeyPatch, *batches: int) -> None:
    """Make the loss of these batches NaN. Batches are counted from 0 in the order of the data."""
    import tensorflow as tf

    from tf_mlm.data import prepared
    from tf_mlm.model.masked_lm import MaskedPositionsHead

    build, outputs = prepared.build_train_dataset, MaskedPositionsHead.label_outputs

    def build_spoilt(*arguments: Any, first_batch: int, **options: Any) -> Any:
        def mark(number: Any, batch: Any) -> Any:  # a 2, which attention treats as a 1
            features, labels = batch
            spoilt = tf.reduce_any(number == tf.constant(batches or (-1,), tf.int64))
            mask = features["attention_mask"] * tf.where(spoilt, 2, 1)
            return {**features, "attention_mask": mask}, labels

        return build(*arguments, first_batch=first_batch, **options).enumerate(first_batch).map(mark)

    def spoilt_outputs(self: Any, features: Any, labels: Any, training: bool) -> Any:
        losses, *others = outputs(self, features, labels, training)
        return losses * tf.where(features["attention_mask"][0, 0] == 2, float("nan"), 1.0), *others

    patch.setattr(prepared, "build_train_dataset", build_spoilt)
    patch.setattr(MaskedPositionsHead, "label_outputs", spoilt_outputs)


def test_non_finite_steps_are_skipped_and_counted_also_in_a_stopped_run(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        spoil_batches(patch, 3, 12, 13, 29)
        assert train(tmp_path / "whole", "--output-dir", "RUN", "--training.log_every", "1") == 0
        with pytest.MonkeyPatch.context() as inner:
            send_signal(inner, "on_train_batch_end", at_step=13)  # the first of two bad steps
            assert train(tmp_path / "halved", "--output-dir", "RUN", "--training.log_every", "1") == 143
        assert train(tmp_path / "halved", "--output-dir", "RUN", "--training.log_every", "1", "--resume") == 0
    assert_same_run(tmp_path / "halved" / "RUN", tmp_path / "whole" / "RUN")
    events = read_metrics(tmp_path / "whole" / "RUN")
    steps = {event["step"]: event for event in events if event["event"] == "step"}
    assert [step for step, event in steps.items() if event["loss"] is None] == [4, 13, 14, 30]
    assert [steps[step]["skipped_steps"] for step in (3, 4, 12, 13, 14, 30)] == [0, 1, 1, 2, 3, 4]
    assert [e["skipped_steps"] for e in events if e["event"] in ("epoch", "end")] == [1, 3, 4, 4]
    assert "rolled_back" not in events[-1]
    assert (
        "| Skipped steps (loss or gradient not finite) | 4 |" in (tmp_path / "whole" / "RUN" / "README.md").read_text()
    )


def test_after_max_bad_steps_the_run_rolls_back_once_and_skips_the_bad_batches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tf_mlm.data import pipeline

    command = ("--output-dir", "RUN", "--checkpoint.every_steps", "5", "--training.max_bad_steps", "2", "--epochs", "2")
    with pytest.MonkeyPatch.context() as patch:
        spoil_batches(patch, 6, 7, 9)
        assert train(tmp_path / "whole", *command) == 0
        output = capsys.readouterr().out
        with pytest.MonkeyPatch.context() as inner:  # the ninth batch is bad as well, at step 7
            send_signal(inner, "on_train_batch_end", at_step=7)
            assert train(tmp_path / "halved", *command) == 143
        assert train(tmp_path / "halved", *command, "--resume") == 0
    run = tmp_path / "whole" / "RUN"
    assert_same_run(tmp_path / "halved" / "RUN", run)
    expected = "rolled back to step 5: the loss or its gradient at step 8 (epoch 1) is not finite (2 consecutive steps)"
    assert expected in output
    events = read_metrics(run)
    assert [event["step"] for event in events if event["event"] == "step"] == [4, 8, 12, 16, 20]
    assert events[-1]["skipped_steps"] == 3 and events[-1]["rolled_back"] == [8, 5]
    assert "| from step 8 to step 5 |" in (run / "README.md").read_text()
    # The message names the sequences of the seventh and the eighth batch.
    rows = output.partition("on the training sequences ")[2].partition(" (the first begins with ")[0].split(", ")
    assert len(rows) == len(set(rows)) == 32
    assert pipeline.steps_per_epoch(155, 16) == STEPS_PER_EPOCH


@pytest.mark.slow
def test_a_second_failure_ends_the_run_with_exit_code_3_and_names_step_and_sequences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("--checkpoint.every_steps", "5", "--training.max_bad_steps", "2")
    with pytest.MonkeyPatch.context() as patch:
        spoil_batches(patch, 6, 7, 14, 15)
        assert train(tmp_path, *command, "--output-dir", "runs/RUN") == 3
        run = tmp_path / "runs" / "RUN"
        last = capsys.readouterr().err.splitlines()[-1]
        # Batch 15 was used at step 13: three batches were skipped.
        assert last.startswith(
            "error: the loss or its gradient at step 13 (epoch 2) is not finite (2 consecutive steps), on the training "
            "sequences "
        )
        assert "the run had already rolled back from step 8 to 5" in last
        end = read_metrics(run)[-1]
        assert end["event"] == "non_finite" and end["step"] == 13 and len(end["sequences"]) == 32
        assert not (run / "saved_model").exists()
        import safetensors.numpy

        kept = [safetensors.numpy.load_file(path) for path in (run / "checkpoints").rglob("*.safetensors")]
        assert kept and all(np.isfinite(array).all() for arrays in kept for array in arrays.values())
        with inside(tmp_path):  # --resume without a directory skips it
            assert train_main(["--resume"]) == 2
        assert "no resumable run in runs/" in capsys.readouterr().err
        assert train(tmp_path, *command, "--output-dir", "runs/RUN", "--resume") == 3  # the same failure again
    assert [event for event in read_metrics(run) if event["event"] == "non_finite"] == [end]


def test_non_finite_weights_are_never_saved_in_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tf_mlm.training.callbacks.metrics_log import MetricsLog

    batch_end = MetricsLog.on_train_batch_end

    def spoil(self: Any, batch: int, logs: Any) -> None:
        batch_end(self, batch, logs)
        if self.step == 3:
            self.model.weights[0].assign(self.model.weights[0] * np.nan)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetricsLog, "on_train_batch_end", spoil)
        assert train(tmp_path, "--training.num_train_steps", "3", "--output-dir", "RUN") == 3
        assert "validation loss at step 3" in capsys.readouterr().err.splitlines()[-1]
        assert train(tmp_path, "--checkpoint.every_steps", "3", "--output-dir", "OTHER") == 3
    assert "a value of the weight is not finite after step 3" in capsys.readouterr().err.splitlines()[-1]
    for run in ("RUN", "OTHER"):
        import safetensors.numpy

        kept = safetensors.numpy.load_file(tmp_path / run / "model" / "model.safetensors")  # the starting model
        assert all(np.isfinite(array).all() for array in kept.values())
        assert [path.name for path in (tmp_path / run / "checkpoints").iterdir()] == ["step-0000000000"]


def test_a_model_with_a_non_finite_loss_before_training_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tf_mlm.training import train as recipe

    build_job = recipe.build_job

    def build_spoilt(config: Any, run: Any) -> Any:
        job = build_job(config, run)
        job.model.weights[0].assign(job.model.weights[0] * np.inf)
        return job

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "build_job", build_spoilt)
        assert train(tmp_path, "--output-dir", "RUN") == 2
    assert "the loss before training is not finite" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "RUN").exists()


def test_a_deleted_run_directory_ends_the_run_with_exit_code_4(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tf_mlm.training.callbacks.metrics_log import MetricsLog

    batch_end = MetricsLog.on_train_batch_end

    def remove(self: Any, batch: int, logs: Any) -> None:
        if self.step == 2:
            shutil.rmtree(tmp_path / "RUN")
        batch_end(self, batch, logs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetricsLog, "on_train_batch_end", remove)
        assert train(tmp_path, "--output-dir", "RUN") == 4
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: I/O error: ") and "metrics.jsonl" in last


def test_a_full_disk_during_a_checkpoint_ends_the_run_with_exit_code_4(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resource = pytest.importorskip("resource", reason="limits on the size of files are a matter of Unix")
    from tf_mlm.training.callbacks.checkpoints import Checkpoints

    save = Checkpoints.save
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def save_on_full_disk(self: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))  # weights and moments take 400,000 bytes
        try:
            save(self)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_on_full_disk)
        assert train(tmp_path, "--checkpoint.every_steps", "2", "--output-dir", "RUN") == 4
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: I/O error: ")
    assert not list((tmp_path / "RUN" / "checkpoints").iterdir())  # no incomplete checkpoint


def test_a_disk_without_enough_space_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tf_mlm.run import directory

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(directory, "free_bytes", lambda path: 2**20)
        assert train(tmp_path, "--output-dir", "RUN") == 2
    output = capsys.readouterr()
    assert output.err.splitlines()[-1].startswith("error: --output-dir RUN: the run needs ")
    assert re.search(r"^disk +\d\.\d MiB at the peak, for 3 checkpoints and the model; ", output.out, re.M)
    assert not (tmp_path / "RUN").exists()


SECOND_CTRL_C = """
import os, signal, sys
from tf_mlm import runtime
from tf_mlm.config import TrainingConfig
runtime.prepare(TrainingConfig())
from tf_mlm.training.callbacks.checkpoints import Checkpoints
from tf_mlm.training.callbacks.metrics_log import MetricsLog
save, batch_end = Checkpoints.save, MetricsLog.on_train_batch_end
def first(self, *arguments):
    batch_end(self, *arguments)
    if self.step == 3:
        os.kill(os.getpid(), signal.SIGINT)
def second(self):
    if self._log.step:
        print("saving", flush=True)
        os.kill(os.getpid(), signal.SIGINT)
        print("still there", flush=True)
    save(self)
MetricsLog.on_train_batch_end, Checkpoints.save = first, second
from tf_mlm.commands.main import train_main
sys.exit(train_main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_second_ctrl_c_stops_immediately_and_the_run_resumes_from_the_previous_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    flags = ["--config", "tiny.toml", "--output-dir", "RUN"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SECOND_CTRL_C, *flags]
    killed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGINT  # 130 in a shell
    assert killed.stdout.splitlines()[-1] == "saving"
    assert [path.name for path in (tmp_path / "RUN" / "checkpoints").iterdir()] == ["step-0000000000"]
