"""A run with `data.isolate_documents`, from training to evaluation."""

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny_run import inside, read_metrics, train
from tests.training.test_train import assert_same_run, send_signal
from tf_mlm.commands.main import main
from tf_mlm.config import load_config


def output_of(*arguments: str | Path) -> str:
    printed = io.StringIO()
    with inside(Path()), contextlib.redirect_stdout(printed):
        assert main([*map(str, arguments)]) == 0
    return printed.getvalue()


def evaluate(*arguments: str | Path) -> dict[str, Any]:
    return json.loads(output_of("evaluate", *arguments, "--json"))


FLAGS = ("--data.isolate_documents", "--training.accumulate_steps", "2", "--epochs", "2")


@pytest.fixture(scope="module")
def isolated_run(tensorflow: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("isolated")
    assert train(folder, *FLAGS, "--output-dir", "RUN") == 0
    return folder / "RUN"


def val_losses(run: Path) -> list[float]:
    return [event["val_loss"] for event in read_metrics(run) if "val_loss" in event]


def test_the_loss_decreases_and_differs_from_that_of_joined_documents(isolated_run: Path, finished_run: Path) -> None:
    start, *_, last = val_losses(isolated_run)
    assert start == pytest.approx(np.log(300), abs=0.3)
    assert last < start - 0.4
    joined = val_losses(finished_run)[0]  # the same weights, before training
    assert start != joined and start == pytest.approx(joined, abs=0.05)


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_same_weights(
    isolated_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        send_signal(patch, "on_train_batch_end", at_step=13)
        assert train(tmp_path, *FLAGS, "--output-dir", "RUN") == 143
    with inside(tmp_path):
        assert main(["train", "--resume", "RUN"]) == 0
    assert_same_run(tmp_path / "RUN", isolated_run)


def test_evaluation_of_the_run_gives_its_best_validation_loss(isolated_run: Path) -> None:
    best = read_metrics(isolated_run)[-1]["best_val_loss"]
    assert evaluate(isolated_run)["loss"] == best == min(val_losses(isolated_run)[1:])
    in_depth = evaluate(isolated_run, "--breakdown", "--baseline", isolated_run / "model", "--mask-draws", "2")
    assert in_depth["loss"] == best
    rows = in_depth["breakdown"]["groups"][0]["rows"]
    assert rows[0]["scores"]["difference"]["loss"]["value"] == 0


def test_evaluation_on_another_dataset_isolates_its_documents_too(isolated_run: Path, tmp_path: Path) -> None:
    lines = ["the film was long", "the plot made no sense", "a delight from start to end", "we liked it"]
    (tmp_path / "reviews.txt").write_text("\n".join(lines * 5) + "\n")
    run = evaluate(isolated_run, "--dataset", tmp_path / "reviews.txt")
    model = evaluate(isolated_run / "model", "--dataset", tmp_path / "reviews.txt")  # default settings
    assert run["loss"] != model["loss"]
    config = load_config(isolated_run / "config.toml")
    assert run["loss"] == pytest.approx(loss_one_document_at_a_time(isolated_run, tmp_path, config), rel=1e-5)


def loss_one_document_at_a_time(run: Path, folder: Path, config: Any) -> float:
    """The loss in float64 numpy from the stock model, which receives one document at a time."""
    import transformers

    from tf_mlm.data.corpus import load_documents
    from tf_mlm.data.pipeline import build_collator
    from tf_mlm.data.sequences import load_sequences
    from tf_mlm.inference.evaluate import other_data

    data = other_data(config, load_config(None, {"data.dataset": str(folder / "reviews.txt")}).data).data
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(run / "model")
    model = transformers.TFDistilBertForMaskedLM.from_pretrained(run / "model")
    scored = load_documents(data)
    sequences = load_sequences(scored.documents, scored.fingerprint, tokenizer, data, "validation")
    collator = build_collator(sequences, tokenizer, config.masking, config.training.seed, validation=True)
    batch = collator([{"epoch": 0, "index": index} for index in range(len(sequences.input_ids))])
    losses = []
    for ids, labels, original, length in zip(
        batch["input_ids"], batch["labels"], sequences.input_ids, sequences.lengths, strict=True
    ):
        starts = {0, *np.flatnonzero(original[:length] == tokenizer.cls_token_id)}
        for start, end in zip(sorted(starts), [*sorted(starts - {0}), int(length)], strict=True):
            logits = model(input_ids=ids[None, start:end]).logits.numpy()[0].astype(np.float64)
            for row, label in zip(logits, labels[start:end], strict=True):
                if label != -100:
                    losses.append(np.log(np.exp(row).sum()) - row[label])
    assert len(losses) > 10
    return float(np.mean(losses))


def test_the_card_and_the_commands_work_on_the_run(isolated_run: Path, finished_run: Path) -> None:
    assert "Attention stays inside each document" in (isolated_run / "README.md").read_text()
    compared = output_of("compare", isolated_run, finished_run)
    assert re.search(r"data\.isolate_documents +true +false", compared)
    for command, text in (("fill-mask", "a [MASK]"), ("score", "a film"), ("explain", "a film")):
        assert output_of(command, isolated_run, text)


def test_a_sequence_may_have_all_positions_of_the_model(finished_run: Path, tmp_path: Path) -> None:
    positions = json.loads((finished_run / "model" / "config.json").read_text())["max_position_embeddings"]
    flags = ["--model", str(finished_run / "model"), "--data.isolate_documents", "--batch-size", "2"]
    flags += ["--data.sequence_length", str(positions), "--training.num_train_steps", "2"]
    flags += ["--data.num_train_sequences", "4", "--data.num_validation_sequences", "4"]
    assert train(tmp_path, *flags, "--output-dir", "RUN") == 0
    assert np.isfinite(val_losses(tmp_path / "RUN")).all()
