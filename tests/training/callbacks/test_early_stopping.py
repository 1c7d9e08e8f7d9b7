"""Early stopping reads the events, so a resumed run counts the epochs before it."""

import pytest

from tests.training.callbacks.conftest import FakeModel, epoch
from tf_mlm.run.directory import RunDirectory


@pytest.mark.parametrize(
    ("patience", "losses", "stops"),
    [
        (2, [5.0, 4.0, 4.1, 4.2], True),
        (2, [5.0, 4.0, 4.1, 3.9], False),
        (2, [5.0, 4.0, 4.0, 4.0], True),  # equal is not better
        (2, [5.0, 5.1], False),  # one epoch without improvement
        (0, [5.0, 6.0, 7.0], False),
    ],
)
def test_it_stops_after_patience_epochs_without_improvement(
    model: FakeModel, run: RunDirectory, patience: int, losses: list[float], stops: bool
) -> None:
    from tf_mlm.training.callbacks.early_stopping import EarlyStopping

    for number, loss in enumerate(losses, start=1):
        run.append_event(epoch(number, loss))
    callback = EarlyStopping(run, patience)
    callback.set_model(model)
    callback.on_epoch_end(len(losses) - 1)
    assert model.stop_training is stops
