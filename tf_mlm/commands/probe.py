"""`tf-mlm probe`."""

import argparse
from dataclasses import replace
from pathlib import Path

from tf_mlm.commands.libraries import start_libraries_for
from tf_mlm.commands.train import given_settings
from tf_mlm.config import Config, ModelConfig, load_config, setting_fields
from tf_mlm.errors import Refused
from tf_mlm.inference.locate import FoundModel, find_model

NAME = "probe"
DESCRIPTION = "Compare the frozen features of an adapted and a starting model, by logistic regression on labeled texts."
_FLAGS = {
    "--text-column": "data.text_column",
    "--label-column": "objective.label_column",
    "--train-split": "data.train_split",
    "--test-split": "data.validation_split",
    "--sequence-length": "data.sequence_length",
    "--seed": "training.seed",
    "--data.config_name": "data.config_name",
    "--data.revision": "data.revision",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN_OR_MODEL", help="a run directory, a model directory or a name on the Hub")
    parser.add_argument("--baseline", metavar="MODEL", help="model to compare with [the starting model of the run]")
    parser.add_argument("--dataset", required=True, metavar="NAME_OR_PATH", help="dataset of labeled texts")
    for flag, name in _FLAGS.items():
        field = setting_fields()[name].default
        description = f"{field.description} [{field.default!r}]"
        if flag == "--test-split":
            description = "split to test on; '' holds out a share of the training documents ['test']"
        parser.add_argument(flag, dest=name, metavar="VALUE", default=argparse.SUPPRESS, help=description)
    parser.add_argument(
        "--pooling", choices=("mean", "cls"), default="mean", help="mean over the tokens, or [CLS] [mean]"
    )
    parser.add_argument(
        "--num-draws", type=int, default=10, metavar="N", help="random draws for each number of labels [10]"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="directory for probe.json and probe.png [the run directory, if any]"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> None:
    if arguments.num_draws < 1:
        raise Refused(f"--num-draws {arguments.num_draws}: must be at least 1")
    if arguments.output and arguments.output.exists() and not arguments.output.is_dir():
        raise Refused(f"--output {arguments.output}: is not a directory; choose another one")
    found = find_model(arguments.model)
    overrides = given_settings(arguments)
    config = load_config(None, overrides | {"data.dataset": arguments.dataset, "objective.name": "classification"})
    models = {"adapted": ModelConfig(name=found.model)}
    if starting := _starting_model(found, arguments.baseline):
        models["starting"] = starting
    start_libraries_for(arguments.dataset, *(model.name for model in models.values()))
    from tf_mlm.inference.probe import probe
    from tf_mlm.run.probe_results import write_probe

    train_hashes = found.run.load_train_hashes() if found.run else None
    results = probe(config, models, pooling=arguments.pooling, num_draws=arguments.num_draws, train_hashes=train_hashes)
    output = arguments.output or (found.run.path if found.run else None)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        write_probe(results, output)
    print(results.as_json() if arguments.json else results.describe(), end="" if arguments.json else "\n")
    if output is not None and not arguments.json:
        print(f"written: {output}/probe.json, {output}/probe.png")


def _starting_model(found: FoundModel, baseline: str | None) -> ModelConfig | None:
    """The model to compare with; None if there is none."""
    if baseline:
        return ModelConfig(name=find_model(baseline).model)
    if found.config is None:
        return None
    if not found.config.model.name or found.config.model.from_config:
        raise Refused(
            f"probe {found.run.path if found.run else ''}: this run started from random weights; pass --baseline MODEL"
        )
    return replace(Config().model, name=found.config.model.name, revision=found.config.model.revision)
