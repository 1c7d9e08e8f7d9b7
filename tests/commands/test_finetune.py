"""`tf-mlm finetune` and `predict`, and the files of a fine-tuned run."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from tests.conftest import ROOT
from tests.labeled_data import write_classification, write_lines, write_tags
from tests.test_readme import code_blocks
from tests.tiny_run import inside, read_metrics, timeless
from tests.training.test_train import send_signal
from tf_mlm.commands.main import main

SMALL = """
[data]
sequence_length = 32
[optimizer]
learning_rate = 5e-3
[training]
epochs = 3
batch_size = 16
precision = "float32"
log_every = 4
seed = 7
"""
Capture = pytest.CaptureFixture[str]


def finetune(folder: Path, model: Path, task: str, dataset: str, *flags: str) -> int:
    (folder / "small.toml").write_text(SMALL)
    with inside(folder):
        command = ["finetune", str(model), "--task", task, "--config", "small.toml", "--dataset", dataset]
        return main([*command, "--data.num_train_sequences", "0", *flags])


@pytest.fixture(scope="module")
def classifier(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that distinguishes sentences about persons from sentences about films."""
    folder = tmp_path_factory.mktemp("classifier")
    write_classification(folder / "texts")
    assert finetune(folder, finished_run, "classification", "texts", "--output-dir", "RUN") == 0
    return folder / "RUN"


@pytest.fixture(scope="module")
def tagger(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that tags persons and film titles."""
    folder = tmp_path_factory.mktemp("tagger")
    write_tags(folder / "texts", num_train=1000)
    flags = ("--output-dir", "RUN", "--epochs", "8")
    assert finetune(folder, finished_run, "token-classification", "texts", *flags) == 0
    return folder / "RUN"


@pytest.fixture
def in_tmp(tmp_path: Path) -> Iterator[Path]:
    with inside(tmp_path):
        yield tmp_path


@pytest.mark.parametrize(
    "flags", [["--mask-draws", "2"], ["--breakdown"], ["--baseline", "RUN"], ["--plot", "x.png"]], ids=str
)
def test_evaluations_of_masks_are_refused(
    classifier: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    flags = [str(classifier) if flag == "RUN" else flag for flag in flags]
    for model in (classifier, classifier / "model"):
        texts = ["--dataset", str(classifier.parent / "texts")] if model.name == "model" else []
        assert main(["evaluate", str(model), *texts, *flags]) == 2
        output = capsys.readouterr()
        assert output.err.splitlines() == [
            f"error: {flags[0]}: requires a masked language model, and {model} predicts labels; omit the flag"
        ]
        assert not output.out and not list(in_tmp.iterdir())


def test_labels_that_the_words_determine_are_learned(classifier: Path) -> None:
    start, *_, end = read_metrics(classifier)
    best = [event for event in read_metrics(classifier) if event["event"] == "epoch"][end["best_epoch"] - 1]
    assert best["val_accuracy"] > 0.95 and best["val_macro_f1"] > 0.9 > start["val_macro_f1"]
    assert "val_perplexity" not in best and "fills" not in start
    with open(classifier / "history.csv", newline="") as file:
        assert next(csv.reader(file))[3:6] == ["val_loss", "val_accuracy", "val_macro_f1"]


def test_entities_are_learned(tagger: Path) -> None:
    end = read_metrics(tagger)[-1]
    best = [event for event in read_metrics(tagger) if event["event"] == "epoch"][end["best_epoch"] - 1]
    assert best["val_entity_f1"] > 0.85
    precision, recall = best["val_entity_precision"], best["val_entity_recall"]
    assert best["val_entity_f1"] == pytest.approx(2 * precision * recall / (precision + recall))


def test_transformers_loads_the_model_with_the_names_of_the_labels(classifier: Path, tagger: Path) -> None:
    import transformers

    model = transformers.TFDistilBertForSequenceClassification.from_pretrained(classifier / "model")
    assert model.config.id2label == {0: "person", 1: "title"}
    names = safetensors.numpy.load_file(classifier / "model" / "model.safetensors")
    assert names["classifier.weight"].shape == (2, 32)  # PyTorch's name and layout
    tags = transformers.TFDistilBertForTokenClassification.from_pretrained(tagger / "model").config.id2label
    assert set(tags.values()) == {"O", "B-PERSON", "I-PERSON", "B-TITLE", "I-TITLE"}


def test_predict_prints_the_labels_of_texts(classifier: Path, capsys: Capture) -> None:
    texts = ["Agnes Corvane loves her uncle .", "Two stars out of ten for The Copper Orchard ."]
    assert main(["predict", str(classifier), *texts, "--json"]) == 0
    person, title = map(json.loads, capsys.readouterr().out.splitlines())
    assert (person["label"], title["label"]) == ("person", "title")
    assert sum(person["probabilities"].values()) == pytest.approx(1)
    assert main(["predict", str(classifier), texts[0]]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[0] == "person"


def test_predict_prints_the_tags_of_words_with_their_positions(tagger: Path, capsys: Capture) -> None:
    text = "Peter Wexmoor directed  The Silver Anchor."
    assert main(["predict", str(tagger), text, "--json"]) == 0
    words = json.loads(capsys.readouterr().out)["words"]
    assert [(word["word"], word["tag"]) for word in words[:2]] == [("Peter", "B-PERSON"), ("Wexmoor", "I-PERSON")]
    assert all(text[word["start"] : word["end"]] == word["word"] for word in words)
    assert words[-1]["word"] == "." and words[4]["word"] == "Silver"


@pytest.mark.parametrize("kind", ["classifier", "tagger"])
def test_the_saved_model_answers_as_predict_where_there_is_only_tensorflow(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: Capture
) -> None:
    run: Path = request.getfixturevalue(kind)
    texts = [
        "Agnes Corvane loves her  uncle.",
        "The Coppér Orchard—was long [SEP] (really)!",
        "电影 The Rusty Kettle",
        "x " * 9,
    ]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    script = """
import json, sys
sys.modules["transformers"] = sys.modules["tokenizers"] = None
import tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
outputs = model.signatures["serving_default"](text=tf.constant([*json.load(open("texts.json")), b"\\xff"]))
plain = {name: value.numpy().tolist() for name, value in outputs.items()}
print(json.dumps(plain, default=bytes.decode))
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-c", script, run / "saved_model"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    served = json.loads(result.stdout)
    assert main(["predict", str(run), *texts, "--json"]) == 0
    predicted = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert served["status"] == [0, 0, 0, 0, 3]
    for row, expected in enumerate(predicted):
        if kind == "classifier":
            assert served["label"][row] == expected["label"]
            found = dict(zip(served["labels"], served["probabilities"][row], strict=True))
            assert found == pytest.approx(expected["probabilities"], abs=1e-5)
        else:
            words = expected["words"]
            count = len(words)
            for name in ("word", "start", "end", "tag"):
                assert served[f"{name}s"][row][:count] == [word[name] for word in words], name
            assert served["probabilities"][row][:count] == pytest.approx(
                [word["probability"] for word in words], abs=1e-5
            )
            assert set(served["tags"][row][count:]) <= {""}


def test_an_interrupted_fine_tuning_run_resumes_to_the_same_weights(
    finished_run: Path, classifier: Path, tmp_path: Path
) -> None:
    write_classification(tmp_path / "texts")
    with pytest.MonkeyPatch.context() as patch:
        send_signal(patch, "on_train_batch_end", at_step=17)
        assert finetune(tmp_path, finished_run, "classification", "texts", "--output-dir", "RUN") == 143
    with inside(tmp_path):
        assert main(["finetune", "--resume", "RUN"]) == 0
    mine, uninterrupted = (
        safetensors.numpy.load_file(run / "model" / "model.safetensors") for run in (tmp_path / "RUN", classifier)
    )
    assert mine.keys() == uninterrupted.keys()
    assert all(np.array_equal(mine[name], uninterrupted[name]) for name in mine)
    assert timeless(read_metrics(tmp_path / "RUN")) == timeless(read_metrics(classifier))


@pytest.mark.parametrize("kind", ["classifier", "tagger"])
def test_evaluate_repeats_the_validation_of_the_run(kind: str, request: pytest.FixtureRequest, capsys: Capture) -> None:
    run: Path = request.getfixturevalue(kind)
    events = read_metrics(run)
    best = next(event for event in events if event["event"] == "epoch" and event["epoch"] == events[-1]["best_epoch"])
    expected = {name.removeprefix("val_"): value for name, value in best.items() if name.startswith("val_")}
    texts = run.parent / "texts"
    capsys.readouterr()
    for arguments in ([run], [run, "--dataset", texts], [run / "model", "--dataset", texts, "--text-column", ""]):
        assert main(["evaluate", *map(str, arguments), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        exactly = 1e-5 if arguments[0] == run else 0.2  # a model directory has neither sequence length nor precision
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=exactly), arguments
        assert found["num_documents"] == 60
    assert main(["evaluate", str(run)]) == 0
    assert "60 documents: split test of" in capsys.readouterr().out


def test_evaluate_refuses_labels_that_the_model_does_not_know(classifier: Path, in_tmp: Path, capsys: Capture) -> None:
    write_lines(in_tmp / "other.jsonl", [{"text": "a", "label": "person"}, {"text": "b", "label": "place"}])
    assert main(["evaluate", str(classifier), "--dataset", "other.jsonl"]) == 2
    assert "the label 'place'" in capsys.readouterr().err


CARDS = [("classifier", "text-classification", "classify"), ("tagger", "token-classification", "tag")]


@pytest.mark.parametrize(("kind", "pipeline", "signature"), CARDS)
def test_the_card_describes_the_task(kind: str, pipeline: str, signature: str, request: pytest.FixtureRequest) -> None:
    card = (request.getfixturevalue(kind) / "README.md").read_text()
    assert f"pipeline_tag: {pipeline}" in card and f'model.signatures["{signature}"]' in card
    assert "perplexity" not in card and "masked" not in card.partition("## Settings")[0]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "pipeline", "signature"), CARDS)
def test_the_code_in_the_card_runs(kind: str, pipeline: str, signature: str, request: pytest.FixtureRequest) -> None:
    run: Path = request.getfixturevalue(kind)
    blocks = [block.split("```")[0] for block in (run / "README.md").read_text().split("```python\n")[1:]]
    assert len(blocks) == 2 and pipeline in blocks[0] and signature in blocks[1]
    for block in blocks:
        result = subprocess.run([sys.executable, "-c", block], cwd=run, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_the_second_text_of_a_pair_reaches_the_model(finished_run: Path, tmp_path: Path, capsys: Capture) -> None:
    """It alone determines the label."""
    (tmp_path / "pairs").mkdir()
    numbers = np.random.default_rng(1)
    rows: list[dict[str, object]] = []
    for index in range(400):
        first, second = numbers.choice(["wonderful film", "terrible film"], 2)
        note = f"{index} times"  # so that no pair occurs twice
        rows.append({"a": f"{first} {note}", "b": str(second), "positive": int("wonderful" in second)})
    write_lines(tmp_path / "pairs" / "train.jsonl", rows[:320])
    write_lines(tmp_path / "pairs" / "test.jsonl", rows[320:])
    flags = ["--text-column", "a", "--text-pair-column", "b", "--label-column", "positive", "--output-dir", "RUN"]
    assert finetune(tmp_path, finished_run, "classification", "pairs", *flags) == 0
    best = max(event["val_accuracy"] for event in read_metrics(tmp_path / "RUN") if event["event"] == "epoch")
    assert best > 0.95
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "RUN"), "terrible film", "--text-pair", "terrible film", "--json"]) == 0
    predicted = json.loads(capsys.readouterr().out)
    import tensorflow as tf

    signature = tf.saved_model.load(tmp_path / "RUN" / "saved_model").signatures["classify_pair"]
    served = signature(text=tf.constant(["terrible film"]), text_pair=tf.constant(["terrible film"]))
    assert served["label"].numpy().tolist() == [predicted["label"].encode()]


@pytest.mark.slow
def test_repeats_summarize_runs_with_different_seeds(finished_run: Path, tmp_path: Path, capsys: Capture) -> None:
    write_classification(tmp_path / "texts")
    flags = ("--num-labels", "64", "--epochs", "1", "--repeats", "2", "--output-dir", "RUNS")
    assert finetune(tmp_path, finished_run, "classification", "texts", *flags) == 0
    assert "2 runs at their best epochs: mean ± standard deviation" in capsys.readouterr().out
    summary = json.loads((tmp_path / "RUNS" / "repeats.json").read_text())
    assert summary["runs"] == ["seed-7", "seed-8"]
    for name, metric in summary["metrics"].items():
        found = []
        for run in summary["runs"]:
            events = [event for event in read_metrics(tmp_path / "RUNS" / run) if f"val_{name}" in event]
            found.append(min(events, key=lambda event: event["val_loss"])[f"val_{name}"])
        assert metric["values"] == found and metric["mean"] == pytest.approx(np.mean(found))
    assert finetune(tmp_path, finished_run, "classification", "texts", *flags, "--resume") == 0
    assert capsys.readouterr().out.count("is a finished run; nothing to do") == 2


@pytest.mark.parametrize(
    ("rows", "flags", "message"),
    [
        ([{"text": "a", "label": 1}] * 4, [], "all training documents have the label '1'"),
        ([{"text": "a", "kind": 1}], [], "objective.label_column = 'label': is not a column of texts.jsonl"),
        ([{"text": "a", "labels": 1}], [], "did you mean 'labels'?"),
        ([{"text": "a", "label": -1}, {"text": "b", "label": -1}], [], "no document of texts.jsonl has a label"),
        (
            [{"text": "a", "label": 1.5}, {"text": "b", "label": 2}],
            [],
            "has 1.5, which is not a text or a whole number",
        ),
        ([{"a": "x", "b": "y", "label": 1}], [], "has several text columns: a, b; choose one with --data.text_column"),
        ([{"text": "a", "label": 1}], ["--text-pair-column", "b"], "objective.text_pair_column = 'b': is not a column"),
        ([{"text": "a", "label": 1}], ["--task", "token-classification"], "'ner_tags': is not a column"),
        (
            [{"tokens": ["a", "b"], "ner_tags": ["O"]}],
            ["--task", "token-classification"],
            "line 1 has 2 words but 1 tags in 'ner_tags'",
        ),
        (
            [{"tokens": ["a", "b"], "ner_tags": ["O", "PERSON"]}, {"tokens": ["c"], "ner_tags": ["O"]}],
            ["--task", "token-classification"],
            "the tag 'PERSON' is not O, B-TYPE or I-TYPE",
        ),
    ],
)
def test_unusable_labels_are_refused_and_nothing_is_left(
    finished_run: Path, in_tmp: Path, capsys: Capture, rows: list[dict[str, object]], flags: list[str], message: str
) -> None:
    write_lines(in_tmp / "texts.jsonl", rows)
    assert main(["finetune", str(finished_run), "--dataset", "texts.jsonl", "--output-dir", "RUN", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert os.listdir(in_tmp) == ["texts.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no starting model; pass a run directory"),
        (["M"], "no labeled data; pass --dataset"),
        (["M", "--from", "N", "--dataset", "x"], "two starting models"),
        (["M", "--dataset", "x", "--repeats", "0"], "--repeats 0: must be at least 1"),
        (["M", "--dataset", "x", "--repeats", "2", "--plan"], "--repeats: cannot be combined"),
        (["M", "--dataset", "sample"], "the sample corpus has no labels"),
        (["M", "--dataset", "x.txt", "--config", "sample"], "--config sample: objective.name is 'masked'"),
        (["M", "--dataset", "x.txt", "--repeats", "2", "--output-dir", "x.txt"], "x.txt: is not a directory"),
        (["M", "--dataset", "x.txt", "--repeats", "2", "--output-dir", "NEW"], "a txt file has no labels"),
        (["M", "--dataset", "x.txt"], "a txt file has no labels"),
        (["M", "--dataset", "x", "--training.measure_matmul_peak"], "requires objective.name = 'masked'"),
        (
            ["M", "--dataset", "x", "--objective.name", "masked", "--label-column", "y"],
            "have no effect with objective.name = 'masked'",
        ),
    ],
)
def test_wrong_arguments_are_refused(
    finished_run: Path, in_tmp: Path, capsys: Capture, arguments: list[str], message: str
) -> None:
    (in_tmp / "x.txt").write_text("a\n")
    given = [str(finished_run) if argument == "M" else argument for argument in arguments]
    assert main(["finetune", *given]) == 2
    assert message in capsys.readouterr().err
    assert not [*in_tmp.glob("runs/*")] and not (in_tmp / "NEW").exists()


def test_labels_are_not_evaluated_for_a_masked_language_model(finished_run: Path, capsys: Capture) -> None:
    assert main(["evaluate", str(finished_run), "--label-column", "x"]) == 2
    assert "--label-column: " in capsys.readouterr().err


def test_fill_mask_and_predict_name_the_right_command(classifier: Path, finished_run: Path, capsys: Capture) -> None:
    assert main(["predict", str(finished_run), "a film"]) == 2
    assert "is not a classification model; train one with tf-mlm finetune" in capsys.readouterr().err
    assert main(["fill-mask", str(classifier), "a [MASK] film"]) == 2
    assert "has no masked language modeling head; use it with tf-mlm predict" in capsys.readouterr().err


def test_the_python_api_uses_a_fine_tuned_run(classifier: Path, tagger: Path) -> None:
    import tf_mlm
    from tf_mlm.errors import Refused

    run = tf_mlm.Run(classifier)
    assert run.model.config.num_labels == 2 and run.history[0]["val_accuracy"] > 0
    (code,) = [block for block in code_blocks("docs/python.md", "python") if "load_classifier" in block]
    names: dict[str, Any] = {}
    exec(code.replace("runs/FINETUNED", str(classifier)), names)
    assert names["prediction"].label in ("person", "title")
    (tagged,) = tf_mlm.load_classifier(tagger).predict("Peter Wexmoor directed The Silver Anchor.")
    assert [word["tag"] for word in tagged.as_dict()["words"][:2]] == ["B-PERSON", "I-PERSON"]
    with pytest.raises(Refused, match="this model tags the words of one text; omit the second text"):
        tf_mlm.load_classifier(tagger).predict("One text.", ["another"])
    with pytest.raises(Refused, match="text_pairs: 2 second texts for 1 texts; pass one for each"):
        tf_mlm.load_classifier(classifier).predict("One text.", ["another", "more"])
    with pytest.raises(Refused, match="is a classification model"):
        tf_mlm.load(classifier)


def test_the_help_and_a_refusal_do_not_import_tensorflow() -> None:
    code = """
import sys
from tf_mlm.commands.main import main
try:
    main(["finetune", "--help"])
except SystemExit:
    pass
assert main(["finetune"]) == 2
assert not {"tensorflow", "transformers", "datasets"} & sys.modules.keys()
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
