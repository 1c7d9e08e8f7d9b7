import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny_run import inside, train
from tf_mlm.commands.main import main
from tf_mlm.config import MaskingConfig
from tf_mlm.errors import Refused

SENTENCE = "The film was a delight from beginning to end, and so was the music of its last scene."


@pytest.fixture(scope="module")
def trained(finished_run: Path) -> tuple[Any, Any]:
    from tf_mlm.model.loading import load_trained

    return load_trained(str(finished_run / "model"))


def explain(
    trained: tuple[Any, Any], sentence: str, seed: int, masking: MaskingConfig | None = None
) -> dict[str, list[str]]:
    """The lines that `explain` prints, by their first word."""
    from tf_mlm.inference.explain import explain_sentence

    lines: dict[str, list[str]] = {}
    for line in explain_sentence(*trained, sentence, masking or MaskingConfig(), seed).splitlines():
        name, rest = line.split(maxsplit=1)
        lines.setdefault(name, []).append(rest)
    return lines


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_predictions_and_losses_equal_those_of_the_stock_model(
    trained: tuple[Any, Any], finished_run: Path, seed: int
) -> None:
    import transformers

    model, tokenizer = trained
    lines = explain(trained, SENTENCE, seed)
    (original,), (masked,) = lines["tokenize"], lines["mask"]
    assert original == " ".join(tokenizer.convert_ids_to_tokens(tokenizer(SENTENCE)["input_ids"]))
    input_ids = np.array([tokenizer.convert_tokens_to_ids(masked.split())])
    stock = transformers.TFDistilBertForMaskedLM.from_pretrained(finished_run / "model")
    logits = stock(input_ids=input_ids).logits.numpy()[0].astype(np.float64)
    losses = []
    for predicted, loss_line in zip(lines["predict"], lines["loss"], strict=True):
        found = re.match(r"position (\d+), ", predicted)
        assert found
        position = int(found[1])
        token, shown = original.split()[position], masked.split()[position]
        assert f"{token!r} shown as {shown!r}" in predicted
        probabilities = np.exp(logits[position]) / np.exp(logits[position]).sum()
        best = tokenizer.convert_ids_to_tokens(np.argsort(-probabilities)[:3].tolist())
        assert re.findall(r"(\S+) [\d.]+%", predicted) == best
        losses.append(-math.log(probabilities[tokenizer.convert_tokens_to_ids(token)]))
        assert loss_line.startswith(f"-ln p({token!r}) = ") and loss_line.endswith(f" = {losses[-1]:.3f}")
    assert len(losses) == round(0.15 * (len(original.split()) - 2))
    mean = np.mean(losses)
    assert lines["mean"] == [f"{mean:.3f} nats over {len(losses)} predicted tokens: perplexity {math.exp(mean):.2f}"]


def test_the_seed_determines_the_masks(trained: tuple[Any, Any]) -> None:
    masked = [explain(trained, SENTENCE, seed)["mask"] for seed in (0, 0, 1)]
    assert masked[0] == masked[1] != masked[2]


@pytest.mark.parametrize(
    ("sentence", "reason"), [("", "no ordinary token"), ("[SEP] [MASK]", "no ordinary token"), ("a " * 600, "tokens")]
)
def test_a_sentence_that_cannot_be_explained_is_refused(trained: tuple[Any, Any], sentence: str, reason: str) -> None:
    with pytest.raises(Refused, match=f"^explain: .*{reason}"):
        explain(trained, sentence, 0)


def test_numbers_have_enough_digits_and_nouns_the_right_number(trained: tuple[Any, Any]) -> None:
    one = explain(trained, "A film.", 0)
    assert len(one["loss"]) == 1 and " nats over 1 predicted token: " in one["mean"][0]
    (probability,) = re.findall(r"-ln ([\d.e-]+) = ([\d.]+)", one["loss"][0])
    assert -math.log(float(probability[0])) == pytest.approx(float(probability[1]), abs=2e-3)


def test_explain_uses_the_masking_settings_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--training.num_train_steps", "2", "--masking.mlm_probability", "0.5", "--masking.mask_replace_prob", "1"]
    assert train(tmp_path, *flags, "--masking.random_replace_prob", "0", "--output-dir", "RUN") == 0
    capsys.readouterr()
    with inside(tmp_path):
        assert main(["explain", "RUN", SENTENCE]) == 0
    masked = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("mask "))
    tokens = masked.split()[2:-1]  # without the word "mask", [CLS] and [SEP]
    assert abs(tokens.count("[MASK]") - len(tokens) / 2) <= 1
