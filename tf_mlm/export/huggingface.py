"""The directory that `hf upload` publishes: model, tokenizer, model card and curve."""

import shutil
from pathlib import Path

from tf_mlm.atomic_files import write_atomically
from tf_mlm.errors import Refused
from tf_mlm.run.directory import RunDirectory
from tf_mlm.run.model_card import build_model_card, load_report


def export_for_hub(run: RunDirectory, folder: Path) -> None:
    """Write the files of a finished run's best model to `folder`, with its card and the curve that the card shows.

    Raises:
        Refused: the run has not finished.
    """
    if not run.is_finished():
        raise Refused(f"{run.path}: this run has not finished; continue it with train.py --resume {run.path}")
    shutil.copytree(run.model_path, folder, dirs_exist_ok=True)
    shutil.copy(run.path / "loss.png", folder)
    write_atomically(folder / "README.md", build_model_card(load_report(run), for_hub=True))
