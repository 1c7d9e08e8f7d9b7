"""`tf-mlm train`, and `python train.py`."""

import argparse
import io
import shutil
import sys
import typing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tf_mlm.cluster import Cluster, find_cluster
from tf_mlm.commands.libraries import start_libraries
from tf_mlm.commands.multi_worker import dismiss, train_for_chief, train_together
from tf_mlm.config import Config, check_new_run, dump_config, find_recipe, load_config, setting_fields
from tf_mlm.errors import HubOutOfReach, Refused
from tf_mlm.hub import Source

NAME = "train"
DESCRIPTION = "Train a masked language model on your text. Precedence of settings: defaults < --config < flags."
SHORT_FLAGS = {
    "--epochs": "training.epochs",
    "--batch-size": "training.batch_size",
    "--learning-rate": "optimizer.learning_rate",
    "--model": "model.name",
    "--dataset": "data.dataset",
    "--seed": "training.seed",
}
_MAY_CHANGE_ON_RESUME = (
    "training.log_every",
    "checkpoint.every_minutes",
    "checkpoint.every_steps",
    "checkpoint.keep",
    "data.wait_minutes",
    "distribution.timeout_seconds",
)
_PATHS = ("model.name", "data.dataset")
NEWEST = Path("<newest>")  # --resume without RUN


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} [--config NAME_OR_FILE] [--resume [RUN]] [FLAG VALUE ...] [--section.key VALUE ...]"
    add_settings(parser)
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="run directory [runs/<config name>-<time>]")
    parser.add_argument(
        "--resume",
        type=Path,
        nargs="?",
        const=NEWEST,
        metavar="RUN",
        help="resume the run RUN, or the newest resumable run in runs/",
    )
    parser.add_argument("--plan", action="store_true", help="print the estimated time and memory, and stop")
    parser.add_argument("--print-config", action="store_true", help="print the resolved settings as TOML, and stop")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The flags of the settings, for every command that trains."""
    parser.add_argument("--config", metavar="NAME_OR_FILE", help="a recipe such as imdb-10k, or a TOML file")
    for flag, name in SHORT_FLAGS.items():
        parser.add_argument(flag, dest=name, metavar="VALUE", default=argparse.SUPPRESS, help=f"short for --{name}")
    parser.add_argument("--verbose", action="store_true", help="show TensorFlow's log output")
    groups: dict[str, Any] = {}
    for name, field in setting_fields().items():
        section = name.partition(".")[0]
        group = groups.get(section) or groups.setdefault(section, parser.add_argument_group(f"[{section}]"))
        extra: dict[str, Any] = {"nargs": "+"} if _takes_several(field) else {}
        if field.type is bool:
            extra = {"nargs": "?", "const": "true"}
        group.add_argument(
            f"--{name}",
            dest=name,
            metavar="VALUE",
            default=argparse.SUPPRESS,
            help=_help(field).replace("%", "%%"),
            **extra,
        )


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that were passed as flags: values by dotted name."""
    return {name: value for name, value in vars(arguments).items() if "." in name}


def _takes_several(field: Any) -> bool:
    return any(typing.get_origin(each) is tuple for each in (field.type, *typing.get_args(field.type)))


def _help(field: Any) -> str:
    default = field.default.default
    shown = f"{len(default)} sentences" if default and isinstance(default, tuple) else repr(default)
    values = typing.get_args(field.type) if typing.get_origin(field.type) is typing.Literal else ()
    choices = f"; one of {', '.join(values)}" if values else ""
    return f"{field.default.description}{choices} [{shown}]"


def run(arguments: argparse.Namespace) -> None:
    overrides = given_settings(arguments)
    arguments.config = find_recipe(arguments.config) if arguments.config is not None else None
    config = load_config(arguments.config, overrides)
    if arguments.resume not in (None, NEWEST) and arguments.output_dir is not None:
        raise Refused("--resume RUN and --output-dir name two run directories; omit one of them")
    if arguments.print_config:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")  # TOML is UTF-8 in any locale
        print(dump_config(config), end="")
        return
    # Only the bare default falls back to the sample.
    is_bare = arguments.config is None and overrides.keys() <= {"training.epochs", "training.seed"}
    try:
        _train_or_resume(config, arguments, overrides)
    except HubOutOfReach as error:
        holds_run = arguments.output_dir is not None and (arguments.output_dir / "config.toml").exists()
        if not is_bare or holds_run or arguments.resume is not None and arguments.output_dir is None:
            raise
        banner = (
            f"{'=' * 100}\nTHE HUB CANNOT BE REACHED. THIS RUN USES THE SAMPLE: a small DistilBERT from random weights "
            f"on the\nbundled sample corpus (configs/sample.toml).\nReason: {error}\n{'=' * 100}"
        )
        print(banner, flush=True)
        arguments.config = find_recipe("sample")
        _train_or_resume(load_config(arguments.config, overrides), arguments, overrides)
        print(banner)


def _train_or_resume(config: Config, arguments: argparse.Namespace, overrides: dict[str, Any]) -> None:
    from tf_mlm.run.directory import RunDirectory, new_run_path, newest_unfinished_run

    cluster = None if arguments.plan else find_cluster(config)
    given = _given(arguments, overrides)
    if cluster and not cluster.is_chief:
        return train_for_chief(cluster, config, given, verbose=arguments.verbose)
    name = arguments.config.stem if arguments.config else "imdb"
    path = arguments.output_dir or new_run_path(name)
    if arguments.resume is not None:
        resumed = arguments.resume if arguments.resume != NEWEST else arguments.output_dir
        if resumed is None:
            resumed = newest_unfinished_run(Path("runs"))
            if resumed is None:
                raise Refused(
                    "--resume: no resumable run in runs/ (running and diverged runs are skipped); pass a run "
                    "directory, or start a run without --resume"
                )
        if arguments.resume != NEWEST or (resumed / "config.toml").exists():
            return _resume(resumed, arguments, overrides, cluster)
    check_new_run(config)
    if arguments.plan:
        return _plan(config, RunDirectory(path), arguments.verbose)
    run = RunDirectory.create(path)
    with run.discarded_if_refused():
        train_together(cluster, config, run, given, verbose=arguments.verbose)


def _given(arguments: argparse.Namespace, overrides: dict[str, Any]) -> dict[str, Any]:
    """What all workers of a training must be started with. The recipes of two installations have different paths."""
    return {"--config": arguments.config.name if arguments.config else "", **overrides}


def _plan(config: Config, run: Any, verbose: bool) -> None:
    start_libraries(run.locate(config), verbose)
    from tf_mlm.training.train import plan

    plan(config, run)


def _resume(path: Path, arguments: argparse.Namespace, overrides: dict[str, Any], cluster: Cluster | None) -> None:
    from tf_mlm.run.directory import RunDirectory

    run = RunDirectory.open(path)
    try:
        stored = load_config(run.config_path)
        # Settings that neither the file nor a flag gives keep the values of the run.
        config = _with_stored_paths(load_config(arguments.config or run.config_path, overrides), stored, run)
        is_finished = run.is_finished()
        continuation = f"to continue from its weights, start a new run with --model {path}/model"
        _check_same(path, stored, config, continuation if is_finished else "start a new run to change it")
        if is_finished:
            shutil.rmtree(run.checkpoints_path, ignore_errors=True)  # a kill may have left checkpoints
            message = f"{path} is a finished run; nothing to do; {continuation}"
            print(message, flush=True)
            if cluster:
                dismiss(cluster, config, _given(arguments, overrides), message)
            return
        if arguments.plan:
            return _plan(config, run, arguments.verbose)
        if cluster and find_cluster(config) is None:
            raise Refused(
                f"--resume {path}: the run has distribution.strategy = {config.distribution.strategy!r}; start one "
                f"process without {cluster.source}"
            )
        train_together(cluster, config, run, _given(arguments, overrides), verbose=arguments.verbose)
    finally:
        run.release()


def _with_stored_paths(config: Config, stored: Config, run: Any) -> Config:
    """`config` with the paths of the run's config where both refer to the same file."""
    located = run.locate(stored)
    name, dataset = (
        before if Source.of(given).absolute_path == Source.of(recorded).absolute_path != "" else given
        for given, before, recorded in (
            (config.model.name, stored.model.name, located.model.name),
            (config.data.dataset, stored.data.dataset, located.data.dataset),
        )
    )
    return replace(config, model=replace(config.model, name=name), data=replace(config.data, dataset=dataset))


def _check_same(path: Path, stored: Config, given: Config, remedy: str) -> None:
    for name in setting_fields():
        section, key = name.split(".")
        before, now = (asdict(config)[section][key] for config in (stored, given))
        if before != now and name not in _MAY_CHANGE_ON_RESUME:
            raise Refused(
                f"--resume {path}: {name} = {now!r}, but the run has {before!r}; omit the setting, or {remedy} "
                f"(only {', '.join(_MAY_CHANGE_ON_RESUME)} may change)"
            )
