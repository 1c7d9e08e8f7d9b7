"""Finds the model that a name refers to, and its run."""

from dataclasses import dataclass
from pathlib import Path

from tf_mlm.config import Config, load_config
from tf_mlm.errors import Refused
from tf_mlm.run.directory import RunDirectory


@dataclass(frozen=True)
class FoundModel:
    """A model and, if it has one, its run.

    Attributes:
        model: a model directory or a name on the Hub.
        run: None for a model without a run.
        config: the settings of the run, with the absolute paths of its data and starting model.
    """

    model: str
    run: RunDirectory | None = None
    config: Config | None = None


def is_saved_model(name: str) -> bool:
    return (Path(name) / "saved_model.pb").is_file()


def find_model(name: str) -> FoundModel:
    """The model that `name` refers to: a run directory, a model directory or a name on the Hub.

    Raises:
        Refused: the name is empty or refers to a SavedModel, or the run has no model yet.
    """
    if not name:
        raise Refused("RUN_OR_MODEL is empty; pass a run directory, a model directory or a name on the Hub")
    if is_saved_model(name):
        raise Refused(f"{name}: is a SavedModel, which only fill-mask can load; pass the run or its model directory")
    run = RunDirectory(Path(name))
    if not run.config_path.is_file():
        return FoundModel(name)
    if not run.model_path.is_dir():
        raise Refused(f"{name}: this run has no model yet; training writes one before its first step")
    return FoundModel(str(run.model_path), run, run.locate(load_config(run.config_path)))
