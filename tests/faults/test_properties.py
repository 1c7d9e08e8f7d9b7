"""Any file and any command line works or is refused in one line, without other errors, hangs or damaged output.

The default suite tries a few hundred cases, `-m slow` thousands."""

import contextlib
import gzip
import io
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT
from tests.data.conftest import MASK, SPECIAL
from tests.data.test_readers import encode
from tests.run.test_checkpoint import save
from tf_mlm.commands.main import train_main
from tf_mlm.config import DataConfig, load_config, setting_fields
from tf_mlm.data import pipeline
from tf_mlm.data.corpus import load_corpus
from tf_mlm.data.local_files import KINDS, find_split_files
from tf_mlm.data.masking import IGNORE_INDEX, MaskingCollator, mask_tokens, max_masked_per_sequence
from tf_mlm.data.readers import read_documents
from tf_mlm.data.sequences import load_sequences
from tf_mlm.errors import Refused
from tf_mlm.run.checkpoint import load_checkpoint
from tf_mlm.run.directory import RunDirectory, newest_unfinished_run

_SECONDS = 30  # limit of processor time for a case
Check = Callable[..., None]

few_or_many = pytest.mark.parametrize("cases", [20, pytest.param(1000, marks=pytest.mark.slow)], ids=["few", "many"])


def check_all(cases: int, strategy: st.SearchStrategy[Any], check: Check) -> None:
    @settings(max_examples=cases, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(strategy)
    def check_one(case: Any) -> None:
        with no_hang():
            check(case)

    check_one()


@contextlib.contextmanager
def no_hang() -> Iterator[None]:
    """Limit processor time instead of wall time, so that tests do not fail on a busy or suspended machine."""

    def hangs(*arguments: object) -> None:
        raise AssertionError(f"no answer within {_SECONDS} s of processor time")

    before = signal.signal(signal.SIGVTALRM, hangs)
    signal.setitimer(signal.ITIMER_VIRTUAL, _SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def answer(call: Callable[[], Any]) -> Any:
    """The result of `call`, or None if it is refused in one line."""
    try:
        return call()
    except Refused as refused:
        assert str(refused).isprintable() and str(refused), repr(str(refused))
        return None


def exit_code(*arguments: str) -> tuple[int, str]:
    """The exit code and the output of `train.py`; a refusal must be one line on stderr and nothing else."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = train_main(list(arguments))
    output, errors = ("" if stream.seek(0) else stream.read() for stream in (out, err))
    assert (code, errors) == (0, "") or code == 2 and output == ""
    if code:
        assert errors.startswith("error: ") and errors.index("\n") == len(errors) - 1, errors
    return code, output


def some_bytes(*pieces: bytes) -> st.SearchStrategy[bytes]:
    return st.lists(st.sampled_from(pieces) | st.binary(max_size=6)).map(b"".join)


@st.composite
def damaged(draw: Any, whole: bytes) -> bytes:
    """`whole` truncated, or with a few bytes changed, removed, inserted or repeated."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 9)))
        how = draw(st.sampled_from(["change", "cut", "put", "repeat", "end"]))
        if how == "change":
            content[start:end] = draw(st.binary(min_size=end - start, max_size=end - start))
        elif how == "cut":
            del content[start:end]
        elif how == "put":
            content[start:start] = draw(
                st.binary(max_size=9) | st.sampled_from([b"\0", b'"', b"\xff", b"\r", b"[" * 9])
            )
        elif how == "repeat":
            content[start:start] = content[start:end] * draw(st.integers(1, 50))
        else:
            del content[start:]
    return bytes(content)


# --- settings

some_text = st.text(max_size=12)
scalars = st.one_of(
    st.booleans(), st.integers(-(2**70), 2**70), st.floats(), some_text, st.datetimes(), st.sampled_from(["auto", ""])
)
values = st.one_of(scalars, st.lists(scalars, max_size=3), st.dictionaries(some_text, scalars, max_size=2))
setting_names = st.sampled_from(sorted(setting_fields()))


@st.composite
def settings_files(draw: Any) -> bytes:
    tables: dict[str, Any] = {}
    for dotted in draw(st.lists(setting_names, max_size=4)):
        section, key = dotted.split(".")
        tables.setdefault(section, {})[key] = draw(values)
    tables |= draw(st.dictionaries(some_text, values, max_size=1))
    return tomli_w.dumps(tables).encode("utf-8", "surrogatepass")


@few_or_many
def test_any_settings_file_loads_or_is_refused(cases: int, tmp_path: Path) -> None:
    file = tmp_path / "my.toml"

    def check(content: bytes) -> None:
        file.write_bytes(content)
        code, printed = exit_code("--print-config", "--config", str(file))
        if code == 0:
            (tmp_path / "printed.toml").write_text(printed, encoding="utf-8")
            assert load_config(tmp_path / "printed.toml") == load_config(file)

    shipped = [path.read_bytes() for path in sorted((ROOT / "configs").glob("*.toml"))]
    check_all(
        cases,
        settings_files()
        | st.sampled_from(shipped).flatmap(damaged)
        | some_bytes(b"[training]\n", b"epochs", b" = ", b"3", b'"""', b"[[", b"{", b"\n", b"'", b"\\u"),
        check,
    )


@few_or_many
def test_any_command_line_works_or_is_refused(cases: int) -> None:
    flags = [f"--{name}" for name in sorted(setting_fields())]
    flags += ["--epochs", "--batch-size", "--learning-rate", "--model", "--dataset", "--seed", "--resume", "--plan"]
    words = st.sampled_from(["1", "0", "-1", "1e9", "nan", "true", "--", "-", "", "=", "x=y"]) | some_text
    words = words.filter(lambda word: not word.startswith(("-h", "--h")))  # prints the help
    with_value = st.builds(lambda flag, word: f"{flag}={word}", st.sampled_from(flags), words)
    check_all(
        cases,
        st.lists(st.sampled_from(flags) | words | with_value, max_size=6),
        lambda arguments: exit_code("--print-config", *arguments) and None,
    )


# --- texts

some_texts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.just("11 12 13"), max_size=6)


@st.composite
def text_files(draw: Any) -> tuple[str, bytes]:
    """A name and a content: valid, damaged, or random."""
    kind = draw(st.sampled_from(KINDS))
    ending = draw(st.sampled_from(["", ".gz"]))
    texts = draw(some_texts)
    if kind in ("csv", "tsv"):
        texts = [text.replace("\0", "") for text in texts]
    content = encode(kind, texts)
    how = draw(st.sampled_from(["whole", "damaged", "damaged inside", "other"]))
    if how == "other":
        content = draw(some_bytes(b"text", b'"', b",", b"\t", b"\n", b"\r", b'{"text": ', b"[", b"]}", b"\0", b"PAR1"))
    if how == "damaged inside":
        content = draw(damaged(content))
    content = gzip.compress(content) if ending else content
    return f"a.{kind}{ending}", draw(damaged(content)) if how == "damaged" else content


@few_or_many
@pytest.mark.parametrize("document", ["line", "paragraph", "file"])
def test_any_text_file_is_read_or_refused(cases: int, document: Any, tmp_path: Path) -> None:
    def check(case: tuple[tuple[str, bytes], str]) -> None:
        (name, content), column = case
        path = tmp_path / name
        path.write_bytes(content)
        texts = answer(lambda: list(read_documents([path], column, document)))
        for text in texts or ():
            text.encode()  # a lone surrogate cannot be encoded
        path.unlink()

    check_all(cases, st.tuples(text_files(), st.sampled_from(["", "text", "stars", "no such"])), check)


@few_or_many
def test_any_text_file_becomes_sequences_or_is_refused(cases: int, tmp_path: Path, tokenizer: Any, cache: Path) -> None:
    """The sequences have exactly the tokens of the documents."""

    def check(case: tuple[tuple[str, bytes], bool, int, float]) -> None:
        (name, content), line_by_line, length, fraction = case
        path = tmp_path / name
        path.write_bytes(content)
        config = DataConfig(
            dataset=str(path), sequence_length=length, line_by_line=line_by_line, validation_fraction=fraction
        )
        corpus = answer(lambda: load_corpus(config, seed=1))
        if corpus:
            for documents, fingerprint in (
                (corpus.train, corpus.train_fingerprint),
                (corpus.validation, corpus.validation_fingerprint),
            ):
                sequences = answer(partial(load_sequences, documents, fingerprint, tokenizer, config, "some"))
                if sequences:
                    assert sequences.lengths.sum() == sequences.num_tokens
                    assert sequences.num_documents + sequences.num_empty == len(documents)
                    padding = np.arange(length) >= sequences.lengths[:, None]
                    assert (sequences.input_ids[padding] == tokenizer.pad_token_id).all()
                    assert (sequences.lengths > 0).all()
        path.unlink()

    lengths, fractions = st.integers(8, 40), st.floats(0.01, 0.99)
    check_all(cases, st.tuples(text_files(), st.booleans(), lengths, fractions), check)


@few_or_many
def test_any_directory_of_files_is_read_or_refused(cases: int, tmp_path: Path) -> None:
    """No file outside the directory is found, with any card and any links."""
    secret = tmp_path / "secret.txt"
    secret.write_text("not for training")
    folder = tmp_path / "data"

    def check(case: tuple[dict[str, str], list[str], str]) -> None:
        contents, links, card = case
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, content in contents.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(content)
        for name in links:
            if not (folder / name).exists():
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).symlink_to(secret)
        if card:
            (folder / "README.md").write_text(card, encoding="utf-8")
        splits = answer(lambda: find_split_files(str(folder)))
        for files in (splits or {}).values():
            assert files
            for file in files:
                assert file.resolve().is_relative_to(folder.resolve()) and file.is_file()

    names = st.sampled_from(
        ["train.txt", "test.txt", "a.txt", "a.csv", "train/b.txt", "data/test-00000-of-00001.txt", "x.bin", ".b.txt"]
    )
    paths = st.sampled_from(
        ["*.txt", "**", "../secret.txt", str(secret), "train.txt", "file://" + str(secret), "data/../../secret.txt",
         "https://example.org/a.txt", "~/a.txt", "", "[", "no.txt", "zip://secret.txt::a.zip", "a.csv"]
    )  # fmt: skip
    entries = st.lists(st.fixed_dictionaries({"split": st.sampled_from(["train", "test"]), "path": paths}), max_size=2)
    configs = st.fixed_dictionaries(
        {"config_name": st.sampled_from(["default", "other", ""])},
        optional={"data_files": entries | paths | values, "data_dir": paths | values, "default": st.booleans()},
    )
    cards = st.lists(configs, max_size=2).map(lambda each: f"---\nconfigs: {json.dumps(each, default=str)}\n---\n")
    wild = st.text(max_size=40).map(lambda text: f"---\n{text}\n---\n")
    wild = wild.filter(lambda card: "\r" not in card and not any("\ud800" <= c <= "\udfff" for c in card))
    check_all(
        cases,
        st.tuples(
            st.dictionaries(names, st.just("some text\n"), max_size=4),
            st.lists(names, max_size=1),
            st.just("") | cards | wild,
        ),
        check,
    )


# --- masks and batches


@few_or_many
def test_any_mask_arguments_give_valid_masks(cases: int) -> None:
    rates = st.floats() | st.floats(0, 1) | st.sampled_from([0.0, 1.0, 1e-300, 0.15])

    def check(case: tuple[list[float], int, int, int, int]) -> None:
        (probability, replaced, randomised), rows, length, seed, lowest = case
        overrides = {
            "masking.mlm_probability": repr(probability),
            "masking.mask_replace_prob": repr(replaced),
            "masking.random_replace_prob": repr(randomised),
        }
        config = answer(lambda: load_config(None, overrides))
        if config is None:
            return
        rng = np.random.default_rng(seed)
        ids = rng.integers(lowest, 100, (rows, length)).astype(np.int32)
        maskable = ~np.isin(ids, SPECIAL)
        masked, labels = mask_tokens(
            ids,
            maskable,
            rng.integers(0, 2**64, rows, np.uint64),
            mlm_probability=config.masking.mlm_probability,
            mask_replace_prob=config.masking.mask_replace_prob,
            random_replace_prob=config.masking.random_replace_prob,
            mask_token_id=MASK,
            random_token_ids=np.arange(5, 100, dtype=np.int32),
        )
        chosen = labels != IGNORE_INDEX
        assert masked.shape == labels.shape == ids.shape and masked.dtype == labels.dtype == np.int32
        assert (labels[chosen] == ids[chosen]).all() and (masked[~chosen] == ids[~chosen]).all()
        assert not (chosen & ~maskable).any()
        assert (chosen.any(axis=1) == maskable.any(axis=1)).all()
        assert chosen.sum(axis=1).max() <= max(1, max_masked_per_sequence(length, config.masking.mlm_probability))
        assert ((masked >= 0) & (masked < 100)).all()

    arguments = (st.integers(1, 6), st.integers(8, 64), st.integers(0, 2**32 - 1), st.sampled_from([0, 5, 95]))
    check_all(cases, st.tuples(st.lists(rates, min_size=3, max_size=3), *arguments), check)


@few_or_many
def test_any_pipeline_arguments_give_every_sequence_once(cases: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every epoch has every sequence once. A start at any step gives the same rows as the whole pipeline."""

    class Table:
        def __init__(self, collator: Any, examples: Any, batch_size: int, share: Any):
            self.rows = np.stack([examples[:][name] for name in ("epoch", "index")])
            assert self.rows.shape[1] % (share.num_rows if share else batch_size) == 0

        def repeat(self) -> "Table":
            return self

    monkeypatch.setattr(pipeline, "_to_tf_dataset", Table)

    def check(case: tuple[int, int, int, int, float]) -> None:
        num_rows, batch_size, seed, epochs, start = case
        rows = np.arange(num_rows) * 3 + 1
        steps = pipeline.steps_per_epoch(num_rows, batch_size)
        first_batch = int(start * steps * epochs)
        collator: Any = MaskingCollator.__new__(MaskingCollator)
        arguments: Any = {"batch_size": batch_size, "seed": seed, "epochs": epochs}
        whole = pipeline.build_train_dataset(collator, rows, **arguments)
        rest = pipeline.build_train_dataset(collator, rows, **arguments, first_batch=first_batch)
        np.testing.assert_array_equal(rest.rows, whole.rows[:, first_batch * batch_size :])
        size = batch_size // 2
        if batch_size % 2 == 0:  # the shares of two workers are the halves of each batch
            shares = [pipeline.Share(first, first + size, size) for first in (0, size)]
            halves = [pipeline.build_train_dataset(collator, rows, **arguments, share=each).rows for each in shares]
            batches = np.concatenate([half.reshape(2, -1, size) for half in halves], axis=2)
            np.testing.assert_array_equal(batches.reshape(2, -1), whole.rows)
        for epoch in range(1, epochs + 1):
            index = whole.rows[1, whole.rows[0] == epoch]
            assert len(index) == steps * batch_size
            assert sorted(index[:num_rows]) == rows.tolist() and (index[num_rows:] == -1).all()
        validation = pipeline.build_validation_dataset(collator, rows, batch_size=batch_size)
        assert validation.rows[1, :num_rows].tolist() == rows.tolist()

    arguments = (st.integers(1, 70), st.integers(1, 80), st.integers(0, 2**32 - 1), st.integers(1, 4), st.floats(0, 1))
    check_all(cases, st.tuples(*arguments), check)


# --- files of a run


@few_or_many
def test_any_damaged_checkpoint_is_skipped_or_refused(cases: int, tmp_path: Path) -> None:
    """Loading damaged checkpoints gives the one before or the unchanged one, and nothing else."""
    save(tmp_path, 4, 5)
    newest = tmp_path / "step-0000000005"
    whole = {path.name: path.read_bytes() for path in newest.iterdir()}

    def check(case: tuple[str, bytes]) -> None:
        name, content = case
        for file in whole:
            (newest / file).write_bytes(content if file == name else whole[file])
        with contextlib.redirect_stdout(io.StringIO()) as output:
            checkpoint = load_checkpoint(tmp_path, "mine")
            assert checkpoint is not None
            progress, arrays = checkpoint
        assert progress.step == arrays["optimizer/0"] == (4 if output.getvalue() else 5)

    states = some_bytes(b'{"state": ', b'"', b"{", b"[" * 3000, b"null", b"5", b"}", b'"checksum": ', b",")
    check_all(
        cases,
        st.one_of(
            *(st.tuples(st.just(name), damaged(content)) for name, content in whole.items()),
            st.tuples(st.just("state.json"), states),
        ),
        check,
    )


@few_or_many
def test_any_metrics_file_is_read_or_refused(cases: int, tmp_path: Path) -> None:
    """Reading any metrics.jsonl reports whether the run has finished, or names the damaged line."""
    run = RunDirectory(tmp_path / "runs" / "one")
    run.path.mkdir(parents=True)
    run.config_path.write_text("")
    events = [{"event": "start", "step": 0}, {"event": "epoch", "step": 5, "val_loss": 2.5}, {"event": "end"}]
    whole = "".join(json.dumps(event) + "\n" for event in events).encode()

    def check(content: bytes) -> None:
        run.metrics_path.write_bytes(content)
        finished = answer(run.is_finished)
        newest = answer(lambda: newest_unfinished_run(run.path.parent))
        assert newest == (run.path if finished is False else None)
        answer(run.write_history)

    lines = some_bytes(b'{"event": "end"}', b"\n", b"null\n", b"5\n", b"{}\n", b"[]\n", b"[" * 3000, b'{"event": 7}\n')
    check_all(cases, damaged(whole) | lines, check)


@pytest.fixture(autouse=True)
def in_separate_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert os.getcwd() != str(ROOT)
