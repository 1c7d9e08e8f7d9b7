"""Labels of any type and file format are read, missing ones are dropped and counted, and unusable ones are refused."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from tests.tiny_run import inside
from tf_mlm.config import Config, load_config
from tf_mlm.data.corpus import hash_text, load_corpus
from tf_mlm.data.labeled import NO_LABEL, LabeledDocuments, load_labeled, load_labeled_split
from tf_mlm.errors import Refused


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, cache: Path) -> Any:
    with inside(tmp_path):
        yield tmp_path


def settings(dataset: str, task: str = "classification", **overrides: Any) -> Config:
    given = {name.replace("__", "."): value for name, value in overrides.items()}
    return load_config(None, {"data.dataset": dataset, "objective.name": task} | given)


def load(dataset: str, task: str = "classification", **overrides: Any) -> LabeledDocuments:
    return load_labeled(settings(dataset, task, **overrides))


def write(name: str, rows: Sequence[dict[str, Any]]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def rows_of(labels: Sequence[Any], **more: Any) -> list[dict[str, Any]]:
    return [{"text": f"text {number}", "label": label} | more for number, label in enumerate(labels)]


def labels_by_text(found: LabeledDocuments) -> dict[str, str]:
    rows = [*found.train, *found.validation]
    return {row["text"]: found.label_names[row["label"]] for row in rows}


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["good", "bad", "good"], ("bad", "good")),
        ([10, 9, 10], ("9", "10")),  # by value
        (["10", "9", "10"], ("9", "10")),
        ([1.0, 0.0, 1.0], ("0", "1")),
        ([True, False, True], ("False", "True")),
        (["None", "NA", "null"], ("NA", "None", "null")),
        (["²", "1", "²"], ("1", "²")),
    ],
)
def test_labels_are_texts_or_whole_numbers(labels: list[Any], names: tuple[str, ...]) -> None:
    found = load(write("a.jsonl", rows_of(labels * 20)))
    assert found.label_names == names and found.num_unlabeled == 0
    assert len(found.train) + len(found.validation) == 60


@pytest.mark.parametrize("no_label", [None, -1, -1.0, ""])
def test_documents_without_a_label_are_dropped_and_counted(no_label: Any) -> None:
    found = load(write("a.jsonl", rows_of([0, 1, no_label] * 20)))
    assert found.label_names == ("0", "1") and found.num_unlabeled == 20
    assert len(found.train) + len(found.validation) == 40


def test_csv_labels_that_pandas_reads_as_missing_are_kept() -> None:
    Path("a.csv").write_text("text,label\n" + "".join(f"text {n},{('None', 'NA', 'nan')[n % 3]}\n" for n in range(30)))
    found = load("a.csv")
    assert found.label_names == ("NA", "None", "nan") and found.num_unlabeled == 0


def test_a_blank_cell_does_not_turn_the_numbers_of_a_csv_column_into_floats() -> None:
    lines = [f"text {number},{('0', '1', '', '-1')[number % 4]}\n" for number in range(40)]
    Path("a.csv").write_text("text,label\n" + "".join(lines))
    found = load("a.csv")
    assert found.label_names == ("0", "1") and found.num_unlabeled == 20
    assert labels_by_text(found)["text 5"] == "1"


def test_a_csv_file_is_read_as_for_masked_language_modeling() -> None:
    Path("a.tsv").write_text(
        'label\ttext\n0\t"he said ""no"""\n1\ta, b\n' * 1 + "".join(f"0\tx{n}\n" for n in range(9))
    )
    found = load("a.tsv", data__validation_fraction="0.1")
    corpus = load_corpus(settings("a.tsv", data__validation_fraction="0.1").data, seed=42)
    assert sorted(labels_by_text(found)) == sorted([*corpus.train["text"], *corpus.validation["text"]])
    assert labels_by_text(found)['he said "no"'] == "0"
    np.testing.assert_array_equal(found.train_hashes, corpus.train_hashes)
    Path("b.tsv").write_text('label\ttext\n0\t"open\n1\tother\n')
    with pytest.raises(Refused, match="b.tsv line 2: a quote opens here and is never closed"):
        load("b.tsv")


def test_a_csv_file_without_a_header_has_numbered_columns() -> None:
    Path("a.csv").write_text("".join(f"text {number},{number % 2}\n" for number in range(20)))
    found = load("a.csv", data__csv_header="false", objective__label_column="column_2")
    assert found.label_names == ("0", "1") and found.columns == ("column_1", "column_2")


def test_parquet_classes_have_their_names_and_their_order() -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    values = {"text": [f"t{number}" for number in range(30)], "label": [1, 0, -1] * 10}
    datasets.Dataset.from_dict(values, features).to_parquet("a.parquet")
    found = load("a.parquet")
    assert found.label_names == ("neg", "pos") and found.num_unlabeled == 10
    assert labels_by_text(found)["t0"] == "pos"


def test_several_files_and_splits_may_have_labels_of_different_types() -> None:
    Path("data").mkdir()
    write("data/train-1.jsonl", rows_of([0, 1] * 5))
    write("data/train-2.jsonl", [{"text": f"more {number}", "label": str(number % 2)} for number in range(10)])
    with gzip.open("data/test.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": f"new {number}", "label": number % 2}) + "\n" for number in range(6))
    found = load("data")
    assert (len(found.train), len(found.validation)) == (20, 6) and not found.held_out
    assert labels_by_text(found)["more 3"] == "1"


def test_a_file_name_may_look_like_a_glob() -> None:
    assert load(write("rev [2024].jsonl", rows_of([0, 1] * 10))).label_names == ("0", "1")


def test_documents_without_text_and_duplicates_of_training_documents_are_dropped_and_counted() -> None:
    Path("data").mkdir()
    write("data/train.jsonl", [*rows_of([0, 1] * 5), {"text": None, "label": 1}, {"text": " ", "label": 0}])
    write("data/test.jsonl", [{"text": "text 3", "label": 0}, {"text": "new", "label": 1}, {"text": "", "label": 1}])
    found = load("data")
    assert found.num_empty == 3 and found.num_overlap == 1
    assert len(found.train) == 10 and list(found.validation["text"]) == ["new"]


def test_pairs_differ_by_either_text() -> None:
    Path("data").mkdir()
    pairs = [{"a": f"a{number}", "b": f"b{number}", "label": number % 2} for number in range(8)]
    write("data/train.jsonl", pairs)
    write("data/test.jsonl", [pairs[0], pairs[0] | {"b": "other"}])
    found = load("data", data__text_column="a", objective__text_pair_column="b")
    assert found.num_overlap == 1 and list(found.validation["text_pair"]) == ["other"]


def test_words_without_a_tag_are_kept_and_documents_without_tags_are_dropped() -> None:
    tagged = [{"tokens": ["a", f"b{number}"], "ner_tags": ["B-X", None]} for number in range(20)]
    untagged: list[dict[str, Any]] = [
        {"tokens": ["a"], "ner_tags": None},
        {"tokens": ["a", "b"], "ner_tags": [None] * 2},
    ]
    others = [{"tokens": [f"c{number}"], "ner_tags": ["O"]} for number in range(20)]
    found = load(write("a.jsonl", tagged + untagged + others), "token_classification")
    assert found.label_names == ("B-X", "O") and found.num_unlabeled == 2
    assert [0, NO_LABEL] in list(found.train["tags"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (rows_of([0.5, 1.5]), "a.jsonl line 1 has 0.5, which is not a text or a whole number"),
        (rows_of([[1], [2]]), r"a.jsonl line 1 has \[1\], which is not a text or a whole number"),
        (rows_of([-1, None]), "no document of a.jsonl has a label in 'label'"),
        (rows_of([-1, 1, 1, 1]), r"have the label '1' \(1 documents have no label: null or -1\)"),
        ([{"text": 3, "label": 0}, {"text": "a", "label": 1}], "a.jsonl line 1 has 3, which is not text"),
        ([{"text": "a", "label": 0}, {"text": "b"}], "a.jsonl line 2: has no 'label'; add it, or null"),
    ],
)
def test_unusable_labels_and_texts_are_refused_with_their_place(rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(Refused, match=message):
        load(write("a.jsonl", rows))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", 3], "ner_tags": ["O", "O"]}, "a.jsonl line 2 has 3, which is not a word"),
        ({"tokens": ["a", None], "ner_tags": ["O", "O"]}, "a.jsonl line 2 has None, which is not a word"),
        ({"tokens": "a b", "ner_tags": ["O", "O"]}, "has 'a b', not a list with one item per word"),
        ({"tokens": ["a"], "ner_tags": "O"}, "has 'O', not a list with one item per word"),
        ({"tokens": ["a"], "ner_tags": ["O", "O"]}, "a.jsonl line 2 has 1 words but 2 tags in 'ner_tags'; fix the row"),
    ],
)
def test_unusable_words_and_tags_are_refused_with_their_place(row: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused, match=message):
        load(write("a.jsonl", [{"tokens": ["x"], "ner_tags": ["B-X"]}, row]), "token_classification")


def test_holding_out_must_leave_two_labels_in_training() -> None:
    with pytest.raises(Refused, match="all training documents have the label"):
        load(write("a.jsonl", rows_of([0, 1])), data__validation_fraction="0.5")


def test_a_split_of_data_without_splits_is_refused() -> None:
    with pytest.raises(Refused, match="data.validation_split = 'dev': a.jsonl has no named splits"):
        load(write("a.jsonl", rows_of([0, 1] * 9)), data__validation_split="dev")


def test_a_validation_label_that_training_lacks_is_refused() -> None:
    Path("data").mkdir()
    write("data/train.jsonl", rows_of([0, 1] * 5))
    write("data/test.jsonl", [{"text": "new", "label": 2}])
    with pytest.raises(Refused, match="the label '2' of the validation documents is not a label of the training"):
        load("data")


def test_a_split_to_evaluate_has_the_labels_of_the_model() -> None:
    config = settings(write("a.jsonl", rows_of([1, 1, 0])), data__validation_split="")
    split = load_labeled_split(config, ["1", "0"])
    assert list(split.documents["label"]) == [0, 0, 1]
    assert split.description == "all documents (no named splits)" and split.num_in_training is None
    hashes = np.array([hash_text("text 1"), hash_text("another")], np.uint64)
    assert load_labeled_split(config, ["1", "0"], hashes).num_in_training == 1
    with pytest.raises(Refused, match="the label '1' of the evaluated documents is not a label of the training"):
        load_labeled_split(config, ["0", "2"])
