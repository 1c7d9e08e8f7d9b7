"""The SavedModel of a classification model answers as the tokenizer and the model do, also for long texts."""

import itertools
from typing import Any

import pytest
import tensorflow as tf
import tf_keras as keras

from tests.labeled_data import use_token_types
from tests.model.conftest import WORDS, tiny_config
from tf_mlm.export.label_saved_model import export_label_saved_model, truncated_lengths
from tf_mlm.model.architectures import max_sequence_length
from tf_mlm.model.label_model import label_model_class
from tf_mlm.model.tokenizer import build_tokenizer


@pytest.mark.parametrize("room", [1, 2, 7, 8])
def test_pairs_are_truncated_as_by_the_tokenizer_the_longer_text_first(room: int) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.enable_truncation(room)
    lengths = list(itertools.product(range(12), repeat=2))
    expected = []
    for first, second in lengths:
        encoding = tokenizer.encode("a " * first, "a " * second)
        expected.append((encoding.type_ids.count(0), encoding.type_ids.count(1)))
    firsts, seconds = (tf.constant(each, tf.int64) for each in zip(*lengths, strict=True))
    found = truncated_lengths(firsts, seconds, room)
    assert list(zip(*(each.numpy().tolist() for each in found), strict=True)) == expected


@pytest.fixture(scope="module", params=["token types of BERT", pytest.param("one token type", marks=pytest.mark.slow)])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """A BERT that labels texts, its tokenizer, and its SavedModel."""
    tokenizer = build_tokenizer([" ".join(WORDS)] * 2, 100)
    config = tiny_config("bert")
    config.vocab_size, config.type_vocab_size = len(tokenizer), 2
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    if request.param == "token types of BERT":
        use_token_types(tokenizer)
    config.id2label, config.label2id = {0: "no", 1: "yes", 2: "maybe"}, {"no": 0, "yes": 1, "maybe": 2}
    keras.utils.set_random_seed(1)
    model = label_model_class("bert", "classification")(config)
    model.build_in_name_scope()
    path = tmp_path_factory.mktemp("exported")
    assert export_label_saved_model(model, tokenizer, path) == ""
    return model, tokenizer, tf.saved_model.load(str(path))


@pytest.mark.parametrize("pairs", [False, True])
def test_answers_equal_those_of_the_tokenizer_and_the_model_also_when_truncated(
    exported: tuple[Any, Any, Any], pairs: bool
) -> None:
    model, tokenizer, saved_model = exported
    texts = ["the film was long", "we liked it " * 9, "", "sense " * 30]
    seconds = ["no plot " * 9, "it", "the plot made sense", "film " * 25]
    length = max_sequence_length(model.config)
    signature = saved_model.signatures["classify_pair" if pairs else "classify"]
    inputs = {"text": tf.constant(texts)} | ({"text_pair": tf.constant(seconds)} if pairs else {})
    answers = signature(**inputs)
    for row, (text, second) in enumerate(zip(texts, seconds, strict=True)):
        encoding = tokenizer([text], [second] if pairs else None, truncation=True, max_length=length)
        logits = model(**{name: tf.constant(ids) for name, ids in encoding.items()}, training=False).logits[0]
        expected = tf.nn.softmax(logits).numpy()
        assert answers["probabilities"][row].numpy() == pytest.approx(expected, abs=1e-6)
        assert answers["label"][row].numpy().decode() == model.config.id2label[int(expected.argmax())]
        assert int(answers["status"][row]) == (2 if encoding.encodings[0].overflowing else 0)
    assert {0, 2} == set(answers["status"].numpy().tolist())
