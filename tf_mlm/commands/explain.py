"""`tf-mlm explain`."""

import argparse

from tf_mlm.commands.libraries import start_libraries_for
from tf_mlm.config import MaskingConfig
from tf_mlm.inference.locate import find_model

NAME = "explain"
DESCRIPTION = "Show the training computation on one sentence: tokenize, mask, predict, loss."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN_OR_MODEL", help="a run directory, a model directory or a name on the Hub")
    parser.add_argument("sentence", metavar="SENTENCE")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the random masks [0]")


def run(arguments: argparse.Namespace) -> None:
    found = find_model(arguments.model)
    start_libraries_for(found.model)
    from tf_mlm.inference.explain import explain_sentence
    from tf_mlm.model.loading import load_trained

    model, tokenizer = load_trained(found.model)
    masking = found.config.masking if found.config else MaskingConfig()
    print(explain_sentence(model, tokenizer, arguments.sentence, masking, arguments.seed))
