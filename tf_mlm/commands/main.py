"""The command line: parser, output streams, exit codes. Each command is a separate module."""

import argparse
import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from tf_mlm.commands import (
    compare,
    evaluate,
    explain,
    export,
    fill_mask,
    find_lr,
    finetune,
    predict,
    prepare,
    probe,
    score,
    serve,
    train,
)
from tf_mlm.config import suggest
from tf_mlm.errors import Interrupted, NonFiniteLoss, Refused, WorkerFailed

COMMANDS: tuple[Any, ...] = (
    train,
    prepare,
    find_lr,
    fill_mask,
    score,
    evaluate,
    explain,
    compare,
    probe,
    finetune,
    predict,
    export,
    serve,
)
"""Modules with NAME, DESCRIPTION, add_arguments(parser) and run(arguments)."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        unknown = message.partition("unrecognized arguments: ")[2].split(" ")[0].partition("=")[0]
        if unknown.startswith("-"):
            known = [option for action in self._actions for option in action.option_strings]
            match = suggest(unknown, known)
            message = f"unknown flag {unknown}; {f'did you mean {match!r}?' if match else 'see --help'}"
        raise Refused(message)


def console() -> NoReturn:
    """`tf-mlm` and `python -m tf_mlm`."""
    leave(main())


def main(argv: list[str] | None = None) -> int:
    """`tf-mlm COMMAND ...`: returns the exit code."""
    return _run(_run_command, argv)


def train_main(argv: list[str] | None = None) -> int:
    """`python train.py ...`, which is `tf-mlm train ...`: returns the exit code."""
    return _run(_run_train, argv)


def leave(code: int) -> NoReturn:
    """End the process. After a signal, skip the cleanup, because a preempted machine may be stopped soon.

    In the cleanup, TensorFlow can take 15 seconds to release an iterator.
    """
    if code > 128:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                print(end="", file=stream, flush=True)
        os._exit(code)
    sys.exit(code)


def _run_command(argv: list[str]) -> None:
    parser = _Parser(prog="tf-mlm", description="Train and use masked language models.", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        own = commands.add_parser(
            command.NAME, help=command.DESCRIPTION, description=command.DESCRIPTION, **_parser_options()
        )
        command.add_arguments(own)
        own.set_defaults(run=command.run, parser=own)
    arguments, rest = parser.parse_known_args(argv)
    # argparse does not append positionals after an option to a "*" argument (python/cpython#59317, fixed in 3.13).
    if "texts" in arguments and not any(argument.startswith("-") for argument in rest):
        arguments.texts += rest
    elif rest:
        arguments.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.run(arguments)


def _run_train(argv: list[str]) -> None:
    parser = _Parser(prog="train.py", description=train.DESCRIPTION, **_parser_options())
    train.add_arguments(parser)
    train.run(parser.parse_args(argv))


def _parser_options() -> dict[str, Any]:
    return {
        "allow_abbrev": False,
        "formatter_class": lambda prog: argparse.HelpFormatter(prog, max_help_position=44, width=120),
    }


def _run(command: Callable[[list[str]], None], argv: list[str] | None) -> int:
    _reconfigure_streams()
    try:
        arguments = sys.argv[1:] if argv is None else argv
        _check_readable(arguments)
        command(arguments)
        print(end="", flush=True)  # flush here, where a failure is handled
        return 0
    except Interrupted as error:
        _print_line(f"{error}")
        sys.last_value = error  # keeps the objects of the run until `leave`: releasing them can take long
        return error.exit_code
    except (Refused, NonFiniteLoss, WorkerFailed) as error:
        _print_line(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _print_line("interrupted")
        return 130
    except BrokenPipeError:  # the reader of the output, such as `head`, has ended
        return 128 + signal.SIGPIPE
    except OSError as error:
        _print_line(f"error: I/O error: {error}; files already written are intact")
        return 4
    except Exception as error:
        # Compared by name, because TensorFlow may not have been imported.
        if not isinstance(error, MemoryError) and type(error).__name__ != "ResourceExhaustedError":
            raise
        _print_line("error: out of memory; lower training.batch_size, or raise training.accumulate_steps")
        return 2


def _reconfigure_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook's stream has another type
            stream.reconfigure(errors="backslashreplace")  # needed in a locale that is not UTF-8


def _check_readable(arguments: list[str]) -> None:
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:  # Python decodes an invalid byte as a lone surrogate
            encoding = sys.getfilesystemencoding()
            if encoding == "utf-8":
                raise Refused(f"{argument!r}: is not UTF-8; convert it to UTF-8") from None
            raise Refused(f"{argument!r}: is not valid in this locale ({encoding}); set PYTHONUTF8=1") from None


def _print_line(message: str) -> None:
    print(" ".join(message.splitlines()), file=sys.stderr)
