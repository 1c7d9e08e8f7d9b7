import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tf_mlm.commands.main import main

SENTENCE = "The [MASK] was a [MASK] film."


@pytest.fixture(scope="module")
def trained(finished_run: Path) -> tuple[Any, Any]:
    from tf_mlm.model.loading import load_trained

    return load_trained(str(finished_run / "model"))


def test_probabilities_are_the_softmax_over_the_whole_vocabulary_at_each_mask(
    trained: tuple[Any, Any], finished_run: Path
) -> None:
    import transformers

    from tf_mlm.inference.fill_mask import fill_masks

    stock = transformers.TFDistilBertForMaskedLM.from_pretrained(finished_run / "model")
    tokenizer = trained[1]
    encoded = tokenizer(SENTENCE, return_tensors="np")
    logits = stock(**encoded).logits.numpy()[0].astype(np.float64)
    masks = fill_masks(*trained, SENTENCE, top_k=300)
    positions = np.flatnonzero(encoded["input_ids"][0] == tokenizer.mask_token_id)
    assert len(masks) == len(positions) == 2
    for position, fills in zip(positions, masks, strict=True):
        expected = np.sort(np.exp(logits[position]) / np.exp(logits[position]).sum())[::-1]
        np.testing.assert_allclose([fill.probability for fill in fills], expected, rtol=1e-5)
        assert sum(fill.probability for fill in fills) == pytest.approx(1, abs=1e-12)
        assert len({fill.token for fill in fills}) == 300


def test_the_most_likely_words_are_those_of_the_stock_pipeline(trained: tuple[Any, Any], finished_run: Path) -> None:
    import transformers

    from tf_mlm.inference.fill_mask import fill_masks

    folder = str(finished_run / "model")
    # Without PyTorch the default "auto" of torch_dtype is a NameError.
    pipeline = transformers.pipeline("fill-mask", model=folder, framework="tf", torch_dtype=None, top_k=4)
    (fills,) = fill_masks(*trained, "This is a [MASK] film.", top_k=4)
    expected = pipeline("This is a [MASK] film.")
    assert [fill.token for fill in fills] == [answer["token_str"].replace(" ", "") for answer in expected]
    scores = [answer["score"] for answer in expected]
    np.testing.assert_allclose([fill.probability for fill in fills], scores, rtol=1e-4)


def test_a_filled_sentence_keeps_its_other_masks(trained: tuple[Any, Any]) -> None:
    from tf_mlm.inference.fill_mask import fill_masks

    first, second = fill_masks(*trained, "The  [MASK]\twas [MASK] (Ünï)", top_k=300)

    def expected(before: str, token: str, after: str) -> str:
        return f"{before.rstrip()}{token[2:]}{after}" if token.startswith("##") else f"{before}{token}{after}"

    assert any(fill.token.startswith("##") for fill in first) and any(fill.token.isalpha() for fill in first)
    assert [fill.sentence for fill in first] == [expected("The  ", f.token, "\twas [MASK] (Ünï)") for f in first]
    assert [fill.sentence for fill in second] == [expected("The  [MASK]\twas ", f.token, " (Ünï)") for f in second]


def test_a_byte_level_bpe_token_is_joined_to_the_previous_word_unless_it_begins_a_word(tensorflow: None) -> None:
    from tests.export.test_saved_model import other_tokenizer
    from tests.model.conftest import build, tiny_config
    from tf_mlm.inference.fill_mask import fill_masks

    tokenizer = other_tokenizer("roberta")
    config = tiny_config("roberta")
    config.vocab_size, config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    (fills,) = fill_masks(build(config), tokenizer, "ab [MASK]!", top_k=len(tokenizer))
    sentences = {fill.token: fill.sentence for fill in fills}
    assert sentences["c"] == "abc!"  # no token of this vocabulary begins a word


def test_mask_is_replaced_by_the_mask_token_of_any_tokenizer(trained: tuple[Any, Any]) -> None:
    from tf_mlm.inference.fill_mask import fill_masks

    class Renamed:
        """The tokenizer with `<mask>` in place of `[MASK]`."""

        mask_token = "<mask>"

        def __getattr__(self, name: str) -> Any:
            return getattr(trained[1], name)

        def __call__(self, text: str, **options: Any) -> Any:
            assert "[MASK]" not in text
            return trained[1](text.replace("<mask>", "[MASK]"), **options)

    renamed = fill_masks(trained[0], Renamed(), SENTENCE, 5)
    for fills, expected in zip(renamed, fill_masks(*trained, SENTENCE, 5), strict=True):
        assert [fill[:2] for fill in fills] == [fill[:2] for fill in expected]


def test_all_masks_are_filled_one_at_a_time_most_confident_first() -> None:
    from tf_mlm.inference.fill_mask import Fill, answer

    asked = []

    def fill(sentence: str, top_k: int) -> list[list[Fill]]:
        asked.append((sentence, top_k))
        return {
            "A _ _ _": [[Fill("x", 0.1, "A x _ _")], [Fill("y", 0.5, "A _ y _"), Fill("z", 0.4, "A _ z _")],
                        [Fill("w", 0.2, "A _ _ w")]],
            "A _ y _": [[Fill("x", 0.3, "A x y _")], [Fill("v", 0.8, "A _ y v")]],
            "A _ y v": [[Fill("u", 0.9, "A u y v")]],
        }[sentence]  # fmt: skip

    given = answer(fill, "A _ _ _", 2)
    assert asked == [("A _ _ _", 2), ("A _ y _", 1), ("A _ y v", 1)]
    assert given.filled == "A u y v" and given.probability == pytest.approx(0.5 * 0.8 * 0.9)
    assert [fills[0].token for fills in given.fills] == ["x", "y", "w"]


@pytest.mark.parametrize("sentence", [SENTENCE, "[MASK][MASK]\t[MASK]s", "Ünï [MASK] 北京"])
def test_a_saved_model_gives_the_fills_of_its_run(finished_run: Path, trained: tuple[Any, Any], sentence: str) -> None:
    from tf_mlm.inference.fill_mask import fill_masks, load_served_filler

    served = load_served_filler(str(finished_run / "saved_model"))(sentence, 5)
    for fills, expected in zip(served, fill_masks(*trained, sentence, 5), strict=True):
        assert [(fill.token, fill.sentence) for fill in fills] == [(fill.token, fill.sentence) for fill in expected]
        probabilities = [fill.probability for fill in expected]
        np.testing.assert_allclose([fill.probability for fill in fills], probabilities, rtol=1e-4)


def test_the_table_shows_each_mask_with_its_number_and_probability_bars(tensorflow: None) -> None:
    from tf_mlm.inference.fill_mask import Answer, Fill, describe_answer

    one = [Fill("b", 0.75, "b a [MASK]")]
    two = [Fill("see", 0.5, "[MASK] a see"), Fill("d", 0.05, "[MASK] a d")]
    assert describe_answer(Answer("[MASK] a [MASK]", [one, two], "b a see", 0.5)).splitlines() == [
        "[MASK] a [MASK]",
        " mask 1, the others masked",
        "  b   75.00%  " + "█" * 15 + " " * 5 + "  b a [MASK]",
        " mask 2, the others masked",
        "  see   50.00%  " + "█" * 10 + " " * 10 + "  [MASK] a see",
        "  d      5.00%  " + "█" + " " * 19 + "  [MASK] a d",
        " all masks, filled one at a time, most confident first",
        "   50.00%  b a see",
    ]
    assert describe_answer(Answer("[MASK] a", [one], "b a", 0.75)).splitlines() == [
        "[MASK] a",
        "  b   75.00%  " + "█" * 15 + " " * 5 + "  b a [MASK]",
    ]


def test_a_comparison_has_one_column_per_model(tensorflow: None) -> None:
    from tf_mlm.inference.fill_mask import Answer, Fill, describe_side_by_side

    ours = Answer(
        "a [MASK] [MASK]", [[Fill("film", 0.5, ""), Fill("day", 0.2, "")], [Fill("!", 1, "")]], "a film!", 0.5
    )
    other = Answer("a [MASK] [MASK]", [[Fill("b", 0.25, "")], [Fill("?", 0.9, "")]], "a b ?", 0.2)
    assert describe_side_by_side(["runs/ours", "B"], [ours, other]).splitlines() == [
        "a [MASK] [MASK]",
        "  runs/ours                   B",
        " mask 1, the others masked",
        "  film   50.00%  █████        b   25.00%  ██",
        "  day    20.00%  ██",
        " mask 2, the others masked",
        "  !  100.00%  ██████████      ?   90.00%  █████████",
        " all masks, filled one at a time, most confident first",
        "  runs/ours   50.00%  a film!",
        "  B           20.00%  a b ?",
    ]


def run_fill_mask(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main(["fill-mask", *map(str, arguments)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_the_command_prints_one_json_object_per_sentence(
    finished_run: Path, trained: tuple[Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    from tf_mlm.inference.fill_mask import fill_masks

    out = run_fill_mask(capsys, finished_run, SENTENCE, "A [MASK].", "--top-k", "2", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["sentence"] for line in lines] == [SENTENCE, "A [MASK]."]
    expected = [[fill._asdict() for fill in fills] for fills in fill_masks(*trained, SENTENCE, 2)]
    assert lines[0]["model"] == str(finished_run) and lines[0]["fills"] == expected
    assert 0 < lines[0]["probability"] < 1 and "[MASK]" not in lines[0]["filled"]
    ((best, _),) = lines[1]["fills"]
    assert (lines[1]["filled"], lines[1]["probability"]) == (best["sentence"], best["probability"])


def test_flags_may_be_anywhere_and_sentences_are_read_from_standard_input_by_default(
    finished_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run_fill_mask(capsys, finished_run, "A [MASK].", "Ünï [MASK]", "--top-k", "2")
    assert run_fill_mask(capsys, "--top-k", "2", finished_run, "A [MASK].", "Ünï [MASK]") == expected
    assert run_fill_mask(capsys, finished_run, "A [MASK].", "--top-k", "2", "Ünï [MASK]") == expected
    lines = io.TextIOWrapper(io.BytesIO("\nA [MASK].\r\n  \nÜnï [MASK]".encode()), "ascii")
    monkeypatch.setattr(sys, "stdin", lines)
    assert run_fill_mask(capsys, finished_run, "--top-k", "2") == expected


def test_runs_model_directories_and_saved_models_can_be_compared(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, served = str(finished_run), str(finished_run / "saved_model")
    table = run_fill_mask(capsys, "--compare", run, served, "A [MASK].", "--top-k", "3").splitlines()
    assert len(table) == 5 and table[1].split() == [run, served]
    for row in table[2:]:
        assert row.split()[:2] == row.split()[-len(row.split()) // 2 :][:2]  # the same model in two forms
    both = json.loads(run_fill_mask(capsys, "--compare", run, served, "--json", "A [MASK]."))
    assert [given["model"] for given in both] == [run, served]
    assert both[0]["filled"] == both[1]["filled"]
