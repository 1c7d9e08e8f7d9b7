"""A saved model loads in the newest transformers, with PyTorch, and in sentence-transformers, and computes the same.

They are installed in a separate environment.
"""

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import SHARED
from tests.environments import install
from tests.model.conftest import build_pair, make_batch, tiny_config
from tf_mlm.config import ModelConfig, load_config
from tf_mlm.data.corpus import load_corpus
from tf_mlm.data.pipeline import build_collator
from tf_mlm.data.sequences import load_sequences
from tf_mlm.inference.evaluate import evaluate_model
from tf_mlm.model.architectures import ARCHITECTURES
from tf_mlm.model.loading import load_trained
from tf_mlm.model.saving import save_model
from tf_mlm.model.tokenizer import build_tokenizer

# torch as in the extra `bench`; the others are the newest there are.
PACKAGES = ("transformers>=5", "torch==2.13.0", "sentence-transformers")
SENTENCES = ["This is a film.", "the story was superb , and the music dull"]

LOAD = """
import json, logging, sys, warnings
import numpy as np, torch, transformers
from sentence_transformers import SentenceTransformer

said = []
class Kept(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())
for name in ("transformers", "sentence_transformers"):
    logging.getLogger(name).addHandler(Kept(logging.WARNING))
inputs, answers, facts = np.load(sys.argv[1]), {}, {"transformers": transformers.__version__}
for folder in sys.argv[3:]:
    model, info = transformers.AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    ids, mask = (torch.tensor(inputs[f"{folder}/{name}"], dtype=torch.long) for name in ("input_ids", "attention_mask"))
    with torch.no_grad():
        answers[f"{folder}/logits"] = model.eval()(input_ids=ids, attention_mask=mask).logits.numpy()
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    facts[folder] = {name: sorted(map(str, keys)) for name, keys in info.items() if keys} | {"tied": tied}
# sentence-transformers takes the encoder alone, so that transformers then names the head, and only that.
facts["said"] = list(said)
answers["sentences"] = SentenceTransformer(sys.argv[3]).encode(json.loads(str(inputs["sentences"])))
np.savez(sys.argv[2], **answers)
print(json.dumps(facts | {"missing": [line for line in said if "MISSING" in line]}))
"""


LOSS = """
import json, sys
import numpy as np, torch, transformers
losses = []
model = transformers.DistilBertForMaskedLM.from_pretrained(sys.argv[1]).eval()
for path in sys.argv[2:]:
    batch = {name: torch.tensor(value, dtype=torch.long) for name, value in np.load(path).items()}
    with torch.no_grad():
        losses.append(float(model(**batch).loss))
print(json.dumps(losses))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("environment"), *PACKAGES)


@pytest.mark.slow
def test_the_newest_transformers_and_sentence_transformers_compute_the_same(
    python: Path, finished_run: Path, tmp_path: Path
) -> None:
    run: Any
    run, tokenizer = load_trained(str(finished_run / "model"))
    models: dict[Path, Any] = {finished_run / "model": run}
    if SHARED.is_dir():
        models[SHARED / "models" / "minilm-l6-distilbert"] = load_trained(
            str(SHARED / "models" / "minilm-l6-distilbert")
        )[0]
    for model_type in ARCHITECTURES:
        model, _ = build_pair(tiny_config(model_type))
        save_model(
            model, build_tokenizer(["the film was long and the plot made no sense"] * 3, 45), tmp_path / model_type
        )
        models[tmp_path / model_type] = model
    inputs: dict[str, Any]
    inputs, expected = {"sentences": np.array(json.dumps(SENTENCES))}, {}
    for folder, model in models.items():
        features, _ = make_batch(vocab_size=min(model.config.vocab_size, 300))
        inputs |= {f"{folder}/{name}": value.numpy() for name, value in features.items()}
        expected[folder] = model(features).logits.numpy()
    np.savez(tmp_path / "inputs.npz", **inputs)
    (tmp_path / "load.py").write_text(LOAD)
    files = [tmp_path / name for name in ("load.py", "inputs.npz", "answers.npz")]
    done = subprocess.run(
        [str(path) for path in (python, *files, *models)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    facts, answers = json.loads(done.stdout.splitlines()[-1]), np.load(tmp_path / "answers.npz")
    assert int(facts.pop("transformers").split(".")[0]) >= 5
    assert facts.pop("said") == facts.pop("missing") == []
    assert facts == {str(folder): {"tied": True} for folder in models}  # no key is missing, unexpected or mismatched
    for folder in models:
        largest = np.abs(expected[folder]).max()
        np.testing.assert_allclose(answers[f"{folder}/logits"], expected[folder], rtol=0, atol=1e-4 * min(1, largest))
    encoded = tokenizer(SENTENCES, padding=True, return_tensors="tf")
    hidden = run.distilbert(**encoded)[0].numpy()
    weights = encoded["attention_mask"].numpy()[:, :, np.newaxis]
    means = (hidden * weights).sum(1) / weights.sum(1)
    np.testing.assert_allclose(answers["sentences"], means, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_pytorch_computes_the_loss_of_evaluate_on_the_same_masks(
    python: Path, finished_run: Path, tmp_path: Path
) -> None:
    """`DistilBertForMaskedLM` gets all tokens of the two draws of `evaluate --mask-draws 2` in two batches."""
    config = load_config(finished_run / "config.toml")
    config = replace(config, model=ModelConfig(name=str(finished_run / "model")))
    expected = evaluate_model(config, own_data=True, num_draws=2)
    corpus, (_, tokenizer) = load_corpus(config.data, config.training.seed), load_trained(config.model.name)
    sequences = load_sequences(corpus.validation, corpus.validation_fingerprint, tokenizer, config.data, "validation")
    rows = sequences.draw_rows(config.data.num_validation_sequences, config.training.seed)
    collator = build_collator(sequences, tokenizer, config.masking, config.training.seed, validation=True)
    (tmp_path / "loss.py").write_text(LOSS)
    batches = [tmp_path / "1.npz", tmp_path / "2.npz"]
    for number, path in enumerate(batches):
        batch: dict[str, Any] = replace(collator, draw=number + 1)([{"epoch": 0, "index": int(row)} for row in rows])
        np.savez(path, **{name: batch[name] for name in ("input_ids", "attention_mask", "labels")})
    done = subprocess.run(
        [str(path) for path in (python, tmp_path / "loss.py", config.model.name, *batches)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(found, [draw["loss"] for draw in expected.draws], rtol=0, atol=1e-4)
