"""Starts TensorFlow and the Hugging Face libraries, after asking whether the Hub can be reached."""

from tf_mlm import hub, runtime
from tf_mlm.config import Config, TrainingConfig


def start_libraries(config: Config, verbose: bool = False) -> None:
    """Import the libraries for a training or an evaluation with `config`."""
    named = [config.model.name] if config.model.name else []
    named += [config.data.dataset] if config.data.dataset != "sample" else []
    _start(named, config.training, verbose)


def start_libraries_for(*models: str) -> None:
    """Import the libraries to use `models` once: compiling with XLA would take longer than it saves."""
    _start(list(models), TrainingConfig(xla="off"), verbose=False)


def _start(named: list[str], training: TrainingConfig, verbose: bool) -> None:
    if not all(hub.is_local(name) for name in named):
        hub.connect()
    runtime.prepare(training, verbose)
