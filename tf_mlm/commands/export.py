"""`tf-mlm export`."""

import argparse
import re
import shlex
from pathlib import Path

from tf_mlm.commands.libraries import start_libraries_for
from tf_mlm.errors import Refused
from tf_mlm.inference.locate import find_model
from tf_mlm.run.directory import RunDirectory

NAME = "export"
DESCRIPTION = "Export the model for serving, for other runtimes or for the Hub."
_FORMATS = ("saved_model", "tflite", "onnx", "huggingface")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN_OR_MODEL", help="a run directory, a model directory or a name on the Hub")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="output directory; must not exist")
    parser.add_argument("--format", choices=_FORMATS, default=_FORMATS[0], help=f"format of the export [{_FORMATS[0]}]")


def run(arguments: argparse.Namespace) -> None:
    output: Path = arguments.output
    found = find_model(arguments.model)
    if output.exists():
        raise Refused(f"--output {output}: already exists; choose a new directory")
    if arguments.format == "huggingface" and found.run is None:
        raise Refused(
            f"--format huggingface: {arguments.model} is not a run directory; the model card is generated from one. A "
            "model directory can be uploaded as it is"
        )
    start_libraries_for(found.model)
    from tf_mlm.atomic_files import atomic_directory

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"--output {output}: cannot be created: {error.strerror}; choose another directory") from None
    with atomic_directory(output) as temporary:
        if found.run and arguments.format == "huggingface":
            report = _export_for_hub(found.run, output, temporary)
        else:
            report = _export_model(found.model, arguments.format, output, temporary)
    print(report)


def _export_model(name: str, kind: str, output: Path, directory: Path) -> str:
    """Write to `directory`, which becomes `output`. Returns the report to print."""
    from tf_mlm.export.conversion import export_onnx, export_tflite
    from tf_mlm.export.saved_model import export_saved_model
    from tf_mlm.model.loading import load_trained

    model, tokenizer = load_trained(name)
    if kind == "saved_model":
        return f"SavedModel in {output}\n{export_saved_model(model, tokenizer, directory)}".rstrip()
    deviation = {"tflite": export_tflite, "onnx": export_onnx}[kind](model, tokenizer, directory)
    return (
        f"{output}/model.{kind}: maps input_ids and attention_mask to logits; {output} also has config and tokenizer\n"
        f"checked in its runtime: the logits differ from the model's by at most {deviation:.1e} of the largest logit"
    )


def _export_for_hub(run: RunDirectory, output: Path, directory: Path) -> str:
    from tf_mlm.export.huggingface import export_for_hub

    export_for_hub(run, directory)
    return (
        f"{output}: model, tokenizer and model card; upload them with\n"
        f"hf upload YOUR_NAME/{re.sub(r'[^A-Za-z0-9._-]+', '-', run.name)} {shlex.quote(str(output))}"
    )
