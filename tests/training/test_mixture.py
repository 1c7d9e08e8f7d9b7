"""A run on several training datasets."""

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
