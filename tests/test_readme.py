"""The examples of the README and of docs/, run as they are printed there."""

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.tiny_run import inside
from tf_mlm.commands.main import main, train_main

README = "README.md"


def code_blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [block.split("```")[0] for block in text.split(f"```{language}\n")[1:]]


def run_block(page: str, contains: str, run: Path) -> dict[str, Any]:
    """Execute the one Python block with `contains`, with `runs/RUN` replaced by `run`; returns its names."""
    (code,) = [block for block in code_blocks(page, "python") if contains in block]
    assert "runs/RUN" in code
    names: dict[str, Any] = {}
    exec(code.replace("runs/RUN", str(run)), names)
    return names


def train_commands() -> list[str]:
    """The `python train.py` and `tf-mlm train` lines of the indented blocks, without loops and placeholders."""
    pages = [README, *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
    lines = [line for page in pages for line in (ROOT / page).read_text(encoding="utf-8").splitlines()]
    found = [line.strip() for line in lines if re.match(r"    (python train\.py|tf-mlm train) ", line)]
    return sorted({line for line in found if "my.toml" not in line and "runs/RUN" not in line})


def test_the_two_install_commands_are_unchanged() -> None:
    lines = (ROOT / README).read_text(encoding="utf-8").splitlines()
    install = "    python3 -m venv .venv && .venv/bin/pip install -c requirements.txt -e "
    assert f"{install}. && .venv/bin/python train.py --epochs 20" in lines
    assert f'{install}".[test]" && .venv/bin/python -m pytest' in lines


@pytest.mark.parametrize("command", train_commands())
def test_every_train_command_is_accepted(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Checks flags, values and files, without training."""
    arguments = shlex.split(command.removeprefix("python train.py").removeprefix("tf-mlm train"))
    with inside(ROOT):
        assert train_main([*arguments, "--print-config"]) == 0, capsys.readouterr().err


def test_the_terminal_block_runs(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = code_blocks(README, "bash")
    commands = [line for line in block.splitlines() if line]
    assert len(commands) == 2 and all(command.startswith("tf-mlm ") for command in commands)
    for command in commands:
        assert main(shlex.split(command.replace("runs/RUN", str(finished_run)))[1:]) == 0
    out = capsys.readouterr().out
    assert "%" in out and "perplexity" in out.lower()


def test_the_commands_of_the_evaluation_page_run(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = code_blocks("docs/evaluation.md", "bash")
    names = {"runs/RUN": str(finished_run), "MODEL": str(finished_run / "model")}
    for command in block.splitlines():
        with inside(tmp_path):
            assert main([names.get(word, word) for word in shlex.split(command)][1:]) == 0
        assert "\ntreatment\n" in capsys.readouterr().out
    assert (tmp_path / "breakdown.png").exists()


def test_the_transformers_block_runs(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_block(README, "TFDistilBertForMaskedLM, pipeline", finished_run)
    assert "'token_str'" in capsys.readouterr().out


def test_the_python_block_runs(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run_block(README, "import tf_mlm", finished_run)
    assert len(names["answer"].fills[0]) == 3
    assert capsys.readouterr().out.splitlines()[-1] == "(2, 32)"


def test_the_tensorflow_block_runs(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run_block(README, "tf.saved_model.load", finished_run)
    assert names["answers"]["tokens"].shape == (1, 1, 3)
    assert "This is a great" in capsys.readouterr().out


def test_the_serving_page_answers_a_text_without_a_mask(finished_run: Path) -> None:
    names = run_block("docs/serving.md", "tf.saved_model.load", finished_run)
    assert names["answers"]["status"].numpy().tolist() == [0, 1]


def test_the_serving_page_names_every_signature_and_output(finished_run: Path) -> None:
    import tensorflow as tf

    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    signatures = tf.saved_model.load(str(finished_run / "saved_model")).signatures
    outputs = [name for signature in signatures.values() for name in signature.structured_outputs]
    assert outputs and [name for name in {*signatures, *outputs} if f"`{name}`" not in text] == []


def test_the_scoring_page_prints_a_score_and_a_word_of_each_text(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = run_block("docs/scoring.md", "model.score", finished_run)
    assert len(names["scored"].words) == 5
    assert [line.split("(")[0] for line in capsys.readouterr().out.splitlines()[1::2]] == ["ScoredWord"] * 2


def test_other_tasks_start_from_the_adapted_encoder(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import transformers

    names = run_block("docs/python.md", "TFDistilBertForSequenceClassification", finished_run)
    assert capsys.readouterr().out.splitlines()[-2:] == ["(2, 2)", "(1, 6, 5)"]
    run = transformers.TFDistilBertForMaskedLM.from_pretrained(finished_run / "model")
    for model in (names["classifier"], names["tagger"]):
        weights = [own.numpy() for own in model.distilbert.weights]
        assert len(weights) == len(run.distilbert.weights) > 15
        for mine, theirs in zip(weights, run.distilbert.weights, strict=True):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.slow
def test_the_python_page_trains_and_uses_a_model(
    tensorflow: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three epochs of the sample, a minute."""
    monkeypatch.syspath_prepend(str(ROOT))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    train, use, _ = (block for block in code_blocks("docs/python.md", "python") if "import tf_mlm" in block)
    names: dict[str, Any] = {}
    with inside(tmp_path):
        exec(train, names)
        exec(use, names)
    assert [row["epoch"] for row in names["run"].history] == [1, 2, 3]
    assert names["vectors"].shape == (2, 128)
