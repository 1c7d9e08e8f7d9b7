from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny_tokenizers import tiny_models

ONE, TWO = "This is a [MASK] film.", "The [MASK] was not [MASK]."
LONG = "a [MASK] " * 300


@pytest.fixture(scope="module", params=["distilbert", "roberta", "albert"])
def served(request: pytest.FixtureRequest, tensorflow: None) -> Any:
    from tf_mlm.inference.loaded import LoadedModel
    from tf_mlm.inference.locate import FoundModel
    from tf_mlm.serving.requests import Limits
    from tf_mlm.serving.served_model import ServedWeights

    model, _, tokenizer = tiny_models(request.param)
    return ServedWeights(LoadedModel(model, tokenizer, FoundModel("")), "tiny", "tiny", Limits(scored_tokens=12))


def test_fills_and_scores_are_those_of_the_loaded_model(served: Any) -> None:
    from tf_mlm.serving.served_model import FillJob, ScoreJob

    texts = [ONE, TWO, "[MASK]"]
    results = served.answer([FillJob(ONE, 3), ScoreJob("the film"), FillJob(TWO, 5), FillJob("[MASK]", 1)])
    scored = results.pop(1)
    for text, top_k, masks in zip(texts, (3, 5, 1), results, strict=True):
        (answer,) = served.loaded.fill(text, top_k)
        for fills, expected in zip(masks, answer.fills, strict=True):
            assert [(fill.token, fill.text) for fill in fills] == [(each.token, each.sentence) for each in expected]
            assert [fill.probability for fill in fills] == pytest.approx([e.probability for e in expected], rel=1e-4)
    (expected_score,) = served.loaded.score("the film")
    assert scored.log_probability == pytest.approx(expected_score.log_probability, rel=1e-4)


def test_bad_texts_do_not_affect_the_others(served: Any) -> None:
    from tf_mlm.serving.requests import RequestError
    from tf_mlm.serving.served_model import FillJob, ScoreJob

    jobs = [
        FillJob("no mask", 2),
        FillJob(ONE, 2),
        FillJob(LONG, 2),
        ScoreJob(ONE),
        ScoreJob("the film"),
        ScoreJob("the film " * 7),
        ScoreJob(""),
        FillJob(ONE, 2, targets=("the zebras are",)),
        FillJob(TWO, 2),
    ]
    results = served.answer(jobs)
    refused = [number for number, result in enumerate(results) if isinstance(result, RequestError)]
    assert refused == [0, 2, 3, 5, 6, 7]
    assert all(results[number].status == 400 for number in refused)
    assert [[fill.token for fill in fills] for fills in results[1]] == [
        [fill.token for fill in fills] for fills in served.answer([jobs[1]])[0]
    ]
    assert len(results[8]) == 2


def test_a_large_answer_and_a_long_text_without_a_mask_are_refused_with_the_reason(served: Any) -> None:
    from tf_mlm.serving.served_model import FillJob

    spaces, without = served.answer([FillJob(" " * 19_000 + "[MASK] [MASK] [MASK]", 100), FillJob("film " * 99, 5)])
    assert "at most 4,194,304 are allowed; shorten the text or lower top_k" in str(spaces)
    assert str(without).endswith("has no [MASK]; write [MASK] in place of a word")


def test_targets_are_ordered_by_their_probability(served: Any) -> None:
    from tf_mlm.serving.served_model import FillJob

    vocabulary = served.loaded.tokenizer.get_vocab()
    targets = tuple(sorted(vocabulary, key=vocabulary.get)[5:45])
    everything, chosen = served.answer([FillJob(ONE, 999), FillJob(ONE, 999, targets=(*targets, targets[0]))])
    ids = {vocabulary[target] for target in targets}
    assert [fill.token_id for fill in chosen[0]] == [fill.token_id for fill in everything[0] if fill.token_id in ids]


def test_an_id_without_a_token_is_an_empty_fill(served: Any) -> None:
    """Some models have more ids than their tokenizer has tokens."""
    from tf_mlm.inference.fill_mask import Mask, fill_in

    tokenizer = served.loaded.tokenizer
    word, text = fill_in(tokenizer, "a [MASK].", Mask(2, 2, 8), len(tokenizer) + 1)
    assert (word, text.replace(" ", "")) == ("", "a.")


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(max_size=30)
    | st.lists(st.sampled_from(["[MASK]", "<mask>", " ", "the", "film", "!", "😀"])).map("".join)
)
def test_segments_joined_are_the_text(served: Any, text: str) -> None:
    segments = served.split(text)
    assert "".join(segment.text for segment in segments) == text
    assert all(segment.text and not (segment.word and segment.mask) for segment in segments)
    assert all(segment.text == segment.text.strip() for segment in segments if segment.word)
    assert served.count_tokens(text) >= sum(segment.word or segment.mask for segment in segments)


def test_words_and_masks_are_segments(served: Any) -> None:
    segments = served.split(f"the film [MASK] {served.mask_token} long")
    assert [each.text for each in segments if each.word] == ["the", "film", "long"]
    assert [each.text for each in segments if each.mask] == ["[MASK]", served.mask_token]


def test_a_saved_model_answers_with_its_graph_alone(served_saved_model: Any, served_run: Any) -> None:
    from tf_mlm.serving.requests import RequestError
    from tf_mlm.serving.served_model import FillJob, ScoreJob

    jobs = [FillJob(TWO, 4), FillJob("none", 1), FillJob(LONG, 1), ScoreJob("the film"), FillJob(ONE, 2)]
    answers, expected = served_saved_model.answer(jobs), served_run.answer(jobs)
    assert [isinstance(each, RequestError) for each in answers] == [False, True, True, True, False]
    for number in (0, 4):
        assert [[(f.token_id, f.text) for f in fills] for fills in answers[number]] == [
            [(f.token_id, f.text) for f in fills] for fills in expected[number]
        ]
    segments = served_saved_model.split("It isn't [MASK].")
    assert [each.text for each in segments if each.word] == ["It", "isn", "'", "t", "."]


@pytest.mark.parametrize(
    ("title", "taken", "name"),
    [
        ("RUN", [], "RUN"),
        ("RUN", ["RUN"], "RUN-2"),
        ("RUN", ["RUN", "RUN-2"], "RUN-3"),
        ("google/electra-small", [], "electra-small"),
        ("a b:c", [], "a-b-c"),
        ("лес", [], "лес"),
    ],
)
def test_names_are_unique_and_fit_into_urls(title: str, taken: list[str], name: str, tensorflow: None) -> None:
    from tf_mlm.serving.served_model import unused_name

    assert unused_name(title, taken) == name


def test_the_starting_model_of_a_run_is_loaded(finished_run: Path) -> None:
    from tf_mlm.config import load_config
    from tf_mlm.errors import Refused
    from tf_mlm.serving.requests import Limits
    from tf_mlm.serving.served_model import load_starting_model

    config = load_config(None, {"model.name": str(finished_run / "model")})
    assert load_starting_model(config, Limits(), ["RUN"]).name == "RUN-2"
    for overrides in ({}, {"model.from_config": True}):
        with pytest.raises(Refused, match="random weights"):
            named = {"model.name": str(finished_run / "model") if overrides else ""}
            load_starting_model(load_config(None, named | overrides), Limits(), [])
