"""Tests of the local files that a path names."""

from pathlib import Path

import pytest

from tests.data.conftest import one_line, put
from tf_mlm.data.local_files import find_split_files
from tf_mlm.data.readers import read_documents
from tf_mlm.errors import Refused

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


def split_refusal(path: Path | str, folder: Path, config_name: str = "") -> str:
    with pytest.raises(Refused) as refused:
        find_split_files(str(path), config_name)
    return one_line(refused, folder)


def names(splits: dict[str, list[Path]], folder: Path) -> dict[str, list[str]]:
    return {split: [str(file.relative_to(folder)) for file in files] for split, files in splits.items()}


def test_one_file_has_no_splits(tmp_path: Path) -> None:
    file = put(tmp_path / "train.txt", "a")
    assert find_split_files(str(file)) == {"": [file]}


def test_a_glob_gives_sorted_files_without_folders_and_hidden_files(tmp_path: Path) -> None:
    for name in ("b.txt", "a.csv.gz", "deep/c.jsonl", ".hidden.txt", "README.md"):
        put(tmp_path / name, "x")
    assert names(find_split_files(f"{tmp_path}/*"), tmp_path) == {"": ["a.csv.gz", "b.txt"]}
    assert names(find_split_files(f"{tmp_path}/**/*"), tmp_path) == {"": ["a.csv.gz", "b.txt", "deep/c.jsonl"]}
    assert names(find_split_files(f"{tmp_path}/[b]?txt"), tmp_path) == {"": ["b.txt"]}


def test_a_folder_without_split_names_has_no_splits(tmp_path: Path) -> None:
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
def test_file_and_folder_names_give_the_split(tmp_path: Path, splits: dict[str, list[str]]) -> None:
    for name in (name for files in splits.values() for name in files):
        put(tmp_path / name, "x")
    assert names(find_split_files(str(tmp_path)), tmp_path) == splits


def test_a_folder_with_magic_characters_in_its_name(tmp_path: Path) -> None:
    put(tmp_path / "data[1]*" / "train.txt", "x")
    put(tmp_path / "data1" / "test.txt", "x")
    assert names(find_split_files(f"{tmp_path}/data[1]*"), tmp_path) == {"train": ["data[1]*/train.txt"]}


def card(folder: Path, data_files: str) -> None:
    put(folder / "README.md", f"---\nconfigs:\n- config_name: only\n  data_files: {data_files}\n---\nReviews.\n")


def test_a_readme_names_the_files_of_each_split(tmp_path: Path) -> None:
    for name in ("x/one.csv", "x/two.csv", "y.csv", "unnamed.csv"):
        put(tmp_path / name, "x")
    card(tmp_path, "[{split: train, path: x/*}, {split: unsupervised, path: [y.csv]}]")
    expected = {"train": ["x/one.csv", "x/two.csv"], "unsupervised": ["y.csv"]}
    assert names(find_split_files(str(tmp_path)), tmp_path) == expected
    assert names(find_split_files(str(tmp_path), "only"), tmp_path) == expected
    card(tmp_path, "[x/one.csv, y.csv]")
    assert names(find_split_files(str(tmp_path)), tmp_path) == {"": ["x/one.csv", "y.csv"]}


def test_config_name_picks_one_of_the_configurations(tmp_path: Path) -> None:
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
    assert "omit data.config_name 'en'" in split_refusal(tmp_path / "fr.txt", tmp_path, "en")


@pytest.mark.parametrize("pattern", ["../../etc/passwd", "/etc/*", "https://example.com/a.csv", "zip://a.csv::b.zip"])
def test_a_readme_may_not_name_files_outside_its_folder(tmp_path: Path, pattern: str) -> None:
    put(tmp_path / "a.csv", "x")
    card(tmp_path, f"'{pattern}'")
    assert f"README.md names {pattern!r}; its files must be relative" in split_refusal(tmp_path, tmp_path)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    secret = put(tmp_path / "secret.txt", "x")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").symlink_to(secret)
    assert "in/a.txt: a link to secret.txt, outside the directory" in split_refusal(tmp_path / "in", tmp_path)


def test_links_from_a_snapshot_to_the_blobs_of_the_hub_cache_are_allowed(tmp_path: Path) -> None:
    blob = put(tmp_path / "blobs" / "0a1b", "x")
    snapshot = tmp_path / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (snapshot / "train.csv").symlink_to(blob)
    assert names(find_split_files(str(snapshot)), snapshot) == {"train": ["train.csv"]}


def test_a_file_linked_twice_is_read_once(tmp_path: Path) -> None:
    put(tmp_path / "a.txt", "x")
    (tmp_path / "b.txt").symlink_to("a.txt")
    (tmp_path / "loop").symlink_to(".")
    assert names(find_split_files(str(tmp_path)), tmp_path) == {"": ["a.txt"]}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["training-manual.txt", "b.txt", "c.txt"],
            "b.txt (and 1 more) is in no split, while the name of training-manual.txt",
        ),
        (["train-test.txt"], "train-test.txt: its name matches the splits 'train' and 'test'; rename it"),
        (["a.txt", "b.docx", "c.pdf"], "b.docx (and 1 more): only txt, csv, tsv, json, jsonl, ndjson, parquet (each"),
        (["train/a.txt", "train/b.doc"], "train/b.doc: only txt, csv"),
        (["README.md", ".gitattributes"], "no data file in it"),
        (["LICENSE"], "no data file matches **; check the directory"),
    ],
)
def test_ambiguous_folders_are_refused(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        put(tmp_path / name, "x")
    assert message in split_refusal(tmp_path, tmp_path)


def test_files_of_another_format_next_to_splits_are_ignored(tmp_path: Path) -> None:
    for name in ("data/train-00000-of-00001.parquet", "requirements.txt", "load.py"):
        put(tmp_path / name, "x")
    assert names(find_split_files(str(tmp_path)), tmp_path) == {"train": ["data/train-00000-of-00001.parquet"]}


@pytest.mark.parametrize(
    "path", ["nowhere", "nowhere.txt", "*.csv", "", "a.docx", "a.gz", "csv", "nul\0.txt", "~nobody/a.txt"]
)
def test_paths_without_readable_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
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
def test_a_damaged_readme_is_refused(tmp_path: Path, readme: bytes | str) -> None:
    put(tmp_path / "a.txt", "x")
    put(tmp_path / "README.md", readme)
    assert split_refusal(tmp_path, tmp_path.parent).startswith("data.dataset: ")


def test_the_reviews_have_three_splits_and_complete_texts() -> None:
    folder = SHARED / "data" / "imdb"
    if not folder.is_dir():
        pytest.skip("the reviews are not at ../shared/data/imdb")
    splits = find_split_files(str(folder))
    assert list(splits) == ["train", "test", "unsupervised"]
    texts = list(read_documents(splits["train"], "", "line"))
    assert (len(texts), sum(len(text.encode()) for text in texts)) == (25_000, 33_132_823)
