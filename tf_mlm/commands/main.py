"""From the command line to a call, and from what ends it early to one line and an exit code."""

import argparse
import contextlib
import io
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

from tf_mlm import hub, runtime
from tf_mlm.config import (
    Config,
    ModelConfig,
    TrainingConfig,
    dump_config,
    load_config,
    nearest,
    setting_fields,
)
from tf_mlm.errors import HubOutOfReach, Interrupted, NonFiniteLoss, Refused

SHORT_FLAGS = {
    "--epochs": "training.epochs",
    "--batch-size": "training.batch_size",
    "--learning-rate": "optimizer.learning_rate",
    "--model": "model.name",
    "--dataset": "data.dataset",
    "--seed": "training.seed",
}
_SAMPLE_CONFIG = Path(__file__).parents[2] / "configs" / "sample.toml"
_MAY_CHANGE_ON_RESUME = ("training.log_every", "checkpoint.every_minutes", "checkpoint.every_steps", "checkpoint.keep")
_OTHER_DATA = ("revision", "config_name", "document", "text_column", "validation_split")  # what may be said of it
_NEWEST = Path("<newest>")  # --resume without a name


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        unknown = message.partition("unrecognized arguments: ")[2].split(" ")[0].partition("=")[0]
        if unknown.startswith("-"):
            known = [option for action in self._actions for option in action.option_strings]
            message = (
                f"unknown flag {unknown}{nearest(unknown, known) if self._near(unknown, known) else ''}; see --help"
            )
        raise Refused(message)

    @staticmethod
    def _near(name: str, known: list[str]) -> bool:
        return nearest(name, known).startswith("; did you mean")


def train_main(argv: list[str] | None = None) -> int:
    """`python train.py`: returns the exit code."""
    return _run(_train, argv)


def main(argv: list[str] | None = None) -> int:
    """`python -m tf_mlm COMMAND`: returns the exit code."""
    return _run(_use, argv)


def leave(code: int) -> NoReturn:
    """End the process; at once where a signal asked for it, since machines that are taken away give little time.

    TensorFlow at times takes 15 seconds to give up an iterator over data; nothing is done in them.
    """
    if code > 128:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                print(end="", file=stream, flush=True)
        os._exit(code)
    sys.exit(code)


def _run(command: Callable[[list[str]], None], argv: list[str] | None) -> int:
    _reconfigure(errors="backslashreplace")  # what a locale that is not UTF-8 has no letters for
    try:
        arguments = sys.argv[1:] if argv is None else argv
        _check_readable(arguments)
        command(arguments)
        print(end="", flush=True)  # here, where it may fail, and not as Python ends
        return 0
    except Interrupted as error:
        _print_line(f"{error}")
        sys.last_value = error  # kept until `leave`, with all that the run holds, whose end may take as long
        return error.exit_code
    except (Refused, NonFiniteLoss) as error:
        _print_line(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _print_line("interrupted")
        return 130
    except BrokenPipeError:  # who reads the output has seen enough, as `head` has
        return 128 + signal.SIGPIPE
    except OSError as error:
        _print_line(f"error: input/output failed: {error}; what was written before is whole")
        return 4
    except Exception as error:
        # By its name, because TensorFlow may not have been imported.
        if not isinstance(error, MemoryError) and type(error).__name__ != "ResourceExhaustedError":
            raise
        _print_line("error: out of memory; lower training.batch_size, or raise training.accumulate_steps")
        return 2


def _reconfigure(**options: Any) -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook's is another
            stream.reconfigure(**options)


def _check_readable(arguments: list[str]) -> None:
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:  # the bytes that Python could not read stand there as halves of surrogate pairs
            encoding = sys.getfilesystemencoding()
            if encoding == "utf-8":
                raise Refused(f"{argument!r} is not UTF-8; convert it") from None
            raise Refused(f"{argument!r}: not text in this locale ({encoding}); set PYTHONUTF8=1 for UTF-8") from None


def _print_line(message: str) -> None:
    print(" ".join(message.splitlines()), file=sys.stderr)


def _train_parser() -> _Parser:
    parser = _Parser(
        prog="train.py",
        description="Adapt a masked language model to a text. Settings: defaults < --config < the flags given.",
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=44, width=120),
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings as TOML, such as configs/imdb.toml")
    for flag, name in SHORT_FLAGS.items():
        parser.add_argument(flag, dest=name, metavar="VALUE", default=argparse.SUPPRESS, help=f"short for --{name}")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="the run directory; runs/<config name>-<time>")
    parser.add_argument(
        "--resume",
        type=Path,
        nargs="?",
        const=_NEWEST,
        metavar="RUN",
        help="continue that run, or the newest unfinished",
    )
    parser.add_argument("--plan", action="store_true", help="say what would happen, train nothing")
    parser.add_argument("--print-config", action="store_true", help="the resolved settings as TOML, and stop")
    parser.add_argument("--verbose", action="store_true", help="let TensorFlow say all it wants to")
    groups: dict[str, Any] = {}
    for name, field in setting_fields().items():
        section = name.partition(".")[0]
        group = groups.get(section) or groups.setdefault(section, parser.add_argument_group(f"[{section}]"))
        extra: dict[str, Any] = {"nargs": "+"} if isinstance(field.default.default, tuple) else {}
        if field.type is bool:
            extra = {"nargs": "?", "const": "true"}
        group.add_argument(
            f"--{name}",
            dest=name,
            metavar="VALUE",
            default=argparse.SUPPRESS,
            help=f"{field.default.description} [{_shown(field.default.default)}]".replace("%", "%%"),
            **extra,
        )
    return parser


def _shown(default: Any) -> str:
    return f"{len(default)} sentences" if isinstance(default, tuple) else repr(default)


def _train(argv: list[str]) -> None:
    arguments = _train_parser().parse_args(argv)
    overrides = {name: value for name, value in vars(arguments).items() if "." in name}
    config = load_config(arguments.config, overrides)
    if arguments.resume not in (None, _NEWEST) and arguments.output_dir is not None:
        raise Refused("--resume RUN and --output-dir name two run directories; leave one of them out")
    if arguments.print_config:
        _reconfigure(encoding="utf-8")  # TOML is, whatever the locale
        print(dump_config(config), end="")
        return
    # Only a request that names nothing may be met with the sample.
    is_bare = arguments.config is None and overrides.keys() <= {"training.epochs", "training.seed"}
    try:
        _train_or_resume(config, arguments, overrides)
    except HubOutOfReach as error:
        holds_run = arguments.output_dir is not None and (arguments.output_dir / "config.toml").exists()
        if not is_bare or holds_run or arguments.resume is not None and arguments.output_dir is None:
            raise
        banner = (
            f"{'=' * 100}\nTHE HUB IS OUT OF REACH, SO THIS IS THE SAMPLE: a small DistilBERT from random weights on "
            f"the corpus that\ncomes with tf_mlm (configs/sample.toml).\nNot done: {error}\n{'=' * 100}"
        )
        print(banner, flush=True)
        arguments.config = _SAMPLE_CONFIG
        _train_or_resume(load_config(_SAMPLE_CONFIG, overrides), arguments, overrides)
        print(banner)


def _train_or_resume(config: Config, arguments: argparse.Namespace, overrides: dict[str, Any]) -> None:
    from tf_mlm.run.directory import RunDirectory, new_run_path, newest_unfinished_run

    name = arguments.config.stem if arguments.config else "imdb"
    path = arguments.output_dir or new_run_path(name)
    if arguments.resume is not None:
        resumed = arguments.resume if arguments.resume != _NEWEST else arguments.output_dir
        if resumed is None:
            resumed = newest_unfinished_run(Path("runs"))
            if resumed is None:
                raise Refused(
                    "--resume: there is no unfinished run under runs/, but for those at work and those that ended with "
                    "exit code 3; name one, or start one without --resume"
                )
        if arguments.resume != _NEWEST or (resumed / "config.toml").exists():
            return _resume(resumed, arguments, overrides)
    _start_libraries(config, arguments.verbose)
    from tf_mlm.training.train import plan, train

    if arguments.plan:
        return plan(config, RunDirectory(path))
    run = RunDirectory.create(path)
    try:
        train(config, run)
    except Refused:
        if not run.metrics_path.exists():
            run.discard()
        raise
    finally:
        run.release()


def _resume(path: Path, arguments: argparse.Namespace, overrides: dict[str, Any]) -> None:
    from tf_mlm.run.directory import RunDirectory

    run = RunDirectory.open(path)
    try:
        # What neither the file nor a flag names stays as the run has it.
        config = load_config(arguments.config or run.config_path, overrides)
        finished = run.is_finished()
        way_on = f"to train on, start a new run with --model {path}/model" if finished else "or start a new run"
        _check_same(path, load_config(run.config_path), config, way_on)
        if finished:
            shutil.rmtree(run.checkpoints_path, ignore_errors=True)  # if it was killed while it tidied up
            print(f"{path} is a finished run; nothing to do; {way_on}")
            return
        _start_libraries(config, arguments.verbose)
        from tf_mlm.training.train import plan, train

        if arguments.plan:
            return plan(config, run)
        train(config, run)
    finally:
        run.release()


def _check_same(path: Path, stored: Config, given: Config, way_on: str) -> None:
    for name in setting_fields():
        section, key = name.split(".")
        before, now = (asdict(config)[section][key] for config in (stored, given))
        if before != now and name not in _MAY_CHANGE_ON_RESUME:
            raise Refused(
                f"--resume {path}: {name} = {now!r} where the run has {before!r}; leave it as it was, "
                f"{way_on} (what may change is {', '.join(_MAY_CHANGE_ON_RESUME)})"
            )


def _start_libraries(config: Config, verbose: bool) -> None:
    named = [config.model.name] if config.model.name else []
    named += [config.data.dataset] if config.data.dataset != "sample" else []
    _start_libraries_for(named, config.training, verbose)


def _start_libraries_for(named: list[str], training: TrainingConfig, verbose: bool = False) -> None:
    """Import TensorFlow and the Hugging Face libraries, having asked for the Hub if `named` needs it."""
    if not all(hub.is_local(name) for name in named):
        hub.connect()
    runtime.prepare(training, verbose)


def _use(argv: list[str]) -> None:
    parser = _Parser(prog="python -m tf_mlm", description="Use a trained model. To train one: train.py.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add_command(
        name: str, call: Callable[[argparse.Namespace], None], description: str, positional: dict[str, Any]
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=description, description=description, allow_abbrev=False)
        command.add_argument(**positional)
        command.set_defaults(call=call)
        return command

    model = {"dest": "model", "metavar": "RUN_OR_MODEL", "help": "a run directory, a model folder, or a Hub name"}
    texts = {
        "dest": "texts",
        "metavar": "RUN_OR_MODEL SENTENCE",
        "nargs": "*",
        "help": "a run directory, a model folder, a SavedModel or a Hub name; then sentences such as "
        '"This is a great [MASK].", or none to read them from standard input, one a line',
    }

    command = add_command("fill-mask", _fill_mask, "The likeliest words for each [MASK] of a sentence.", texts)
    command.usage = f"{command.prog} (RUN_OR_MODEL | --compare A B) [SENTENCE ...] [--top-k K] [--json]"
    command.add_argument("--compare", nargs=2, metavar=("A", "B"), help="two models side by side")
    command.add_argument("--top-k", type=int, default=5, metavar="K", help="words for each gap [5]")
    command.add_argument("--json", action="store_true", help="as JSON, one object a sentence")

    command = add_command("evaluate", _evaluate, "Loss, perplexity and accuracy over masked tokens.", model)
    command.add_argument("--dataset", metavar="NAME_OR_PATH", help="other data than the run's own validation data")
    for key in _OTHER_DATA:
        flags = [f"--data.{key}", *(["--text-column"] if key == "text_column" else [])]
        description = setting_fields()[f"data.{key}"].default.description
        command.add_argument(*flags, dest=f"data.{key}", metavar="VALUE", default=argparse.SUPPRESS, help=description)
    command.add_argument("--json", action="store_true", help="as one JSON object")

    command = add_command(
        "explain", _explain, "What training computes, on one sentence: tokenise, mask, predict, loss.", model
    )
    command.add_argument("sentence", metavar="SENTENCE")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="decides what is masked [0]")

    command = add_command("export", _export, "Write the model for others: to serve, to embed, to publish.", model)
    command.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder")
    formats = ("saved_model", "tflite", "onnx", "huggingface")
    command.add_argument("--format", choices=formats, default=formats[0], help="[saved_model]")

    arguments, rest = parser.parse_known_args(argv)
    # argparse gives no positional to a "*" that an option has interrupted (python/cpython#59317, repaired in 3.13).
    if "texts" in arguments and not any(argument.startswith("-") for argument in rest):
        arguments.texts += rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.call(arguments)


def _is_saved_model(name: str) -> bool:
    return (Path(name) / "saved_model.pb").is_file()


def _find_model(name: str) -> tuple[str, Config | None]:
    """The model folder or Hub name, and the config of the run where `name` is a run directory."""
    if not name:
        raise Refused("RUN_OR_MODEL is empty; name a run directory, a model folder, or a model of the Hub")
    if _is_saved_model(name):
        raise Refused(f"{name}: is a SavedModel, which fill-mask alone can use; name the run or its model folder")
    if not (Path(name) / "config.toml").is_file():
        return name, None
    model = Path(name) / "model"
    if not model.is_dir():
        raise Refused(f"{name}: this run has no model yet; one is kept from the end of the first epoch on")
    return str(model), load_config(Path(name) / "config.toml")


def _fill_mask(arguments: argparse.Namespace) -> None:
    if arguments.top_k < 1:
        raise Refused(f"--top-k {arguments.top_k}: must be at least 1")
    names, sentences = arguments.compare or arguments.texts[:1], arguments.texts[not arguments.compare :]
    if not names:
        raise Refused("fill-mask: no model; name a run directory, a model folder, a SavedModel or a Hub name")
    folders = [name if _is_saved_model(name) else _find_model(name)[0] for name in names]
    sentences = sentences or _read_sentences()
    _start_libraries_for(folders, TrainingConfig(xla="off"))  # what is computed once is not worth compiling
    from tf_mlm.inference.fill_mask import (
        answer,
        describe_answer,
        describe_side_by_side,
        load_filler,
        load_served_filler,
    )
    from tf_mlm.json_text import dump_json

    fillers = [load_served_filler(name) if _is_saved_model(name) else load_filler(name) for name in folders]
    for sentence in sentences:
        answers = [answer(fill, sentence, arguments.top_k) for fill in fillers]
        if arguments.json:
            objects = [{"model": name} | given.as_dict() for name, given in zip(names, answers, strict=True)]
            print(dump_json(objects if arguments.compare else objects[0]), flush=True)
        elif arguments.compare:
            print(describe_side_by_side(names, answers), flush=True)
        else:
            print(describe_answer(answers[0]), flush=True)


def _read_sentences() -> list[str]:
    """The lines of standard input, without the blank ones."""
    if sys.stdin is None or sys.stdin.isatty():
        raise Refused("fill-mask: no sentence; write one behind the model, or pipe them in, one a line")
    try:
        lines = sys.stdin.buffer.read().decode().splitlines()
    except UnicodeDecodeError as error:
        raise Refused(f"fill-mask: standard input is not UTF-8, at byte {error.start}; convert it") from None
    if not (sentences := [line for line in lines if line.strip()]):
        raise Refused("fill-mask: standard input holds no sentence; pipe them in, one a line")
    return sentences


def _explain(arguments: argparse.Namespace) -> None:
    model, tokenizer = _load_trained(arguments.model)
    from tf_mlm.inference.explain import explain_sentence

    print(explain_sentence(model, tokenizer, arguments.sentence, arguments.seed))


def _load_trained(name: str) -> tuple[Any, Any]:
    name, _ = _find_model(name)
    _start_libraries_for([name], TrainingConfig(xla="off"))
    from tf_mlm.model.loading import load_trained

    return load_trained(name)


def _evaluate(arguments: argparse.Namespace) -> None:
    name, config = _find_model(arguments.model)
    settings = {name: value for name, value in vars(arguments).items() if name.startswith("data.")}
    if settings and arguments.dataset is None:
        raise Refused(f"--{next(iter(settings))} is of other data; name that with --dataset, or leave it out")
    if config is None and arguments.dataset is None:
        raise Refused(f"evaluate {arguments.model}: a model has no data of its own; name some with --dataset")
    config = replace(config or Config(), model=ModelConfig(name=name))
    if arguments.dataset is not None:
        # Other data: what the run's settings say of its own columns and splits does not hold for it.
        kept = ("sequence_length", "num_validation_sequences", "line_by_line", "overflow")
        data = load_config(None, settings | {"data.dataset": arguments.dataset}).data
        config = replace(config, data=replace(data, **{name: getattr(config.data, name) for name in kept}))
    _start_libraries(config, verbose=False)
    from tf_mlm.inference.evaluate import evaluate_model
    from tf_mlm.json_text import dump_json

    metrics = evaluate_model(config, own_data=arguments.dataset is None)
    if arguments.json:
        print(dump_json(metrics))
    else:
        print(
            f"loss             {metrics['loss']:.4f} nats a masked token\n"
            f"perplexity       {metrics['perplexity']:.2f}\n"
            f"masked accuracy  {metrics['masked_accuracy']:.2%} top 1, {metrics['masked_accuracy_top_5']:.2%} top 5\n"
            f"over             {metrics['masked_tokens']:,} masked tokens of {metrics['sequences']:,} sequences"
        )


def _export(arguments: argparse.Namespace) -> None:
    output, kind = arguments.output, arguments.format
    name, config = _find_model(arguments.model)
    if output.exists():
        raise Refused(f"--output {output}: is there already; name a new folder")
    if kind == "huggingface" and config is None:
        raise Refused(
            f"--format huggingface: {name} is no run, of which the card tells; a model folder can be uploaded as it is"
        )
    _start_libraries_for([name], TrainingConfig(xla="off"))
    from tf_mlm.atomic_files import atomic_directory

    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_directory(output) as temporary:
        said = (
            _export_for_hub(arguments, temporary)
            if kind == "huggingface"
            else _export_as(kind, name, output, temporary)
        )
    print(said)


def _export_as(kind: str, name: str, output: Path, folder: Path) -> str:
    """Write to `folder`, which will be `output`; what to tell of it."""
    from tf_mlm.export.conversion import export_onnx, export_tflite
    from tf_mlm.export.saved_model import export_saved_model
    from tf_mlm.model.loading import load_trained

    model, tokenizer = load_trained(name)
    if kind == "saved_model":
        return f"SavedModel in {output}\n{export_saved_model(model, tokenizer, folder)}".rstrip()
    deviation = {"tflite": export_tflite, "onnx": export_onnx}[kind](model, tokenizer, folder)
    return (
        f"{output}/model.{kind}, from ids and mask to logits, with config and tokenizer beside it\n"
        f"checked in its runtime: logits within {deviation:.1e} of the model's, relative to the largest"
    )


def _export_for_hub(arguments: argparse.Namespace, folder: Path) -> str:
    from tf_mlm.export.huggingface import export_for_hub
    from tf_mlm.run.directory import RunDirectory

    run = RunDirectory(Path(arguments.model))
    export_for_hub(run, folder)
    return (
        f"{arguments.output}: model, tokenizer and card; upload it, under your own name, with\n"
        f"hf upload YOUR_NAME/{re.sub(r'[^A-Za-z0-9._-]+', '-', run.name)} {shlex.quote(str(arguments.output))}"
    )
