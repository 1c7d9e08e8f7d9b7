"""`tf-mlm predict`."""

import argparse

from tf_mlm.commands.libraries import start_libraries_for
from tf_mlm.errors import Refused
from tf_mlm.inference.locate import find_model

NAME = "predict"
DESCRIPTION = "Predict the label of a text, or the tags of its words, with a fine-tuned model."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} RUN_OR_MODEL TEXT [TEXT ...] [--text-pair TEXT] [--json]"
    parser.add_argument(
        "texts", metavar="RUN_OR_MODEL TEXT", nargs="*", help="a fine-tuned run or model; then one or more texts"
    )
    parser.add_argument("--text-pair", metavar="TEXT", help="second text, for a model that labels pairs of texts")
    parser.add_argument("--json", action="store_true", help="print one JSON object per text")


def run(arguments: argparse.Namespace) -> None:
    if len(arguments.texts) < 2:
        raise Refused("predict: no model or no text given; pass a fine-tuned run or model, then at least one text")
    name, *texts = arguments.texts
    if arguments.text_pair is not None and len(texts) > 1:
        raise Refused("--text-pair: requires exactly one TEXT; omit the other texts")
    found = find_model(name)
    start_libraries_for(found.model)
    from tf_mlm.inference.loaded import LoadedClassifier
    from tf_mlm.json_text import dump_json

    pairs = [arguments.text_pair] if arguments.text_pair is not None else None
    predictions = LoadedClassifier.load(name).predict(texts, pairs)
    for prediction in predictions:
        print(dump_json(prediction.as_dict()) if arguments.json else prediction.describe())
