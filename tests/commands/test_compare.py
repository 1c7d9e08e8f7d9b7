"""`tf-mlm compare` on real runs."""

import json
from pathlib import Path

import pytest

from tests.tiny_run import inside
from tf_mlm.commands.main import main


def test_a_run_and_itself_are_equal_in_table_plot_and_json(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with inside(finished_run.parent):
        assert main(["compare", "RUN", "RUN", "--plot", str(tmp_path / "curves.png")]) == 0
        table = capsys.readouterr().out
        assert main(["compare", "RUN", "RUN", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["settings"] == {} and content["not_comparable"] == ""
    assert content["runs"][0] == content["runs"][1]
    assert f"{content['runs'][0]['best val_loss']:.4f}" in table
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_one_run_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "RUN"]) == 2
    assert capsys.readouterr().err == "error: compare: requires at least two run directories; pass another one\n"


def test_a_plot_that_cannot_be_written_is_refused(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(finished_run), str(finished_run), "--plot", "/nonexistent/curves.png"]) == 2
    assert "--plot /nonexistent/curves.png: cannot be written" in capsys.readouterr().err
