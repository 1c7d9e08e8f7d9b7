"""The texts of a command: its arguments, or the lines of standard input."""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from tf_mlm.errors import Refused


@dataclass
class Lines:
    """The texts of a command by number, from 1.

    Attributes:
        from_stdin: whether the numbers are line numbers of standard input, without blank lines.
        num_refused: number of texts that were refused.
    """

    command: str
    texts: dict[int, str]
    from_stdin: bool
    num_refused: int = 0

    @classmethod
    def of(cls, command: str, arguments: list[str]) -> "Lines":
        """The arguments, or without any the lines of standard input.

        Raises:
            Refused: standard input is a terminal, has no text or is not UTF-8.
        """
        if arguments:
            return cls(command, dict(enumerate(arguments, start=1)), from_stdin=False)
        return cls(command, _read_lines(command), from_stdin=True)

    @contextlib.contextmanager
    def refusal_reported(self, number: int) -> Iterator[None]:
        """Report that a line of standard input was refused, and continue. An argument ends the command."""
        try:
            yield
        except Refused as error:
            if not self.from_stdin:
                raise
            print(f"error: standard input line {number}: {error}", file=sys.stderr)
            self.num_refused += 1

    def finish(self) -> None:
        """
        Raises:
            Refused: a line was refused.
        """
        if self.num_refused:
            raise Refused(f"{self.command}: {self.num_refused} of {len(self.texts)} lines failed; see the errors above")


def _read_lines(command: str) -> dict[int, str]:
    """The lines of standard input by number, without blank lines. Only `\\n` ends a line."""
    if sys.stdin is None or sys.stdin.isatty():
        raise Refused(f"{command}: no sentence given; pass one after the model, or pipe sentences in, one per line")
    try:
        lines = sys.stdin.buffer.read().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise Refused(f"{command}: standard input is not UTF-8 at byte {error.start}; convert it to UTF-8") from None
    found = {number: line.removesuffix("\r") for number, line in enumerate(lines, start=1) if line.strip()}
    if not found:
        raise Refused(f"{command}: standard input contains no sentence; pipe sentences in, one per line")
    return found
