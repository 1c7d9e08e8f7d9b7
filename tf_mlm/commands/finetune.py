"""`tf-mlm finetune`."""

import argparse
import contextlib
import copy
from pathlib import Path

from tf_mlm.commands import train
from tf_mlm.config import Config, find_recipe, load_config
from tf_mlm.errors import Refused
from tf_mlm.inference.locate import find_model

NAME = "finetune"
DESCRIPTION = "Fine-tune a model on labeled texts to classify each text, or to tag each word."
_RECIPE = "finetune"
_TASKS = {"classification": "classification", "token-classification": "token_classification"}
_FLAGS = {
    "--text-column": "data.text_column",
    "--label-column": "objective.label_column",
    "--text-pair-column": "objective.text_pair_column",
    "--num-labels": "data.num_train_sequences",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    train.add_arguments(parser)
    parser.usage = (
        f"{parser.prog} [RUN_OR_MODEL] --task TASK --dataset NAME_OR_PATH [--num-labels N] [--repeats N] "
        "[FLAG VALUE ...]"
    )
    parser.add_argument(
        "starting_model",
        metavar="RUN_OR_MODEL",
        nargs="?",
        help="the starting model: a run directory, a model directory or a name on the Hub",
    )
    parser.add_argument("--from", dest="starting_model_flag", metavar="MODEL", help="same as RUN_OR_MODEL")
    parser.add_argument(
        "--task",
        choices=tuple(_TASKS),
        help="label each text, or tag each word [objective.name of the recipe: classification]",
    )
    for flag, name in _FLAGS.items():
        help_text = "number of labeled documents to train on, drawn at random; 0 uses all"
        shown = help_text if flag == "--num-labels" else f"short for --{name}"
        parser.add_argument(flag, dest=name, metavar="VALUE", default=argparse.SUPPRESS, help=shown)
    parser.add_argument(
        "--repeats",
        type=int,
        default=1,
        metavar="N",
        help="number of runs, with the seeds training.seed, training.seed + 1, ... [1]",
    )


def run(arguments: argparse.Namespace) -> None:
    if arguments.repeats < 1:
        raise Refused(f"--repeats {arguments.repeats}: must be at least 1")
    model = arguments.starting_model or arguments.starting_model_flag
    if arguments.starting_model and arguments.starting_model_flag:
        raise Refused("RUN_OR_MODEL and --from name two starting models; omit one of them")
    if model:
        setattr(arguments, "model.name", find_model(model).model)
    if arguments.task:
        setattr(arguments, "objective.name", _TASKS[arguments.task])
    if arguments.config is None and (arguments.resume is None or arguments.output_dir is not None):
        arguments.config = _RECIPE
        if "model.name" not in arguments:
            raise Refused("finetune: no starting model; pass a run directory, a model directory or a Hub name")
        if "data.dataset" not in arguments:
            raise Refused("finetune: no labeled data; pass --dataset")
    if (
        arguments.config is not None
        and load_config(find_recipe(arguments.config), train.given_settings(arguments)).objective.name == "masked"
    ):
        raise Refused(
            f"finetune --config {arguments.config}: objective.name is 'masked'; pass --task, or use tf-mlm train"
        )
    if arguments.repeats == 1:
        return train.run(arguments)
    _repeat(arguments)


def _repeat(arguments: argparse.Namespace) -> None:
    """Train with several seeds in subdirectories of the output directory, and summarize the results."""
    if arguments.plan or arguments.print_config or (arguments.resume is not None and arguments.output_dir is None):
        raise Refused("--repeats: cannot be combined with --plan, --print-config or --resume RUN; pass --output-dir")
    from tf_mlm.run.directory import new_run_path
    from tf_mlm.run.repeats import summarize, write_summary

    config: Config = load_config(find_recipe(arguments.config), train.given_settings(arguments))
    root: Path = arguments.output_dir or new_run_path(_RECIPE)
    if root.exists() and not root.is_dir():
        raise Refused(f"--output-dir {root}: is not a directory; choose another one")
    is_new = not root.exists()
    if root.exists() and any(root.iterdir()) and arguments.resume is None:
        raise Refused(f"--output-dir {root}: already exists and is not empty; choose a new directory, or add --resume")
    runs: list[Path] = []
    for seed in range(config.training.seed, config.training.seed + arguments.repeats):
        one = copy.copy(arguments)
        setattr(one, "training.seed", str(seed))
        one.output_dir = root / f"seed-{seed}"
        one.resume = train.NEWEST
        print(f"repeat     {len(runs) + 1} of {arguments.repeats}, seed {seed}", flush=True)
        try:
            train.run(one)
        except Refused:
            with contextlib.suppress(OSError):  # not empty, or never created
                if is_new:
                    root.rmdir()
            raise
        runs.append(one.output_dir)
    summary = summarize(runs)
    write_summary(root / "repeats.json", summary)
    print(summary.describe())
