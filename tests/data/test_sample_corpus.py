import math
import re
from collections import Counter

import pytest

from tf_mlm.data import sample_corpus
from tf_mlm.data.sample_corpus import generate_documents

NUM_DOCUMENTS = 3_000
NEGATING = re.compile(r"[Aa]lthough|, but ")  # the sentences that may say the opposite of the verdict


@pytest.fixture(scope="module")
def documents() -> list[str]:
    return generate_documents(NUM_DOCUMENTS, seed=0)


def _sentences(document: str) -> list[str]:
    return re.split(r"(?<=[.!]) ", document)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower().replace(" out of ten", ""))  # leaves the rating itself


def _verdict_words(table: dict[str, list[str]], own_adjectives: int) -> set[str]:
    entries = [entry for words in table.values() for entry in words]
    return {*entries, *(word for aspect in sample_corpus.ASPECTS for word in aspect[own_adjectives])}


PRAISE = _verdict_words(sample_corpus.PRAISE, 2)
BLAME = _verdict_words(sample_corpus.BLAME, 3)


def test_the_same_seed_gives_the_same_documents() -> None:
    assert generate_documents(50, seed=7) == generate_documents(50, seed=7)


def test_more_documents_start_with_the_same_ones() -> None:
    assert generate_documents(50, seed=7)[:20] == generate_documents(20, seed=7)


def test_another_seed_gives_other_documents() -> None:
    assert not set(generate_documents(50, seed=7)) & set(generate_documents(50, seed=8))


def test_no_document_occurs_twice(documents: list[str]) -> None:
    assert len(set(documents)) == len(documents) == NUM_DOCUMENTS


def test_a_negative_number_of_documents_is_refused() -> None:
    with pytest.raises(ValueError, match="num_documents must be at least 0, got -1"):
        generate_documents(-1, seed=0)


def test_a_document_has_4_to_6_whole_sentences(documents: list[str]) -> None:
    assert {len(_sentences(document)) for document in documents} == {4, 5, 6}
    for sentence in {sentence for document in documents for sentence in _sentences(document)}:
        assert re.fullmatch(r"[A-Z][A-Za-z, ]*[.!]", sentence), sentence


def test_no_sentence_of_over_8_words_occurs_in_more_than_1_percent_of_the_documents(documents: list[str]) -> None:
    count = Counter(sentence for document in documents for sentence in set(_sentences(document)))
    long = {sentence: number for sentence, number in count.items() if len(sentence.split()) > 8}
    assert max(long.values()) <= 0.01 * NUM_DOCUMENTS


def test_no_word_praises_and_blames() -> None:
    assert not PRAISE & BLAME
    assert not set(sample_corpus.PRAISE["rating"]) & set(sample_corpus.BLAME["rating"])


def test_outside_contrasts_a_document_only_praises_or_only_blames(documents: list[str]) -> None:
    """Both verdicts are about as frequent, and the rating agrees with the words."""
    num_praising = 0
    for document in documents:
        plain = [sentence for sentence in _sentences(document) if not NEGATING.search(sentence)]
        words = {word for sentence in plain for word in _words(sentence)}
        praises, blames = bool(words & PRAISE), bool(words & BLAME)
        assert praises != blames, document
        num_praising += praises
        rating = re.search(r"(\w+)( stars)? out of ten", document)
        if rating:
            assert rating[1].lower() in (sample_corpus.PRAISE if praises else sample_corpus.BLAME)["rating"], document
    assert 0.45 < num_praising / NUM_DOCUMENTS < 0.55


def test_a_contrast_ends_with_the_verdict_and_begins_with_the_opposite(documents: list[str]) -> None:
    num_contrasts = 0
    for document in documents:
        plain = " ".join(sentence for sentence in _sentences(document) if not NEGATING.search(sentence))
        verdict, opposite = (PRAISE, BLAME) if set(_words(plain)) & PRAISE else (BLAME, PRAISE)
        for sentence in _sentences(document):
            if NEGATING.search(sentence):
                first, second = sentence.split(", but " if ", but " in sentence else ", ", maxsplit=1)
                assert set(_words(first)) & opposite and not set(_words(first)) & verdict, document
                assert set(_words(second)) & verdict and not set(_words(second)) & opposite, document
                num_contrasts += 1
    assert num_contrasts > 0.1 * NUM_DOCUMENTS


def test_pronouns_and_relations_agree_in_gender_with_the_names(documents: list[str]) -> None:
    """A relation agrees with the name after it; the other people of a sentence have the gender of its pronoun."""
    names = {gender: set(words) for gender, words in sample_corpus.FIRST_NAMES.items()}
    pronouns = {gender: set(words.values()) for gender, words in sample_corpus.PRONOUNS.items()}
    num_checked = 0
    for document in documents:
        for gender, other in (("male", "female"), ("female", "male")):
            for relation in sample_corpus.RELATIONS[gender]:
                for name in re.findall(rf"\b{relation} (\w+)", document):
                    assert name in names[gender], document
            relations = "|".join(sample_corpus.RELATIONS["male"] + sample_corpus.RELATIONS["female"])
            for sentence in _sentences(document):
                people = set(re.findall(r"[A-Z]\w+", re.sub(rf"({relations}) \w+", "", sentence)))
                if people & names[gender]:
                    # With people of both genders in one sentence (a director and a lead) there must be no pronoun.
                    assert not set(_words(sentence)) & pronouns[other], document
                    num_checked += bool(set(_words(sentence)) & pronouns[gender])
    assert num_checked > 0.3 * NUM_DOCUMENTS


def test_one_tense_and_one_reviewer_hold_for_the_whole_document(documents: list[str]) -> None:
    for document in documents:
        words = set(_words(document))
        assert not words & {"i", "my", "me"} or not words & {"we", "our", "us"}, document
        assert not words & {"is", "are", "has"} or not words & {"was", "were", "had"}, document


def test_verbs_and_articles_agree(documents: list[str]) -> None:
    singular = "|".join(aspect[0] for aspect in sample_corpus.ASPECTS if aspect[1] == "singular")
    plural = "|".join(aspect[0] for aspect in sample_corpus.ASPECTS if aspect[1] == "plural")
    for document in documents:
        assert not re.search(rf"\b({singular}) (are|were)\b|\b({plural}) (is|was)\b", document), document
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", document), document


def test_title_and_genre_are_named_again(documents: list[str]) -> None:
    """So that one mention helps to fill a mask in the other."""
    title = re.compile(rf"\b({'|'.join(sample_corpus.TITLE_MODIFIERS)}) ({'|'.join(sample_corpus.TITLE_NOUNS)})\b")
    titles = [[match[0] for match in title.finditer(document)] for document in documents]
    assert all(len(set(found)) <= 1 for found in titles)
    assert sum(len(found) > 1 for found in titles) > 0.2 * NUM_DOCUMENTS
    words = [[genre for genre in sample_corpus.GENRES if genre in document] for document in documents]
    assert sum(len(found) == 1 for found in words) > 0.8 * NUM_DOCUMENTS


def test_the_words_are_many_enough_and_frequent_enough_to_learn(documents: list[str]) -> None:
    """A unigram entropy over 5 nats, hundreds of words, and no word too rare to learn."""
    count = Counter(word for document in documents for word in _words(document))
    total = sum(count.values())
    assert -sum(number / total * math.log(number / total) for number in count.values()) > 5
    assert 400 < len(count) < 1_000
    assert min(count.values()) >= 10
