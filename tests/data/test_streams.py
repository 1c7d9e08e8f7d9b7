"""The stream of a dataset on the Hub, with a replaced `datasets.load_dataset`."""

from pathlib import Path
from typing import Any

import datasets
import pytest

from tests.data.test_corpus import numbered, put
from tf_mlm.config import DataConfig
from tf_mlm.data.streams import DocumentStream, load_stream
from tf_mlm.errors import Refused

# The csv reader of the library does not close its file.
left_open = pytest.mark.filterwarnings("ignore:Exception ignored:pytest.PytestUnraisableExceptionWarning")
csv = pytest.param("csv", marks=left_open)


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Replace the dataset `o/n` by the files that a test writes, and record the arguments of each call."""
    load_dataset = datasets.load_dataset
    calls = []

    def load(name: str, config_name: Any, **options: Any) -> Any:
        calls.append((name, config_name, options))
        files = {split: sorted(map(str, tmp_path.glob(f"{split}*"))) for split in ("train", "test")}
        kind = {"jsonl": "json", "csv": "csv", "parquet": "parquet"}[files["train"][0].rpartition(".")[2]]
        found = {split: paths for split, paths in files.items() if paths}
        return load_dataset(kind, data_files=found, streaming=options["streaming"])

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setenv("HF_HUB_OFFLINE", "")  # so that the error gives the cause
    return calls


def load(**settings: Any) -> DocumentStream:
    return load_stream(DataConfig(dataset="o/n", streaming=True, **settings), seed=1)


def training_texts(stream: DocumentStream) -> list[str]:
    return [text for shard in stream.shards for text in shard.read() if stream.is_training(text)]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", csv])
@pytest.mark.parametrize("column", ["", "review"])
def test_the_shards_have_the_texts_of_the_column(tmp_path: Path, hub: list[Any], kind: str, column: str) -> None:
    put(tmp_path / f"train-0.{kind}", *numbered(0, 4), column="review")
    put(tmp_path / f"train-1.{kind}", *numbered(4, 6), None, " ", column="review")
    put(tmp_path / f"test.{kind}", *numbered(3, 8), column="review")
    stream = load(text_column=column, revision="v2", config_name="plain")
    assert [list(shard.read()) for shard in stream.shards] == [numbered(0, 4), numbered(4, 6)]
    assert training_texts(stream) == numbered(0, 3)
    assert sorted(stream.validation["text"]) == numbered(3, 8)
    assert (stream.text_column, stream.columns) == ("review", ("review", "stars"))
    assert hub == [("o/n", "plain", {"revision": "v2", "streaming": True})]


@pytest.mark.parametrize("kind", ["parquet", csv])
def test_a_missing_or_numeric_column_is_refused(tmp_path: Path, kind: str) -> None:
    put(tmp_path / f"train.{kind}", "a", column="review")
    for column, problem in (("stars", "is not text"), ("body", "does not exist")):
        with pytest.raises(Refused) as refused:
            load(text_column=column)
        assert str(refused.value) == f"data.text_column = {column!r}: {problem} in o/n; text columns are review"


@left_open
def test_numbers_in_later_rows_are_text(tmp_path: Path) -> None:
    """The csv reader of the library infers types again every 10,000 rows."""
    put(tmp_path / "train.csv", *numbered(0, 10_000), "7", column="review")
    put(tmp_path / "test.csv", "a", column="review")
    assert training_texts(load())[9_999:] == ["document 9999", "7"]


def test_an_error_in_the_middle_is_reported_in_one_line(tmp_path: Path) -> None:
    put(tmp_path / "test.jsonl", "b")
    file = put(tmp_path / "train.jsonl", "a")
    file.write_text(file.read_text() * 500 + '{"text": \n')
    with pytest.raises(Refused) as refused:
        training_texts(load())
    message = "data.dataset = 'o/n': cannot be loaded from the Hub (https://huggingface.co): "
    assert str(refused.value).startswith(message)
    assert str(refused.value).isprintable()
