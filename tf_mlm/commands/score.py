"""`tf-mlm score`."""

import argparse

from tf_mlm.commands.libraries import start_libraries_for
from tf_mlm.commands.lines import Lines
from tf_mlm.errors import Refused
from tf_mlm.inference.locate import find_model

NAME = "score"
DESCRIPTION = "Print the pseudo-log-likelihood of a text and of each of its words."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} RUN_OR_MODEL [TEXT ...] [--masking METHOD] [--json]"
    parser.add_argument(
        "texts",
        metavar="RUN_OR_MODEL TEXT",
        nargs="*",
        help="a run directory, a model directory or a name on the Hub; then one or more texts; without a text, reads "
        "standard input, one text per line",
    )
    parser.add_argument(
        "--masking",
        choices=["word-l2r", "word", "token"],
        default="word-l2r",
        help="tokens that are masked to predict a token: it and the later tokens of its word, its whole word, or it "
        "alone [word-l2r]",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per text")


def run(arguments: argparse.Namespace) -> None:
    if not arguments.texts:
        raise Refused("score: no model given; pass a run directory, a model directory or a Hub name")
    name, *texts = arguments.texts
    found = find_model(name)
    lines = Lines.of(NAME, texts)
    start_libraries_for(found.model)
    from tf_mlm.inference.masked_copies import build_predictor
    from tf_mlm.inference.score import score_texts, tokenize_text
    from tf_mlm.json_text import dump_json
    from tf_mlm.model.architectures import max_sequence_length
    from tf_mlm.model.loading import load_trained

    model, tokenizer = load_trained(found.model)
    tokenized = []
    for number, text in lines.texts.items():
        with lines.refusal_reported(number):
            tokenized.append(tokenize_text(tokenizer, text, max_sequence_length(model.config)))
    for scored in score_texts(build_predictor(model), tokenizer, tokenized, arguments.masking):
        print(dump_json({"model": name} | scored.as_dict()) if arguments.json else scored.describe(), flush=True)
    lines.finish()
