"""The Python API: train and load models from a script, a notebook or a service.

This module imports no TensorFlow; `train` and `load` import it after the environment is set.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tf_mlm.cluster import find_cluster
from tf_mlm.commands.libraries import start_libraries
from tf_mlm.commands.multi_worker import train_for_chief, train_together
from tf_mlm.config import Config, DataConfig, ModelConfig, check_new_run, dump_config, find_recipe, load_config
from tf_mlm.run.directory import RunDirectory, new_run_path

if TYPE_CHECKING:
    from tf_mlm.inference.loaded import LoadedClassifier, LoadedModel


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: the run directory.
    """

    path: Path

    @property
    def history(self) -> list[dict[str, Any]]:
        """One dict per epoch: `epoch`, `step`, `loss`, `val_loss`, `val_perplexity`, `learning_rate`, and so on.

        Losses are in nats per masked token. A value that is not finite is None.
        """
        rows = [event.as_dict() for event in RunDirectory(self.path).read_events().epochs]
        return [{name: value for name, value in row.items() if name != "event"} for row in rows]

    @property
    def model(self) -> Any:
        """The transformers model of the best epoch, in float32. Loaded on first use."""
        return self._loaded[0]

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the model, a `transformers.PreTrainedTokenizerFast`. Loaded on first use."""
        return self._loaded[1]

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from tf_mlm.training.objectives.table import OBJECTIVES

        objective = load_config(self.path / "config.toml").objective
        return OBJECTIVES[objective.name].load_trained(self.path / "model")


def train(
    config: Config | str | Path | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    callbacks: Sequence[Any] = (),
    output_dir: str | Path | None = None,
) -> Run:
    """Train a model. This does what `tf-mlm train` does.

    Args:
        config: settings, the path of a TOML file, or the name of a recipe, such as "sample". None uses the defaults.
        overrides: values by setting name, such as `{"training.epochs": 3}`. They replace the values of `config`.
        callbacks: Keras callbacks (`tf_keras.callbacks.Callback`). Checkpoints do not contain their state, so they
            start in their initial state when the run is resumed.
        output_dir: the run directory, which must not exist or be empty. None creates `runs/<config name>-<time>`.
            With several workers (see docs/scaling.md), only worker 0 writes to it.

    Returns:
        The finished run.

    Raises:
        Refused: a setting, the data or the model is wrong; nothing was trained.
        NonFiniteLoss: the loss was not finite, and again after rolling back to a checkpoint.
        Interrupted: a signal stopped the run after it had written a checkpoint.
    """
    name = "run" if isinstance(config, Config) else Path(config).stem if config is not None else "imdb"
    resolved = _resolve(config, overrides or {})
    check_new_run(resolved)
    cluster = find_cluster(resolved)
    given = {"config": dump_config(resolved)}
    path = Path(output_dir) if output_dir is not None else new_run_path(name)
    if cluster and not cluster.is_chief:
        train_for_chief(cluster, resolved, given, callbacks)
        return Run(path.absolute())
    # Created before the slow imports, so that a wrong directory is reported immediately.
    run = RunDirectory.create(path)
    with run.discarded_if_refused():
        train_together(cluster, resolved, run, given, callbacks)
    return Run(run.path.absolute())


def load(run_or_model: Run | str | Path) -> LoadedModel:
    """Load a trained model to fill masks, to encode texts and to evaluate.

    Args:
        run_or_model: a `Run`, a run directory, a directory written by `save_pretrained`, or a name on the Hub.

    Raises:
        Refused: no model was found, or it has no trained masked language modeling head.
    """
    name = _start_libraries_for(run_or_model)
    from tf_mlm.inference.loaded import LoadedModel

    return LoadedModel.load(name)


def load_classifier(run_or_model: Run | str | Path) -> LoadedClassifier:
    """Load a fine-tuned model to predict the labels of texts, or the tags of words.

    Args:
        run_or_model: as for `load`.

    Raises:
        Refused: no model was found, or it is not a classification model.
    """
    name = _start_libraries_for(run_or_model)
    from tf_mlm.inference.loaded import LoadedClassifier

    return LoadedClassifier.load(name)


def _start_libraries_for(run_or_model: Run | str | Path) -> str:
    """Import the libraries and return the name of the run or the model."""
    name = str(run_or_model.path if isinstance(run_or_model, Run) else run_or_model)
    # Enables XLA for a later `train` in this process, because TensorFlow reads its flags only once.
    start_libraries(Config(model=ModelConfig(name=name), data=DataConfig(dataset="sample")))
    return name


def _resolve(config: Config | str | Path | None, overrides: Mapping[str, Any]) -> Config:
    """The validated settings, with `overrides` applied."""
    if not isinstance(config, Config):
        return load_config(find_recipe(str(config)) if config is not None else None, overrides)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.toml")
        path.write_text(dump_config(config), encoding="utf-8")
        return load_config(path, overrides)
