"""`tf-mlm score`: pseudo-log-likelihoods, compared with the stock model on one masked copy at a time."""

import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tf_mlm
from tests.tiny_tokenizers import tiny_models
from tf_mlm.commands.main import main
from tf_mlm.errors import Refused

Capture = pytest.CaptureFixture[str]

ARCHITECTURES = ("distilbert", "bert", "roberta", "albert")
TEXTS = ["The film wasn't not-so great!", "plot", "Ünï  go, 北 made it liked the sense", " we \n"]


@pytest.fixture(autouse=True)
def _tensorflow(tensorflow: None) -> None:
    """All tests need it."""


def score(model: Any, tokenizer: Any, texts: list[str], masking: Any = "word-l2r") -> list[Any]:
    from tf_mlm.inference.masked_copies import build_predictor
    from tf_mlm.inference.score import score_texts, tokenize_text

    tokenized = [tokenize_text(tokenizer, text, 80) for text in texts]
    return list(score_texts(build_predictor(model), tokenizer, tokenized, masking))


def expected_by_token(stock: Any, tokenizer: Any, text: str, masking: str) -> list[float]:
    """One masked copy at a time through the stock model, with plain numpy."""
    encoding = tokenizer([text]).encodings[0]
    words, found = encoding.word_ids, []
    for position in range(1, len(words) - 1):
        ids = list(encoding.ids)
        for other in range(1, len(words) - 1):
            in_word = words[other] == words[position]
            if {
                "token": other == position,
                "word": in_word,
                "word-l2r": in_word and other >= position,
            }[masking]:
                ids[other] = tokenizer.mask_token_id
        logits = stock(input_ids=np.array([ids])).logits.numpy()[0, position].astype(np.float64)
        found.append(logits[encoding.ids[position]] - np.log(np.exp(logits).sum()))
    return found


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_each_method_gives_the_log_probabilities_of_the_stock_model(model_type: str) -> None:
    ours, stock, tokenizer = tiny_models(model_type)
    sums = []
    for masking in ("word-l2r", "word", "token"):
        scored = score(ours, tokenizer, TEXTS, masking)
        for text, found in zip(TEXTS, scored, strict=True):
            of_tokens = expected_by_token(stock, tokenizer, text, masking)
            starts = np.cumsum([0, *(word.num_tokens for word in found.words[:-1])])
            expected = np.add.reduceat(of_tokens, starts)
            np.testing.assert_allclose([word.log_probability for word in found.words], expected, rtol=2e-5)
            assert found.num_tokens == len(of_tokens)
            assert found.log_probability == pytest.approx(sum(of_tokens), rel=1e-5)
        assert any(word.num_tokens > 2 for word in scored[0].words)
        sums.append(scored[0].log_probability)
    assert len({round(each, 3) for each in sums}) == 3


def test_the_result_does_not_depend_on_the_other_texts_and_the_size_of_the_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tf_mlm.inference import features
    from tf_mlm.inference import score as module

    ours, _, tokenizer = tiny_models("bert")
    texts = TEXTS * 3
    together = score(ours, tokenizer, texts)
    assert [each.text for each in together] == texts
    monkeypatch.setattr(features, "_TOKENS_PER_BATCH", 1)
    monkeypatch.setattr(module, "_TOKENS_PER_GROUP", 1)
    for number, alone in enumerate(score(ours, tokenizer, texts)):
        for word, expected in zip(alone.words, together[number].words, strict=True):
            assert word.log_probability == pytest.approx(expected.log_probability, rel=1e-5)
            assert (word.word, word.start, word.end) == (expected.word, expected.start, expected.end)


def test_the_predictor_is_traced_once_and_gives_the_same_bits_each_time() -> None:
    """XLA would compile each new shape after its first execution, and change the last bits."""
    from tf_mlm.inference.masked_copies import build_predictor
    from tf_mlm.inference.score import score_texts, tokenize_text

    ours, _, tokenizer = tiny_models("distilbert")
    predict: Any = build_predictor(ours)
    tokenized = [tokenize_text(tokenizer, text, 80) for text in TEXTS]
    first, second, third = (
        [each.log_probability for text in tokenized for each in score_texts(predict, tokenizer, [text])]
        for _ in range(3)
    )
    assert first == second == third
    assert predict.experimental_get_tracing_count() == 1


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        ("distilbert", ["The", "film", "can", "'", "t", "not", "-", "so", "Ünï", "北", "京", "."]),
        ("bert", ["The", "film", "can", "'", "t", "not", "-", "so", "Ünï", "北", "京", "."]),
        ("roberta", ["The", "", "film", "can", "'t", "not", "-", "so", "Ünï", "北京", "."]),
        ("albert", ["The", "", "film", "can't", "not-so", "Ünï", "北京."]),
    ],
)
def test_words_are_those_of_the_pre_tokenizer_with_their_characters(model_type: str, words: list[str]) -> None:
    from tests.tiny_tokenizers import tiny_tokenizer
    from tf_mlm.inference.score import tokenize_text

    text = "The  film can't not-so Ünï 北京."
    tokenized = tokenize_text(tiny_tokenizer(model_type), text, 80)
    assert [text[start:end] for start, end in tokenized.spans] == words
    place = 0
    for (start, end), word in zip(tokenized.spans, words, strict=True):
        if word:  # white space that has its own tokens has no characters
            assert (start, end) == (text.index(word, place), text.index(word, place) + len(word))
        place = end
    assert tokenized.words.tolist() == sorted(tokenized.words) and set(tokenized.words) == set(range(len(words)))


def test_special_tokens_in_the_text_are_context_and_not_scored() -> None:
    ours, _, tokenizer = tiny_models("bert")
    (scored,) = score(ours, tokenizer, ["the film [SEP] it [CLS]"])
    assert [word.word for word in scored.words] == ["the", "film", "it"]
    (other,) = score(ours, tokenizer, ["the film it"])
    assert scored.log_probability != pytest.approx(other.log_probability, rel=1e-3)


def test_an_unknown_word_is_marked_and_has_the_probability_of_the_unknown_token() -> None:
    ours, _, tokenizer = tiny_models("bert")
    (scored, other) = score(ours, tokenizer, ["the 北 film", "the [UNK] film"])
    assert [word.is_unknown for word in scored.words] == [False, True, False]
    assert scored.log_probability == pytest.approx(other.log_probability, rel=1e-6)
    assert scored.describe().splitlines()[2].endswith("unknown")


def test_the_masks_of_each_method() -> None:
    from tf_mlm.inference.score import masked_together

    words = np.array([0, 1, 1, 1, 2])
    expected = {
        "token": ["x....", ".x...", "..x..", "...x.", "....x"],
        "word": ["x....", ".xxx.", ".xxx.", ".xxx.", "....x"],
        "word-l2r": ["x....", ".xxx.", "..xx.", "...x.", "....x"],
    }
    for masking, rows in expected.items():
        found = masked_together(words, masking)  # type: ignore[arg-type]
        assert ["".join("x" if each else "." for each in row) for row in found] == rows


def test_the_table_has_the_surprisal_as_a_bar_and_the_pseudo_perplexity() -> None:
    from tf_mlm.inference.score import ScoredText, ScoredWord

    words = [
        ScoredWord("The", 0, 3, -0.25, 1, False),
        ScoredWord("grate", 4, 9, -5.75, 2, False),
        ScoredWord("", 10, 10, -40.0, 1, True),
    ]
    scored = ScoredText("The grate  ", "word-l2r", words)
    assert scored.log_probability == -46 and scored.mean == -11.5 and scored.num_tokens == 4
    assert scored.pseudo_perplexity == pytest.approx(math.exp(11.5))
    assert scored.describe().splitlines() == [
        "The grate  ",
        "  The         -0.25",
        "  grate       -5.75  ██████  2 tokens",
        "  (space)    -40.00  " + "█" * 30 + "  unknown",
        "  sum        -46.00  nats in 4 tokens: -11.50 per token, pseudo-perplexity 98,715.77",
    ]


def refusal(capsys: Capture, *arguments: object) -> str:
    assert main(["score", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


def test_a_text_that_cannot_be_scored_is_refused_in_one_line(finished_run: Path, capsys: Capture) -> None:
    model = finished_run / "model"
    assert "'a [MASK] film' contains a mask, which has no probability" in refusal(capsys, model, "a [MASK] film")
    for text in ("", " ", "[CLS] [SEP]"):
        assert f"{text!r} has no ordinary token" in refusal(capsys, model, "the film", text)
    line = refusal(capsys, model, "a " * 511)
    assert "has 513 tokens, and the model has 512 positions" in line and len(line) < 200
    assert "invalid choice: 'left'" in refusal(capsys, model, "a", "--masking", "left")
    assert "no model given" in refusal(capsys)
    assert "which only fill-mask can load" in refusal(capsys, finished_run / "saved_model", "a")
    with pytest.raises(Refused, match="masking 'left': must be word-l2r, word, token"):
        tf_mlm.load(model).score("a", masking="left")  # type: ignore[arg-type]


def test_the_mask_token_of_another_tokenizer_is_refused_too() -> None:
    ours, _, tokenizer = tiny_models("roberta")
    for text in ("the <mask> was", "the [MASK] was"):
        with pytest.raises(Refused, match="contains a mask"):
            score(ours, tokenizer, [text])


def test_refused_lines_are_reported_by_number_and_the_others_scored(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    lines = b"the film\r\n\na [MASK]\nThe plot.\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    assert main(["score", str(finished_run), "--json"]) == 2
    captured = capsys.readouterr()
    assert [json.loads(line)["text"] for line in captured.out.splitlines()] == ["the film", "The plot."]
    first, last = captured.err.splitlines()
    assert first.startswith("error: standard input line 3: score: 'a [MASK]' contains a mask")
    assert last == "error: score: 1 of 3 lines failed; see the errors above"


def test_the_command_and_python_give_the_same_numbers(finished_run: Path, capsys: Capture) -> None:
    model = tf_mlm.load(finished_run)
    for flags, masking in (([], "word-l2r"), (["--masking", "token"], "token")):
        capsys.readouterr()
        assert main(["score", str(finished_run), "The film was superb.", "A bore.", "--json", *flags]) == 0
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        scored = model.score(["The film was superb.", "A bore."], masking=masking)  # type: ignore[arg-type]
        assert found == [{"model": str(finished_run)} | each.as_dict() for each in scored]
        first = found[0]
        assert first["masking"] == masking and first["words"][1]["word"] == "film"
        assert first["log_probability"] == pytest.approx(sum(word["log_probability"] for word in first["words"]))
        assert first["pseudo_perplexity"] == pytest.approx(math.exp(-first["log_probability"] / first["num_tokens"]))
    assert main(["score", str(finished_run), "The film was superb."]) == 0
    assert capsys.readouterr().out == model.score("The film was superb.")[0].describe() + "\n"
