"""Claims about which documents are trained on and which are validated on, from files, from the Hub, and the sample."""

import errno
import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

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


def load(path: Path | str, seed: int = 42, **config) -> Corpus:
    return load_corpus(DataConfig(dataset=str(path), **config), seed)


def texts(documents: datasets.Dataset) -> list[str]:
    assert documents.column_names == ["text"]
    return list(documents["text"])


def refusal(path: Path | str, **config) -> str:
    with pytest.raises(Refused) as refused:
        load(path, **config)
    message = str(refused.value)
    assert message.isprintable(), message
    return message.replace(str(path), "PATH")


def numbered(first: int, end: int) -> list[str]:
    return [f"document {number}" for number in range(first, end)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Files are read anew in each test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


# --- named splits


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder in the Hub's layout: 4 documents to train on, 3 to test on, 2 without labels."""
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


def test_the_default_splits_are_train_and_test_in_order(folder):
    found = load(folder)
    assert texts(found.train) == numbered(0, 4)
    assert texts(found.validation) == numbered(10, 13)
    assert (found.num_overlap, found.held_out) == (0, False)


def test_splits_are_joined_with_a_plus_in_the_order_asked_for(folder):
    found = load(folder, train_split="unsupervised+train")
    assert texts(found.train) == numbered(20, 22) + numbered(0, 4)
    assert texts(load(folder, validation_split="test+unsupervised").validation) == numbered(10, 13) + numbered(20, 22)


def test_a_split_that_is_not_there_is_refused_with_those_that_are(folder):
    assert refusal(folder, validation_split="validation") == (
        "data.validation_split = 'validation': PATH has no split 'validation', it has test, train, unsupervised; "
        "pass one of them, or hold documents out with --data.validation_split ''"
    )
    assert refusal(folder, train_split="train+extra").startswith(
        "data.train_split = 'train+extra': PATH has no split 'extra'"
    )


def test_splits_that_are_not_named_are_not_read(folder):
    (folder / "plain_text" / "unsupervised-00000-of-00001.parquet").write_bytes(b"damaged")
    assert len(load(folder).train) == 4
    assert "not a parquet file" in refusal(folder, train_split="unsupervised")


def test_a_share_of_the_training_split_is_held_out_where_no_validation_split_is_named(folder):
    found = load(folder, train_split="train+unsupervised", validation_split="", validation_fraction=0.5)
    assert (len(found.train), len(found.validation), found.held_out) == (3, 3, True)
    assert {*texts(found.train), *texts(found.validation)} == {*numbered(0, 4), *numbered(20, 22)}


# --- documents held out


def test_a_share_of_the_documents_is_held_out_by_seed_whole_and_in_order(tmp_path):
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
def test_both_sides_get_a_document_however_small_or_large_the_share(tmp_path, fraction, num_validation):
    found = load(put(tmp_path / "a.txt", *numbered(0, 3)), validation_fraction=fraction)
    assert (len(found.train), len(found.validation)) == (3 - num_validation, num_validation)


def test_a_single_document_cannot_be_divided(tmp_path):
    assert refusal(put(tmp_path / "a.txt", "one")) == (
        "data.dataset = 'PATH': holds 1 document, and validation needs another one; pass a dataset with more "
        "documents, or name a split with --data.validation_split"
    )


@pytest.mark.parametrize("setting, other", [("train_split", "training"), ("validation_split", "dev")])
def test_a_split_named_where_there_are_none_is_refused(tmp_path, setting, other):
    assert refusal(put(tmp_path / "a.txt", *numbered(0, 5)), **{setting: other}) == (
        f"data.{setting} = '{other}': PATH has no named splits; omit the setting, and "
        "data.validation_fraction of the documents is held out"
    )


def test_a_file_of_duplicated_lines_is_refused_with_the_remedy(tmp_path):
    assert refusal(put(tmp_path / "a.txt", *["the same"] * 40)) == (
        "data.dataset = 'PATH': no validation document is left, because each of the 2 is also a training document; "
        "remove the duplicates from the data"
    )


def test_the_text_column_and_all_columns_are_known(tmp_path):
    (tmp_path / "a.csv").write_text("id,review,rating\na1,good film,8\na2,bad film,2\n")
    found = load(tmp_path / "a.csv", text_column="review")
    assert (found.text_column, found.columns) == ("review", ("id", "review", "rating"))
    found = load(put(tmp_path / "a.txt", "a", "b"))
    assert (found.text_column, found.columns) == ("", ())


def test_streaming_of_local_files_is_refused(tmp_path):
    message = refusal(put(tmp_path / "a.txt", "a", "b"), streaming=True)
    assert message == (
        "data.streaming = true: requires a dataset of the Hub, and data.dataset = 'PATH' is not one; omit "
        "data.streaming"
    )


def test_documents_that_are_in_the_training_text_are_counted(tmp_path):
    hashes = load(put(tmp_path / "a.txt", *numbered(0, 40))).train_hashes
    config = DataConfig(dataset=str(put(tmp_path / "b.txt", *numbered(30, 60))))
    training = texts(load(tmp_path / "a.txt").train)
    expected = sum(text in training for text in numbered(30, 60))
    assert load_documents(config, hashes).num_in_training == expected > 5
    assert load_documents(config).num_in_training is None


def test_what_a_document_is_in_txt_can_be_set(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one\ntwo\n\nthree\n")
    found = load(file, document="paragraph", validation_fraction=0.5)
    assert sorted(texts(found.train) + texts(found.validation)) == ["one\ntwo", "three"]


# --- overlap


def test_a_validation_document_that_is_also_a_training_document_is_dropped_and_counted(tmp_path):
    put(tmp_path / "d" / "train.jsonl", "a", "b<br />", "c")
    put(tmp_path / "d" / "test.jsonl", "x", "b<br />", "b", "a", "A", "a ", "b<br />", "x")
    found = load(tmp_path / "d")
    assert texts(found.train) == ["a", "b<br />", "c"]
    assert texts(found.validation) == ["x", "b", "A", "a ", "x"]  # the exact text counts, and only across the splits
    assert found.num_overlap == 3


def test_a_held_out_document_that_stands_a_second_time_in_the_rest_is_dropped(tmp_path):
    """Of 40 texts that stand twice, both copies are held out or the one held out is dropped."""
    file = put(tmp_path / "a.txt", *numbered(0, 40), *numbered(0, 40))
    found = load(file, validation_fraction=0.5)
    train, validation = texts(found.train), texts(found.validation)
    assert not set(train) & set(validation)
    assert len(train) == 40 and found.num_overlap == 40 - len(validation)
    assert 0 < found.num_overlap < 40
    assert all(validation.count(text) == 2 for text in validation)


def test_validation_documents_that_are_all_training_documents_are_refused(tmp_path):
    put(tmp_path / "d" / "train.txt", "a", "b")
    put(tmp_path / "d" / "test.txt", "b", "a", "b")
    assert refusal(tmp_path / "d") == (
        "data.dataset = 'PATH': no validation document is left, because each of the 3 is also a training document; "
        "pass another data.validation_split"
    )


def test_documents_without_text_are_no_overlap(tmp_path):
    put(tmp_path / "d" / "train.jsonl", "a", "", None)
    put(tmp_path / "d" / "test.jsonl", "", "b", None, " \t")
    found = load(tmp_path / "d")
    assert found.num_overlap == 0 and len(found.validation) == 4


# --- no documents, or none with text


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_an_empty_file_is_refused(tmp_path, name):
    assert (
        refusal(put(tmp_path / name))
        == "data.train_split = 'train': PATH has no documents there; pass a dataset with text"
    )


def test_an_empty_split_is_refused_under_its_name(tmp_path):
    put(tmp_path / "d" / "train.txt", "a")
    put(tmp_path / "d" / "test.txt")
    assert refusal(tmp_path / "d") == (
        "data.validation_split = 'test': PATH has no documents there; pass a dataset with text"
    )


def test_empty_files_beside_others_give_nothing(tmp_path):
    put(tmp_path / "d" / "one.txt")
    put(tmp_path / "d" / "two.txt", "a", "b")
    found = load(tmp_path / "d")
    assert sorted(texts(found.train) + texts(found.validation)) == ["a", "b"]


def test_texts_that_are_all_empty_are_not_called_an_overlap(tmp_path, tokenizer):
    from tf_mlm.data.sequences import load_sequences

    put(tmp_path / "d" / "train.jsonl", "", " ")
    put(tmp_path / "d" / "test.jsonl", "", None)
    config = DataConfig(dataset=str(tmp_path / "d"))
    found = load_corpus(config, 0)
    with pytest.raises(Refused, match="^data.dataset: the training documents hold no text; name data with text in it$"):
        load_sequences(found.train, found.train_fingerprint, tokenizer, config, "training")


# --- files


def test_several_text_columns_are_refused_until_one_is_named(tmp_path):
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"title": ["t", "u"], "review": ["r", "s"], "stars": [1, 2]}), file)
    assert refusal(file) == ("data.text_column: PATH: several columns hold text: 'title', 'review'; name one of them")
    found = load(file, text_column="review")
    assert sorted(texts(found.train) + texts(found.validation)) == ["r", "s"]


def test_the_place_of_a_fault_is_told_as_the_reader_tells_it(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a"}\n{"text": \n')
    assert refusal(file) == (
        "data.dataset: PATH line 2 column 9: not JSON: Expecting value; the file must be one object a line"
    )


def test_a_path_that_does_not_exist_is_refused_without_asking_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", None)
    for name in ("texts/", "./texts", "reviews.csv", "data/reviews.jsonl.gz"):
        assert refusal(name).startswith("data.dataset: PATH: no such file or folder")


def test_a_full_disk_is_told_as_one(tmp_path, monkeypatch):
    def read_documents(*arguments):
        yield "a"
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "read_documents", read_documents)
    with pytest.raises(OSError, match="No space left on device") as failed:
        load(put(tmp_path / "a.txt", "a", "b"))
    assert failed.value.errno == errno.ENOSPC


def test_a_changed_file_is_read_again(tmp_path):
    file = put(tmp_path / "a.txt", "a", "b")
    load(file)
    put(file, "a", "c")
    found = load(file)
    assert sorted(texts(found.train) + texts(found.validation)) == ["a", "c"]


def test_a_changed_reader_reads_every_file_again(tmp_path, monkeypatch):
    file = put(tmp_path / "a.txt", "a", "b")
    load(file)
    monkeypatch.setattr(module, "read_documents", lambda *arguments: iter(["c", "d"]))
    monkeypatch.setattr(module, "_READER_VERSION", "another")
    found = load(file)
    assert sorted(texts(found.train) + texts(found.validation)) == ["c", "d"]


# --- fingerprints


@pytest.mark.parametrize("name", ["b.txt", "a.jsonl", "a.csv", "a.parquet", "elsewhere/a.txt"])
def test_the_same_texts_have_the_same_fingerprints_in_any_kind_of_file(tmp_path, name):
    expected = load(put(tmp_path / "a.txt", *numbered(0, 20)))
    found = load(put(tmp_path / name, *numbered(0, 20)))
    assert texts(found.train) == texts(expected.train)
    assert (found.train_fingerprint, found.validation_fingerprint) == (
        expected.train_fingerprint,
        expected.validation_fingerprint,
    )


def test_the_fingerprints_change_with_the_texts_their_order_and_what_is_held_out(tmp_path):
    documents = numbered(0, 20)
    variants = [documents, documents[::-1], [*documents[:-1], "other"], ["document 0document 1", "", *documents[2:]]]
    found = [load(put(tmp_path / f"{number}.txt", *each)) for number, each in enumerate(variants)]
    found.append(load(tmp_path / "0.txt", seed=1))
    assert len({each.train_fingerprint for each in found}) == 5
    assert len({each.train_fingerprint + each.validation_fingerprint for each in found}) == 5
    assert found[0].train_fingerprint != found[0].validation_fingerprint


# --- the sample


def test_the_sample_is_held_out_like_a_file_and_is_the_same_every_time():
    found, again = load("sample", validation_fraction=0.05), load("sample", validation_fraction=0.05)
    assert found.held_out and len(found.train) == 3990
    assert len(found.validation) == 210 - found.num_overlap
    assert found.train_fingerprint == again.train_fingerprint


# --- all documents, to evaluate on


def test_to_evaluate_the_validation_split_is_taken_whole_training_documents_too(tmp_path):
    put(tmp_path / "d" / "train.txt", "a")
    put(tmp_path / "d" / "test.txt", "a", "b")
    scored = load_documents(DataConfig(dataset=str(tmp_path / "d")))
    assert texts(scored.documents) == ["a", "b"] and scored.description == "split test"
    assert scored.fingerprint != load(tmp_path / "d").validation_fingerprint


@pytest.mark.parametrize("validation_split", ["test", "", "validation"])
def test_to_evaluate_data_without_splits_is_taken_whole_whatever_split_the_run_validates_on(tmp_path, validation_split):
    config = DataConfig(dataset=str(put(tmp_path / "a.txt", "a", "b")), validation_split=validation_split)
    assert texts(load_documents(config).documents) == ["a", "b"]


def test_to_evaluate_all_splits_are_taken_where_no_split_is_asked_for(folder):
    scored = load_documents(DataConfig(dataset=str(folder), validation_split=""))
    everything = load_documents(DataConfig(dataset=str(folder), validation_split="train+test+unsupervised"))
    assert sorted(texts(scored.documents)) == sorted(texts(everything.documents))
    assert scored.description.startswith("all documents of ")


def test_to_evaluate_an_empty_file_is_refused(tmp_path):
    with pytest.raises(Refused, match="has no documents there; pass a dataset with text$"):
        load_documents(DataConfig(dataset=str(put(tmp_path / "a.txt"))))


# --- the Hub, by a stand-in for the library's call


@pytest.fixture
def from_hub(monkeypatch, tmp_path):
    """Makes `owner/name` stand for local files, and returns the arguments that the library was called with."""
    load_dataset = datasets.load_dataset
    monkeypatch.setenv("HF_HUB_OFFLINE", "")  # so that a refusal tells what went wrong

    def stand_in(**files: Path) -> list:
        calls = []

        def load(name, config_name, **options):
            calls.append((name, config_name, options))
            kind = {".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}[next(iter(files.values())).suffix]
            return load_dataset(
                kind,
                data_files={split: str(file) for split, file in files.items()},
                streaming=options["streaming"],
                cache_dir=str(tmp_path / "hub cache"),
            )

        monkeypatch.setattr(datasets, "load_dataset", load)
        return calls

    return stand_in


@pytest.mark.parametrize("column", ["text", "review"])
def test_the_hub_gives_the_splits_and_only_the_text_column(tmp_path, from_hub, column):
    calls = from_hub(
        train=put(tmp_path / "train.parquet", *numbered(0, 4), column=column),
        test=put(tmp_path / "test.parquet", *numbered(3, 6), column=column),
    )
    found = load("o/n", revision="v2", config_name="plain", num_proc=2)
    assert texts(found.train) == numbered(0, 4)
    assert texts(found.validation) == numbered(4, 6)
    assert found.num_overlap == 1
    assert calls == [("o/n", "plain", {"revision": "v2", "num_proc": 2, "streaming": False})]


def test_a_text_column_of_the_hub_may_be_missing_not_text_or_in_doubt(tmp_path, from_hub):
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


def test_a_split_that_the_hub_does_not_have_is_refused_with_those_it_has(tmp_path, from_hub):
    from_hub(train=put(tmp_path / "train.parquet", "a"), dev=put(tmp_path / "dev.parquet", "b"))
    assert refusal("o/n") == (
        "data.validation_split = 'test': PATH has no split 'test', it has dev, train; "
        "pass one of them, or hold documents out with --data.validation_split ''"
    )


def test_what_the_library_raises_becomes_one_line(monkeypatch):
    def load_dataset(*arguments, **options):
        raise ValueError("no such\n dataset")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    assert refusal("o/n") == (
        "data.dataset = 'PATH': the Hub (https://huggingface.co) does not give it: no such dataset"
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert refusal("o/n") == "data.dataset = 'PATH': what the cache holds of it cannot be loaded: no such dataset"

    def out_of_reach(*arguments, **options):
        raise ConnectionError("Couldn't reach it")

    monkeypatch.setattr(datasets, "load_dataset", out_of_reach)
    with pytest.raises(HubOutOfReach):
        load("o/n")


# --- the Hub as a stream

# The library's csv reader leaves its file to the garbage collector.
csv_left_open = pytest.param(
    "csv", marks=pytest.mark.filterwarnings("ignore:Exception ignored:pytest.PytestUnraisableExceptionWarning")
)


@pytest.mark.parametrize("kind", ["parquet", "jsonl", csv_left_open])
@pytest.mark.parametrize("column", ["", "review"])
def test_a_stream_is_read_though_it_may_not_know_its_columns(tmp_path, from_hub, kind, column):
    calls = from_hub(
        train=put(tmp_path / f"train.{kind}", *numbered(0, 4), column="review"),
        test=put(tmp_path / f"test.{kind}", *numbered(3, 6), column="review"),
    )
    found = load("o/n", streaming=True, text_column=column, num_proc=3)
    assert texts(found.train) == numbered(0, 4)
    assert texts(found.validation) == numbered(4, 6)
    assert found.train.features == found.validation.features == {"text": datasets.Value("string")}
    assert calls == [("o/n", None, {"revision": None, "num_proc": None, "streaming": True})]


@pytest.mark.parametrize("kind", ["parquet", csv_left_open])
def test_the_column_of_a_stream_may_be_missing_or_not_text(tmp_path, from_hub, kind):
    file = put(tmp_path / f"train.{kind}", "a", column="review")
    from_hub(train=file, test=file)
    assert refusal("o/n", streaming=True, text_column="stars") == (
        "data.text_column = 'stars': is not text in PATH; text columns are review"
    )
    assert refusal("o/n", streaming=True, text_column="body") == (
        "data.text_column = 'body': does not exist in PATH; text columns are review"
    )


@pytest.mark.filterwarnings("ignore:Exception ignored:pytest.PytestUnraisableExceptionWarning")
def test_a_stream_whose_texts_look_like_numbers_further_on_stays_text(tmp_path, from_hub):
    """The library's csv reader settles types anew every 10,000 rows."""
    from_hub(
        train=put(tmp_path / "train.csv", *numbered(0, 10_000), "7", column="review"),
        test=put(tmp_path / "test.csv", "a", column="review"),
    )
    assert texts(load("o/n", streaming=True).train)[9_999:] == ["document 9999", "7"]


def test_a_stream_is_read_no_further_than_twice_the_caps_need(tmp_path, from_hub):
    """10 and 3 sequences of 8 tokens, at 4 characters a token: 640 and 192 characters, in documents of 100."""
    file = put(tmp_path / "train.parquet", *(f"{number:<100}" for number in range(50)))
    from_hub(train=file, test=put(tmp_path / "test.parquet", *(f"{-number:<100}" for number in range(1, 50)), None))
    found = load("o/n", streaming=True, sequence_length=8, num_train_sequences=10, num_validation_sequences=3)
    assert (len(found.train), len(found.validation)) == (7, 2)


def test_documents_are_held_out_of_a_stream(tmp_path, from_hub):
    from_hub(train=put(tmp_path / "train.parquet", *numbered(0, 10)))
    found = load("o/n", streaming=True, validation_split="", validation_fraction=0.2)
    assert (len(found.train), len(found.validation), found.held_out) == (8, 2, True)


def test_a_stream_that_breaks_off_is_refused_in_one_line(tmp_path, from_hub, monkeypatch):
    file = put(tmp_path / "train.jsonl", "a")
    file.write_text(file.read_text() * 500 + '{"text": \n')
    from_hub(train=file, test=put(tmp_path / "test.jsonl", "b"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    assert refusal("o/n", streaming=True).startswith(
        "data.dataset = 'PATH': the Hub (https://huggingface.co) does not give it: "
    )


def test_rows_held_out_do_not_depend_on_the_fraction_alone(tmp_path):
    """The seed of the whole run does not give the same numbers here as where sequences are drawn or shuffled."""
    file = put(tmp_path / "a.txt", *(f"{number:03}" for number in range(100)))
    held_out = np.array([int(text) for text in texts(load(file, validation_fraction=0.3).validation)])
    shuffled = np.sort(np.random.default_rng([42, 1]).permutation(100)[:30])
    drawn = np.sort(np.random.default_rng([42, 2]).permutation(100)[:30])
    for other in (shuffled, drawn, np.arange(30), np.arange(70, 100)):
        assert len(np.intersect1d(held_out, other)) < 20
