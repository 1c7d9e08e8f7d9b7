"""`tf-mlm find-lr`."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from tf_mlm.atomic_files import require_writable, write_atomically
from tf_mlm.commands.libraries import start_libraries
from tf_mlm.commands.train import SHORT_FLAGS, add_settings, given_settings
from tf_mlm.config import check_new_run, find_recipe, load_config
from tf_mlm.errors import Refused

NAME = "find-lr"
DESCRIPTION = "Suggest a learning rate: train for a few hundred steps at a rate that grows until the loss blows up."
_MIN_STEPS = 50
_LEARNING_RATE = "optimizer.learning_rate"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} [--config NAME_OR_FILE] [--num-steps N] [FLAG VALUE ...] [--section.key VALUE ...]"
    add_settings(parser)
    parser.add_argument(
        "--num-steps",
        type=int,
        default=300,
        metavar="N",
        help="number of steps from the lowest to the highest rate [300]",
    )
    parser.add_argument(
        "--min-learning-rate", type=float, default=1e-7, metavar="RATE", help="rate of the first step [1e-7]"
    )
    parser.add_argument(
        "--max-learning-rate", type=float, default=1.0, metavar="RATE", help="rate of the last step [1]"
    )
    parser.add_argument(
        "--plot",
        type=Path,
        default=Path("find-lr.png"),
        metavar="FILE",
        help="write the curve to this png file [find-lr.png]",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> None:
    lowest, highest = arguments.min_learning_rate, arguments.max_learning_rate
    if arguments.num_steps < _MIN_STEPS:
        raise Refused(f"--num-steps {arguments.num_steps}: must be at least {_MIN_STEPS}")
    if not lowest > 0:
        raise Refused(f"--min-learning-rate {lowest:g}: must be greater than 0")
    if not lowest < highest <= 1:
        raise Refused(
            f"--max-learning-rate {highest:g}: must be greater than --min-learning-rate {lowest:g}, and at most 1"
        )
    settings = given_settings(arguments)
    config = load_config(find_recipe(arguments.config) if arguments.config is not None else None, settings)
    check_new_run(config)
    require_writable(arguments.plot, "--plot")
    start_libraries(config, arguments.verbose)
    from tf_mlm.data.prepared import describe_data
    from tf_mlm.run.directory import RunDirectory, new_run_path
    from tf_mlm.run.range_test_results import plot_range_test
    from tf_mlm.training.range_test import range_test
    from tf_mlm.training.train import build_job

    job = build_job(config, RunDirectory(new_run_path("find-lr")))  # a path; nothing is created
    if not arguments.json:
        print(describe_data(job.data.facts), flush=True)
    results = range_test(job, num_steps=arguments.num_steps, min_learning_rate=lowest, max_learning_rate=highest)
    write_atomically(arguments.plot, plot_range_test(results))
    command = train_command(arguments.config, settings, results.suggestion)
    if arguments.json:
        print(results.as_json(command=command, plot=str(arguments.plot)), end="")
        return
    print(results.describe())
    print(f"written            {arguments.plot}")
    if command:
        print(f"next               {command}")


def train_command(config: str | None, settings: dict[str, Any], rate: float | None) -> str | None:
    """The command that trains with these settings at this rate."""
    if rate is None:
        return None
    flags = {name: flag for flag, name in SHORT_FLAGS.items()}
    words = ["python", "-m", "tf_mlm", "train", *(["--config", config] if config is not None else [])]
    for name, value in settings.items():
        if name != _LEARNING_RATE:
            words += [flags.get(name, f"--{name}"), *(value if isinstance(value, list) else [value])]
    return shlex.join([*words, "--learning-rate", f"{rate:g}"])
