"""Exact and near duplicates: which texts repeat an earlier one."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_mlm.data import duplicates
from tf_mlm.data.duplicates import build_signatures, find_duplicates, normalize
from tf_mlm.data.joined_rows import JoinedRows


def repeated(texts: Sequence[str | None], method: duplicates.Method, threshold: float = 0.8) -> list[int]:
    if method == "near":
        pytest.importorskip("datasketch")
    return np.flatnonzero(find_duplicates(build_signatures(texts, method), method, threshold)).tolist()


def review(number: int, num_words: int = 200) -> list[str]:
    """Random words of a small vocabulary, as in natural text."""
    words = np.random.default_rng(number).integers(0, 500, num_words)
    return [f"word{word}" for word in words]


def similarity(one: str, other: str) -> float:
    """The Jaccard similarity of the word 5-grams."""
    first, second = (
        {tuple(words[start : start + 5]) for start in range(max(len(words) - 5, 0) + 1)}
        for words in (normalize(text).split() for text in (one, other))
    )
    return len(first & second) / len(first | second)


def test_exact_duplicates_ignore_case_white_space_and_unicode_forms() -> None:
    texts = ["A good ﬁlm.", "a  GOOD\nfilm. ", "A good film!", "Straße", "STRASSE", "A good film."]
    assert repeated(texts, "exact") == [1, 4, 5]


@pytest.mark.parametrize("method", ["exact", "near"])
def test_texts_without_words_are_not_duplicates(method: duplicates.Method) -> None:
    """They are counted as empty documents."""
    assert repeated(["", None, " \n", "film", "", "film"], method) == [5]


@given(st.lists(st.sampled_from(["a", "b", "A ", "", "c d"]), min_size=1))
def test_only_the_first_of_equal_texts_is_kept(texts: list[str]) -> None:
    expected = [n for n, text in enumerate(texts) if text and normalize(text) in map(normalize, texts[:n])]
    assert repeated(texts, "exact") == expected


def test_near_duplicates_are_found_and_similar_texts_below_the_threshold_are_kept() -> None:
    original, other = review(1), review(2)
    one_word_changed = [*original[:90], "masterpiece", *original[91:]]
    half_changed = [*original[:100], *review(3, 100)]
    texts = [" ".join(each) for each in (original, other, one_word_changed, half_changed, [*other, "Really!"])]
    assert similarity(texts[0], texts[2]) > 0.9 and similarity(texts[0], texts[3]) < 0.4
    assert repeated(texts, "near") == [2, 4]
    assert repeated(texts, "near", threshold=0.2) == [2, 3, 4]
    assert repeated([*texts, texts[0].upper()], "near", threshold=0.99) == [4, 5]


def test_the_rate_of_found_near_duplicates_follows_the_similarity() -> None:
    """300 pairs with up to 24 changed words each. The standard deviation of an estimate of 0.8 is 0.035."""
    texts: list[str | None] = []
    similarities = []
    for number in range(300):
        words = review(number)
        changed = list(words)
        for place in range(number % 25):
            changed[8 * place + 3] = f"changed{number}"
        texts += [" ".join(words), " ".join(changed)]
        similarities.append(similarity(" ".join(words), " ".join(changed)))
    found = set(repeated(texts, "near"))
    assert all(number % 2 for number in found)  # an original repeats nothing
    is_found = np.array([2 * pair + 1 in found for pair in range(300)])
    values = np.array(similarities)
    assert is_found[values >= 0.9].all() and (values >= 0.9).sum() > 20
    assert not is_found[values < 0.65].any() and (values < 0.65).sum() > 100


def test_short_texts_are_compared_as_a_whole() -> None:
    assert repeated(["a good film", "a good movie", "A good  film"], "near") == [2]


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=12), st.integers(1, 5))
def test_signatures_in_parts_give_the_same_duplicates(numbers: list[int], size: int) -> None:
    pytest.importorskip("datasketch")
    texts = [" ".join(review(number)) for number in numbers]
    parts = [build_signatures(texts[start : start + size], "near") for start in range(0, len(texts), size)]
    whole = build_signatures(texts, "near")
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    found = find_duplicates(JoinedRows(parts), "near", 0.8)
    np.testing.assert_array_equal(found, find_duplicates(whole, "near", 0.8))
    assert found.tolist() == [number in numbers[:place] for place, number in enumerate(numbers)]


def test_many_pairs_are_compared_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str | None] = [" ".join(review(number % 7)) for number in range(50)]
    expected = repeated(texts, "near")
    monkeypatch.setattr(duplicates, "_PAIRS_PER_CHUNK", 4)
    assert repeated(texts, "near") == expected == list(range(7, 50))
