"""`tf-mlm prepare`."""

import argparse
import importlib.util
import os
from functools import partial
from pathlib import Path
from typing import Any

from tf_mlm.commands.libraries import start_data_libraries
from tf_mlm.commands.train import SHORT_FLAGS, add_settings, given_settings
from tf_mlm.config import find_recipe, load_config
from tf_mlm.dask_cluster import map_on_dask
from tf_mlm.errors import Refused
from tf_mlm.worker_processes import map_unordered

NAME = "prepare"
DESCRIPTION = "Tokenize a large corpus in several processes, for train --dataset. After a kill, repeat it to continue."
DOCUMENTS_PER_SHARD = 10_000
DUPLICATE_THRESHOLD = 0.8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} [--config NAME_OR_FILE] --output DIR [FLAG VALUE ...] [--section.key VALUE ...]"
    add_settings(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="directory for the sequences")
    parser.add_argument(
        "--num-workers", type=int, default=os.cpu_count(), metavar="N", help="number of processes [one per core]"
    )
    parser.add_argument(
        "--engine",
        choices=("local", "dask"),
        default="local",
        help="where the processes run: on this machine, or on a Dask cluster (requires the extra prepare) [local]",
    )
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="with --engine dask: address of the scheduler, such as tcp://host:8786 [a cluster of --num-workers "
        "processes on this machine]",
    )
    parser.add_argument(
        "--documents-per-shard",
        type=int,
        default=DOCUMENTS_PER_SHARD,
        metavar="N",
        help=f"documents in each shard, which one process writes [{DOCUMENTS_PER_SHARD}]",
    )
    parser.add_argument(
        "--deduplicate",
        choices=("none", "exact", "near"),
        default="none",
        help="drop documents that repeat an earlier one: exactly except for case and white space, or nearly, by "
        "MinHash (requires the extra prepare) [none]",
    )
    parser.add_argument(
        "--duplicate-threshold",
        type=float,
        metavar="SHARE",
        help="with --deduplicate near: lowest Jaccard similarity of the word 5-grams of duplicates "
        f"[{DUPLICATE_THRESHOLD}]",
    )


def run(arguments: argparse.Namespace) -> None:
    for flag in ("num_workers", "documents_per_shard"):
        if getattr(arguments, flag) < 1:
            raise Refused(f"--{flag.replace('_', '-')} {getattr(arguments, flag)}: must be at least 1")
    if arguments.scheduler is not None and arguments.engine != "dask":
        raise Refused("--scheduler: has no effect without --engine dask; omit it")
    for flag, value, package in (("engine", "dask", "distributed"), ("deduplicate", "near", "datasketch")):
        if getattr(arguments, flag) == value and importlib.util.find_spec(package) is None:
            raise Refused(
                f"--{flag} {value}: requires the package {package}; install it with: pip install -c requirements.txt "
                "-e '.[prepare]'"
            )
    threshold = arguments.duplicate_threshold
    if threshold is not None and arguments.deduplicate != "near":
        raise Refused("--duplicate-threshold: has no effect without --deduplicate near; omit it")
    if threshold is not None and not 0.1 <= threshold <= 0.99:
        raise Refused(f"--duplicate-threshold {threshold:g}: must be at least 0.1 and at most 0.99")
    settings = given_settings(arguments)
    config = load_config(find_recipe(arguments.config) if arguments.config is not None else None, settings)
    if config.objective.name != "masked":
        raise Refused(f"objective.name = {config.objective.name!r}: prepare supports only 'masked'; omit the setting")
    if config.data.streaming:
        raise Refused("data.streaming = true: prepare reads the whole dataset; omit data.streaming")
    start_data_libraries(config, arguments.verbose)
    from tf_mlm.training.preparation import describe_shards, prepare

    flags = {"--config": arguments.config} if arguments.config is not None else {}
    short = {name: flag for flag, name in SHORT_FLAGS.items()}
    flags |= {short.get(name, f"--{name}"): value for name, value in settings.items()}
    defaults = {"documents_per_shard": DOCUMENTS_PER_SHARD, "deduplicate": "none", "duplicate_threshold": None}
    for name, default in defaults.items():
        if (value := getattr(arguments, name)) != default:
            flags[f"--{name.replace('_', '-')}"] = str(value)
    run_tasks: Any = partial(map_unordered, num_workers=arguments.num_workers)
    if arguments.engine == "dask":
        run_tasks = partial(map_on_dask, num_workers=arguments.num_workers, scheduler=arguments.scheduler or "")
    shards = prepare(
        config,
        arguments.output,
        flags,
        documents_per_shard=arguments.documents_per_shard,
        run_tasks=run_tasks,
        deduplicate=arguments.deduplicate,
        duplicate_threshold=DUPLICATE_THRESHOLD if threshold is None else threshold,
    )
    print(describe_shards(shards))
