"""`tf-mlm fill-mask --targets`: the probabilities of given words."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tf_mlm
from tests.tiny_tokenizers import tiny_models, tiny_tokenizer
from tf_mlm.commands.main import main
from tf_mlm.errors import Refused

Capture = pytest.CaptureFixture[str]

SENTENCE = "The [MASK] was a [MASK] film."


@pytest.fixture(autouse=True)
def _tensorflow(tensorflow: None) -> None:
    """All tests need it."""


@pytest.fixture
def trained(finished_run: Path) -> tuple[Any, Any]:
    from tf_mlm.model.loading import load_trained

    return load_trained(str(finished_run / "model"))


def fill(model: Any, tokenizer: Any, sentence: str, targets: list[str]) -> Any:
    from tf_mlm.inference.masked_copies import build_predictor
    from tf_mlm.inference.targets import fill_targets

    return fill_targets(model, build_predictor(model), tokenizer, sentence, targets)


def test_a_target_of_one_token_has_the_probability_of_the_ordinary_fill(trained: tuple[Any, Any]) -> None:
    from tf_mlm.inference.fill_mask import fill_masks

    words = ["the", "film", "was", "."]
    answer = fill(*trained, SENTENCE, words)
    assert answer.sentence == SENTENCE
    for fills, ordinary in zip(answer.fills, fill_masks(*trained, SENTENCE, 300), strict=True):
        expected = {each.token: each for each in ordinary}
        assert [each.target for each in fills] == words
        for each in fills:
            assert each.num_tokens == 1 and each.sentence == expected[each.target].sentence
            assert each.probability == pytest.approx(expected[each.target].probability, rel=1e-5)


@pytest.mark.parametrize("model_type", ["distilbert", "bert", "roberta", "albert"])
def test_a_target_of_several_tokens_has_the_product_of_its_tokens_from_left_to_right(model_type: str) -> None:
    """The expected tokens are those of the sentence with the target in it."""
    ours, stock, tokenizer = tiny_models(model_type)
    sentence, targets = "the [MASK] made [MASK] it", ["sense", "gold", "not-so"]
    answer = fill(ours, tokenizer, sentence, targets)
    mask = tokenizer.mask_token_id
    masked = tokenizer(sentence.replace("[MASK]", tokenizer.mask_token))["input_ids"]
    for number, position in enumerate(np.flatnonzero(np.array(masked) == mask).tolist()):
        for found, target in zip(answer.fills[number], targets, strict=True):
            parts = sentence.split("[MASK]")
            text = "[MASK]".join(parts[: number + 1]) + target + "[MASK]".join(parts[number + 1 :])
            filled = tokenizer(text.replace("[MASK]", tokenizer.mask_token))["input_ids"]
            count = len(filled) - len(masked) + 1
            ids = masked[:position] + [mask] * count + masked[position + 1 :]
            expected = 1.0
            for place in range(position, position + count):
                logits = stock(input_ids=np.array([ids])).logits.numpy()[0, place].astype(np.float64)
                expected *= np.exp(logits[filled[place]]) / np.exp(logits).sum()
                ids[place] = filled[place]
            assert ids == filled
            assert found.num_tokens == count
            assert found.probability == pytest.approx(expected, rel=1e-4)
            assert found.sentence.replace(tokenizer.mask_token, "[MASK]") == text
    assert max(each.num_tokens for each in answer.fills[0]) > 2


def test_the_only_mask_of_a_sentence_gives_a_target_the_score_of_that_word(trained: tuple[Any, Any]) -> None:
    """Both follow the chain rule inside the word."""
    from tf_mlm.inference.masked_copies import build_predictor
    from tf_mlm.inference.score import score_texts, tokenize_text

    targets = ["film", "unwatchable", "superb"]
    answer = fill(*trained, "The [MASK] was long.", targets)
    texts = [tokenize_text(trained[1], found.sentence, 100) for found in answer.fills[0]]
    scored = score_texts(build_predictor(trained[0]), trained[1], texts)
    for found, text, target in zip(answer.fills[0], scored, targets, strict=True):
        assert (text.words[1].word, text.words[1].num_tokens) == (target, found.num_tokens)
        assert np.log(found.probability) == pytest.approx(text.words[1].log_probability, rel=1e-5)
    assert answer.fills[0][1].num_tokens > 1


def test_a_target_has_a_leading_space_only_if_its_mask_has_one() -> None:
    from tf_mlm.inference.targets import _token_ids

    tokenizer = tiny_tokenizer("roberta")

    def tokens(before: str, target: str) -> str:
        return "".join(tokenizer.convert_ids_to_tokens(_token_ids(tokenizer, before, target)))

    assert tokens("the ", "film") == tokens("the \n", "film") == "Ġfilm"
    assert tokens("", "film") == tokens("the (", "film") == tokens("<mask>", "film") == "film"
    assert tokens(" ", "film") == tokens("<mask> ", "film") == "Ġfilm"
    tokenizer = tiny_tokenizer("albert")
    assert tokens("the ", "film") == tokens("", "film") == "▁film"
    tokenizer = tiny_tokenizer("bert")
    assert tokens("the ", "Plot") == tokens("(", "plot") == "p##lot"


def test_a_target_that_cannot_be_a_fill_is_refused_by_name(trained: tuple[Any, Any], finished_run: Path) -> None:
    def refused(sentence: str, targets: list[str]) -> str:
        with pytest.raises(Refused) as error:
            fill(*trained, sentence, targets)
        assert len(str(error.value).splitlines()) == 1
        return str(error.value)

    assert "the target '北京' contains a character that is not in the vocabulary" in refused(SENTENCE, ["film", "北京"])
    assert "a target is empty" in refused(SENTENCE, ["film", " "])
    assert "no target given" in refused(SENTENCE, [])
    assert "the target '[SEP]' is not a word" in refused(SENTENCE, ["[SEP]"])
    assert "the target 'm' forms one token with the text 'The fil'" in refused("The fil[MASK]", ["m"])
    assert "'no mask' has no [MASK]" in refused("no mask", ["film"])
    long = "a " * 509 + "[MASK]"  # with [CLS] and [SEP], 512 tokens
    assert fill(*trained, long, ["film"]).fills[0][0].num_tokens == 1
    assert "with the target 'film film' the sentence has 513 tokens" in refused(long, ["film film"])


def test_the_tables_show_the_number_of_tokens_and_small_probabilities() -> None:
    from tf_mlm.inference.targets import TargetAnswer, TargetFill, describe_targets, describe_targets_side_by_side

    first = TargetAnswer("a [MASK]", [[TargetFill("good", 0.5, 1, ""), TargetFill("grate", 2e-7, 2, "")]])
    note = " do not compare the probabilities of targets with different numbers of tokens"
    assert describe_targets(first).splitlines() == [
        "a [MASK]",
        "  good     50.00%  " + "█" * 10,
        "  grate   2.0e-07  2 tokens",
        note,
    ]
    second = TargetAnswer("a [MASK]", [[TargetFill("good", 0.25, 1, ""), TargetFill("grate", 5e-7, 1, "")]])
    assert describe_targets_side_by_side(["A", "runs/B"], [first, second]).splitlines() == [
        "a [MASK]",
        "  A                           runs/B                difference",
        "  good     50.00%  █████      good     25.00%  ██   -25.00%",
        "  grate   2.0e-07  2 tokens   grate   5.0e-07       +3.0e-07",
        note,
    ]
    masks = TargetAnswer("[MASK] [MASK]", [[TargetFill("a", 0.01, 1, "")], [TargetFill("a", 0.0, 1, "")]])
    assert describe_targets(masks).splitlines() == [
        "[MASK] [MASK]",
        " mask 1, the others masked",
        "  a     1.00%",
        " mask 2, the others masked",
        "  a     0.00%",
    ]


def run(capsys: Capture, *arguments: object) -> str:
    capsys.readouterr()
    assert main(["fill-mask", *map(str, arguments)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_the_command_and_python_give_the_same_numbers(finished_run: Path, capsys: Capture) -> None:
    from tf_mlm.inference.targets import describe_targets

    model = tf_mlm.load(finished_run)
    sentences, targets = [SENTENCE, "A [MASK]."], ["film", "superb plot"]
    answers = model.fill(sentences, targets=targets)
    out = run(capsys, finished_run, *sentences, "--targets", "film, superb plot", "--json")
    expected = [{"model": str(finished_run)} | answer.as_dict() for answer in answers]
    assert [json.loads(line) for line in out.splitlines()] == expected
    assert [[each["target"] for each in fills] for fills in expected[0]["fills"]] == [targets, targets]
    out = run(capsys, finished_run, SENTENCE, "--targets", "film,superb plot")
    assert out == describe_targets(answers[0]) + "\n"


def test_two_models_are_compared_with_the_difference_of_their_probabilities(
    finished_run: Path, tmp_path: Path, capsys: Capture
) -> None:
    from tf_mlm.model.loading import load_trained
    from tf_mlm.model.saving import save_model

    model: Any
    model, tokenizer = load_trained(str(finished_run / "model"))
    for variable in model.weights:
        variable.assign(variable * 0.9)
    save_model(model, tokenizer, tmp_path / "other")
    arguments = ("--compare", finished_run, tmp_path / "other", SENTENCE, "--targets", "film,the")
    first, second = json.loads(run(capsys, *arguments, "--json"))
    assert [first["model"], second["model"]] == [str(finished_run), str(tmp_path / "other")]
    assert second["differences"] == [
        [b["probability"] - a["probability"] for a, b in zip(*fills, strict=True)]
        for fills in zip(first["fills"], second["fills"], strict=True)
    ]
    assert all(difference != 0 for row in second["differences"] for difference in row)
    table = run(capsys, *arguments).splitlines()
    assert table[1].split() == [str(finished_run), str(tmp_path / "other"), "difference"] and len(table) == 8


def test_wrong_requests_are_refused_in_one_line(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def refusal(*arguments: object) -> str:
        capsys.readouterr()
        assert main(["fill-mask", *map(str, arguments)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        return line

    served = finished_run / "saved_model"
    assert f"--targets: {served} is a SavedModel" in refusal(served, SENTENCE, "--targets", "film")
    assert "is a SavedModel" in refusal("--compare", finished_run, served, SENTENCE, "--targets", "film")
    assert "--top-k: has no effect with --targets" in refusal(finished_run, SENTENCE, "--targets", "a", "--top-k", "3")
    assert "a target is empty" in refusal(finished_run, SENTENCE, "--targets", "")
    lines = io.TextIOWrapper(io.BytesIO(b"no mask\nA [MASK].\n"))
    monkeypatch.setattr(sys, "stdin", lines)
    capsys.readouterr()
    assert main(["fill-mask", str(finished_run), "--targets", "film", "--json"]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["sentence"] == "A [MASK]."
    assert captured.err.startswith("error: standard input line 1: ")
