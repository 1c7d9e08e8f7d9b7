import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT
from tf_mlm.commands.main import main

# Two sentences of different length, the second one padded.
INPUT_IDS = np.array([[2, 40, 41, 4, 43, 3], [2, 50, 4, 3, 0, 0]], np.int32)
ATTENTION_MASK = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]], np.int32)

TEXTS: list[Any] = [
    "This is a [MASK] film.",
    "the [MASK] was [MASK] , and\tthe Story was[MASK]!",
    "no mask",
    "",
    b"\xff [MASK]",
    "a [MASK] " * 300,
    "[MASK]",
    "Ünîcödé 北京 [MASK] \ufffd [CLS] 🎬",
]
STATUS = [0, 0, 1, 1, 3, 2, 0, 0]
NUM_MASKS = [1, 3, 0, 0, 0, 0, 1, 1]

TENSORFLOW_ALONE = """
import pickle, sys
import tensorflow as tf
signatures = tf.saved_model.load(sys.argv[1]).signatures
calls = pickle.load(open(sys.argv[2], "rb"))
answers = []
for signature, inputs in calls:
    outputs = signatures[signature](**{name: tf.constant(value) for name, value in inputs.items()})
    answers.append({name: output.numpy() for name, output in outputs.items()})
pickle.dump(answers, open(sys.argv[3], "wb"))
assert not {"transformers", "tokenizers", "tf_keras", "tf_mlm", "tensorflow_text"} & sys.modules.keys()
"""


def serve_elsewhere(saved_model: Path, folder: Path, *calls: tuple[str, dict[str, Any]]) -> list[dict[str, np.ndarray]]:
    """The outputs of signatures of the export, in a process that imports TensorFlow alone."""
    (folder / "calls").write_bytes(pickle.dumps(calls))
    command = [sys.executable, "-c", TENSORFLOW_ALONE, saved_model, folder / "calls", folder / "answers"]
    environment = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    result = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return pickle.loads((folder / "answers").read_bytes())


@pytest.fixture(scope="module")
def signatures(finished_run: Path) -> Any:
    import tensorflow as tf

    return tf.saved_model.load(str(finished_run / "saved_model")).signatures


@pytest.fixture(scope="module")
def fill_mask(signatures: Any) -> Any:
    import tensorflow as tf

    def call(texts: list[Any], k: int = 5) -> dict[str, np.ndarray]:
        outputs = signatures["fill_mask"](text=tf.constant(texts, tf.string), k=tf.constant(k))
        return {name: output.numpy() for name, output in outputs.items()}

    return call


@pytest.fixture(scope="module")
def stock(finished_run: Path) -> tuple[Any, Any]:
    """The model and the tokenizer of the same run, loaded by transformers."""
    import transformers

    folder = finished_run / "model"
    return transformers.TFDistilBertForMaskedLM.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(
        folder
    )


def expected_fills(stock: tuple[Any, Any], text: str, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and log-probabilities [masks, k] of the stock model for a single text."""
    model, tokenizer = stock
    encoded = tokenizer(text, return_tensors="np")
    logits = model(**encoded).logits.numpy()[0][encoded["input_ids"][0] == tokenizer.mask_token_id].astype(np.float64)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    ids = np.argsort(-logits, axis=-1, kind="stable")[:, :k]
    return ids, np.take_along_axis(logits, ids, -1)


def assert_fills(answers: dict[str, np.ndarray], stock: tuple[Any, Any], texts: list[Any], k: int) -> None:
    """Check that the fills have the ids of the stock model in order, and its log-probabilities within 1e-4."""
    for row, text in enumerate(texts):
        masks = answers["num_masks"][row]
        if masks:
            ids, log_probabilities = expected_fills(stock, text, k)
            assert answers["token_ids"][row, :masks].tolist() == ids.tolist(), text
            found = np.log(answers["probabilities"][row, :masks])
            np.testing.assert_allclose(found, log_probabilities, rtol=0, atol=1e-4)
            tokens = [stock[1].convert_ids_to_tokens(row) for row in ids.tolist()]
            assert np.char.decode(answers["tokens"][row, :masks].astype(bytes), "utf-8").tolist() == tokens
        assert (answers["token_ids"][row, masks:] == -1).all()
        assert (answers["probabilities"][row, masks:] == 0).all()
        assert (answers["tokens"][row, masks:] == b"").all()


def test_a_process_with_tensorflow_alone_gives_the_fills_of_the_model(
    finished_run: Path, stock: tuple[Any, Any], tmp_path: Path
) -> None:
    fills, logits = serve_elsewhere(
        finished_run / "saved_model",
        tmp_path,
        ("serving_default", {"text": TEXTS, "k": 4}),
        ("logits", {"input_ids": INPUT_IDS, "attention_mask": ATTENTION_MASK}),
    )
    assert set(fills) == {"tokens", "token_ids", "probabilities", "num_masks", "status", "filled"}
    assert fills["status"].tolist() == STATUS
    assert fills["num_masks"].tolist() == NUM_MASKS
    assert fills["token_ids"].shape == (len(TEXTS), 3, 4)
    assert_fills(fills, stock, TEXTS, k=4)
    expected = stock[0](input_ids=INPUT_IDS, attention_mask=ATTENTION_MASK).logits.numpy()
    assert list(logits) == ["logits"]
    assert (logits["logits"].dtype, logits["logits"].shape) == (np.dtype(np.float32), (2, 6, 300))
    np.testing.assert_allclose(logits["logits"], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_fills_with_trained_weights_equal_those_of_the_model(shared: Path, tmp_path: Path, tensorflow: None) -> None:
    """A pretrained encoder with an identity head: 30,522 tokens with very different probabilities."""
    import transformers

    folder = shared / "models" / "minilm-l6-distilbert"
    assert main(["export", str(folder), "--output", str(tmp_path / "exported")]) == 0
    import pyarrow.parquet

    file = shared / "data" / "imdb" / "plain_text" / "test-00000-of-00001.parquet"
    reviews = pyarrow.parquet.read_table(file, columns=["text"])["text"].to_pylist()[::500]
    texts = [" ".join([*(words := review.split()[:100])[:20], "[MASK]", *words[21:]]) for review in reviews]
    (answers,) = serve_elsewhere(tmp_path / "exported", tmp_path, ("fill_mask", {"text": texts, "k": 5}))
    assert answers["status"].tolist() == [0] * 50
    stock = (
        transformers.TFDistilBertForMaskedLM.from_pretrained(folder),
        transformers.AutoTokenizer.from_pretrained(folder),
    )
    assert_fills(answers, stock, texts, k=5)


def call_with_ids(signature: Any, rows: slice = slice(None), length: int = 6) -> dict[str, np.ndarray]:
    import tensorflow as tf

    ids, mask = (tf.constant(values[rows, :length]) for values in (INPUT_IDS, ATTENTION_MASK))
    return {name: output.numpy() for name, output in signature(input_ids=ids, attention_mask=mask).items()}


def test_encode_gives_the_last_hidden_states_and_their_mean_without_padding(
    signatures: Any, stock: tuple[Any, Any]
) -> None:
    hidden = stock[0].distilbert(input_ids=INPUT_IDS, attention_mask=ATTENTION_MASK)[0].numpy()
    answers = call_with_ids(signatures["encode"])
    assert set(answers) == {"last_hidden_state", "mean_pooled"}
    np.testing.assert_allclose(answers["last_hidden_state"], hidden, rtol=0, atol=1e-5 * np.abs(hidden).max())
    means = np.stack([hidden[0].mean(0), hidden[1, :4].mean(0)])
    np.testing.assert_allclose(answers["mean_pooled"], means, rtol=0, atol=1e-5 * np.abs(hidden).max())


@pytest.mark.parametrize("signature", ["encode", "logits"])
def test_padding_does_not_affect_other_positions(signatures: Any, signature: str) -> None:
    name = {"encode": "last_hidden_state", "logits": "logits"}[signature]
    whole = call_with_ids(signatures[signature])[name]
    alone = call_with_ids(signatures[signature], slice(1, 2), 4)[name]
    assert np.abs(whole[1:, :4] - alone).max() < 1e-5 * np.abs(alone).max()


# The behavior of fill_mask.


def test_the_answer_for_a_text_does_not_depend_on_the_batch(fill_mask: Any) -> None:
    together = fill_mask(TEXTS)
    for row, text in enumerate(TEXTS):
        alone = fill_mask([text])
        masks = NUM_MASKS[row]
        assert alone["status"] == [STATUS[row]] and alone["num_masks"] == [masks]
        assert alone["filled"][0] == together["filled"][row]
        assert alone["token_ids"][0].tolist() == together["token_ids"][row, :masks].tolist()
        np.testing.assert_allclose(alone["probabilities"][0], together["probabilities"][row, :masks], rtol=1e-4)


def test_texts_of_different_lengths_encoded_in_parts_have_the_right_answers(
    fill_mask: Any, stock: tuple[Any, Any]
) -> None:
    from tf_mlm.export.saved_model import _TOKENS_AT_ONCE

    texts = [" ".join(["[MASK]", *["was the film"] * ((21 * row) % 120), "[MASK]"][row % 2 :]) for row in range(40)]
    lengths = [len(ids) for ids in stock[1](texts)["input_ids"]]
    assert sum(lengths) > 2 * _TOKENS_AT_ONCE and lengths != sorted(lengths)
    answers = fill_mask(texts, k=2)
    assert answers["status"].tolist() == [0] * 40 and set(answers["num_masks"].tolist()) == {1, 2}
    assert_fills(answers, stock, texts, k=2)


def test_filled_is_the_original_text_with_the_best_candidates(fill_mask: Any) -> None:
    answers = fill_mask(TEXTS)
    for row, text in enumerate(TEXTS):
        filled = answers["filled"][row].decode()
        if STATUS[row] == 3:
            assert filled == ""
            continue
        for token in answers["tokens"][row, : NUM_MASKS[row], 0]:
            before, _, after = text.partition("[MASK]")
            token = token.decode()
            text = f"{before.rstrip()}{token[2:]}{after}" if token.startswith("##") else f"{before}{token}{after}"
        assert filled == text


def test_a_continuing_word_piece_is_joined_to_its_word(tensorflow: None) -> None:
    import tensorflow as tf

    from tf_mlm.export.saved_model import _fill

    texts = ["walk [MASK] in [MASK].", "walk\u2003\n[MASK]", "([MASK])", "[MASK] [MASK]", "[MASK]"]
    replacements = tf.ragged.constant([["##ing", "rain"], ["##ing"], ["a"], ["film", "##s"], ["##s"]])
    filled = _fill(tf.constant(texts), "[MASK]", replacements, "##").numpy().tolist()
    assert filled == [b"walking in rain.", b"walking", b"(a)", b"films", b"s"]


def test_k_beyond_the_vocabulary_gives_the_vocabulary(fill_mask: Any) -> None:
    answers = fill_mask(["a [MASK]"], k=1_000_000)
    assert sorted(answers["token_ids"][0, 0].tolist()) == list(range(300))
    assert answers["probabilities"].sum() == pytest.approx(1, abs=1e-5)


def test_k_changes_only_the_number_of_candidates(fill_mask: Any) -> None:
    one, many = fill_mask(TEXTS, k=1), fill_mask(TEXTS, k=7)
    assert one["tokens"].shape[2] == 1 and many["tokens"].shape[2] == 7
    assert (one["tokens"][:, :, 0] == many["tokens"][:, :, 0]).all() and (one["filled"] == many["filled"]).all()


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_1_is_an_error(fill_mask: Any, k: int) -> None:
    import tensorflow as tf

    with pytest.raises(tf.errors.InvalidArgumentError, match="k: must be at least 1"):
        fill_mask(["a [MASK]"], k=k)


@pytest.mark.parametrize("texts", [[], [""], [b"\xff"], ["no mask", "a [MASK] " * 300]])
def test_a_batch_without_masks_has_empty_outputs(fill_mask: Any, texts: list[Any]) -> None:
    answers = fill_mask(texts, k=3)
    assert answers["tokens"].shape == answers["token_ids"].shape == answers["probabilities"].shape == (len(texts), 0, 3)
    assert answers["num_masks"].tolist() == [0] * len(texts)


def test_a_text_may_have_as_many_tokens_as_positions(fill_mask: Any) -> None:
    answers = fill_mask(["[MASK]" * (512 - 2), "[MASK]" * (512 - 1)], k=1)
    assert answers["status"].tolist() == [0, 2]
    assert answers["num_masks"].tolist() == [510, 0]


# Contents of the directory.


def test_k_has_a_default_in_serving(finished_run: Path, signatures: Any) -> None:
    """The Python loader still requires it."""
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((finished_run / "saved_model" / "saved_model.pb").read_bytes())
    definitions = saved.meta_graphs[0].signature_def
    for name in ("serving_default", "fill_mask"):
        assert definitions[name].defaults["k"].int_val == [5]
    assert set(signatures) == {"serving_default", "fill_mask", "encode", "logits"}


def test_the_weights_are_stored_once(finished_run: Path) -> None:
    import safetensors.numpy

    arrays = safetensors.numpy.load_file(finished_run / "model" / "model.safetensors")
    size = sum(array.nbytes for array in arrays.values())
    saved = sum(file.stat().st_size for file in (finished_run / "saved_model" / "variables").iterdir())
    assert size <= saved < 1.1 * size
    largest = max(array.nbytes for array in arrays.values())
    strings = finished_run / "saved_model" / "saved_model.pb"
    assert strings.stat().st_size < 4_000_000 and largest > 30_000  # also not as constants of the graph


def test_calls_do_not_retrace(fill_mask: Any, signatures: Any) -> None:
    before = signatures["fill_mask"]
    for texts in (["a [MASK]"], ["a [MASK] b [MASK]"] * 3, []):
        fill_mask(texts)
    assert signatures["fill_mask"] is before and before.structured_input_signature[1]["text"].shape.as_list() == [None]


def test_the_export_command_writes_the_same_files_as_the_run(
    finished_run: Path, signatures: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import tensorflow as tf

    output = tmp_path / "new" / "exported"
    assert main(["export", str(finished_run / "model"), "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"SavedModel in {output}\n"
    again = tf.saved_model.load(str(output)).signatures
    for name in ("logits", "encode"):
        for one, other in zip(
            call_with_ids(again[name]).values(), call_with_ids(signatures[name]).values(), strict=True
        ):
            np.testing.assert_array_equal(one, other)
    assert [path.name for path in output.parent.iterdir()] == ["exported"]


def other_tokenizer(model_type: str) -> Any:
    """Byte-level BPE as in RoBERTa, or SentencePiece as in ALBERT. The ids 0 to 4 are special."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<pad>", "<s>", "</s>", "<mask>"]
    if model_type == "roberta":
        vocab = {token: number for number, token in enumerate([*special, *"abcdefgh"])}
        backend = Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        backend = Tokenizer(models.Unigram([(token, -1.0) for token in [*special, *"abcdefgh"]], unk_id=0))
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>", cls_token="<s>", sep_token="</s>",
        mask_token="<mask>",
    )  # fmt: skip


@pytest.mark.parametrize("model_type", ["bert", "roberta", pytest.param("albert", marks=pytest.mark.slow)])
def test_other_architectures_are_exported_and_a_missing_string_signature_is_reported(
    model_type: str, tensorflow: None, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import tensorflow as tf
    from transformers import AutoTokenizer

    from tests.model.conftest import build, tiny_config
    from tf_mlm.model.saving import save_model

    if model_type == "bert":
        tokenizer = AutoTokenizer.from_pretrained(finished_run / "model")
    else:
        tokenizer = other_tokenizer(model_type)
    config = tiny_config(model_type)
    config.vocab_size, config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    model = build(config)
    save_model(model, tokenizer, tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), "--output", str(tmp_path / "exported")]) == 0
    output = capsys.readouterr().out
    signatures = tf.saved_model.load(str(tmp_path / "exported")).signatures
    ids = tf.constant([[2, 5, 4, 3]])
    expected = model(input_ids=ids, attention_mask=tf.ones_like(ids)).logits.numpy()
    logits = signatures["logits"](input_ids=ids, attention_mask=tf.ones_like(ids))["logits"].numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    if model_type == "bert":
        assert output == f"SavedModel in {tmp_path / 'exported'}\n"
        text = "the [MASK] was"
        answers = signatures["serving_default"](text=tf.constant([text]), k=tf.constant(3))
        encoded = tokenizer(text, return_tensors="tf")
        (position,) = np.flatnonzero(encoded["input_ids"][0] == tokenizer.mask_token_id)
        best = np.argsort(-model(**encoded).logits.numpy()[0, position], kind="stable")[:3]
        assert answers["token_ids"].numpy()[0, 0].tolist() == best.tolist()
    else:
        kind = {"roberta": "BPE", "albert": "Unigram"}[model_type]
        assert output.splitlines()[1:] == [
            f"The SavedModel takes ids, not strings, because its tokenizer's model is {kind}, and the graph supports "
            "only BERT's WordPiece. Use the tokenizer in the model's directory; the signatures are logits and encode."
        ]
        assert set(signatures) == {"serving_default", "encode", "logits"}
        default = signatures["serving_default"](input_ids=ids, attention_mask=tf.ones_like(ids))["logits"].numpy()
        np.testing.assert_array_equal(default, logits)


def test_a_full_disk_ends_the_export_with_exit_code_4_and_leaves_no_files(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resource = pytest.importorskip("resource", reason="limits on the size of files are a matter of Unix")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        assert main(["export", str(finished_run), "--output", str(tmp_path / "exported")]) == 4
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    line, end = capsys.readouterr().err.split("\n")
    assert line.startswith("error: I/O error: ") and end == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_saved_model_cli_runs_the_signature_without_k(finished_run: Path, tmp_path: Path) -> None:
    command = [
        str(Path(sys.executable).parent / "saved_model_cli"), "run", "--dir", str(finished_run / "saved_model"),
        "--tag_set", "serve", "--signature_def", "serving_default",
        "--input_exprs", 'text=["A [MASK]."]', "--outdir", str(tmp_path),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert np.load(tmp_path / "token_ids.npy").shape == (1, 1, 5)


@pytest.mark.slow
def test_the_examples_of_the_readme_and_the_card_run_with_tensorflow_alone(finished_run: Path) -> None:
    readme = (ROOT / "README.md").read_text().replace("runs/RUN/", "")
    for page in (readme, (finished_run / "README.md").read_text()):
        (code,) = [block for block in page.split("```python\n") if block.startswith("import tensorflow as tf\n")]
        code = code.split("```")[0] + "\nimport sys; assert not {'transformers', 'tf_mlm'} & sys.modules.keys()"
        result = subprocess.run([sys.executable, "-c", code], cwd=finished_run, capture_output=True, text=True)
        assert result.returncode == 0 and "tf.Tensor" in result.stdout, result.stderr
