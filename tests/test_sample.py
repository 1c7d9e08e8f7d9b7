"""The bundled sample: the results that its run must reach. The run takes minutes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.trigram import Trigram, trigram_loss
from tf_mlm.config import load_config

SAMPLE = ROOT / "configs" / "sample.toml"


def test_the_trigram_is_a_distribution_and_learns_a_rule_of_two_tokens() -> None:
    rng = np.random.default_rng(3)
    ids = [1, 2]
    for _ in range(5000):  # nine times in ten the sum of the last two
        ids.append((ids[-1] + ids[-2]) % 7 if rng.random() < 0.9 else int(rng.integers(7)))
    model = Trigram([np.array(ids)], vocab_size=7)
    for context in ((), (2,), (1, 2), (6, 6)):
        assert sum(model.probability(context, token) for token in range(7)) == pytest.approx(1)
    assert model.probability((4, 5), 2) == pytest.approx(0.9 + 0.1 / 7, abs=0.1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    command: list[str | Path] = [sys.executable, ROOT / "train.py", "--config", SAMPLE, "--output-dir", folder / "run"]
    subprocess.run(command, check=True, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)})
    return folder / "run"


@pytest.mark.slow
def test_the_sample_ends_far_below_the_unigram_and_trigram_losses(run: Path, tensorflow: None) -> None:
    from tf_mlm.data.corpus import load_corpus
    from tf_mlm.data.pipeline import build_collator, rows_of_epoch
    from tf_mlm.data.prepared import prepare_data
    from tf_mlm.model.loading import load_trained

    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = events[-1]["best_val_loss"]
    assert best <= events[0]["unigram_entropy"] - 2

    config = load_config(SAMPLE)
    seed = config.training.seed
    _, tokenizer = load_trained(str(run / "model"))
    data = prepare_data(config, load_corpus(config.data, seed), tokenizer)
    train = [data.train.input_ids[row, : data.train.lengths[row]] for row in rows_of_epoch(data.train_rows, 1)]
    collator = build_collator(data.validation, tokenizer, config.masking, seed, validation=True)
    batch = collator([{"epoch": 0, "index": int(row)} for row in data.validation_rows])
    left = trigram_loss(
        Trigram(train, len(tokenizer)), data.validation.input_ids[data.validation_rows], batch["labels"]
    )
    assert best <= left - 0.3
