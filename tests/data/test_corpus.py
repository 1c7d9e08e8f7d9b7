"""Tests of the training and validation documents: from files, from the Hub, and the sample."""

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

from tf_mlm.config import DataConfig
from tf_mlm.data import corpus as module
from tf_mlm.data.corpus import Corpus, load_corpus, load_documents
from tf_mlm.errors import HubOutOfReach, Refused


def put(file: Path, *texts: str | None, column: str = "text") -> Path:
    """A file of the kind its name says, with the texts in `column`, and numbers in another where it has columns."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [{column: text, "stars": number} for number, text in enumerate(texts)]
    if file.suffix == ".txt":
        file.write_text("".join(f"{text}\n" for text in texts))
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif file.suffix == ".csv":
        datasets.Dataset.from_list(rows).to_pandas().to_csv(file, index=False)
    else:
        pq.write_table(pa.table({column: pa.array(texts, pa.string()), "stars": pa.array(range(len(texts)))}), file)
    return file


def load(path: Path | str, seed: int = 42, **config: Any) -> Corpus:
    return load_corpus(DataConfig(dataset=str(path), **config), seed)


def texts(documents: datasets.Dataset) -> list[str]:
    assert documents.column_names == ["text"]
    return list(documents["text"])


def refusal(path: Path | str, **config: Any) -> str:
    with pytest.raises(Refused) as refused:
        load(path, **config)
    message = str(refused.value)
    assert message.isprintable(), message
    return message.replace(str(path), "PATH")


def numbered(first: int, end: int) -> list[str]:
    return [f"document {number}" for number in range(first, end)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has an empty cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


# --- named splits


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory in the Hub's layout: 4 documents to train on, 3 to test on, 2 without labels."""
    folder = tmp_path / "hub layout"
    put(folder / "plain_text" / "train-00000-of-00001.parquet", *numbered(0, 4))
    put(folder / "plain_text" / "test-00000-of-00001.parquet", *numbered(10, 13))
    put(folder / "plain_text" / "unsupervised-00000-of-00001.parquet", *numbered(20, 22))
    card = [
        {
            "config_name": "plain_text",
            "data_files": [
                {"split": split, "path": f"plain_text/{split}-*"} for split in ("train", "test", "unsupervised")
            ],
        }
    ]
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(card)}\n---\n")
    return folder


def test_the_default_splits_are_train_and_test_in_order(folder: Path) -> None:
    found = load(folder)
    assert texts(found.train) == numbered(0, 4)
    assert texts(found.validation) == numbered(10, 13)
    assert (found.num_overlap, found.held_out) == (0, False)


def test_splits_joined_with_plus_keep_the_given_order(folder: Path) -> None:
    found = load(folder, train_split="unsupervised+train")
    assert texts(found.train) == numbered(20, 22) + numbered(0, 4)
    assert texts(load(folder, validation_split="test+unsupervised").validation) == numbered(10, 13) + numbered(20, 22)


def test_a_missing_split_is_refused_with_the_existing_ones(folder: Path) -> None:
    assert refusal(folder, validation_split="validation") == (
        "data.validation_split = 'validation': PATH has no split 'validation' (splits: test, train, "
        "unsupervised); pass one of them, or --data.validation_split '' to hold documents out"
    )
    assert refusal(folder, train_split="train+extra").startswith(
        "data.train_split = 'train+extra': PATH has no split 'extra'"
    )


def test_splits_that_are_not_selected_are_not_read(folder: Path) -> None:
    (folder / "plain_text" / "unsupervised-00000-of-00001.parquet").write_bytes(b"damaged")
    assert len(load(folder).train) == 4
    assert "not a parquet file" in refusal(folder, train_split="unsupervised")


def test_an_empty_validation_split_holds_out_a_share_of_the_training_split(folder: Path) -> None:
    found = load(folder, train_split="train+unsupervised", validation_split="", validation_fraction=0.5)
    assert (len(found.train), len(found.validation), found.held_out) == (3, 3, True)
    assert {*texts(found.train), *texts(found.validation)} == {*numbered(0, 4), *numbered(20, 22)}


# --- documents held out


def test_the_held_out_documents_depend_on_the_seed_and_keep_their_order(tmp_path: Path) -> None:
    file = put(tmp_path / "a.txt", *numbered(100, 200))
    found = load(file, validation_fraction=0.07)
    train, validation = texts(found.train), texts(found.validation)
    assert (len(train), len(validation), found.held_out, found.num_overlap) == (93, 7, True, 0)
    assert sorted(train + validation) == numbered(100, 200)
    assert train == sorted(train) and validation == sorted(validation)
    assert texts(load(file, validation_fraction=0.07).validation) == validation
    others = [texts(load(file, seed, validation_fraction=0.07).validation) for seed in (0, 1)]
    assert validation not in others and others[0] != others[1]


@pytest.mark.parametrize("fraction, num_validation", [(0.001, 1), (0.999, 2)])
def test_each_side_gets_a_document_for_any_fraction(tmp_path: Path, fraction: float, num_validation: int) -> None:
    found = load(put(tmp_path / "a.txt", *numbered(0, 3)), validation_fraction=fraction)
    assert (len(found.train), len(found.validation)) == (3 - num_validation, num_validation)


def test_a_single_document_cannot_be_divided(tmp_path: Path) -> None:
    assert refusal(put(tmp_path / "a.txt", "one")) == (
        "data.dataset = 'PATH': has only 1 document, but training and validation need one each; pass a dataset with "
        "more documents, or one with a validation split"
    )


@pytest.mark.parametrize("setting, other", [("train_split", "training"), ("validation_split", "dev")])
def test_a_split_of_data_without_splits_is_refused(tmp_path: Path, setting: str, other: str) -> None:
    assert refusal(put(tmp_path / "a.txt", *numbered(0, 5)), **{setting: other}) == (
        f"data.{setting} = '{other}': PATH has no named splits; omit the setting to hold "
        "out data.validation_fraction of the documents"
    )


def test_a_file_of_duplicated_lines_is_refused_with_the_remedy(tmp_path: Path) -> None:
    assert refusal(put(tmp_path / "a.txt", *["the same"] * 40)) == (
        "data.dataset = 'PATH': no validation documents remain, because all 2 are also training documents; "
        "remove the duplicates or pass another dataset"
    )


def test_the_text_column_and_all_columns_are_known(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,review,rating\na1,good film,8\na2,bad film,2\n")
    found = load(tmp_path / "a.csv", text_column="review")
    assert (found.text_column, found.columns) == ("review", ("id", "review", "rating"))
    found = load(put(tmp_path / "a.txt", "a", "b"))
    assert (found.text_column, found.columns) == ("", ())


def test_documents_that_are_in_the_training_text_are_counted(tmp_path: Path) -> None:
    hashes = load(put(tmp_path / "a.txt", *numbered(0, 40))).train_hashes
    config = DataConfig(dataset=str(put(tmp_path / "b.txt", *numbered(30, 60))))
    training = texts(load(tmp_path / "a.txt").train)
    expected = sum(text in training for text in numbered(30, 60))
    assert load_documents(config, hashes).num_in_training == expected > 5
    assert load_documents(config).num_in_training is None


def test_the_unit_of_a_document_in_txt_can_be_set(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one\ntwo\n\nthree\n")
    found = load(file, document="paragraph", validation_fraction=0.5)
    assert sorted(texts(found.train) + texts(found.validation)) == ["one\ntwo", "three"]


# --- overlap


def test_a_validation_document_that_is_also_a_training_document_is_dropped_and_counted(tmp_path: Path) -> None:
    put(tmp_path / "d" / "train.jsonl", "a", "b<br />", "c")
    put(tmp_path / "d" / "test.jsonl", "x", "b<br />", "b", "a", "A", "a ", "b<br />", "x")
    found = load(tmp_path / "d")
    assert texts(found.train) == ["a", "b<br />", "c"]
    assert texts(found.validation) == ["x", "b", "A", "a ", "x"]  # the exact text counts, and only across the splits
    assert found.num_overlap == 3


def test_a_held_out_document_with_a_copy_in_training_is_dropped(tmp_path: Path) -> None:
    """Of 40 texts that occur twice, both copies are held out or the held-out copy is dropped."""
    file = put(tmp_path / "a.txt", *numbered(0, 40), *numbered(0, 40))
    found = load(file, validation_fraction=0.5)
    train, validation = texts(found.train), texts(found.validation)
    assert not set(train) & set(validation)
    assert len(train) == 40 and found.num_overlap == 40 - len(validation)
    assert 0 < found.num_overlap < 40
    assert all(validation.count(text) == 2 for text in validation)


def test_validation_documents_that_are_all_training_documents_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "d" / "train.txt", "a", "b")
    put(tmp_path / "d" / "test.txt", "b", "a", "b")
    assert refusal(tmp_path / "d") == (
        "data.dataset = 'PATH': no validation documents remain, because all 3 are also training documents; "
        "pass another data.validation_split"
    )


def test_documents_without_text_do_not_overlap(tmp_path: Path) -> None:
    put(tmp_path / "d" / "train.jsonl", "a", "", None)
    put(tmp_path / "d" / "test.jsonl", "", "b", None, " \t")
    found = load(tmp_path / "d")
    assert found.num_overlap == 0 and len(found.validation) == 4


# --- no documents, or no text


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    assert (
        refusal(put(tmp_path / name)) == "data.train_split = 'train': PATH has no documents; pass a dataset with text"
    )


def test_an_empty_split_is_refused_under_its_name(tmp_path: Path) -> None:
    put(tmp_path / "d" / "train.txt", "a")
    put(tmp_path / "d" / "test.txt")
    assert refusal(tmp_path / "d") == (
        "data.validation_split = 'test': PATH has no documents; pass a dataset with text"
    )


def test_empty_files_next_to_others_add_nothing(tmp_path: Path) -> None:
    put(tmp_path / "d" / "one.txt")
    put(tmp_path / "d" / "two.txt", "a", "b")
    found = load(tmp_path / "d")
    assert sorted(texts(found.train) + texts(found.validation)) == ["a", "b"]


def test_empty_texts_are_not_reported_as_overlap(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    from tf_mlm.data.sequences import load_sequences

    put(tmp_path / "d" / "train.jsonl", "", " ")
    put(tmp_path / "d" / "test.jsonl", "", None)
    config = DataConfig(dataset=str(tmp_path / "d"))
    found = load_corpus(config, 0)
    with pytest.raises(
        Refused, match="^data.dataset: the training documents contain no text; pass a dataset with text$"
    ):
        load_sequences(found.train, found.train_fingerprint, tokenizer, config, "training")


# --- files


def test_several_text_columns_are_refused_until_one_is_chosen(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"title": ["t", "u"], "review": ["r", "s"], "stars": [1, 2]}), file)
    assert refusal(file) == (
        "data.text_column: PATH: several columns contain text: 'title', 'review'; choose one with --data.text_column"
    )
    found = load(file, text_column="review")
    assert sorted(texts(found.train) + texts(found.validation)) == ["r", "s"]


def test_the_place_of_an_error_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a"}\n{"text": \n')
    assert refusal(file) == (
        "data.dataset: PATH line 2 column 9: not JSON: Expecting value; the file must be one object per line"
    )


def test_a_path_that_does_not_exist_is_refused_without_asking_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", None)
    for name in ("texts/", "./texts", "reviews.csv", "data/reviews.jsonl.gz"):
        assert refusal(name).startswith("data.dataset: PATH: no such file or directory")


def test_a_full_disk_is_reported_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_documents(*arguments: Any) -> Iterator[str]:
        yield "a"
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "read_documents", read_documents)
    with pytest.raises(OSError, match="No space left on device") as failed:
        load(put(tmp_path / "a.txt", "a", "b"))
    assert failed.value.errno == errno.ENOSPC


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    file = put(tmp_path / "a.txt", "a", "b")
    load(file)
    put(file, "a", "c")
    found = load(file)
    assert sorted(texts(found.train) + texts(found.validation)) == ["a", "c"]


def test_a_changed_reader_reads_every_file_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = put(tmp_path / "a.txt", "a", "b")
    load(file)
    monkeypatch.setattr(module, "read_documents", lambda *arguments: iter(["c", "d"]))
    monkeypatch.setattr(module, "_READER_VERSION", "another")
    found = load(file)
    assert sorted(texts(found.train) + texts(found.validation)) == ["c", "d"]


# --- fingerprints


@pytest.mark.parametrize("name", ["b.txt", "a.jsonl", "a.csv", "a.parquet", "elsewhere/a.txt"])
def test_the_same_texts_have_the_same_fingerprints_in_any_kind_of_file(tmp_path: Path, name: str) -> None:
    expected = load(put(tmp_path / "a.txt", *numbered(0, 20)))
    found = load(put(tmp_path / name, *numbered(0, 20)))
    assert texts(found.train) == texts(expected.train)
    assert (found.train_fingerprint, found.validation_fingerprint) == (
        expected.train_fingerprint,
        expected.validation_fingerprint,
    )


def test_the_fingerprints_change_with_the_texts_their_order_and_what_is_held_out(tmp_path: Path) -> None:
    documents = numbered(0, 20)
    variants = [documents, documents[::-1], [*documents[:-1], "other"], ["document 0document 1", "", *documents[2:]]]
    found = [load(put(tmp_path / f"{number}.txt", *each)) for number, each in enumerate(variants)]
    found.append(load(tmp_path / "0.txt", seed=1))
    assert len({each.train_fingerprint for each in found}) == 5
    assert len({each.train_fingerprint + each.validation_fingerprint for each in found}) == 5
    assert found[0].train_fingerprint != found[0].validation_fingerprint


# --- the sample


def test_the_sample_is_held_out_like_a_file_and_is_the_same_every_time() -> None:
    found, again = load("sample", validation_fraction=0.05), load("sample", validation_fraction=0.05)
    assert found.held_out and len(found.train) == 3990
    assert len(found.validation) == 210 - found.num_overlap
    assert found.train_fingerprint == again.train_fingerprint


# --- documents for evaluation


def test_evaluation_uses_the_whole_validation_split_with_training_documents(tmp_path: Path) -> None:
    put(tmp_path / "d" / "train.txt", "a")
    put(tmp_path / "d" / "test.txt", "a", "b")
    scored = load_documents(DataConfig(dataset=str(tmp_path / "d")))
    assert texts(scored.documents) == ["a", "b"] and scored.description == "split test"
    assert scored.fingerprint != load(tmp_path / "d").validation_fingerprint


@pytest.mark.parametrize("validation_split", ["test", "", "validation"])
def test_evaluation_uses_all_documents_of_data_without_splits(tmp_path: Path, validation_split: str) -> None:
    config = DataConfig(dataset=str(put(tmp_path / "a.txt", "a", "b")), validation_split=validation_split)
    assert texts(load_documents(config).documents) == ["a", "b"]


def test_evaluation_uses_all_splits_if_validation_split_is_empty(folder: Path) -> None:
    scored = load_documents(DataConfig(dataset=str(folder), validation_split=""))
    everything = load_documents(DataConfig(dataset=str(folder), validation_split="train+test+unsupervised"))
    assert sorted(texts(scored.documents)) == sorted(texts(everything.documents))
    assert scored.description.startswith("all documents of ")


def test_evaluation_of_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="has no documents; pass a dataset with text$"):
        load_documents(DataConfig(dataset=str(put(tmp_path / "a.txt"))))


# --- the Hub, with a replaced `datasets.load_dataset`


@pytest.fixture
def from_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Replace a Hub dataset by local files and record the arguments of each call."""
    load_dataset = datasets.load_dataset
    monkeypatch.setenv("HF_HUB_OFFLINE", "")  # so that the error gives the cause

    def stand_in(**files: Path) -> list[Any]:
        calls = []

        def load(name: str, config_name: Any, **options: Any) -> Any:
            calls.append((name, config_name, options))
            kind = {".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}[next(iter(files.values())).suffix]
            return load_dataset(
                kind,
                data_files={split: str(file) for split, file in files.items()},
                cache_dir=str(tmp_path / "hub cache"),
            )

        monkeypatch.setattr(datasets, "load_dataset", load)
        return calls

    return stand_in


@pytest.mark.parametrize("column", ["text", "review"])
def test_the_hub_gives_the_splits_with_only_the_text_column(tmp_path: Path, from_hub: Any, column: str) -> None:
    calls = from_hub(
        train=put(tmp_path / "train.parquet", *numbered(0, 4), column=column),
        test=put(tmp_path / "test.parquet", *numbered(3, 6), column=column),
    )
    found = load("o/n", revision="v2", config_name="plain", num_proc=2)
    assert texts(found.train) == numbered(0, 4)
    assert texts(found.validation) == numbered(4, 6)
    assert found.num_overlap == 1
    assert calls == [("o/n", "plain", {"revision": "v2", "num_proc": 2})]


def test_a_missing_ambiguous_or_numeric_text_column_of_the_hub_is_refused(tmp_path: Path, from_hub: Any) -> None:
    file = tmp_path / "train.parquet"
    pq.write_table(pa.table({"title": ["t"], "review": ["r"], "stars": [1]}), file)
    from_hub(train=file, test=file)
    assert refusal("o/n") == (
        "data.text_column: PATH has several text columns: title, review; choose one with --data.text_column"
    )
    assert refusal("o/n", text_column="stars") == (
        "data.text_column = 'stars': is not text in PATH; text columns are title, review"
    )
    assert refusal("o/n", text_column="body") == (
        "data.text_column = 'body': does not exist in PATH; text columns are title, review"
    )
    pq.write_table(pa.table({"stars": [1]}), tmp_path / "none.parquet")
    from_hub(train=tmp_path / "none.parquet")
    assert refusal("o/n") == (
        "data.text_column: PATH has no text column among stars; choose one with --data.text_column"
    )


def test_a_missing_split_of_the_hub_is_refused_with_the_existing_ones(tmp_path: Path, from_hub: Any) -> None:
    from_hub(train=put(tmp_path / "train.parquet", "a"), dev=put(tmp_path / "dev.parquet", "b"))
    assert refusal("o/n") == (
        "data.validation_split = 'test': PATH has no split 'test' (splits: dev, train); "
        "pass one of them, or --data.validation_split '' to hold documents out"
    )


def test_errors_of_the_library_become_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*arguments: Any, **options: Any) -> None:
        raise ValueError("no such\n dataset")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    assert refusal("o/n") == (
        "data.dataset = 'PATH': cannot be loaded from the Hub (https://huggingface.co): no such dataset"
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert refusal("o/n") == "data.dataset = 'PATH': cannot be loaded from the cache: no such dataset"

    def out_of_reach(*arguments: Any, **options: Any) -> None:
        raise ConnectionError("Couldn't reach it")

    monkeypatch.setattr(datasets, "load_dataset", out_of_reach)
    with pytest.raises(HubOutOfReach):
        load("o/n")


def test_held_out_rows_use_a_separate_random_stream(tmp_path: Path) -> None:
    """The same seed gives other numbers here than for drawing and shuffling sequences."""
    file = put(tmp_path / "a.txt", *(f"{number:03}" for number in range(100)))
    held_out = np.array([int(text) for text in texts(load(file, validation_fraction=0.3).validation)])
    shuffled = np.sort(np.random.default_rng([42, 1]).permutation(100)[:30])
    drawn = np.sort(np.random.default_rng([42, 2]).permutation(100)[:30])
    for other in (shuffled, drawn, np.arange(30), np.arange(70, 100)):
        assert len(np.intersect1d(held_out, other)) < 20
