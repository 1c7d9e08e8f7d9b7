"""Sequences that are tokenized while training: order, passes, validation documents, and continuing at any sequence."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

from tests.conftest import ROOT
from tests.data.conftest import CLS, SEP, put
from tf_mlm.config import DataConfig, load_config
from tf_mlm.data import streamed_sequences, streams
from tf_mlm.data.pipeline import build_collator, build_train_dataset, rows_of_batch
from tf_mlm.data.prepared import StreamedData, describe_data, prepare_stream
from tf_mlm.data.streamed_sequences import StreamedRows, StreamedSequences
from tf_mlm.data.streams import DocumentStream, load_stream
from tf_mlm.errors import Refused

NUM_SHARDS, PER_SHARD = 4, 25


@pytest.fixture
def folder(tmp_path: Path, cache: Path) -> Path:
    """4 training files of 25 documents each, with 1 to 5 words; no two documents are equal. A test split."""
    number = iter(range(1000))
    for shard in range(NUM_SHARDS):
        lines = [" ".join(str(10 + (n >> bit) % 2 + 2 * bit) for bit in range(7)) for n in take(number, PER_SHARD)]
        put(tmp_path / "data" / f"train-{shard}.txt", "\n".join(lines))
    put(tmp_path / "data" / "test.txt", "\n".join(f"{5 + n % 5} {30 + n} {31 + n}" for n in range(60)))
    return tmp_path / "data"


def take(numbers: Iterator[int], count: int) -> list[int]:
    return [next(numbers) for _ in range(count)]


def stream_config(folder: Path, **settings: Any) -> DataConfig:
    overrides = {
        "data.dataset": str(folder),
        "data.streaming": True,
        "data.sequence_length": 8,
        "data.num_validation_sequences": 5,
        "data.shuffle_buffer_size": 10,
        "training.batch_size": 4,
        "training.num_train_steps": 40,
        "training.validate_every_steps": 10,
        **{f"data.{name}": value for name, value in settings.items()},
    }
    return load_config(None, overrides).data


def open_stream(
    folder: Path, tokenizer: PreTrainedTokenizerFast, seed: int = 1, **settings: Any
) -> tuple[DocumentStream, StreamedSequences]:
    config = stream_config(folder, **settings)
    stream = load_stream(config, seed)
    return stream, StreamedSequences(stream, tokenizer, config, seed)


def documents_of(ids: np.ndarray) -> list[tuple[int, ...]]:
    """The complete documents in consecutive sequences."""
    documents: list[tuple[int, ...]] = []
    words: list[int] = []
    for token in ids.ravel().tolist():
        if token == SEP:
            documents.append(tuple(words))
        words = [] if token in (CLS, SEP) else [*words, token]
    return documents


def test_a_pass_has_every_document_once_and_passes_have_other_orders_of_the_shards(
    folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """100 documents of 9 tokens: 112.5 sequences of 8 in each pass."""
    _, sequences = open_stream(folder, tokenizer)
    documents = documents_of(sequences.input_ids[np.arange(450)])
    assert len(documents) == 400
    passes = [documents[start : start + 100] for start in range(0, 400, 100)]
    assert all(len(set(each)) == 100 for each in passes)
    assert len({tuple(each) for each in passes}) > 1
    # Within a shard, the order is that of the file.
    in_file = sorted(passes[0], key=lambda words: sum((word % 2) << bit for bit, word in enumerate(words)))
    position = {document: number for number, document in enumerate(in_file)}
    for each in passes:
        for start in range(0, 100, PER_SHARD):
            numbers = [position[document] for document in each[start : start + PER_SHARD]]
            assert numbers == list(range(numbers[0], numbers[0] + PER_SHARD)) and numbers[0] % PER_SHARD == 0


def test_sequences_are_a_function_of_the_seed(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    def read(seed: int) -> list[int]:
        return list(open_stream(folder, tokenizer, seed)[1].input_ids[np.arange(300)].ravel())

    assert read(1) == read(1) != read(2)


@settings(max_examples=25, deadline=None)
@given(first=st.integers(0, 600), size=st.sampled_from([30, 45, 64]), isolated=st.booleans())
def test_reading_continues_at_any_sequence_in_another_process(first: int, size: int, isolated: bool) -> None:
    sequences, again, reads = small_streams(size, isolated)
    expected = sequences.input_ids[np.arange(first, first + 30)]
    starts = sequences.document_starts[np.arange(first, first + 30)] if isolated else None
    position = json.loads(json.dumps(sequences.position_before(first)))
    assert position["block"] == first // size
    reads.clear()
    again.continue_at(position)
    np.testing.assert_array_equal(again.input_ids[np.arange(first, first + 30)], expected)
    if isolated:
        np.testing.assert_array_equal(again.document_starts[np.arange(first, first + 30)], starts)
    # It begins in the shard of the position, not at the beginning of the stream.
    shards_before = position["passes"] * NUM_SHARDS + position["shard"]
    rows_of_shard = 25 * 9 / 8
    assert len(reads) <= (first + 30 + 3 * size) / rows_of_shard - shards_before + 2


def small_streams(size: int, isolated: bool) -> tuple[StreamedSequences, StreamedSequences, list[int]]:
    """Two readers of the same stream in memory, and the shards that were opened."""
    reads: list[int] = []

    def shard(number: int) -> streams.Shard:
        def read() -> Iterator[str]:
            reads.append(number)
            for n in range(PER_SHARD * number, PER_SHARD * (number + 1)):
                yield " ".join(str(10 + (n >> bit) % 2 + 2 * bit) for bit in range(7))

        return streams.Shard(str(number), read)

    import datasets

    stream = DocumentStream(
        shards=[shard(number) for number in range(NUM_SHARDS)],
        validation=datasets.Dataset.from_dict({"text": ["5"]}),
        held_out=False,
        is_training=lambda text: True,
        fingerprint="",
        validation_fingerprint="",
        text_column="",
        columns=(),
    )
    config = stream_config(Path("none"), shuffle_buffer_size=size, isolate_documents=isolated)
    tokenizer = word_tokenizer()
    first, second = (StreamedSequences(stream, tokenizer, config, seed=3) for _ in range(2))
    return first, second, reads


def word_tokenizer() -> PreTrainedTokenizerFast:
    """The fixture `tokenizer`, which tests of properties cannot use."""
    from tests.data import conftest

    return conftest.tokenizer.__wrapped__()  # type: ignore[attr-defined]


def test_reading_backward_gives_the_same_sequences() -> None:
    sequences, _, _ = small_streams(10, False)
    ahead = sequences.input_ids[np.arange(100, 200)]
    behind = sequences.input_ids[np.arange(0, 100)]
    np.testing.assert_array_equal(sequences.input_ids[np.arange(100, 200)], ahead)
    np.testing.assert_array_equal(sequences.input_ids[np.arange(0, 100)], behind)
    np.testing.assert_array_equal(sequences.input_ids[5], behind[5])


_ENDS_WHILE_READING = """
from tests.data.test_streamed_sequences import small_streams, word_tokenizer
from tf_mlm.config import MaskingConfig
from tf_mlm.data import streams
from tf_mlm.data.pipeline import build_collator, build_train_dataset
from tf_mlm.data.streamed_sequences import StreamedRows

sequences, _, _ = small_streams(200, False)

def read():
    yield from ["10 11 12 13"] * 1000  # one batch of documents: blocks 0 to 2
    while True:
        yield "10 11 " * 2_000_000

sequences._stream.shards[:] = [streams.Shard("0", read)]
collator = build_collator(sequences, word_tokenizer(), MaskingConfig(), seed=1)
dataset = build_train_dataset(collator, StreamedRows(800, 200, seed=1), batch_size=4, seed=1, epochs=1)
print(sum(1 for _ in dataset.take(105)))  # a thread of TensorFlow has begun to read block 3
"""


def test_the_process_ends_while_documents_are_read() -> None:
    """The process would abort if a thread of TensorFlow were still inside Python."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _ENDS_WHILE_READING]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.stdout == "105\n"
    assert ended.returncode == 0, ended.stderr


def test_only_a_few_blocks_are_kept() -> None:
    sequences, _, _ = small_streams(10, False)
    sequences.input_ids[np.arange(500)]
    assert len(sequences._blocks) == 3


def test_rows_are_shuffled_inside_their_block() -> None:
    rows = StreamedRows(num_sequences=24, block_size=10, seed=5)
    order = np.concatenate([rows.of_epoch(epoch) for epoch in (1, 2, 3, 4, 5)])
    assert (order // 10 == np.arange(120) // 10).all()
    assert sorted(order) == list(range(120))
    assert len({tuple(order[start : start + 10] % 10) for start in range(0, 120, 10)}) > 5
    np.testing.assert_array_equal(rows_of_batch(rows, 8, 99, 4), rows.of_epoch(2)[8:16])
    assert list(StreamedRows(24, 10, seed=6).of_epoch(1)) != list(rows.of_epoch(1))


def test_a_batch_has_the_rows_of_the_stream_and_masks_by_number(
    folder: Path, tokenizer: PreTrainedTokenizerFast, tensorflow: None
) -> None:
    _, sequences = open_stream(folder, tokenizer)
    masking = load_config(None, {}).masking
    rows = StreamedRows(16, 10, seed=1)
    collator = build_collator(sequences, tokenizer, masking, seed=1)
    whole = list(build_train_dataset(collator, rows, batch_size=4, seed=1, epochs=6).take(24).as_numpy_iterator())
    for batch, (features, labels) in enumerate(whole):
        numbers = rows_of_batch(rows, 4, 1, batch)
        real = np.where(labels == -100, features["input_ids"], labels)
        np.testing.assert_array_equal(real, sequences.input_ids[numbers])
        assert (features["attention_mask"] == 1).all()
    rest = build_train_dataset(collator, rows, batch_size=4, seed=1, epochs=6, first_batch=7)
    for (features, labels), (same, same_labels) in zip(rest.take(5).as_numpy_iterator(), whole[7:], strict=False):
        np.testing.assert_array_equal(features["input_ids"], same["input_ids"])
        np.testing.assert_array_equal(labels, same_labels)


def test_a_dataset_reads_only_the_shards_from_its_first_batch_on(tensorflow: None) -> None:
    """In 60 batches of 4 sequences, of which the first 40 are skipped; a shard has 28 sequences."""
    sequences, again, reads = small_streams(10, False)
    rows = StreamedRows(60 * 4, 10, seed=1)
    tokenizer, masking = word_tokenizer(), load_config(None, {}).masking

    def batches(of: StreamedSequences, first_batch: int) -> list[Any]:
        collator = build_collator(of, tokenizer, masking, seed=1)
        dataset = build_train_dataset(collator, rows, batch_size=4, seed=1, epochs=1, first_batch=first_batch)
        return list(dataset.take(2).as_numpy_iterator())

    sequences.input_ids[np.arange(200)]
    expected = batches(sequences, 40)
    position = sequences.position_before(160)
    reads.clear()
    again.continue_at(position)
    np.testing.assert_array_equal(batches(again, 40)[1][1], expected[1][1])
    assert position["block"] == 16 and len(reads) <= 4  # two shards for the batches, and those that are read ahead


def test_documents_of_the_validation_are_not_trained_on(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    shared_text = "10 12 14 16 18 20 22"  # the first document of the first shard
    put(folder / "test.txt", f"{shared_text}\n50 51")
    stream, sequences = open_stream(folder, tokenizer)
    assert sorted(stream.validation["text"]) == [shared_text, "50 51"]
    trained = Counter(documents_of(sequences.input_ids[np.arange(300)]))
    assert tuple(map(int, shared_text.split())) not in trained and len(trained) == 99


def test_documents_are_held_out_by_a_hash_of_their_text(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    (folder / "test.txt").unlink()
    options: dict[str, Any] = {"validation_split": "", "validation_fraction": 0.3, "num_validation_sequences": 500}
    stream, sequences = open_stream(folder, tokenizer, **options)
    held_out = {tuple(map(int, text.split())) for text in stream.validation["text"]}
    trained = set(documents_of(sequences.input_ids[np.arange(300)]))
    assert stream.held_out and 15 < len(held_out) < 45
    assert not held_out & trained and len(held_out | trained) == 100
    assert set(open_stream(folder, tokenizer, seed=2, **options)[0].validation["text"]) != set(
        stream.validation["text"]
    )


def test_validation_documents_are_drawn_from_the_text_that_is_read(
    folder: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 sequences of 8 tokens, 4 characters per token, twice: 128 characters, in documents of 7 characters."""
    everything = (folder / "test.txt").read_text().split("\n")
    drawn = list(load_stream(stream_config(folder, num_validation_sequences=2), 1).validation["text"])
    assert len(drawn) == 19 and set(drawn) < set(everything) and not set(drawn) <= set(everything[:30])
    monkeypatch.setattr(streams, "_CHARACTERS_READ", 100)
    drawn = list(load_stream(stream_config(folder, num_validation_sequences=2), 1).validation["text"])
    assert set(drawn) == set(everything[:19])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train.txt": "5\n6", "test.txt": "\n \n"}, "has no validation documents"),
        ({"train.txt": "5", "dev.txt": "6"}, "has no split 'test'"),
        ({"train.csv": "a,b\n5,6", "test.csv": "a,b\n5,6"}, "no column contains text"),
        ({}, "no data file in it"),
    ],
)
def test_a_dataset_that_cannot_be_streamed_is_refused(
    tmp_path: Path, cache: Path, files: dict[str, str], message: str
) -> None:
    (tmp_path / "data").mkdir()
    for name, content in files.items():
        put(tmp_path / "data" / name, content)
    with pytest.raises(Refused, match=message):
        load_stream(stream_config(tmp_path / "data"), 1)


def test_the_sample_is_not_streamed(cache: Path) -> None:
    with pytest.raises(Refused, match="the sample is generated in memory; omit data.streaming"):
        load_stream(stream_config(Path("sample")), 1)


def test_training_documents_without_text_are_refused(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    for file in folder.glob("train-*.txt"):
        file.write_text("\n\n \n")
    _, sequences = open_stream(folder, tokenizer)
    with pytest.raises(Refused, match="the training documents contain no text"):
        sequences.input_ids[np.arange(4)]
    assert isinstance(sequences.error, Refused)


def test_the_facts_report_the_shards(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    config = load_config(
        None,
        {
            "data.dataset": str(folder),
            "data.streaming": True,
            "data.sequence_length": 8,
            "data.num_validation_sequences": 5,
            "training.num_train_steps": 40,
            "training.validate_every_steps": 10,
            "training.batch_size": 4,
        },
    )
    data = prepare_stream(config, load_stream(config.data, config.training.seed), tokenizer)
    assert isinstance(data, StreamedData) and data.train_hashes is None
    assert len(data.train_rows) == 40 and len(data.validation_rows) == 5
    assert describe_data(data.facts).splitlines()[0] == (
        "training            4 shards, read while training: 1,280 tokens, 160 sequences"
    )
    assert data.count_tokens(config, 3, 10) == 7 * 4 * 8
    assert data.position_before(config, 0)["block"] == 0


def test_a_long_document_is_divided_over_sequences(
    folder: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of few characters give the same sequences."""
    put(folder / "train-0.txt", " ".join(str(10 + n % 80) for n in range(1000)))
    _, sequences = open_stream(folder, tokenizer)
    expected = sequences.input_ids[np.arange(200)]
    monkeypatch.setattr(streamed_sequences, "_CHARACTERS_PER_BATCH", 30)
    np.testing.assert_array_equal(open_stream(folder, tokenizer)[1].input_ids[np.arange(200)], expected)
