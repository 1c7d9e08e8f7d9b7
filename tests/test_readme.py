"""The README's own lines, run as they stand there."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT


def run_block(first_line: str, run: Path) -> dict[str, Any]:
    """The names that the README's Python block with this first line leaves, `runs/RUN` being `run`."""
    blocks = [block.split("```")[0] for block in (ROOT / "README.md").read_text().split("```python\n")[1:]]
    (code,) = [block for block in blocks if block.startswith(f"{first_line}\n")]
    assert "runs/RUN/" in code
    names: dict[str, Any] = {}
    exec(code.replace("runs/RUN", str(run)), names)
    return names


def test_the_pipeline_answers(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_block("from transformers import AutoTokenizer, TFDistilBertForMaskedLM, pipeline", finished_run)
    assert "'token_str'" in capsys.readouterr().out


def test_what_follows_starts_from_the_adapted_encoder(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import transformers

    names = run_block(
        "from transformers import AutoTokenizer, TFDistilBertForSequenceClassification, "
        "TFDistilBertForTokenClassification",
        finished_run,
    )
    assert capsys.readouterr().out.splitlines()[-2:] == ["(2, 2)", "(1, 6, 5)"]
    run = transformers.TFDistilBertForMaskedLM.from_pretrained(finished_run / "model")
    for model in (names["classifier"], names["tagger"]):
        weights = [own.numpy() for own in model.distilbert.weights]
        assert len(weights) == len(run.distilbert.weights) > 15
        for mine, theirs in zip(weights, run.distilbert.weights, strict=True):
            np.testing.assert_array_equal(mine, theirs)
