"""`tf-mlm probe`: its results on data with a known answer, and its files."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.labeled_data import write_classification, write_lines
from tests.tiny_run import inside
from tf_mlm.commands.main import main
from tf_mlm.config import load_config

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _tensorflow(tensorflow: None) -> None:
    """All tests need it."""


@pytest.fixture
def in_tmp(tmp_path: Path) -> Iterator[Path]:
    with inside(tmp_path):
        yield tmp_path


def write_words(folder: Path, num_documents: int = 80, seed: int = 0, is_random: bool = False) -> None:
    """Texts of one word; the label is determined by the word, or random."""
    numbers = np.random.default_rng(seed)
    folder.mkdir()
    for split in ("train", "test"):
        words = numbers.choice(["film", "boring", "the", "wonderful"], num_documents)
        labels = numbers.integers(0, 2, num_documents) if is_random else np.isin(words, ["film", "the"])
        rows: list[dict[str, object]] = [
            {"text": f"{word} {split} {index}", "label": int(label)}
            for index, (word, label) in enumerate(zip(words, labels, strict=True))
        ]
        write_lines(folder / f"{split}.jsonl", rows)


@pytest.fixture
def model(finished_run: Path) -> Path:
    return finished_run / "model"


def probe(capsys: Capture, *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["probe", *map(str, arguments), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_labels_that_the_words_determine_are_predicted(in_tmp: Path, model: Path, capsys: Capture) -> None:
    write_words(in_tmp / "texts", num_documents=200)
    found = probe(capsys, model, "--dataset", "texts", "--num-draws", "3")
    assert [size["labels_per_class"] for size in found["sizes"]] == [8, 32, None]
    assert found["sizes"][-1]["scores"]["adapted"]["accuracy"]["mean"] == 1.0
    assert found["sizes"][-1]["scores"]["tf-idf"]["accuracy"]["mean"] == 1.0
    assert found["sizes"][0]["num_labels"] == 16 and found["sizes"][0]["num_draws"] == 3
    assert found["skipped"][0].startswith("128 labels per class: skipped, because the label '")
    assert sorted(os.listdir()) == ["texts"]  # a model directory is not a run


def test_random_labels_are_predicted_by_chance(in_tmp: Path, model: Path, capsys: Capture) -> None:
    write_words(in_tmp / "texts", num_documents=600, is_random=True)
    found = probe(capsys, model, "--dataset", "texts", "--num-draws", "4")
    for size in found["sizes"]:
        assert size["scores"]["adapted"]["accuracy"]["mean"] == pytest.approx(0.5, abs=0.06)


def test_the_majority_class_is_that_of_all_training_documents(in_tmp: Path, model: Path, capsys: Capture) -> None:
    Path("texts").mkdir()
    for split in ("train", "test"):
        rows: list[dict[str, object]] = [{"text": f"film {split} {n}", "label": int(n % 10 > 0)} for n in range(100)]
        write_lines(Path("texts") / f"{split}.jsonl", rows)
    found = probe(capsys, model, "--dataset", "texts", "--num-draws", "2")
    assert [size["scores"]["majority"]["accuracy"]["mean"] for size in found["sizes"]] == [0.9, 0.9]


def test_texts_without_words_and_of_one_letter_are_probed(in_tmp: Path, model: Path, capsys: Capture) -> None:
    for name, texts in (("letters", "ab"), ("marks", "!?")):
        rows: list[dict[str, object]] = [{"text": texts[n % 2] * (1 + n), "label": n % 2} for n in range(60)]
        write_lines(in_tmp / f"{name}.jsonl", rows)
        found = probe(capsys, model, "--dataset", f"{name}.jsonl", "--num-draws", "1")
        assert found["sizes"][0]["labels_per_class"] == 8


def test_test_documents_in_the_training_text_of_the_run_are_reported(
    finished_run: Path, in_tmp: Path, capsys: Capture
) -> None:
    from tf_mlm.data.corpus import load_corpus
    from tf_mlm.run.directory import RunDirectory

    config = load_config(finished_run / "config.toml")
    seen = load_corpus(config.data, config.training.seed).train["text"][:3]
    run = RunDirectory(finished_run)
    assert run.load_train_hashes() is not None
    Path("texts").mkdir()
    rows: list[dict[str, object]] = [{"text": f"film {n}", "label": n % 2} for n in range(40)]
    write_lines(Path("texts") / "train.jsonl", rows)
    tests: list[dict[str, object]] = [{"text": text, "label": n % 2} for n, text in enumerate([*seen, "new", "newer"])]
    write_lines(Path("texts") / "test.jsonl", tests)
    baseline = finished_run / "model"
    found = probe(capsys, finished_run, "--baseline", baseline, "--dataset", "texts", "--output", in_tmp / "out")
    assert found["num_in_training"] == 3


def test_the_readme_of_another_directory_is_not_changed(in_tmp: Path, model: Path, capsys: Capture) -> None:
    write_words(in_tmp / "texts")
    text = "# Mine\n\n## Probe\n\nMy own text.\n"
    (in_tmp / "README.md").write_text(text)
    probe(capsys, model, "--dataset", "texts", "--num-draws", "1", "--output", in_tmp)
    assert (in_tmp / "README.md").read_text() == text and (in_tmp / "probe.json").exists()


def test_an_output_that_is_a_file_is_refused_at_once(in_tmp: Path, capsys: Capture) -> None:
    (in_tmp / "out").write_text("")
    assert main(["probe", "nowhere", "--dataset", "nowhere.csv", "--output", "out"]) == 2
    assert "--output out: is not a directory" in capsys.readouterr().err


def test_the_interval_covers_draws_and_test_documents() -> None:
    from tf_mlm.inference.probe import bootstrap_differences

    labels = np.arange(400) % 2
    starting = np.tile(np.where(np.arange(400) < 200, labels, 1 - labels), (8, 1))  # 50% correct
    always = np.tile(labels, (8, 1))
    mixed = np.concatenate([np.tile(labels, (4, 1)), np.tile(1 - labels, (4, 1))])  # the draws are right or wrong
    same, varied = (bootstrap_differences(each, starting, labels, 1)["accuracy"] for each in (always, mixed))
    assert same.mean == pytest.approx(0.5) and varied.mean == pytest.approx(0.0)
    # Documents alone: ± 1.96 * sqrt(0.25 / 400). With the draws, the variance of a mean of 8 halves dominates.
    assert same.high - same.low == pytest.approx(2 * 1.96 * 0.025, rel=0.2)
    assert varied.high - varied.low > 0.5


def test_a_run_is_compared_with_its_starting_model_on_the_same_draws(
    finished_run: Path, in_tmp: Path, capsys: Capture
) -> None:
    """A model compared with itself: no difference, and an interval of no width."""
    write_words(in_tmp / "texts")
    found = probe(capsys, finished_run / "model", "--baseline", finished_run, "--dataset", "texts", "--num-draws", "3")
    for size in found["sizes"]:
        assert size["scores"]["adapted"] == size["scores"]["starting"]
        assert size["differences"] == {name: {"mean": 0, "low": 0, "high": 0} for name in ("accuracy", "macro_f1")}


def test_the_bootstrap_interval_contains_the_difference_and_narrows_with_more_documents(tensorflow: None) -> None:
    import sklearn.metrics

    from tf_mlm.inference.probe import bootstrap_differences

    numbers = np.random.default_rng(0)
    widths = []
    for num_documents in (100, 2500):
        labels = numbers.integers(0, 3, num_documents)
        better, worse = (
            np.where(numbers.random((5, num_documents)) < share, labels, (labels + 1) % 3) for share in (0.9, 0.7)
        )
        found = bootstrap_differences(better, worse, labels, seed=1)
        for name, metric in (
            ("accuracy", sklearn.metrics.accuracy_score),
            ("macro_f1", lambda true, predicted: sklearn.metrics.f1_score(true, predicted, average="macro")),
        ):
            expected = np.mean([metric(labels, b) - metric(labels, w) for b, w in zip(better, worse, strict=True)])
            assert found[name].mean == pytest.approx(expected)
            assert 0 < found[name].low < expected < found[name].high
        widths.append(found["accuracy"].high - found["accuracy"].low)
    assert widths[1] < widths[0] / 2


def test_features_are_means_over_the_tokens_for_any_batch(model: Path) -> None:
    import transformers

    from tf_mlm.inference.features import build_encoder, encode_texts

    texts = ["the film", "the film was long and boring and wonderful", "a", "the plot of the film"]
    stock = transformers.TFDistilBertModel.from_pretrained(model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    encoder = build_encoder(stock)
    for pooling in ("mean", "cls"):
        found = encode_texts(encoder, tokenizer, texts, 32, 8, pooling)
        for row, text in enumerate(texts):
            states = stock(**tokenizer(text, truncation=True, max_length=8, return_tensors="tf"))[0][0].numpy()
            expected = states.mean(0) if pooling == "mean" else states[0]
            np.testing.assert_allclose(found[row], expected, atol=1e-5)
    assert encode_texts(encoder, tokenizer, [], 32, 8).shape == (0, 32)


def test_features_are_computed_once_and_a_damaged_cache_is_replaced(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    from tf_mlm.config import ModelConfig
    from tf_mlm.inference import features
    from tf_mlm.model.loading import load_encoder

    loaded, tokenizer = load_encoder(ModelConfig(name=str(model)), 16)
    calls = []

    def encode(*arguments: object) -> np.ndarray:
        calls.append(1)
        return np.ones([2, 32], np.float32)

    monkeypatch.setattr(features, "encode_texts", encode)
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "tf_mlm"
    before = set(cache.glob("features-*"))
    for _ in range(2):
        found = features.cached_features(loaded, tokenizer, ["a wholly new text", "b"], 16, "mean")
        assert found.shape == (2, 32) and len(calls) == 1
    (file,) = set(cache.glob("features-*")) - before
    file.write_bytes(file.read_bytes()[:50])
    features.cached_features(loaded, tokenizer, ["a wholly new text", "b"], 16, "mean")
    assert len(calls) == 2
    features.cached_features(loaded, tokenizer, ["a wholly new text", "b"], 16, "cls")
    features.cached_features(loaded, tokenizer, ["a wholly new text", "c"], 16, "mean")
    assert len(calls) == 4


def test_a_run_gets_the_table_the_plot_and_a_section_of_its_card(
    finished_run: Path, in_tmp: Path, capsys: Capture
) -> None:
    import shutil

    shutil.copytree(finished_run, "RUN")
    write_classification(in_tmp / "texts")
    arguments = ["probe", "RUN", "--baseline", str(finished_run), "--dataset", "texts", "--num-draws", "2"]
    before = Path("RUN", "README.md").read_text()
    for _ in range(2):  # the second one replaces the first
        assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    header = next(line for line in lines if line.startswith("metric"))
    assert header.split() == [
        "metric",
        "labels",
        "per",
        "class",
        "adapted",
        "starting",
        "tf-idf",
        "majority",
        "difference",
    ]
    card = Path("RUN", "README.md").read_text()
    assert card.count("## Probe") == 1 and "(probe.png)" in card
    section = card[card.index("## Probe") : card.index("## Use and limits")]
    assert card.replace(section, "") == before
    assert "| accuracy | 8 |" in section
    png = Path("RUN", "probe.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and int.from_bytes(png[16:20]) == 1600
    assert json.loads(Path("RUN", "probe.json").read_text())["labels"] == ["person", "title"]

    from tf_mlm.run.directory import RunDirectory
    from tf_mlm.run.model_card import build_model_card, load_report

    assert section in build_model_card(load_report(RunDirectory(Path("RUN"))))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL"], "--dataset"),
        (["MODEL", "--dataset", "one.jsonl"], "all training documents have the label 'a'"),
        (["MODEL", "--dataset", "texts.jsonl", "--label-column", "labl"], "is not a column of texts.jsonl"),
        (["MODEL", "--dataset", "texts.jsonl", "--num-draws", "0"], "--num-draws 0: must be at least 1"),
        (["RUN", "--dataset", "texts.jsonl"], "this run started from random weights; pass --baseline"),
        (["missing", "--dataset", "texts.jsonl"], "missing"),
    ],
)
def test_wrong_requests_are_refused(
    finished_run: Path, in_tmp: Path, capsys: Capture, arguments: list[str], message: str
) -> None:
    write_lines(in_tmp / "one.jsonl", [{"text": f"text {number}", "label": "a"} for number in range(20)])
    write_lines(in_tmp / "texts.jsonl", [{"text": f"text {number}", "label": number % 2} for number in range(60)])
    names = {"MODEL": str(finished_run / "model"), "RUN": str(finished_run)}
    assert main(["probe", *(names.get(argument, argument) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not (finished_run / "probe.json").exists()
