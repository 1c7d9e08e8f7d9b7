"""`tf-mlm evaluate`."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from tf_mlm.atomic_files import require_writable, write_atomically
from tf_mlm.commands.libraries import start_libraries
from tf_mlm.config import Config, ModelConfig, ObjectiveConfig, load_config, setting_fields
from tf_mlm.errors import Refused
from tf_mlm.inference.locate import find_model

NAME = "evaluate"
DESCRIPTION = (
    "Compute the validation metrics of a model on a dataset: on masked tokens, or on labels if it is fine-tuned."
)
_OTHER_DATA = ("revision", "config_name", "document", "text_column", "csv_header", "validation_split")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN_OR_MODEL", help="a run directory, a model directory or a name on the Hub")
    parser.add_argument(
        "--dataset", metavar="NAME_OR_PATH", help="dataset to evaluate on [the validation data of the run]"
    )
    for key in _OTHER_DATA:
        flags = [f"--data.{key}", *(["--text-column"] if key == "text_column" else [])]
        description = setting_fields()[f"data.{key}"].default.description
        if key == "validation_split":
            description = "split of --dataset to evaluate on; '' selects all documents ['test']"
        parser.add_argument(*flags, dest=f"data.{key}", metavar="VALUE", default=argparse.SUPPRESS, help=description)
    parser.add_argument(
        "--label-column", metavar="NAME", help="fine-tuned models: column of --dataset that contains the labels"
    )
    parser.add_argument(
        "--mask-draws",
        type=int,
        metavar="N",
        help="evaluate on N fixed draws of the masks; draw 1 has the validation masks of training [1]",
    )
    parser.add_argument(
        "--breakdown",
        action="store_true",
        help="also print the metrics by treatment, frequency, part of the word and part of the sequence, and list "
        "the tokens with the greatest loss",
    )
    parser.add_argument(
        "--baseline",
        metavar="RUN_OR_MODEL",
        help="also evaluate this model on the same masks; list the tokens that improved or worsened most",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a plot of the breakdown to this png file")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> None:
    in_depth = _in_depth(arguments)
    found = find_model(arguments.model)
    baseline = find_model(arguments.baseline).model if arguments.baseline is not None else None
    settings = {name: value for name, value in vars(arguments).items() if name.startswith("data.")}
    if settings and arguments.dataset is None:
        raise Refused(f"--{next(iter(settings))} requires --dataset")
    if found.run is None and arguments.dataset is None:
        raise Refused(f"evaluate {arguments.model}: is not a run directory and has no validation data; pass --dataset")
    config = replace(found.config or Config(), model=ModelConfig(name=found.model))
    # The run's settings for columns and splits do not apply to another dataset.
    data = load_config(None, settings | {"data.dataset": arguments.dataset}).data if arguments.dataset else config.data
    if in_depth and config.objective.name != "masked":
        raise _only_masked(in_depth, arguments.model)
    start_libraries(replace(config, data=data), other_models=[baseline] if baseline else [])
    from tf_mlm.inference.evaluate import evaluate_model, other_data
    from tf_mlm.inference.evaluate_labels import evaluate_labels
    from tf_mlm.json_text import dump_json
    from tf_mlm.model.loading import load_model_config, objective_of

    if arguments.dataset is not None:
        config = other_data(config, data)

    train_hashes = found.run.load_train_hashes() if found.run else None
    if found.config is None:
        objective: Any = objective_of(load_model_config(config.model)) or "masked"
        config = replace(config, objective=ObjectiveConfig(name=objective))
    if arguments.label_column is not None:
        if config.objective.name == "masked":
            raise Refused(
                f"--label-column: {arguments.model} is a masked language model, which has no labels; omit the flag"
            )
        config = replace(config, objective=replace(config.objective, label_column=arguments.label_column))
    if config.objective.name != "masked":
        if in_depth:
            raise _only_masked(in_depth, arguments.model)
        labels = evaluate_labels(config, own_data=arguments.dataset is None, train_hashes=train_hashes)
        print(dump_json(labels.as_dict()) if arguments.json else labels.describe())
        return
    evaluation = evaluate_model(
        config,
        own_data=arguments.dataset is None,
        train_hashes=train_hashes,
        num_draws=arguments.mask_draws or 1,
        with_breakdown=arguments.breakdown or bool(arguments.baseline or arguments.plot),
        baseline=baseline,
    )
    print(dump_json(evaluation.as_dict()) if arguments.json else evaluation.describe())
    if arguments.plot:
        from tf_mlm.inference.breakdown_plot import plot_breakdown

        assert evaluation.breakdown is not None
        write_atomically(arguments.plot, plot_breakdown(evaluation.breakdown))
        if not arguments.json:
            print(f"\nplot in {arguments.plot}")


def _in_depth(arguments: argparse.Namespace) -> str:
    """Check the flags that only masked language models support. Returns the first one passed, or ""."""
    if arguments.mask_draws is not None and arguments.mask_draws < 1:
        raise Refused(f"--mask-draws {arguments.mask_draws}: must be at least 1")
    if arguments.plot is not None:
        require_writable(arguments.plot, "--plot")
    flags = ("mask_draws", "breakdown", "baseline", "plot")
    passed = [name for name in flags if getattr(arguments, name) not in (None, False)]
    return f"--{passed[0].replace('_', '-')}" if passed else ""


def _only_masked(flag: str, model: str) -> Refused:
    return Refused(f"{flag}: requires a masked language model, and {model} predicts labels; omit the flag")
