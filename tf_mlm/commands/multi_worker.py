"""Trains with the other workers of a cluster: worker 0 in the run directory, the others in temporary directories."""

import contextlib
import functools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tf_mlm.cluster import Cluster, create_strategy, join, welcome
from tf_mlm.commands.libraries import start_libraries
from tf_mlm.config import Config, dump_config, load_config
from tf_mlm.run.directory import RunDirectory


def train_together(
    cluster: Cluster | None,
    config: Config,
    run: RunDirectory,
    given: Mapping[str, Any],
    callbacks: Sequence[Any] = (),
    verbose: bool = False,
) -> None:
    """Train in `run` as the only worker or as the chief of a cluster.

    Args:
        given: the settings that this process was started with, by name.
    """
    located = run.locate(config)
    with contextlib.ExitStack() as stack:
        connect = None
        if cluster:
            events = run.metrics_path.read_text(encoding="utf-8") if run.metrics_path.exists() else ""
            meeting = welcome(cluster, config, given, {"config": dump_config(located), "events": events})
            stack.enter_context(meeting)  # closed if the imports fail
            connect = functools.partial(create_strategy, cluster, config.distribution, meeting)
        start_libraries(located, verbose, connect=connect)
    _train(config, run, callbacks)


def train_for_chief(
    cluster: Cluster,
    config: Config,
    given: Mapping[str, Any],
    callbacks: Sequence[Any] = (),
    verbose: bool = False,
) -> None:
    """Train as one of the other workers. It writes only temporary files.

    Args:
        config: for `distribution.timeout_seconds`; the chief sends the settings of the run.
        given: the settings that this process was started with, by name.
    """
    meeting, sent = join(cluster, config.distribution, given)
    with meeting, tempfile.TemporaryDirectory(prefix="tf_mlm-worker-", ignore_cleanup_errors=True) as folder:
        if "finished" in sent:
            print(sent["finished"])
            return
        run = RunDirectory(Path(folder))
        run.config_path.write_text(sent["config"], encoding="utf-8")
        run.metrics_path.write_text(sent["events"], encoding="utf-8")
        config = load_config(run.config_path)
        connect = functools.partial(create_strategy, cluster, config.distribution, meeting)
        start_libraries(config, verbose, connect=connect)
        _train(config, run, callbacks)
    print("finished   worker 0 has written the run directory")


def dismiss(cluster: Cluster, config: Config, given: Mapping[str, Any], message: str) -> None:
    """End the other workers with a message, because the run is finished. The chief calls it."""
    with welcome(cluster, config, given, {"finished": message}):
        pass


def _train(config: Config, run: RunDirectory, callbacks: Sequence[Any]) -> None:
    import tf_keras as keras

    from tf_mlm.training.train import train

    policy = keras.mixed_precision.global_policy()
    try:
        train(config, run, callbacks)
    finally:
        keras.mixed_precision.set_global_policy(policy)  # does not affect other models of the caller
