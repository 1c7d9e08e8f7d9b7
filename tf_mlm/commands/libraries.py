"""Imports TensorFlow and the Hugging Face libraries, after checking the connection to the Hub."""

from collections.abc import Callable, Sequence

from tf_mlm import hub, runtime
from tf_mlm.config import Config, TrainingConfig
from tf_mlm.hub import Source


def start_libraries(
    config: Config,
    verbose: bool = False,
    other_models: Sequence[str] = (),
    connect: Callable[[], None] | None = None,
) -> None:
    """Import the libraries for a training or an evaluation with `config`, which also loads `other_models`.

    Args:
        connect: connects the workers of multi-worker training.
    """
    _start([*_sources(config), *map(Source.of, other_models)], config.training, verbose, connect)


def start_data_libraries(config: Config, verbose: bool = False) -> None:
    """Prepare to import the Hugging Face libraries for the data and the tokenizer of `config`, without TensorFlow."""
    if any(source.path is None for source in _sources(config)):
        hub.connect()
    runtime.set_environment(verbose)


def start_libraries_for(*models: str) -> None:
    """Import the libraries to use `models` once, without XLA: compilation would take longer than it saves."""
    _start(list(map(Source.of, models)), TrainingConfig(xla="off"), verbose=False)


def _sources(config: Config) -> list[Source]:
    sources = [config.model.source] if config.model.name else []
    datasets = [config.data.dataset, *(dataset for _, dataset in config.data.mixture_shares)]
    datasets.append(config.data.second_validation_dataset)
    return [*sources, *(Source.of(dataset) for dataset in datasets if dataset not in ("sample", ""))]


def _start(
    sources: list[Source], training: TrainingConfig, verbose: bool, connect: Callable[[], None] | None = None
) -> None:
    if any(source.path is None for source in sources):
        hub.connect()
    runtime.prepare(training, verbose, connect)
