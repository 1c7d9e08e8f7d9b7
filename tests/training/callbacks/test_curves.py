"""The curves are redrawn, and an unwritable plots directory does not end the run."""

from pathlib import Path

import pytest

from tests.training.callbacks.conftest import epoch
from tf_mlm.run.directory import RunDirectory


def test_history_and_pictures_follow_the_events(tensorflow: None, run: RunDirectory) -> None:
    from tf_mlm.training.callbacks.curves import Curves

    run.write_environment({"curve": "plots/RUN.png"})
    run.append_event(epoch(1, 5.0))
    Curves(run).on_epoch_end(0)
    first = (run.path / "loss.png").read_bytes()
    assert len((run.path / "history.csv").read_text().splitlines()) == 2
    run.append_event(epoch(2, 4.0))
    Curves(run).on_epoch_end(1)
    assert len((run.path / "history.csv").read_text().splitlines()) == 3
    assert (run.path / "loss.png").read_bytes() != first
    assert Path("plots/RUN.png").read_bytes() == (run.path / "loss.png").read_bytes()


def test_an_unwritable_plots_directory_is_reported_once(
    tensorflow: None, run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    from tf_mlm.training.callbacks.curves import Curves

    Path("plots").write_text("a file")
    curves = Curves(run)
    curves.draw()
    curves.draw()
    expected = "plots/RUN.png: cannot be written: File exists; the curve is in RUN/loss.png\n"
    assert capsys.readouterr().out == expected
    assert (run.path / "loss.png").exists() and Path("plots").read_text() == "a file"
