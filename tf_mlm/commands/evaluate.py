"""`tf-mlm evaluate`."""

import argparse
from dataclasses import replace
from typing import Any

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
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> None:
    found = find_model(arguments.model)
    settings = {name: value for name, value in vars(arguments).items() if name.startswith("data.")}
    if settings and arguments.dataset is None:
        raise Refused(f"--{next(iter(settings))} requires --dataset")
    if found.run is None and arguments.dataset is None:
        raise Refused(f"evaluate {arguments.model}: is not a run directory and has no validation data; pass --dataset")
    config = replace(found.config or Config(), model=ModelConfig(name=found.model))
    # The run's settings for columns and splits do not apply to another dataset.
    data = load_config(None, settings | {"data.dataset": arguments.dataset}).data if arguments.dataset else config.data
    start_libraries(replace(config, data=data))
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
        config = replace(config, objective=replace(config.objective, label_column=arguments.label_column))
    evaluate = evaluate_model if config.objective.name == "masked" else evaluate_labels
    evaluation = evaluate(config, own_data=arguments.dataset is None, train_hashes=train_hashes)
    print(dump_json(evaluation.as_dict()) if arguments.json else evaluation.describe())
