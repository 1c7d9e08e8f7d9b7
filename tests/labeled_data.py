"""Labeled data with known labels, made from the grammar of the sample corpus."""

import json
import re
from pathlib import Path
from typing import Any

from tf_mlm.data.sample_corpus import (
    FIRST_NAMES,
    SURNAMES,
    TITLE_MODIFIERS,
    TITLE_NOUNS,
    TITLE_OPENINGS,
    generate_documents,
)

TAG_NAMES = ("O", "B-PERSON", "I-PERSON", "B-TITLE", "I-TITLE")


def use_token_types(tokenizer: Any) -> None:
    """Give the tokens of the second text of a pair the type 1, as BERT's tokenizer does."""
    from tokenizers import processors

    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", tokenizer.cls_token_id), ("[SEP]", tokenizer.sep_token_id)],
    )


def write_lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_classification(folder: Path, num_train: int = 240, num_test: int = 60) -> None:
    """`folder/{train,test}.jsonl`: sentences with the label `person` or `title`, by what they contain."""
    folder.mkdir()
    rows: list[dict[str, object]] = []
    for words, tags in _tagged_sentences():
        kinds = {tag[2:] for tag in tags} - {""}
        if len(kinds) == 1:
            rows.append({"text": " ".join(words), "label": kinds.pop().lower()})
    _write_splits(folder, rows, num_train, num_test)


def write_tags(folder: Path, num_train: int = 240, num_test: int = 60) -> None:
    """`folder/{train,test}.jsonl`: the words of sentences with IOB2 tags of persons and film titles."""
    folder.mkdir()
    rows: list[dict[str, object]] = [{"tokens": words, "ner_tags": tags} for words, tags in _tagged_sentences()]
    _write_splits(folder, rows, num_train, num_test)


def _write_splits(folder: Path, rows: list[dict[str, object]], num_train: int, num_test: int) -> None:
    rows = list({json.dumps(row): row for row in rows}.values())
    assert len(rows) >= num_train + num_test
    write_lines(folder / "train.jsonl", rows[:num_train])
    write_lines(folder / "test.jsonl", rows[num_train : num_train + num_test])


def _tagged_sentences() -> list[tuple[list[str], list[str]]]:
    first_names, openings = {*FIRST_NAMES["male"], *FIRST_NAMES["female"]}, {each.split()[0] for each in TITLE_OPENINGS}
    found = []
    for document in generate_documents(400, seed=3):
        for sentence in re.split(r"(?<=[.!?])\s+", document):
            words = re.findall(r"\w+|[^\w\s]", sentence)
            tags = ["O"] * len(words)
            for place, word in enumerate(words):
                following = words[place + 1 : place + 2]
                if word in first_names:
                    tags[place] = "B-PERSON"
                    if following and following[0] in SURNAMES:
                        tags[place + 1] = "I-PERSON"
                if word in TITLE_MODIFIERS and following and following[0] in TITLE_NOUNS:
                    begin = place - 1 if words[place - 1] in openings else place - 2
                    tags[begin : place + 2] = ["B-TITLE", *["I-TITLE"] * (place + 1 - begin)]
            if set(tags) != {"O"}:
                found.append((words, tags))
    return found
