"""Tests of reading documents from local files, and of the places that errors name."""

import csv
import errno
import io
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.conftest import one_line, put
from tf_mlm.data.local_files import KINDS
from tf_mlm.data.readers import find_text_column, read_documents
from tf_mlm.errors import Refused

TEXTS = ["One film.<br /><br />", 'He said "no", twice', "", "naïve 🎬 \u2028 end "]
few_examples = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def encode(kind: str, texts: list[str], column: str = "text") -> bytes:
    """The bytes of a file with the texts in `column` and numbers in another."""
    rows = [{"stars": number, column: text} for number, text in enumerate(texts)]
    if kind == "txt":
        return "".join(text + "\n" for text in texts).encode()
    if kind == "parquet":
        table = pa.table({"stars": pa.array(range(len(texts))), column: pa.array(texts, pa.string())})
        pq.write_table(table, sink := io.BytesIO(), row_group_size=2)
        return sink.getvalue()
    if kind == "json":
        return json.dumps(rows, indent=1).encode()
    if kind in ("jsonl", "ndjson"):
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    text_file = io.StringIO()
    writer = csv.DictWriter(text_file, ["stars", column], delimiter="\t" if kind == "tsv" else ",")
    writer.writeheader()
    writer.writerows(rows)
    return text_file.getvalue().encode()


def read(*files: Path, column: str = "", document: Any = "line") -> list[str]:
    return list(read_documents(list(files), column, document))


def refusal(*files: Path, column: str = "") -> str:
    """The error message for the files, without the directory."""
    with pytest.raises(Refused) as refused:
        read(*files, column=column)
    return one_line(refused, files[0].parent)


def names(splits: dict[str, list[Path]], folder: Path) -> dict[str, list[str]]:
    return {split: [str(file.relative_to(folder)) for file in files] for split, files in splits.items()}


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_texts_unchanged(tmp_path: Path, kind: str, gz: str) -> None:
    assert read(put(tmp_path / f"a.{kind}{gz}", encode(kind, TEXTS))) == TEXTS


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "txt"])
def test_the_only_string_column_is_found_and_others_can_be_chosen(tmp_path: Path, kind: str) -> None:
    one = put(tmp_path / f"one.{kind}", encode(kind, TEXTS, "review"))
    two = put(tmp_path / f"two.{kind}", encode(kind, ["7 of 9"], "review"))
    assert read(one, two) == read(one, two, column="review") == [*TEXTS, "7 of 9"]
    assert refusal(one, column="stars").startswith("data.text_column: one." + kind + ": column 'stars' is of type ")
    assert "no column 'reviw'; its columns: 'stars' (" in refusal(one, column="reviw")
    assert refusal(one, column="reviw").endswith("did you mean 'review'?")
    other = put(tmp_path / f"other.{kind}", encode(kind, TEXTS, "body"))
    assert f"other.{kind}: no column 'review', which " in refusal(one, other)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_several_or_no_string_columns_are_refused_with_their_names(tmp_path: Path, kind: str) -> None:
    def file(columns: dict[str, list[Any]]) -> Path:
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        pq.write_table(pa.table(columns), parquet := io.BytesIO())
        lines = [",".join(columns), *(",".join(map(str, row.values())) for row in rows)]
        content: dict[str, str | bytes] = {
            "csv": "\n".join(lines),
            "jsonl": "\n".join(map(json.dumps, rows)),
            "parquet": parquet.getvalue(),
        }
        return put(tmp_path / f"a.{kind}", content[kind])

    assert refusal(file({"title": ["x", "y"], "n": [1, 2], "body": ["u", "v"]})) == (
        f"data.text_column: a.{kind}: several columns contain text: 'title', 'body'; choose one with --data.text_column"
    )
    assert read(file({"title": ["x", "y"], "text": ["u", "v"]})) == ["u", "v"]
    assert "no column contains text; its columns: 'n' (" in refusal(file({"n": [1, 2], "m": [1.5, 2.5]}))
    assert "column 'text' is of type " in refusal(file({"text": [1, 2], "body": ["u", "v"]}))


def test_txt_documents_are_lines_paragraphs_or_files(tmp_path: Path) -> None:
    a = put(tmp_path / "a.txt", "\ufeffone\r\n two \n\n \t\r\nthree\rstill three")
    b = put(tmp_path / "b.txt.gz", "\n\nfour\nfive\n\n")
    assert read(a, b) == ["one", " two ", "", " \t", "three\rstill three", "", "", "four", "five", ""]
    assert read(a, b, document="paragraph") == ["one\r\n two ", "three\rstill three", "four\nfive"]
    assert read(a, b, document="file") == ["one\r\n two \n\n \t\r\nthree\rstill three", "\n\nfour\nfive\n\n"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "parquet"])
def test_a_byte_order_mark_is_removed(tmp_path: Path, kind: str) -> None:
    assert read(put(tmp_path / f"a.{kind}", b"\xef\xbb\xbf" + encode(kind, TEXTS))) == TEXTS


def test_nulls_are_empty_texts(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", None, "b"]}), tmp_path / "a.parquet")
    array = put(tmp_path / "a.json", '[{"text": null}, {"text": "c"}]')
    lines = put(tmp_path / "b.json", '\n{"text": "d"}\r\n\n{"text": null}')
    assert read(tmp_path / "a.parquet", array, lines) == ["a", "", "b", "", "c", "d", ""]


@pytest.mark.parametrize("string", [pa.string(), pa.large_string(), pa.string_view(), "dictionary"])
def test_every_arrow_string_is_text(tmp_path: Path, string: Any) -> None:
    texts = pa.array(["a", "b", "a"])
    texts = texts.dictionary_encode() if string == "dictionary" else texts.cast(string)
    pq.write_table(pa.table({"body": texts, "body.clean": pa.array([1, 2, 3])}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == ["a", "b", "a"]


def test_csv_fields_may_be_long_and_hold_line_endings(tmp_path: Path) -> None:
    long = "word, " * 100_000
    file = put(tmp_path / "a.csv", f'id,text\n1,"{long}"\n\n2,"a\r\nb\n""c"""\r\n')
    assert read(file) == [long, 'a\r\nb\n"c"']


def test_empty_files_without_columns_give_no_text(tmp_path: Path) -> None:
    empty = put(tmp_path / "a.jsonl", "")
    assert read(empty, put(tmp_path / "a.txt", ""), put(tmp_path / "b.json", "[]")) == []
    assert read(empty, put(tmp_path / "c.jsonl", '{"body": "x"}'), column="body") == ["x"]


def test_files_are_streamed(tmp_path: Path) -> None:
    file = put(tmp_path / "a.csv", "text\n" + "fine\n" * 500 + "bad,row\n")
    documents = read_documents([file], "", "line")
    assert [next(documents) for _ in range(500)] == ["fine"] * 500
    with pytest.raises(Refused, match="a.csv line 502: 2 fields, but the header has 1"):
        next(documents)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            "A good film with a long review in it\nAnother film\n",
            "the first line has the text 'A good film with a long",
        ),
        ("7,a film\n8,a sea\n", "the first line has the number '7' instead of a column name"),
        ("good,a film\nbad,a sea\ngood,an end\n", "the first line has 'good', which is also a value of that column"),
    ],
)
def test_a_csv_without_a_header_is_refused_and_read_whole_with_the_setting(
    tmp_path: Path, content: str, reason: str
) -> None:
    file = put(tmp_path / "a.csv", content)
    message = refusal(file)
    assert message.startswith(f"data.dataset: a.csv: {reason}")
    assert message.endswith("; pass --data.csv_header false if the first line is a row")
    column = f"column_{content.splitlines()[0].count(',') + 1}"
    texts = [line.split(",")[-1] for line in content.splitlines()]
    assert list(read_documents([file], column, "line", csv_header=False)) == texts


def test_the_text_column_and_all_columns_of_a_table_are_found(tmp_path: Path) -> None:
    table = put(tmp_path / "a.csv", "id,review\n1,a film\n")
    assert find_text_column([table], "") == ("review", ["id", "review"])
    assert find_text_column([put(tmp_path / "a.txt", "a film\n")], "") is None


# --- places of errors

QUOTED = 'id,text\n1,"two\nlines"\n'  # lines 1 to 3, two rows


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", QUOTED + "2,ok\n3,a,b\n", "line 5: 3 fields, but the header has 2; quote the text or fix the line"),
        ("a.csv", QUOTED + '2,"x\ny"\n3\n', "line 6: 1 field, but the header has 2; quote the text or fix the line"),
        ("a.csv", QUOTED + '"2\n\n","open\nfor ""ever""\n', "line 6: a quote opens here and is never closed; close it"),
        ("a.csv", 'id,"text\n1,a\n', "line 1: a quote opens here and is never closed; close it"),
        ("a.csv", QUOTED + '2,"x"y\n', "line 4: text after a closing quote, in the row that begins on line 4; "),
        ("a.csv", QUOTED + '2,"open\n3,"fine"\n', "line 5: text after a closing quote, in the row that begins on l"),
        ("a.csv", QUOTED + "2,a\n3,b\0c\n", "line 5: a NUL byte, which csv does not allow; remove it"),
        ("a.csv", "id,text\r1,a\r", "line 1: a carriage return outside quotes"),
        ("a.csv", "", "a.csv{gz}: no header; the first line must name the columns"),
        ("a.tsv", "\n \n", "a.tsv{gz}: no header; the first line must name the columns"),
        ("a.csv", "text,id,text\n", "a.csv{gz}: two columns are named 'text'; rename one"),
        ("a.csv", "text;id\n", "its only column is 'text;id'; separate columns by ',', not ';'"),
        ("a.tsv", "text\tid\nx\t1\t2\t3\n", "line 2: 4 fields, but the header has 2"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": b}\n', "line 3 column 10: not JSON: Expecting value"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b"', "line 2 column 13: not JSON: Expecting ',' delimiter; "),
        ("a.jsonl", '{"text": "a"}\n["b"]\n', "line 2: array instead of an object"),
        ("a.jsonl", '[{"text": "a"}]\n', "line 1: array instead of an object"),
        ("a.jsonl", '{"text": "a"}\n{"txt": "b"}\n', "line 2: the object has no 'text'"),
        ("a.jsonl", '{"text": "a"}\n\n\n{"text": ["b"]}\n', "line 4: 'text' is of type array, not a string"),
        ("a.jsonl", '{"text": "a"}\n{"text": "\\ud800"}\n', "line 2: 'text' has an unpaired surrogate at character 0"),
        ("a.jsonl", '{"n": ' + "9" * 5000 + "}", "line 1: a number with too many digits to parse"),
        ("a.jsonl", "[" * 200_000, "line 1: too deeply nested to parse"),
        ("a.json", '[{"text": "a"},\n  {"text": }]', "line 2 column 12: not JSON: Expecting value; the file must be"),
        ("a.json", '[{"text": "a"},\n  3]', "record 2: number instead of an object"),
        ("a.json", '[{"text": "a"}, {"text": "b"}, {"text": true}]', "record 3: 'text' is of type boolean, not a str"),
        ("a.json", "\ufeff \n3", "line 2: number instead of an object"),
        ("a.txt", b"caf\xc3\xa9\nbad \xe9!\n", "byte offset 10{after}: 0xe9 is not UTF-8 (invalid continuation byte)"),
        ("a.csv", b"\xef\xbb\xbfid,text\n1,\xff\n", "byte offset 13{after}: 0xff is not UTF-8 (invalid start byte)"),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text": "b\xc3',
            "byte offset 25{after}: 0xc3 is not UTF-8 (unexpected end of data)",
        ),
        ("a.json", b'[{"text":\n"\x80"}]', "byte offset 11{after}: 0x80 is not UTF-8 (invalid start byte)"),
        ("a.parquet", b"text\nx\n", "a.parquet{gz}: not a parquet file: it does not begin with PAR1"),
        ("a.parquet", encode("parquet", TEXTS)[:-20], "a.parquet{gz}: truncated or damaged ("),
    ],
)
def test_an_error_is_refused_with_its_place(tmp_path: Path, name: str, content: bytes, message: str, gz: str) -> None:
    refused = refusal(put(tmp_path / (name + gz), content), column="text" * name.startswith("a.j"))
    assert refused.startswith(f"data.dataset: {name}{gz}")
    assert message.format(gz=gz, after=" after decompression" if gz else "") in refused


def test_document_file_also_reports_the_offset(tmp_path: Path) -> None:
    file = put(tmp_path / "a.txt", b"\xef\xbb\xbfab\nc\xffd")
    with pytest.raises(Refused, match=r"a\.txt byte offset 7: 0xff is not UTF-8"):
        read(file, document="file")


def parquet_with(tmp_path: Path, old: bytes, new: bytes) -> Path:
    """A parquet file with three uncompressed row groups of two texts, with changed bytes in a page."""
    table = pa.table({"text": [f"text number {number}" for number in range(6)]})
    pq.write_table(table, sink := io.BytesIO(), row_group_size=2, compression="none", use_dictionary=False,
                   write_statistics=False, write_page_checksum=old.startswith(b"checked"))  # fmt: skip
    old = old.removeprefix(b"checked ")
    assert sink.getvalue().count(old) == 1
    return put(tmp_path / "a.parquet", sink.getvalue().replace(old, new))


def test_a_damaged_row_group_is_named(tmp_path: Path) -> None:
    unnoticed = parquet_with(tmp_path, b"checked number 3", b"number \xff")
    assert "a.parquet row group 2 of 3: damaged after row 0 of the group (" in refusal(unnoticed)
    assert "CRC checksum" in refusal(unnoticed)
    not_utf8 = parquet_with(tmp_path, b"number 5", b"number \xff")
    assert "a.parquet row group 3 of 3: damaged after row 0 of the group (" in refusal(not_utf8)
    assert "UTF8" in refusal(not_utf8)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_gzip_is_refused(tmp_path: Path, kind: str) -> None:
    file = put(tmp_path / f"a.{kind}.gz", encode(kind, [f"text number {number}" for number in range(1000)]))
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"no gzip", whole[:-8] + b"\0" * 8):
        file.write_bytes(damaged)
        assert "damaged or truncated gzip" in refusal(file)


def test_a_file_without_read_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = put(tmp_path / "a.txt", "x")

    def not_permitted(*_: Any) -> None:  # tests may run as root, which may read every file
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", not_permitted)
    assert "a.txt: cannot be read: Permission denied" in refusal(file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "a.txt: cannot be read: No such file or directory" in refusal(tmp_path / "a.txt")


# --- property tests

ordinary = st.characters(exclude_categories=["Cs"])


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
@few_examples
@given(texts=st.lists(st.text(ordinary)))
def test_any_text_is_read_unchanged(tmp_path: Path, kind: str, gz: str, texts: list[str]) -> None:
    if kind in ("csv", "tsv"):
        texts = [
            "begins with a word",
            *(text.replace("\0", "") for text in texts),
        ]  # otherwise the column may be numeric
    assert read(put(tmp_path / f"a.{kind}{gz}", encode(kind, texts)), column="text") == texts


@few_examples
@given(texts=st.lists(st.text(ordinary).map(lambda text: text.replace("\n", "").rstrip("\r").lstrip("\ufeff"))))
def test_any_line_is_read_unchanged(tmp_path: Path, texts: list[str]) -> None:
    assert read(put(tmp_path / "a.txt", encode("txt", texts))) == texts


pieces = st.lists(
    st.sampled_from([b"text", b'"', b",", b"\t", b"\n", b"\r", b'{"text": "a"}', b"[", b"]", b"{", b"\0", b"PAR1"])
    | st.binary(max_size=8)
).map(b"".join)


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize(
    ("kind", "document"), [*((kind, "line") for kind in KINDS), ("txt", "paragraph"), ("txt", "file")]
)
@few_examples
@given(content=pieces, column=st.sampled_from(["", "text"]))
def test_any_bytes_are_read_or_refused_in_one_line(
    tmp_path: Path, kind: str, gz: str, document: str, content: bytes, column: str
) -> None:
    file = put(tmp_path / f"a.{kind}{gz}", content)
    try:
        assert all(isinstance(text, str) for text in read(file, column=column, document=document))
    except Refused as refused:
        assert str(refused).isprintable()


@few_examples
@given(kind=st.sampled_from(KINDS), gz=st.sampled_from(["", ".gz"]), cut=st.floats(0, 1))
def test_a_file_cut_anywhere_is_read_or_refused_in_one_line(tmp_path: Path, kind: str, gz: str, cut: float) -> None:
    file = put(tmp_path / f"a.{kind}{gz}", encode(kind, TEXTS))
    whole = file.read_bytes()
    file.write_bytes(whole[: int(cut * len(whole))])
    try:
        read(file)
    except Refused as refused:
        assert str(refused).isprintable()
