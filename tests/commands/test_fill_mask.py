"""`tf-mlm fill-mask` with sentences from standard input."""

import io
import json
import sys
from pathlib import Path

import pytest

from tf_mlm.commands.main import main


def pipe(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_lines_without_a_mask_are_reported_and_the_others_answered(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(monkeypatch, b"A [MASK].\n\nno mask here\r\nThe [MASK] film.\r\n")
    assert main(["fill-mask", str(finished_run / "model"), "--json"]) == 2
    captured = capsys.readouterr()
    assert [json.loads(line)["sentence"] for line in captured.out.splitlines()] == ["A [MASK].", "The [MASK] film."]
    first, last = captured.err.splitlines()
    assert first.startswith("error: standard input line 3: ") and "'no mask here' has no [MASK]" in first
    assert last == "error: fill-mask: 1 of 3 lines failed; see the errors above"


def test_only_a_line_feed_ends_a_line_and_a_byte_order_mark_is_not_text(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = "A [MASK]\u2028of\x0btwo\x85lines."
    pipe(monkeypatch, b"\xef\xbb\xbf" + sentence.encode())
    assert main(["fill-mask", str(finished_run / "model"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sentence"] == sentence
