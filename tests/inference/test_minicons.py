"""`score` gives the numbers of minicons, the library of Kauf and Ivanova 2023, in a separate environment."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import SHARED
from tests.environments import install
from tests.tiny_tokenizers import tiny_models

# torch as in the extra `bench`. minicons 0.3.39 calls tokenizer.batch_encode_plus, which transformers 5 lacks.
PACKAGES = ("transformers>=4.57,<5", "torch==2.13.0", "minicons==0.3.39")
METHODS = {"word-l2r": "within_word_l2r", "token": "original"}  # minicons has no method that masks whole words
TEXTS = [
    "This movie was grate.",
    "Brad Pitt's performance was breathtakingly unwatchable, wasn't it?",
    "The  plot is not-so   great",
    "北京 made no sense [UNK]",
]

SCORE = """
import json, sys
from minicons.scorer import MaskedLMScorer

texts, methods, folders = json.loads(sys.argv[1])
found = {}
for folder in folders:
    scorer = MaskedLMScorer(folder, "cpu")
    for method in methods:
        scored = scorer.token_score(texts, PLL_metric=method)
        found[f"{folder} {method}"] = [[score for _, score in tokens] for tokens in scored]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_minicons_computes_the_same_scores(tensorflow: None, finished_run: Path, tmp_path: Path) -> None:
    from tf_mlm.inference.masked_copies import build_predictor
    from tf_mlm.inference.score import score_texts, tokenize_text
    from tf_mlm.model.loading import load_trained
    from tf_mlm.model.saving import save_model

    python = install(tmp_path / "environment", *PACKAGES)
    models: dict[str, Any] = {str(finished_run / "model"): load_trained(str(finished_run / "model"))}
    if SHARED.is_dir():
        minilm = str(SHARED / "models" / "minilm-l6-distilbert")
        models[minilm] = load_trained(minilm)
    for model_type in ("distilbert", "bert", "roberta", "albert"):
        model, _, tokenizer = tiny_models(model_type)
        save_model(model, tokenizer, tmp_path / model_type)
        models[str(tmp_path / model_type)] = model, tokenizer
    (tmp_path / "score.py").write_text(SCORE)
    request = json.dumps([TEXTS, list(METHODS.values()), list(models)])
    done = subprocess.run(
        [str(python), str(tmp_path / "score.py"), request],
        env=os.environ | {"USE_TORCH": "1"},  # tf_mlm turns it off
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads(done.stdout.splitlines()[-1])
    num_words = 0
    for folder, (model, tokenizer) in models.items():
        predict = build_predictor(model)
        tokenized = [tokenize_text(tokenizer, text, 512) for text in TEXTS]
        for ours, method in METHODS.items():
            scored = score_texts(predict, tokenizer, tokenized, ours)  # type: ignore[arg-type]
            for text, of_tokens in zip(scored, theirs[f"{folder} {method}"], strict=True):
                counts = [word.num_tokens for word in text.words]
                assert sum(counts) == len(of_tokens)
                expected = np.add.reduceat(of_tokens, np.cumsum([0, *counts[:-1]]))
                log_probabilities = [word.log_probability for word in text.words]
                np.testing.assert_allclose(log_probabilities, expected, rtol=1e-4, atol=1e-4)
                num_words += len(counts)
    assert num_words > 300
