"""A run on several training datasets."""

import json
from pathlib import Path

import pytest

from tests import tiny_run
from tests.tiny_run import inside, read_metrics
from tf_mlm.commands.main import main


def test_a_run_mixes_datasets_and_reports_it(
    tensorflow: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "general").mkdir()
    lines = [f"the weather of day {day} was cold and the streets were empty" for day in range(400)]
    (tmp_path / "general" / "texts.txt").write_text("\n".join(lines))
    assert tiny_run.train(tmp_path, "--output-dir", "RUN", "--data.mixture", "0.25 general") == 0
    assert "400 documents of general, 25% of an epoch" in capsys.readouterr().out
    events = read_metrics(tmp_path / "RUN")
    assert events[0]["steps_per_epoch"] == 13  # 155 sequences of the first dataset and 52 of the other
    assert "- 25% of the training sequences of each epoch are from general (400 documents" in (
        tmp_path / "RUN" / "README.md"
    ).read_text(encoding="utf-8")
    with inside(tmp_path):
        assert main(["evaluate", "RUN"]) == 0
    assert f"{events[-1]['best_val_loss']:.4f}" in capsys.readouterr().out


def test_a_run_is_validated_on_a_second_dataset(
    tensorflow: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its documents that are also training documents are dropped, and its loss equals that of `evaluate`."""
    (tmp_path / "domain").mkdir()
    domain = [f"the film of day {day} was a delight and the story was good" for day in range(200)]
    (tmp_path / "domain" / "train.txt").write_text("\n".join(domain))
    (tmp_path / "domain" / "test.txt").write_text("\n".join(f"the film of night {day} was a bore" for day in range(50)))
    (tmp_path / "general").mkdir()
    general = [f"the weather of day {day} was cold and the streets were empty" for day in range(100)]
    (tmp_path / "general" / "texts.txt").write_text("\n".join([*domain[:7], *general]))
    flags = ("--output-dir", "RUN", "--dataset", "domain", "--data.second_validation_dataset", "general")
    assert tiny_run.train(tmp_path, *flags) == 0
    printed = capsys.readouterr()
    assert "100 validation documents of general" in printed.out
    assert "7 documents of general that are also training documents" in printed.out
    assert "  second_val_loss " in printed.err

    events = read_metrics(tmp_path / "RUN")
    validated = [event for event in events if event["event"] in ("start", "epoch")]
    losses = [event["second_val_loss"] for event in validated]
    assert len(losses) == 4 and losses[-1] < losses[0]
    assert losses[-1] != validated[-1]["val_loss"]
    history = (tmp_path / "RUN" / "history.csv").read_text().splitlines()
    assert "second_val_loss,second_val_perplexity" in history[0] and f",{losses[-1]}," in history[-1]
    card = (tmp_path / "RUN" / "README.md").read_text(encoding="utf-8")
    assert f"| Loss (nats per masked token), on general | {losses[0]:.4f} |" in card
    assert "| Loss on general |" in card and f"| {losses[-1]:.4f} |" in card
    assert "validation on general" in (tmp_path / "RUN" / "loss.svg").read_text(encoding="utf-8")
    assert list((tmp_path / "RUN" / "tensorboard" / "second_validation").iterdir())

    # The second validation does not change the training.
    assert tiny_run.train(tmp_path, *flags[:-2], "--output-dir", "ALONE") == 0
    alone = [event["val_loss"] for event in read_metrics(tmp_path / "ALONE") if "val_loss" in event]
    assert alone == [event["val_loss"] for event in validated]

    (tmp_path / "held-out.txt").write_text("\n".join(general))
    capsys.readouterr()
    with inside(tmp_path):
        assert main(["evaluate", "RUN", "--dataset", "held-out.txt", "--json"]) == 0
    best = min(validated, key=lambda event: event["val_loss"])
    assert json.loads(capsys.readouterr().out)["loss"] == best["second_val_loss"]


def test_a_second_dataset_of_training_documents_is_refused(
    tensorflow: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(f"a story of {day} days" for day in range(400)))
    flags = ("--output-dir", "RUN", "--dataset", "texts.txt", "--data.validation_fraction", "0.01")
    assert tiny_run.train(tmp_path, *flags, "--data.second_validation_dataset", "missing/") == 2
    assert capsys.readouterr().err.startswith("error: data.second_validation_dataset: missing/: no such file")
    (tmp_path / "seen.txt").write_text("a story of 1 days")
    assert tiny_run.train(tmp_path, *flags, "--data.second_validation_dataset", "seen.txt") == 2
    message = capsys.readouterr().err
    assert "data.second_validation_dataset = 'seen.txt': no validation documents remain" in message
