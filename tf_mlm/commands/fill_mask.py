"""`tf-mlm fill-mask`."""

import argparse
import sys
from typing import Any

from tf_mlm.commands.libraries import start_libraries_for
from tf_mlm.errors import Refused
from tf_mlm.inference.locate import find_model, is_saved_model

NAME = "fill-mask"
DESCRIPTION = "Predict the most likely words for each [MASK] of a sentence."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} (RUN_OR_MODEL | --compare A B) [SENTENCE ...] [--top-k K] [--json]"
    parser.add_argument(
        "texts",
        metavar="RUN_OR_MODEL SENTENCE",
        nargs="*",
        help="a run directory, a model directory, a SavedModel or a name on the Hub; then sentences such as "
        '"This is a great [MASK]."; without a sentence, reads standard input, one sentence per line',
    )
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), help="compare two models side by side")
    parser.add_argument("--top-k", type=int, default=5, metavar="K", help="number of words for each mask [5]")
    parser.add_argument("--json", action="store_true", help="print one JSON object per sentence")


def run(arguments: argparse.Namespace) -> None:
    if arguments.top_k < 1:
        raise Refused(f"--top-k {arguments.top_k}: must be at least 1")
    names, sentences = arguments.compare or arguments.texts[:1], arguments.texts[not arguments.compare :]
    if not names:
        raise Refused("fill-mask: no model given; pass a run directory, a model directory, a SavedModel or a Hub name")
    models = [name if is_saved_model(name) else find_model(name).model for name in names]
    from_stdin = not sentences
    lines = _read_lines() if from_stdin else dict(enumerate(sentences, start=1))
    start_libraries_for(*models)
    from tf_mlm.inference.fill_mask import load_filler, load_served_filler

    fillers = [load_served_filler(name) if is_saved_model(name) else load_filler(name) for name in models]
    num_refused = 0
    for number, sentence in lines.items():
        try:
            _answer(fillers, names, sentence, arguments)
        except Refused as error:
            if not from_stdin:
                raise
            print(f"error: standard input line {number}: {error}", file=sys.stderr)
            num_refused += 1
    if num_refused:
        raise Refused(f"fill-mask: {num_refused} of {len(lines)} lines failed; see the errors above")


def _answer(fillers: list[Any], names: list[str], sentence: str, arguments: argparse.Namespace) -> None:
    from tf_mlm.inference.fill_mask import answer, describe_answer, describe_side_by_side
    from tf_mlm.json_text import dump_json

    answers = [answer(fill, sentence, arguments.top_k) for fill in fillers]
    if arguments.json:
        objects = [{"model": name} | given.as_dict() for name, given in zip(names, answers, strict=True)]
        print(dump_json(objects if arguments.compare else objects[0]), flush=True)
    elif arguments.compare:
        print(describe_side_by_side(names, answers), flush=True)
    else:
        print(describe_answer(answers[0]), flush=True)


def _read_lines() -> dict[int, str]:
    """The lines of standard input by number, without blank lines. Only `\\n` ends a line."""
    if sys.stdin is None or sys.stdin.isatty():
        raise Refused("fill-mask: no sentence given; pass one after the model, or pipe sentences in, one per line")
    try:
        lines = sys.stdin.buffer.read().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise Refused(f"fill-mask: standard input is not UTF-8 at byte {error.start}; convert it to UTF-8") from None
    found = {number: line.removesuffix("\r") for number, line in enumerate(lines, start=1) if line.strip()}
    if not found:
        raise Refused("fill-mask: standard input contains no sentence; pipe sentences in, one per line")
    return found
