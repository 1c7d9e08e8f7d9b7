"""Claims about reading local files: which files a path names, what is in them, and where the fault is."""

import csv
import errno
import gzip
import io
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tf_mlm.data.files import KINDS, find_split_files, read_documents
from tf_mlm.errors import Refused

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
TEXTS = ["One film.<br /><br />", 'He said "no", twice', "", "naïve 🎬 \u2028 end "]
few_examples = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def put(file: Path, content: bytes | str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)
    return file


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


def read(*files: Path, column: str = "", document="line") -> list[str]:
    return list(read_documents(list(files), column, document))


def refusal(*files: Path, column: str = "") -> str:
    """The one line that the reading of the files is refused with, the folder cut off."""
    with pytest.raises(Refused) as refused:
        read(*files, column=column)
    return one_line(refused, files[0].parent)


def split_refusal(path: Path | str, folder: Path, config_name: str = "") -> str:
    with pytest.raises(Refused) as refused:
        find_split_files(str(path), config_name)
    return one_line(refused, folder)


def one_line(refused, folder: Path) -> str:
    message = str(refused.value)
    assert message.isprintable(), message
    return message.replace(f"{folder}/", "")


def names(splits: dict[str, list[Path]], folder: Path) -> dict[str, list[str]]:
    return {split: [str(file.relative_to(folder)) for file in files] for split, files in splits.items()}


# --- which files a path names


def test_one_file_has_no_splits(tmp_path):
    file = put(tmp_path / "train.txt", "a")
    assert find_split_files(str(file)) == {"": [file]}


def test_a_glob_gives_its_files_sorted_and_no_folders_nor_hidden_files(tmp_path):
    for name in ("b.txt", "a.csv.gz", "deep/c.jsonl", ".hidden.txt", "README.md"):
        put(tmp_path / name, "x")
    assert names(find_split_files(f"{tmp_path}/*"), tmp_path) == {"": ["a.csv.gz", "b.txt"]}
    assert names(find_split_files(f"{tmp_path}/**/*"), tmp_path) == {"": ["a.csv.gz", "b.txt", "deep/c.jsonl"]}
    assert names(find_split_files(f"{tmp_path}/[b]?txt"), tmp_path) == {"": ["b.txt"]}


def test_a_folder_whose_names_say_no_split_has_none(tmp_path):
    about = ("README.md", "LICENSE", ".gitattributes", "dataset_infos.json", ".cache/x.txt", "_SUCCESS")
    for name in ("b.txt", "a.csv", "deep/c.parquet", "d.NDJSON.GZ", *about):
        put(tmp_path / name, "x")
    found = names(find_split_files(str(tmp_path)), tmp_path)
    assert found == {"": ["a.csv", "b.txt", "d.NDJSON.GZ", "deep/c.parquet"]}


@pytest.mark.parametrize(
    "splits",
    [
        {"train": ["train.csv"], "test": ["test.csv"]},
        {"train": ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]},
        {"train": ["reviews/train/a.txt", "reviews/train/b.txt"], "test": ["reviews/test/a.txt"]},
        {"train": ["data/train.jsonl.gz"], "validation": ["data/dev.jsonl.gz"]},
        {"test": ["data/test-00000-of-00001.csv"], "extra": ["data/extra-00000-of-00001.csv"]},
    ],
)
def test_names_of_files_and_folders_say_the_split(tmp_path, splits):
    for name in (name for files in splits.values() for name in files):
        put(tmp_path / name, "x")
    assert names(find_split_files(str(tmp_path)), tmp_path) == splits


def test_a_folder_with_magic_characters_in_its_name(tmp_path):
    put(tmp_path / "data[1]*" / "train.txt", "x")
    put(tmp_path / "data1" / "test.txt", "x")
    assert names(find_split_files(f"{tmp_path}/data[1]*"), tmp_path) == {"train": ["data[1]*/train.txt"]}


def card(folder: Path, data_files: str) -> None:
    put(folder / "README.md", f"---\nconfigs:\n- config_name: only\n  data_files: {data_files}\n---\nReviews.\n")


def test_a_readme_names_the_files_of_each_split(tmp_path):
    for name in ("x/one.csv", "x/two.csv", "y.csv", "unnamed.csv"):
        put(tmp_path / name, "x")
    card(tmp_path, "[{split: train, path: x/*}, {split: unsupervised, path: [y.csv]}]")
    expected = {"train": ["x/one.csv", "x/two.csv"], "unsupervised": ["y.csv"]}
    assert names(find_split_files(str(tmp_path)), tmp_path) == expected
    assert names(find_split_files(str(tmp_path), "only"), tmp_path) == expected
    card(tmp_path, "[x/one.csv, y.csv]")
    assert names(find_split_files(str(tmp_path)), tmp_path) == {"": ["x/one.csv", "y.csv"]}


def test_config_name_picks_one_of_the_configurations(tmp_path):
    put(tmp_path / "en" / "train.txt", "x")
    put(tmp_path / "fr.txt", "x")
    configs = "- config_name: en\n  data_dir: en\n- config_name: fr\n  data_files: fr.txt\n"
    put(tmp_path / "README.md", f"---\nconfigs:\n{configs}---\n")
    assert names(find_split_files(str(tmp_path), "en"), tmp_path) == {"train": ["en/train.txt"]}
    assert names(find_split_files(str(tmp_path), "fr"), tmp_path) == {"": ["fr.txt"]}
    assert "none is the default" in split_refusal(tmp_path, tmp_path)
    assert "it has no 'de'; data.config_name must be one of the configurations in README.md: en, fr" in split_refusal(
        tmp_path, tmp_path, "de"
    )
    assert "leave out config_name 'en'" in split_refusal(tmp_path / "fr.txt", tmp_path, "en")


@pytest.mark.parametrize("pattern", ["../../etc/passwd", "/etc/*", "https://example.com/a.csv", "zip://a.csv::b.zip"])
def test_a_readme_may_not_name_files_outside_its_folder(tmp_path, pattern):
    put(tmp_path / "a.csv", "x")
    card(tmp_path, f"'{pattern}'")
    assert f"README.md names {pattern!r}; its files must be relative" in split_refusal(tmp_path, tmp_path)


def test_a_link_may_not_lead_out_of_a_folder(tmp_path):
    secret = put(tmp_path / "secret.txt", "x")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").symlink_to(secret)
    assert "in/a.txt: a link to secret.txt, outside the folder" in split_refusal(tmp_path / "in", tmp_path)


def test_a_snapshot_in_the_hubs_cache_is_links_to_its_blobs(tmp_path):
    blob = put(tmp_path / "blobs" / "0a1b", "x")
    snapshot = tmp_path / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (snapshot / "train.csv").symlink_to(blob)
    assert names(find_split_files(str(snapshot)), snapshot) == {"train": ["train.csv"]}


def test_a_file_linked_twice_is_read_once(tmp_path):
    put(tmp_path / "a.txt", "x")
    (tmp_path / "b.txt").symlink_to("a.txt")
    (tmp_path / "loop").symlink_to(".")
    assert names(find_split_files(str(tmp_path)), tmp_path) == {"": ["a.txt"]}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["training-manual.txt", "b.txt", "c.txt"], "b.txt (and 1 more) is in no split, while training-manual.txt is"),
        (["train-test.txt"], "train-test.txt: its name says split 'train' and 'test'; rename it"),
        (["a.txt", "b.docx", "c.pdf"], "b.docx (and 1 more): only txt, csv, tsv, json, jsonl, ndjson, parquet (each"),
        (["train/a.txt", "train/b.doc"], "train/b.doc: only txt, csv"),
        (["README.md", ".gitattributes"], "no data file in it"),
        (["LICENSE"], "no data file matches **; check what is in it"),
    ],
)
def test_folders_that_leave_a_doubt_are_refused(tmp_path, files, message):
    for name in files:
        put(tmp_path / name, "x")
    assert message in split_refusal(tmp_path, tmp_path)


def test_files_of_another_kind_beside_named_splits_are_left_alone(tmp_path):
    for name in ("data/train-00000-of-00001.parquet", "requirements.txt", "load.py"):
        put(tmp_path / name, "x")
    assert names(find_split_files(str(tmp_path)), tmp_path) == {"train": ["data/train-00000-of-00001.parquet"]}


@pytest.mark.parametrize(
    "path", ["nowhere", "nowhere.txt", "*.csv", "", "a.docx", "a.gz", "csv", "nul\0.txt", "~nobody/a.txt"]
)
def test_paths_without_readable_files_are_refused(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "a.docx", "x")
    put(tmp_path / "a.gz", "x")
    put(tmp_path / "csv", "x")
    assert split_refusal(path, tmp_path).startswith("data.dataset: ")


@pytest.mark.parametrize(
    "readme",
    [
        "---\nconfigs: [\n---\n",
        "---\nconfigs: 3\n---\n",
        "---\n- a\n---\n",
        "---\nconfigs: [{config_name: a, data_files: {train: x}}]\n---\n",
        "---\nconfigs: [{config_name: a, data_files: [{split: 3, path: x}]}]\n---\n",
        "---\nconfigs: [{config_name: a, data_files: [{split: s, path: a.txt}, b.txt]}]\n---\n",
        "---\nconfigs: [{config_name: a, data_files: missing.txt}]\n---\n",
        "---\nconfigs: [{config_name: a, data_files: missing*}]\n---\n",
        "---\nconfigs: [{config_name: a, data_files: []}, 3]\n---\n",
        "---\n1: 2\n---\n",
        b"---\nconfigs: \xff\n---\n",
    ],
)
def test_a_damaged_readme_is_refused(tmp_path, readme):
    put(tmp_path / "a.txt", "x")
    put(tmp_path / "README.md", readme)
    assert split_refusal(tmp_path, tmp_path.parent).startswith("data.dataset: ")


def test_the_reviews_have_three_splits_and_their_texts_are_whole():
    folder = SHARED / "data" / "imdb"
    if not folder.is_dir():
        pytest.skip("the reviews are not at ../shared/data/imdb")
    splits = find_split_files(str(folder))
    assert list(splits) == ["train", "test", "unsupervised"]
    texts = list(read_documents(splits["train"], "", "line"))
    assert (len(texts), sum(len(text.encode()) for text in texts)) == (25_000, 33_132_823)


# --- what is in them


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_its_texts_as_they_are(tmp_path, kind, gz):
    assert read(put(tmp_path / f"a.{kind}{gz}", encode(kind, TEXTS))) == TEXTS


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "txt"])
def test_the_only_string_column_is_found_and_others_can_be_named(tmp_path, kind):
    one = put(tmp_path / f"one.{kind}", encode(kind, TEXTS, "review"))
    two = put(tmp_path / f"two.{kind}", encode(kind, ["7 of 9"], "review"))
    assert read(one, two) == read(one, two, column="review") == [*TEXTS, "7 of 9"]
    assert refusal(one, column="stars").startswith("data.text_column: one." + kind + ": column 'stars' is of type ")
    assert "no column 'reviw'; its columns: 'stars' (" in refusal(one, column="reviw")
    assert refusal(one, column="reviw").endswith("did you mean 'review'?")
    other = put(tmp_path / f"other.{kind}", encode(kind, TEXTS, "body"))
    assert f"other.{kind}: no column 'review', which " in refusal(one, other)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_several_or_no_string_columns_are_refused_with_their_names(tmp_path, kind):
    def file(columns: dict[str, list]) -> Path:
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
        f"data.text_column: a.{kind}: several columns hold text: 'title', 'body'; name one of them"
    )
    assert read(file({"title": ["x", "y"], "text": ["u", "v"]})) == ["u", "v"]
    assert "no column holds text; its columns: 'n' (" in refusal(file({"n": [1, 2], "m": [1.5, 2.5]}))
    assert "column 'text' is of type " in refusal(file({"text": [1, 2], "body": ["u", "v"]}))


def test_txt_documents_are_lines_paragraphs_or_files(tmp_path):
    a = put(tmp_path / "a.txt", "\ufeffone\r\n two \n\n \t\r\nthree\rstill three")
    b = put(tmp_path / "b.txt.gz", "\n\nfour\nfive\n\n")
    assert read(a, b) == ["one", " two ", "", " \t", "three\rstill three", "", "", "four", "five", ""]
    assert read(a, b, document="paragraph") == ["one\r\n two ", "three\rstill three", "four\nfive"]
    assert read(a, b, document="file") == ["one\r\n two \n\n \t\r\nthree\rstill three", "\n\nfour\nfive\n\n"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "parquet"])
def test_a_byte_order_mark_is_no_text(tmp_path, kind):
    assert read(put(tmp_path / f"a.{kind}", b"\xef\xbb\xbf" + encode(kind, TEXTS))) == TEXTS


def test_nulls_are_empty_texts(tmp_path):
    pq.write_table(pa.table({"text": ["a", None, "b"]}), tmp_path / "a.parquet")
    array = put(tmp_path / "a.json", '[{"text": null}, {"text": "c"}]')
    lines = put(tmp_path / "b.json", '\n{"text": "d"}\r\n\n{"text": null}')
    assert read(tmp_path / "a.parquet", array, lines) == ["a", "", "b", "", "c", "d", ""]


@pytest.mark.parametrize("string", [pa.string(), pa.large_string(), pa.string_view(), "dictionary"])
def test_every_arrow_string_is_text(tmp_path, string):
    texts = pa.array(["a", "b", "a"])
    texts = texts.dictionary_encode() if string == "dictionary" else texts.cast(string)
    pq.write_table(pa.table({"body": texts, "body.clean": pa.array([1, 2, 3])}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == ["a", "b", "a"]


def test_csv_fields_may_be_long_and_hold_line_endings(tmp_path):
    long = "word, " * 100_000
    file = put(tmp_path / "a.csv", f'id,text\n1,"{long}"\n\n2,"a\r\nb\n""c"""\r\n')
    assert read(file) == [long, 'a\r\nb\n"c"']


def test_empty_files_without_columns_give_no_text(tmp_path):
    empty = put(tmp_path / "a.jsonl", "")
    assert read(empty, put(tmp_path / "a.txt", ""), put(tmp_path / "b.json", "[]")) == []
    assert read(empty, put(tmp_path / "c.jsonl", '{"body": "x"}'), column="body") == ["x"]


def test_reading_does_not_wait_for_the_end_of_the_file(tmp_path):
    file = put(tmp_path / "a.csv", "text\n" + "fine\n" * 500 + "bad,row\n")
    documents = read_documents([file], "", "line")
    assert [next(documents) for _ in range(500)] == ["fine"] * 500
    with pytest.raises(Refused, match="a.csv line 502: 2 fields where the header has 1"):
        next(documents)


# --- where the fault is

QUOTED = 'id,text\n1,"two\nlines"\n'  # lines 1 to 3, two rows


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", QUOTED + "2,ok\n3,a,b\n", "line 5: 3 fields where the header has 2; quote the text or mend the line"),
        ("a.csv", QUOTED + '2,"x\ny"\n3\n', "line 6: 1 field where the header has 2; quote the text or mend the line"),
        ("a.csv", QUOTED + '"2\n\n","open\nfor ""ever""\n', "line 6: a quote opens here and is never closed; close it"),
        ("a.csv", 'id,"text\n1,a\n', "line 1: a quote opens here and is never closed; close it"),
        ("a.csv", QUOTED + '2,"x"y\n', "line 4: text after a closing quote, in the row that begins on line 4; "),
        ("a.csv", QUOTED + '2,"open\n3,"fine"\n', "line 5: text after a closing quote, in the row that begins on l"),
        ("a.csv", QUOTED + "2,a\n3,b\0c\n", "line 5: a NUL byte, which no csv holds; remove it"),
        ("a.csv", "id,text\r1,a\r", "line 1: a carriage return outside quotes"),
        ("a.csv", "", "a.csv{gz}: no header; the first line must name the columns"),
        ("a.tsv", "\n \n", "a.tsv{gz}: no header; the first line must name the columns"),
        ("a.csv", "text,id,text\n", "a.csv{gz}: two columns are named 'text'; rename one"),
        ("a.csv", "text;id\n", "its only column is 'text;id'; separate columns by ',', not ';'"),
        ("a.tsv", "text\tid\nx\t1\t2\t3\n", "line 2: 4 fields where the header has 2"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": b}\n', "line 3 column 10: not JSON: Expecting value"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b"', "line 2 column 13: not JSON: Expecting ',' delimiter; "),
        ("a.jsonl", '{"text": "a"}\n["b"]\n', "line 2: array where an object is needed"),
        ("a.jsonl", '[{"text": "a"}]\n', "line 1: array where an object is needed"),
        ("a.jsonl", '{"text": "a"}\n{"txt": "b"}\n', "line 2: the object has no 'text'"),
        ("a.jsonl", '{"text": "a"}\n\n\n{"text": ["b"]}\n', "line 4: 'text' is of type array, not a string"),
        ("a.jsonl", '{"text": "a"}\n{"text": "\\ud800"}\n', "line 2: 'text' has half a surrogate pair at character 0"),
        ("a.jsonl", '{"n": ' + "9" * 5000 + "}", "line 1: a number of too many digits to be read"),
        ("a.jsonl", "[" * 200_000, "line 1: objects or arrays nested too deeply to be read"),
        ("a.json", '[{"text": "a"},\n  {"text": }]', "line 2 column 12: not JSON: Expecting value; the file must be"),
        ("a.json", '[{"text": "a"},\n  3]', "record 2: number where an object is needed"),
        ("a.json", '[{"text": "a"}, {"text": "b"}, {"text": true}]', "record 3: 'text' is of type boolean, not a str"),
        ("a.json", "\ufeff \n3", "line 2: number where an object is needed"),
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
def test_a_fault_is_refused_with_its_place(tmp_path, name, content, message, gz):
    refused = refusal(put(tmp_path / (name + gz), content), column="text" * name.startswith("a.j"))
    assert refused.startswith(f"data.dataset: {name}{gz}")
    assert message.format(gz=gz, after=" after decompression" if gz else "") in refused


def test_document_file_says_the_offset_too(tmp_path):
    file = put(tmp_path / "a.txt", b"\xef\xbb\xbfab\nc\xffd")
    with pytest.raises(Refused, match=r"a\.txt byte offset 7: 0xff is not UTF-8"):
        read(file, document="file")


def parquet_with(tmp_path: Path, old: bytes, new: bytes) -> Path:
    """Three row groups of two texts, uncompressed, in which bytes of a page were changed afterwards."""
    table = pa.table({"text": [f"text number {number}" for number in range(6)]})
    pq.write_table(table, sink := io.BytesIO(), row_group_size=2, compression="none", use_dictionary=False,
                   write_statistics=False, write_page_checksum=old.startswith(b"checked"))  # fmt: skip
    old = old.removeprefix(b"checked ")
    assert sink.getvalue().count(old) == 1
    return put(tmp_path / "a.parquet", sink.getvalue().replace(old, new))


def test_a_damaged_row_group_is_named(tmp_path):
    unnoticed = parquet_with(tmp_path, b"checked number 3", b"number \xff")
    assert "a.parquet row group 2 of 3: damaged after row 0 of the group (" in refusal(unnoticed)
    assert "CRC checksum" in refusal(unnoticed)
    not_utf8 = parquet_with(tmp_path, b"number 5", b"number \xff")
    assert "a.parquet row group 3 of 3: damaged after row 0 of the group (" in refusal(not_utf8)
    assert "UTF8" in refusal(not_utf8)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_gzip_is_refused(tmp_path, kind):
    file = put(tmp_path / f"a.{kind}.gz", encode(kind, [f"text number {number}" for number in range(1000)]))
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"no gzip", whole[:-8] + b"\0" * 8):
        file.write_bytes(damaged)
        assert "damaged or truncated gzip" in refusal(file)


def test_a_file_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    file = put(tmp_path / "a.txt", "x")

    def not_permitted(*_):  # root, as whom tests may run, is permitted everything
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", not_permitted)
    assert "a.txt: cannot be read: Permission denied" in refusal(file)


def test_a_file_that_is_gone_is_refused(tmp_path):
    assert "a.txt: cannot be read: No such file or directory" in refusal(tmp_path / "a.txt")


# --- any text goes through, any bytes are read or refused

ordinary = st.characters(exclude_categories=["Cs"])


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
@few_examples
@given(texts=st.lists(st.text(ordinary)))
def test_any_text_goes_through(tmp_path, kind, gz, texts):
    if kind in ("csv", "tsv"):
        texts = ["begins with a word", *(text.replace("\0", "") for text in texts)]  # else it may be all numbers
    assert read(put(tmp_path / f"a.{kind}{gz}", encode(kind, texts)), column="text") == texts


@few_examples
@given(texts=st.lists(st.text(ordinary).map(lambda text: text.replace("\n", "").rstrip("\r").lstrip("\ufeff"))))
def test_any_line_goes_through(tmp_path, texts):
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
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path, kind, gz, document, content, column):
    file = put(tmp_path / f"a.{kind}{gz}", content)
    try:
        assert all(isinstance(text, str) for text in read(file, column=column, document=document))
    except Refused as refused:
        assert str(refused).isprintable()


@few_examples
@given(kind=st.sampled_from(KINDS), gz=st.sampled_from(["", ".gz"]), cut=st.floats(0, 1))
def test_a_file_cut_anywhere_is_read_or_refused_in_one_line(tmp_path, kind, gz, cut):
    file = put(tmp_path / f"a.{kind}{gz}", encode(kind, TEXTS))
    whole = file.read_bytes()
    file.write_bytes(whole[: int(cut * len(whole))])
    try:
        read(file)
    except Refused as refused:
        assert str(refused).isprintable()
