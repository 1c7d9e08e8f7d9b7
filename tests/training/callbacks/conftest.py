"""Fakes of a model and a run for the tests of the callbacks."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from tf_mlm.config import Config
from tf_mlm.run.directory import RunDirectory
from tf_mlm.run.events import EpochEvent


@dataclass
class FakeModel:
    """Has the loss metric, whose sums a test sets, and the flag that stops training."""

    stop_training: bool = False
    metrics: list[SimpleNamespace] = field(default_factory=lambda: [SimpleNamespace(total=0.0, count=0.0)])

    def add_loss(self, total: float, count: float) -> None:
        self.metrics[0].total += total
        self.metrics[0].count += count


@pytest.fixture
def model(tensorflow: None) -> FakeModel:
    return FakeModel()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunDirectory]:
    monkeypatch.chdir(tmp_path)
    run = RunDirectory.create(Path("RUN"))
    run.write_config(Config())
    yield run
    run.release()


def epoch(number: int, val_loss: float) -> EpochEvent:
    return EpochEvent(epoch=number, step=10 * number, loss=val_loss, learning_rate=1e-4, validation={"loss": val_loss})
