import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny_run import inside, train
from tf_mlm.commands.main import main
from tf_mlm.config import DataConfig, load_config


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 documents of different lengths, one of them repeated."""
    path = tmp_path_factory.mktemp("reviews") / "reviews.txt"
    lines = [f"The film {'of many scenes ' * (number % 7)}was a {number} minute delight." for number in range(49)]
    path.write_text("\n".join([*lines, lines[3]]) + "\n")
    return path


def evaluate(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    capsys.readouterr()
    with inside(Path()):
        assert main(["evaluate", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def compute(model_folder: Path, data: DataConfig, seed: int) -> dict[str, Any]:
    """The same metrics in float64 numpy, from the logits of the stock model at all positions."""
    import transformers

    from tf_mlm.config import MaskingConfig
    from tf_mlm.data.corpus import load_documents
    from tf_mlm.data.pipeline import build_collator
    from tf_mlm.data.sequences import load_sequences

    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    model = transformers.TFDistilBertForMaskedLM.from_pretrained(model_folder)
    scored = load_documents(data)
    sequences = load_sequences(scored.documents, scored.fingerprint, tokenizer, data, "validation")
    collator = build_collator(sequences, tokenizer, MaskingConfig(), seed, validation=True)
    batch = collator([{"epoch": 0, "index": index} for index in range(len(sequences.input_ids))])
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.numpy()
    labeled = batch["labels"] != -100
    rows, targets = logits[labeled].astype(np.float64), batch["labels"][labeled]
    own = rows[np.arange(len(rows)), targets]
    loss = (np.log(np.exp(rows).sum(-1)) - own).mean()
    return {
        "loss": loss,
        "perplexity": np.exp(loss),
        "masked_accuracy": (rows.argmax(-1) == targets).mean(),
        "masked_accuracy_top_5": ((rows > own[:, None]).sum(-1) < 5).mean(),
        "sequences": len(sequences.input_ids),
        "masked_tokens": len(targets),
        "documents": scored.description,
        "num_documents": len(scored.documents),
    }


def assert_equal(metrics: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        assert metrics[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-6)), name


def test_a_model_without_a_run_is_evaluated_on_all_selected_documents(
    finished_run: Path, reviews: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tf_mlm import runtime

    monkeypatch.setattr(runtime, "choose_precision", lambda _: runtime.Precision("float32", "to be compared"))
    metrics = evaluate(capsys, finished_run / "model", "--dataset", reviews)
    expected = compute(finished_run / "model", DataConfig(dataset=str(reviews)), seed=42)
    assert_equal(metrics, expected)
    assert metrics["masked_tokens"] > 100  # enough tokens for a meaningful comparison


def test_evaluation_on_another_dataset_keeps_sequence_length_batch_size_and_seed(
    finished_run: Path, reviews: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(finished_run / "config.toml")
    metrics = evaluate(capsys, finished_run, "--dataset", reviews)
    data = replace(config.data, dataset=str(reviews), num_validation_sequences=0)
    expected = compute(finished_run / "model", data, config.training.seed)
    assert metrics["sequences"] == expected["sequences"] > 16  # more than one batch; the last one has filler rows
    assert_equal(metrics, expected)


def test_another_dataset_takes_its_own_settings(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts").mkdir()
    for split, words in (("validation", "a film of many scenes"), ("test", "the music was superb")):
        rows = [{"body": f"{words} {number}", "title": "a title"} for number in range(30)]
        (tmp_path / "texts" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    texts = tmp_path / "texts"
    flags = ["--data.validation_split", "validation", "--data.text_column", "body"]
    metrics = evaluate(capsys, finished_run, "--dataset", texts, *flags)
    data = DataConfig(dataset=str(texts), text_column="body", validation_split="validation", sequence_length=32)
    data = replace(data, num_validation_sequences=0)
    assert_equal(metrics, compute(finished_run / "model", data, seed=7))
    with inside(Path()):
        assert main(["evaluate", str(finished_run), "--data.document", "file"]) == 2
        assert "--data.document requires --dataset" in capsys.readouterr().err
        assert main(["evaluate", str(finished_run), "--dataset", str(texts), "--data.document", "book"]) == 2
    assert "--data.document = 'book'" in capsys.readouterr().err


def test_the_printed_table_describes_the_evaluated_documents(
    finished_run: Path, reviews: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = evaluate(capsys, finished_run, "--dataset", reviews)
    with inside(Path()):
        assert main(["evaluate", str(finished_run), "--dataset", str(reviews)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"Loss (nats per masked token)  {metrics['loss']:.4f}",
        f"Perplexity                    {metrics['perplexity']:,.2f}",
        f"Masked accuracy (top 1)       {metrics['masked_accuracy']:.2%}",
        f"Masked accuracy (top 5)       {metrics['masked_accuracy_top_5']:.2%}",
        f"scored                        {metrics['masked_tokens']:,} masked tokens (15% of all) in "
        f"{metrics['sequences']:,} sequences of 50 documents: all documents (no named splits)",
    ]


def test_documents_of_the_training_text_are_counted_and_reported(
    tmp_path: Path, reviews: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Evaluates on the file of the run, passed with --dataset."""
    flags = ["--dataset", str(reviews), "--model.vocab_size", "100", "--training.num_train_steps", "2"]
    assert train(tmp_path, *flags, "--output-dir", "RUN") == 0
    metrics = evaluate(capsys, tmp_path / "RUN", "--dataset", reviews)
    held_out = evaluate(capsys, tmp_path / "RUN")
    assert held_out["num_in_training"] == 0 and held_out["num_documents"] == 2
    assert metrics["num_documents"] == 50 and metrics["num_in_training"] == 48
    with inside(Path()):
        assert main(["evaluate", str(tmp_path / "RUN"), "--dataset", str(reviews)]) == 0
        assert "48 of these documents are in the run's training text" in capsys.readouterr().out
        other = tmp_path / "other.txt"
        other.write_text("A film about nothing at all.\nA film about a sheriff.\n")
        assert main(["evaluate", str(tmp_path / "RUN"), "--dataset", str(other)]) == 0
    assert "training text" not in capsys.readouterr().out
    assert evaluate(capsys, tmp_path / "RUN" / "model", "--dataset", reviews)["num_in_training"] is None


def test_a_run_is_evaluated_from_any_directory(
    tmp_path: Path, reviews: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command in the model card: `cd RUN; python -m tf_mlm evaluate .`"""
    (tmp_path / "reviews.txt").write_text(reviews.read_text())
    flags = ["--dataset", "reviews.txt", "--model.vocab_size", "100", "--training.num_train_steps", "2"]
    assert train(tmp_path, *flags, "--output-dir", "RUN") == 0
    from_outside = evaluate(capsys, tmp_path / "RUN")
    monkeypatch.chdir(tmp_path / "RUN")
    assert evaluate(capsys, ".") == from_outside
    assert load_config(Path("config.toml")).data.dataset == "reviews.txt"


def test_an_empty_validation_split_selects_all_documents(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, count in (("train", 5), ("test", 3)):
        (tmp_path / f"{split}.txt").write_text("".join(f"the {split} film of {n} scenes\n" for n in range(count)))
    assert evaluate(capsys, finished_run, "--dataset", tmp_path)["num_documents"] == 3
    everything = evaluate(capsys, finished_run, "--dataset", tmp_path, "--data.validation_split", "")
    assert everything["num_documents"] == 8 and everything["documents"] == "all documents of train, test"
