"""From the command line to a call, and from what ends it early to one line and an exit code."""

import argparse
import io
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

from tf_mlm import hub, runtime
from tf_mlm.config import Config, DataConfig, ModelConfig, dump_config, load_config, nearest, setting_fields
from tf_mlm.errors import HubOutOfReach, Interrupted, NonFiniteLoss, Refused

SHORT_FLAGS = {
    "--epochs": "training.epochs",
    "--batch-size": "training.batch_size",
    "--learning-rate": "optimizer.learning_rate",
    "--model": "model.name",
    "--dataset": "data.dataset",
    "--seed": "training.seed",
}
_SAMPLE_CONFIG = Path(__file__).parent.parent / "configs" / "sample.toml"
_MAY_CHANGE_ON_RESUME = ("training.log_every", "checkpoint.every_minutes", "checkpoint.every_steps", "checkpoint.keep")
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


def _run(command: Callable[[list[str]], None], argv: list[str] | None) -> int:
    _reconfigure(errors="backslashreplace")  # what a locale that is not UTF-8 has no letters for
    try:
        arguments = sys.argv[1:] if argv is None else argv
        _check_readable(arguments)
        command(arguments)
        return 0
    except (Refused, NonFiniteLoss, Interrupted) as error:
        _print_line(f"{error}" if isinstance(error, Interrupted) else f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _print_line("interrupted")
        return 130
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
            raise Refused(
                f"{argument!r}: not text in this locale ({sys.getfilesystemencoding()}); set PYTHONUTF8=1 for UTF-8"
            ) from None


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
    from tf_mlm.training.run_directory import RunDirectory, new_run_path, newest_unfinished_run

    name = arguments.config.stem if arguments.config else "imdb"
    path = arguments.output_dir or new_run_path(name)
    if arguments.resume is not None:
        resumed = arguments.resume if arguments.resume != _NEWEST else arguments.output_dir
        if resumed is None:
            resumed = newest_unfinished_run(Path("runs"))
            if resumed is None:
                raise Refused(
                    "--resume: there is no unfinished run under runs/; name one, or start one without --resume"
                )
        if arguments.resume != _NEWEST or (resumed / "config.toml").exists():
            return _resume(resumed, arguments, overrides)
    _start_libraries(config, arguments.verbose)
    from tf_mlm.training.train import plan, train

    if arguments.plan:
        return plan(config)
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
    from tf_mlm.training.run_directory import RunDirectory

    run = RunDirectory.open(path)
    try:
        # What neither the file nor a flag names stays as the run has it.
        config = load_config(arguments.config or run.config_path, overrides)
        _check_same(path, load_config(run.config_path), config)
        if run.is_finished():
            shutil.rmtree(run.checkpoints_path, ignore_errors=True)  # if it was killed while it tidied up
            print(f"{path} is a finished run; nothing to do. To train on, start a new run with --model {path}/model")
            return
        _start_libraries(config, arguments.verbose)
        from tf_mlm.training.train import plan, train

        if arguments.plan:
            return plan(config)
        train(config, run)
    finally:
        run.release()


def _check_same(path: Path, stored: Config, given: Config) -> None:
    for name in setting_fields():
        section, key = name.split(".")
        before, now = (asdict(config)[section][key] for config in (stored, given))
        if before != now and name not in _MAY_CHANGE_ON_RESUME:
            raise Refused(
                f"--resume {path}: {name} = {now!r} where the run has {before!r}; leave it as it was or start a new "
                f"run (what may change is {', '.join(_MAY_CHANGE_ON_RESUME)})"
            )


def _start_libraries(config: Config, verbose: bool) -> None:
    """Import TensorFlow and the Hugging Face libraries, having asked whether the Hub is in reach if it is needed."""
    named = [config.model.name] if config.model.name else []
    named += [config.data.dataset] if config.data.dataset != "sample" else []
    if not all(hub.is_local(name) for name in named):
        hub.connect()
    runtime.prepare(config.training, verbose)


def _use(argv: list[str]) -> None:
    parser = _Parser(prog="python -m tf_mlm", description="Use a trained model. To train one: train.py.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add_command(name: str, call: Callable[[argparse.Namespace], None], description: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=description, description=description, allow_abbrev=False)
        command.add_argument("model", metavar="RUN_OR_MODEL", help="a run directory, a model folder, or a Hub name")
        command.set_defaults(call=call)
        return command

    command = add_command("fill-mask", _fill_mask, "The likeliest words for each [MASK] of a sentence.")
    command.add_argument("sentences", nargs="+", metavar="SENTENCE", help='such as "This is a great [MASK]."')
    command.add_argument("--top-k", type=int, default=5, metavar="K", help="words for each gap [5]")
    command.add_argument("--json", action="store_true", help="as JSON, one object a sentence")

    command = add_command("evaluate", _evaluate, "Loss, perplexity and accuracy over masked tokens.")
    command.add_argument("--dataset", metavar="NAME_OR_PATH", help="other data than the run's own validation data")
    command.add_argument("--text-column", default="", metavar="NAME", help="the column of --dataset with the text")
    command.add_argument("--json", action="store_true", help="as one JSON object")

    command = add_command(
        "explain", _explain, "What training computes, on one sentence: tokenise, mask, predict, loss."
    )
    command.add_argument("sentence", metavar="SENTENCE")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="decides what is masked [0]")

    command = add_command("export", _export, "Write a SavedModel.")
    command.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder")

    arguments = parser.parse_args(argv)
    arguments.call(arguments)


def _find_model(name: str) -> tuple[str, Config | None]:
    """The model folder or Hub name, and the config of the run where `name` is a run directory."""
    if not name:
        raise Refused("RUN_OR_MODEL is empty; name a run directory, a model folder, or a model of the Hub")
    if not (Path(name) / "config.toml").is_file():
        return name, None
    model = Path(name) / "model"
    if not model.is_dir():
        raise Refused(f"{name}: this run has no model yet; one is kept from the end of the first epoch on")
    return str(model), load_config(Path(name) / "config.toml")


def _fill_mask(arguments: argparse.Namespace) -> None:
    if arguments.top_k < 1:
        raise Refused(f"--top-k {arguments.top_k}: must be at least 1")
    model, tokenizer = _load_trained(arguments.model)
    from tf_mlm.serving.fill_mask import describe_fills, fill_masks

    for sentence in arguments.sentences:
        gaps = fill_masks(model, tokenizer, sentence, arguments.top_k)
        if arguments.json:
            print(json.dumps({"sentence": sentence, "fills": [[fill._asdict() for fill in gap] for gap in gaps]}))
        else:
            print(describe_fills(sentence, gaps))


def _explain(arguments: argparse.Namespace) -> None:
    model, tokenizer = _load_trained(arguments.model)
    from tf_mlm.serving.explain import explain_sentence

    print(explain_sentence(model, tokenizer, arguments.sentence, arguments.seed))


def _load_trained(name: str) -> tuple[Any, Any]:
    name, _ = _find_model(name)
    _start_libraries(replace(Config(), model=ModelConfig(name=name), data=DataConfig(dataset="sample")), verbose=False)
    from tf_mlm.model.loading import load_trained

    return load_trained(name)


def _evaluate(arguments: argparse.Namespace) -> None:
    name, config = _find_model(arguments.model)
    if config is None and arguments.dataset is None:
        raise Refused(f"evaluate {arguments.model}: a model has no data of its own; name some with --dataset")
    config = replace(config or Config(), model=ModelConfig(name=name))
    if arguments.dataset is not None:
        # Other data: what the run's settings say of its own columns and splits does not hold for it.
        kept = ("sequence_length", "num_validation_sequences", "line_by_line", "overflow")
        data = DataConfig(dataset=arguments.dataset, text_column=arguments.text_column)
        config = replace(config, data=replace(data, **{name: getattr(config.data, name) for name in kept}))
    _start_libraries(config, verbose=False)
    from tf_mlm.serving.evaluate import evaluate_model

    metrics = evaluate_model(config, own_data=arguments.dataset is None)
    if arguments.json:
        print(json.dumps(metrics))
    else:
        print(
            f"loss             {metrics['loss']:.4f} nats a masked token\n"
            f"perplexity       {metrics['perplexity']:.2f}\n"
            f"masked accuracy  {metrics['masked_accuracy']:.2%} top 1, {metrics['masked_accuracy_top_5']:.2%} top 5\n"
            f"over             {metrics['masked_tokens']:,} masked tokens of {metrics['sequences']:,} sequences"
        )


def _export(arguments: argparse.Namespace) -> None:
    name, _ = _find_model(arguments.model)
    if arguments.output.exists():
        raise Refused(f"--output {arguments.output}: is there already; name a new folder")
    _start_libraries(replace(Config(), model=ModelConfig(name=name), data=DataConfig(dataset="sample")), verbose=False)
    from tf_mlm.model.loading import load_trained
    from tf_mlm.serving.saved_model import export_saved_model
    from tf_mlm.training.run_directory import written_aside

    model, tokenizer = load_trained(name)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(arguments.output) as aside:
        why_no_strings = export_saved_model(model, tokenizer, aside)
    print(f"SavedModel in {arguments.output}")
    if why_no_strings:
        print(why_no_strings)
