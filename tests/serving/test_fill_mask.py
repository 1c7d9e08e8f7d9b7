import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tf_mlm.cli import main

SENTENCE = "The [MASK] was a [MASK] film."


@pytest.fixture(scope="module")
def trained(finished_run: Path) -> tuple[Any, Any]:
    from tf_mlm.model.loading import load_trained

    return load_trained(str(finished_run / "model"))


def test_probabilities_are_the_softmax_over_the_whole_vocabulary_at_each_gap(
    trained: tuple[Any, Any], finished_run: Path
) -> None:
    import transformers

    from tf_mlm.serving.fill_mask import fill_masks

    stock = transformers.TFDistilBertForMaskedLM.from_pretrained(finished_run / "model")
    tokenizer = trained[1]
    encoded = tokenizer(SENTENCE, return_tensors="np")
    logits = stock(**encoded).logits.numpy()[0].astype(np.float64)
    gaps = fill_masks(*trained, SENTENCE, top_k=300)
    positions = np.flatnonzero(encoded["input_ids"][0] == tokenizer.mask_token_id)
    assert len(gaps) == len(positions) == 2
    for position, fills in zip(positions, gaps, strict=True):
        expected = np.sort(np.exp(logits[position]) / np.exp(logits[position]).sum())[::-1]
        np.testing.assert_allclose([fill.probability for fill in fills], expected, rtol=1e-5)
        assert sum(fill.probability for fill in fills) == pytest.approx(1, abs=1e-12)
        assert len({fill.token for fill in fills}) == 300


def test_the_likeliest_words_are_those_of_the_stock_pipeline(trained: tuple[Any, Any], finished_run: Path) -> None:
    import transformers

    from tf_mlm.serving.fill_mask import fill_masks

    folder = str(finished_run / "model")
    # Without PyTorch the default "auto" of torch_dtype is a NameError.
    pipeline = transformers.pipeline("fill-mask", model=folder, framework="tf", torch_dtype=None, top_k=4)
    (fills,) = fill_masks(*trained, "This is a [MASK] film.", top_k=4)
    expected = pipeline("This is a [MASK] film.")
    assert [fill.token for fill in fills] == [answer["token_str"].replace(" ", "") for answer in expected]
    scores = [answer["score"] for answer in expected]
    np.testing.assert_allclose([fill.probability for fill in fills], scores, rtol=1e-4)


def test_a_filled_sentence_keeps_its_other_gaps_and_drops_the_tokens_around_it(trained: tuple[Any, Any]) -> None:
    from tf_mlm.serving.fill_mask import fill_masks

    first, second = fill_masks(*trained, "the [MASK] was [MASK]", top_k=3)
    for fill in first:
        assert fill.sentence.startswith("the") and fill.sentence.endswith("was [MASK]")
        assert fill.sentence.count("[MASK]") == 1 and "[CLS]" not in fill.sentence and "[SEP]" not in fill.sentence
    for fill in second:
        assert fill.sentence.startswith("the [MASK] was")


def test_a_gap_is_written_the_same_way_whatever_the_models_own_mask_token(trained: tuple[Any, Any]) -> None:
    from tf_mlm.serving.fill_mask import fill_masks

    class Renamed:
        """The tokenizer with `<mask>` in place of `[MASK]`."""

        mask_token = "<mask>"

        def __getattr__(self, name: str) -> Any:
            return getattr(trained[1], name)

        def __call__(self, text: str) -> Any:
            assert "[MASK]" not in text
            return trained[1](text.replace("<mask>", "[MASK]"))

    assert fill_masks(trained[0], Renamed(), SENTENCE, 5) == fill_masks(*trained, SENTENCE, 5)


def test_a_table_shows_each_gap_with_its_number_and_a_bar_as_long_as_the_probability(tensorflow: None) -> None:
    from tf_mlm.serving.fill_mask import Fill, describe_fills

    table = describe_fills(
        "[MASK] a [MASK]",
        [[Fill("b", 0.75, "b a [MASK]")], [Fill("see", 0.5, "[MASK] a see"), Fill("d", 0.05, "[MASK] a d")]],
    )
    assert table.splitlines() == [
        "[MASK] a [MASK]",
        " gap 1",
        "  b   75.00%  " + "█" * 15 + " " * 5 + "  b a [MASK]",
        " gap 2",
        "  see   50.00%  " + "█" * 10 + " " * 10 + "  [MASK] a see",
        "  d      5.00%  " + "█" + " " * 19 + "  [MASK] a d",
    ]


def test_the_command_prints_one_json_object_a_sentence(
    finished_run: Path, trained: tuple[Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    from tf_mlm.serving.fill_mask import fill_masks

    assert main(["fill-mask", str(finished_run), SENTENCE, "A [MASK].", "--top-k", "2", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["sentence"] for line in lines] == [SENTENCE, "A [MASK]."]
    expected = [[fill._asdict() for fill in gap] for gap in fill_masks(*trained, SENTENCE, 2)]
    assert lines[0]["fills"] == expected
    assert [len(gap) for gap in lines[1]["fills"]] == [2]
