"""The best model is saved when the validation loss reaches a new minimum."""

from pathlib import Path
from typing import Any

import pytest


def test_only_a_lower_loss_replaces_the_saved_model(
    tensorflow: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tf_mlm.training.callbacks import best_model

    saved: list[float] = []

    def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
        (folder / "weights").write_text(str(len(saved)))

    monkeypatch.setattr(best_model, "save_model", save_model)
    callback = best_model.BestModel(tmp_path / "model", None, best_val_loss=5.0)
    for number, loss in enumerate([5.5, 4.0, 4.0, 4.5, 3.0]):
        callback.on_epoch_end(number, {"val_loss": loss})
        saved.append(loss)
    assert (tmp_path / "model" / "weights").read_text() == "4"
    callback.on_epoch_end(5, {"val_loss": 3.5})
    assert (tmp_path / "model" / "weights").read_text() == "4"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]  # no temporary directory is left
