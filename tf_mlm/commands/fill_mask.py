"""`tf-mlm fill-mask`."""

import argparse
from collections.abc import Callable
from typing import Any

from tf_mlm.commands.libraries import start_libraries_for
from tf_mlm.commands.lines import Lines
from tf_mlm.errors import Refused
from tf_mlm.inference.locate import find_model, is_saved_model

NAME = "fill-mask"
DESCRIPTION = "Predict the most likely words for each [MASK] of a sentence."

_DEFAULT_TOP_K = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        f"{parser.prog} (RUN_OR_MODEL | --compare A B) [SENTENCE ...] [--top-k K | --targets WORD,...] [--json]"
    )
    parser.add_argument(
        "texts",
        metavar="RUN_OR_MODEL SENTENCE",
        nargs="*",
        help="a run directory, a model directory, a SavedModel or a name on the Hub; then sentences such as "
        '"This is a great [MASK]."; without a sentence, reads standard input, one sentence per line',
    )
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), help="compare two models side by side")
    parser.add_argument("--top-k", type=int, metavar="K", help=f"number of words for each mask [{_DEFAULT_TOP_K}]")
    parser.add_argument(
        "--targets",
        metavar="WORD,...",
        help="print the probabilities of these words instead; a word of n tokens is scored at n masks, so compare "
        "only words with the same number of tokens",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per sentence")


def run(arguments: argparse.Namespace) -> None:
    if arguments.targets is not None and arguments.top_k is not None:
        raise Refused("--top-k: has no effect with --targets; omit one of them")
    if arguments.top_k is not None and arguments.top_k < 1:
        raise Refused(f"--top-k {arguments.top_k}: must be at least 1")
    names, sentences = arguments.compare or arguments.texts[:1], arguments.texts[not arguments.compare :]
    if not names:
        raise Refused("fill-mask: no model given; pass a run directory, a model directory, a SavedModel or a Hub name")
    models = [name if is_saved_model(name) else find_model(name).model for name in names]
    for name in names:
        if arguments.targets is not None and is_saved_model(name):
            raise Refused(
                f"--targets: {name} is a SavedModel, which returns only the most likely words; pass the run directory"
            )
    lines = Lines.of(NAME, sentences)
    start_libraries_for(*models)
    describe = _describe_targets if arguments.targets is not None else _describe_best
    answer = describe(names, models, arguments)
    for number, sentence in lines.texts.items():
        with lines.refusal_reported(number):
            print(answer(sentence), flush=True)
    lines.finish()


def _describe_best(names: list[str], models: list[str], arguments: argparse.Namespace) -> Callable[[str], str]:
    """Returns a function from a sentence to the printed text with its most likely words."""
    from tf_mlm.inference.fill_mask import (
        answer,
        describe_answer,
        describe_side_by_side,
        load_filler,
        load_served_filler,
    )

    fillers = [load_served_filler(name) if is_saved_model(name) else load_filler(name) for name in models]

    def describe(sentence: str) -> str:
        answers = [answer(fill, sentence, arguments.top_k or _DEFAULT_TOP_K) for fill in fillers]
        if arguments.json:
            return _as_json(names, [each.as_dict() for each in answers], arguments)
        return describe_side_by_side(names, answers) if arguments.compare else describe_answer(answers[0])

    return describe


def _describe_targets(names: list[str], models: list[str], arguments: argparse.Namespace) -> Callable[[str], str]:
    """Returns a function from a sentence to the printed text with the probabilities of the targets."""
    from tf_mlm.inference.targets import (
        describe_targets,
        describe_targets_side_by_side,
        differences,
        load_target_filler,
    )

    targets = arguments.targets.split(",")
    fillers = [load_target_filler(name) for name in models]

    def describe(sentence: str) -> str:
        answers = [fill(sentence, targets) for fill in fillers]
        if arguments.json:
            objects = [each.as_dict() for each in answers]
            if arguments.compare:
                objects[1]["differences"] = differences(answers)
            return _as_json(names, objects, arguments)
        return describe_targets_side_by_side(names, answers) if arguments.compare else describe_targets(answers[0])

    return describe


def _as_json(names: list[str], answers: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    from tf_mlm.json_text import dump_json

    objects = [{"model": name} | answer for name, answer in zip(names, answers, strict=True)]
    return dump_json(objects if arguments.compare else objects[0])
