"""Local text files -> documents: which files a path names, and the texts in them, with the place of every fault."""

import contextlib
import csv
import difflib
import glob
import gzip
import json
import os
import re
import textwrap
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path, PurePath
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from datasets.data_files import (
    DEFAULT_PATTERNS_ALL,
    FILES_TO_IGNORE,
    get_data_patterns,
    resolve_pattern,
    sanitize_patterns,
)
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCardData, metadata_load

from tf_mlm.errors import Refused

KINDS = ("txt", "csv", "tsv", "json", "jsonl", "ndjson", "parquet")
ByteStream = BinaryIO | gzip.GzipFile
ChooseColumn = Callable[[dict[str, str]], str]  # column -> type, to the column of texts
_LONGEST_NAME, _MOST_WORDS_IN_NAME = 64, 8  # of a column in the header of a csv file
ROWS_LOOKED_AT = 100  # to tell which columns of a csv or json file hold text
TYPE_NAMES = {str: "string", bool: "boolean", int: "number", float: "number", list: "array", dict: "object"}


def find_split_files(path: str, config_name: str = "") -> dict[str, list[Path]]:
    """The files that `path` names, by split.

    Args:
        path: one file, a glob (`**` crosses folders), a folder of files, or a folder in the Hub's layout: a README.md
            whose `configs` name the files of each split, or files and folders named after their splits.
        config_name: which of a README's `configs`; "" for its default or only one.

    Returns: split name -> sorted files, splits in the layout's order. Where nothing names a split, the one key is "".

    Raises: Refused if there is no such file, a file is of no kind read here, its split is in doubt, or it lies outside
        the folder.
    """
    root = Path(os.path.expanduser(path))
    if path and os.path.isdir(root):
        return _find_in_folder(root, config_name)
    if config_name:
        raise _refused(path, f"only a folder has configurations; leave out config_name {config_name!r}")
    if os.path.isfile(root):
        files = [root]
    elif glob.has_magic(path):
        matches = [Path(match) for match in sorted(glob.glob(str(root), recursive=True))]
        files = [file for file in matches if os.path.isfile(file) and not _is_about_the_data(file)]
        if not files:
            raise _refused(path, "the glob matches no file; check it, and quote it where the shell would expand it")
    else:
        raise _refused(path or "''", "no such file or folder, or it may not be read; check the path")
    _require_known_kinds(files)
    return {"": files}


def _find_in_folder(folder: Path, config_name: str) -> dict[str, list[Path]]:
    patterns, inside, named_by_card = _split_patterns(folder, config_name)
    splits = {split: _resolve(folder, inside, each) for split, each in patterns.items()}
    for split, files in splits.items():
        if not files:
            of_split = f" of split {split!r}" if split else ""
            raise _refused(folder, f"no data file{of_split} matches {', '.join(patterns[split])}; check what is in it")
        _require_known_kinds(files)
    if not named_by_card and "" not in splits:
        _require_one_split_each(folder, splits, _resolve(folder, inside, ["**"]))
    return splits


def _split_patterns(folder: Path, config_name: str) -> tuple[dict[str, list[str]], Path, bool]:
    """Patterns by split, the folder that they start from, and whether the README.md names them."""
    card = folder / "README.md"
    patterns: dict[str, list[str]] = {}
    try:
        metadata = (metadata_load(card) if card.is_file() else None) or {}
        configs = MetadataConfigs.from_dataset_card_data(DatasetCardData(**metadata))
        chosen = config_name or configs.get_default_config_name()
        data_files = configs.get(chosen, {}).get("data_files")
        if data_files is not None:
            patterns = {split: [str(each) for each in paths] for split, paths in sanitize_patterns(data_files).items()}
    except Exception as error:  # what a card written by hand can raise in three libraries is no closed list
        reason = textwrap.shorten(str(error), 160)
        raise _refused(card, f"its metadata cannot be read: {reason}; mend the block between the --- lines") from error
    if chosen not in configs and (configs or config_name):
        names = ", ".join(map(str, configs)) or "none"
        wrong = f"it has no {config_name!r}" if config_name else "none is the default"
        raise _refused(folder, f"{wrong}; data.config_name must be one of the configurations in README.md: {names}")
    inside = folder / _checked_pattern(folder, str(configs.get(chosen, {}).get("data_dir") or "."))
    if patterns:
        # `datasets` calls files without a split "train"; whoever names a split writes {split, path}.
        named = any(isinstance(each, dict) for each in data_files)
        return (patterns if named else {"": patterns["train"]}), inside, True
    try:
        patterns = get_data_patterns(_base_path(inside))
    except (OSError, ValueError) as error:
        reason = "no data file in it" if isinstance(error, OSError) else str(error)
        raise _refused(inside, f"{reason}; it must hold files of {_kinds_in_words()}") from error
    if patterns == DEFAULT_PATTERNS_ALL:  # its last resort: all files are "train", though no name says so
        return {"": ["**"]}, inside, False
    return {str(split): each for split, each in patterns.items()}, inside, False


def _resolve(folder: Path, inside: Path, patterns: Iterable[str]) -> list[Path]:
    files: dict[Path, Path] = {}  # by where they really are: one file may match several patterns of a split
    for pattern in patterns:
        try:
            found = resolve_pattern(_checked_pattern(folder, pattern), _base_path(inside))
        except FileNotFoundError as error:
            if glob.has_magic(pattern):
                continue
            raise _refused(folder, f"README.md names {pattern!r}, which is not there") from error
        for file in (inside / os.path.relpath(name, os.path.abspath(inside)) for name in sorted(found)):
            if not _is_about_the_data(file):
                files.setdefault(_resolved_within(folder, file), file)
    return sorted(files.values())


def _base_path(folder: Path) -> str:
    return glob.escape(os.path.abspath(folder))  # `datasets` would take [ ] in the folder's own name for a pattern


def _checked_pattern(folder: Path, pattern: str) -> str:
    if ".." in PurePath(pattern).parts or os.path.isabs(pattern) or "://" in pattern or "::" in pattern:
        raise _refused(folder, f"README.md names {pattern!r}; its files must be relative to the folder and inside it")
    return pattern


def _resolved_within(folder: Path, file: Path) -> Path:
    home, resolved = folder.resolve(), file.resolve()
    # The Hub's own cache keeps a snapshot's files as links into a `blobs` folder beside `snapshots`.
    blobs = home.parents[1] / "blobs" if home.parent.name == "snapshots" else home
    if not resolved.is_relative_to(home) and not resolved.is_relative_to(blobs):
        raise _refused(file, f"a link to {resolved}, outside the folder; copy the file or name it by its own path")
    return resolved


def _require_one_split_each(folder: Path, splits: dict[str, list[Path]], everything: list[Path]) -> None:
    """`datasets` leaves out files whose names say no split, and reads twice those that say two: silently, both."""
    split_of: dict[Path, str] = {}
    for split, files in splits.items():
        for file in files:
            if file in split_of:
                raise _refused(file, f"its name says split {split_of[file]!r} and {split!r}; rename it")
            split_of[file] = split
    kinds = {_kind(file) for file in split_of}
    left_out = [file for file in everything if file not in split_of and _kind(file) in kinds]
    if left_out:
        named, split = next(iter(split_of.items()))
        others = f" (and {len(left_out) - 1} more)" if len(left_out) > 1 else ""
        raise _refused(
            folder,
            f"{left_out[0].relative_to(folder)}{others} is in no split, while {named.relative_to(folder)} is in "
            f"{split!r} by its name; rename or move it, name the splits in a README.md (`configs`), or give a glob",
        )


def _is_about_the_data(file: Path) -> bool:
    return (
        file.name.startswith(".") or file.name in {*FILES_TO_IGNORE, "_SUCCESS"} or file.stem in {"README", "LICENSE"}
    )


def _require_known_kinds(files: list[Path]) -> None:
    unknown = [file for file in files if not _kind(file)]
    if unknown:
        others = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise _refused(f"{unknown[0]}{others}", f"only {_kinds_in_words()} are read; convert it, or give a glob")


def _kind(file: Path) -> str:
    """One of KINDS by the name's end, or ""."""
    extension = PurePath(file.name.lower().removesuffix(".gz")).suffix[1:]
    return extension if extension in KINDS else ""


def _kinds_in_words() -> str:
    return f"{', '.join(KINDS)} (each also with .gz)"


def find_text_column(paths: list[Path], text_column: str, csv_header: bool = True) -> tuple[str, list[str]] | None:
    """The column of texts and all columns of the first file that has columns; None where only txt files are given.

    Raises:
        Refused: as `read_documents`.
    """
    path = next((path for path in paths if _kind(path) != "txt"), None)
    if path is None:
        return None
    chosen: list[tuple[str, list[str]]] = []

    def choose_column(types: dict[str, str]) -> str:
        column = _choose_column(path, text_column, "", types)
        chosen.append((column, list(types)))
        return column

    with _reading(path), _open(path) as file:
        next(_read_table(path, file, choose_column, csv_header), None)
    return chosen[0] if chosen else None


def read_documents(
    paths: list[Path], text_column: str, document: Literal["line", "paragraph", "file"], csv_header: bool = True
) -> Iterator[str]:
    """The texts of the files, in order, exactly as they stand there; a null is yielded as "".

    Streams: memory does not grow with the file, but for a json array, a gzipped parquet and document = "file".

    Args:
        paths: files as `find_split_files` gives them.
        text_column: the column of a csv, tsv, json or parquet file that holds the text; "" to find it: `text`, or the
            only string column of the first file. The other files must have it too.
        document: what of a txt file is a document; a paragraph ends at a blank line.
        csv_header: whether the first line of a csv or tsv file names the columns; otherwise they are column_1, ...

    Raises: Refused, with the file and the place in it, if a file cannot be read, is malformed or not UTF-8, or if the
        column is missing, is not text, or is in doubt.
    """
    column, first = text_column, ""
    _require_known_kinds(paths)
    for path in paths:
        choose_column = partial(_choose_column, path, column, first)
        with _reading(path), _open(path) as file:
            if _kind(path) == "txt":
                yield from _read_txt(path, file, document)
            else:
                column = (yield from _read_table(path, file, choose_column, csv_header)) or column
        if not text_column:
            first = first or column and str(path)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Refuses the file where it is a damaged gzip or cannot be read."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _refused(path, f"damaged or truncated gzip: {error}; create it again") from error
    except OSError as error:
        raise _refused(path, f"cannot be read: {error.strerror or error}") from error


def _read_table(
    path: Path, file: ByteStream, choose_column: ChooseColumn, csv_header: bool
) -> Generator[str, None, str]:
    match _kind(path):
        case "csv":
            return (yield from _read_csv(path, file, choose_column, ",", csv_header))
        case "tsv":
            return (yield from _read_csv(path, file, choose_column, "\t", csv_header))
        case "parquet":
            return (yield from _read_parquet(path, file, choose_column))
        case _:
            return (yield from _read_json(path, file, choose_column))


def _open(path: Path) -> ByteStream:
    return gzip.open(path) if _is_gzip(path) else path.open("rb")


def _is_gzip(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _decode(path: Path, data: bytes, offset: int) -> str:
    """`data`, which begins `offset` bytes into the file, as text without its byte order mark."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        where = f"{path} byte offset {offset + error.start}" + " after decompression" * _is_gzip(path)
        raise _refused(where, f"0x{data[error.start]:02x} is not UTF-8 ({error.reason}); save it as UTF-8") from error
    return text if offset else text.removeprefix("\ufeff")


def _lines(path: Path, file: ByteStream) -> Iterator[str]:
    """Lines with their endings, split at \\n alone: a \\r or a Unicode line separator belongs to the text."""
    offset = 0
    for data in file:
        yield _decode(path, data, offset)
        offset += len(data)


def _read_txt(path: Path, file: ByteStream, document: str) -> Iterator[str]:
    if document == "file":
        yield _decode(path, file.read(), 0)
        return
    paragraph: list[str] = []
    for line in _lines(path, file):
        if document == "line":
            yield _without_ending(line)
        elif line.strip():
            paragraph.append(line)
        elif paragraph:
            yield _without_ending("".join(paragraph))
            paragraph = []
    if paragraph:
        yield _without_ending("".join(paragraph))


def _without_ending(text: str) -> str:
    return text[:-2] if text.endswith("\r\n") else text.removesuffix("\n")


def _read_csv(
    path: Path, file: ByteStream, choose_column: ChooseColumn, delimiter: str, has_header: bool
) -> Generator[str, None, str]:
    rows = _csv_rows(path, file, delimiter)
    first_row = next(rows, [])
    if not has_header:
        rows = chain([first_row], rows)
        first_row = [f"column_{number}" for number in range(1, len(first_row) + 1)]
    header = first_row
    if not any(name.strip() for name in header):
        raise _refused(path, "no header; the first line must name the columns")
    _require_distinct_columns(path, header)
    if len(header) == 1 and (other := re.search("[;\t,]", header[0].replace(delimiter, ""))):
        raise _refused(path, f"its only column is {header[0]!r}; separate columns by {delimiter!r}, not {other[0]!r}")
    head = list(islice(rows, ROWS_LOOKED_AT))
    if has_header and (reason := _why_no_header(header, head)):
        raise _refused(path, f"{reason}; pass --data.csv_header false if the first line is a row")
    types = dict.fromkeys(header, "empty")
    for row in head:
        for name, value in zip(header, row, strict=True):
            _widen_type(types, name, "empty" if not value else "number" if _is_number(value) else "string")
    column = choose_column(types)
    index = header.index(column)
    for row in chain(head, rows):
        yield row[index]
    return column


def _why_no_header(header: list[str], head: list[list[str]]) -> str:
    """Why the first line looks like a row of data and not like names of columns; "" where it looks like names."""
    for index, name in enumerate(header):
        shown = textwrap.shorten(name, 40, placeholder="…")
        if len(name) > _LONGEST_NAME or len(name.split()) > _MOST_WORDS_IN_NAME:
            return f"its first line holds the text {shown!r} where a column name is expected"
        if _is_number(name):
            return f"its first line holds the number {shown!r} where a column name is expected"
        if name.strip() and sum(row[index] == name for row in head) > len(head) // 10:
            return f"its first line holds {shown!r}, which is also a value of that column"
    return ""


def _csv_rows(path: Path, file: ByteStream, delimiter: str) -> Iterator[list[str]]:
    """Rows with fields, all as many as the first row has."""
    csv.field_size_limit(2**31 - 1)  # the largest that every platform takes; Python's own is 128 KiB, less than a book
    row_lines: list[str] = []  # the lines of the row being read: an open quote is found there

    def lines_without_nul() -> Iterator[str]:
        for number, line in enumerate(_lines(path, file), 1):
            if "\0" in line:
                raise _refused(f"{path} line {number}", "a NUL byte, which no csv holds; remove it")
            row_lines.append(line)
            yield line

    reader = csv.reader(lines_without_nul(), delimiter=delimiter, strict=True)
    width = 0
    while True:
        first_line = reader.line_num + 1
        row_lines.clear()
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "end of data" in str(error):
                line = first_line + _lines_before_open_quote("".join(row_lines), delimiter)
                raise _refused(f"{path} line {line}", "a quote opens here and is never closed; close it") from error
            if "new-line" in str(error):
                reason = r"a carriage return outside quotes; end lines with \n or \r\n"
            elif "expected after" in str(error):
                reason = (
                    f"text after a closing quote, in the row that begins on line {first_line}; "
                    "double each quote inside a quoted text"
                )
            else:
                reason = str(error)
            raise _refused(f"{path} line {reader.line_num}", reason) from error
        if row and len(row) != (width := width or len(row)):
            fields = f"{len(row)} field{'s' * (len(row) != 1)} where the header has {width}"
            raise _refused(f"{path} line {first_line}", f"{fields}; quote the text or mend the line")
        if row:  # a blank line is no row
            yield row


def _lines_before_open_quote(row: str, delimiter: str) -> int:
    whole_field = re.compile(rf'(?:"(?:[^"]++|"")*+"|[^"{delimiter}][^{delimiter}]*+)?{delimiter}')
    start = 0
    while field := whole_field.match(row, start):
        start = field.end()
    return row.count("\n", 0, start)


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _read_json(path: Path, file: ByteStream, choose_column: ChooseColumn) -> Generator[str, None, str]:
    records = _json_records(path, file)
    head = list(islice(records, ROWS_LOOKED_AT))
    types: dict[str, str] = {}
    for _, record in head:
        for name, value in record.items():
            _widen_type(types, name, TYPE_NAMES.get(type(value), "empty"))
    column = choose_column(types) if head else ""
    for where, record in chain(head, records):
        if column not in record:
            raise _refused(where, f"the object has no {column!r}; add it, or null")
        text = record[column]
        if text is not None and not isinstance(text, str):
            raise _refused(where, f"{column!r} is of type {TYPE_NAMES[type(text)]}, not a string; mend the record")
        try:
            (text or "").encode()
        except UnicodeEncodeError as error:
            reason = f"{column!r} has half a surrogate pair at character {error.start}, which is no text"
            raise _refused(where, f"{reason}; mend the \\u escape") from error
        yield text or ""
    return column


def _json_records(path: Path, file: ByteStream) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects with their places, from lines of one object each, or in .json from an array."""
    beginning = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    file.seek(0)
    values: Iterator[tuple[str, Any]]
    if _kind(path) == "json" and beginning.startswith(b"["):
        array = _parse_json(path, 1, _decode(path, file.read(), 0))
        values = ((f"{path} record {number}", value) for number, value in enumerate(array, 1))
    else:
        lines = ((number, line.rstrip(" \t\r\n")) for number, line in enumerate(_lines(path, file), 1))
        values = ((f"{path} line {number}", _parse_json(path, number, line)) for number, line in lines if line)
    for where, value in values:
        if not isinstance(value, dict):
            raise _refused(where, f"{TYPE_NAMES.get(type(value), 'null')} where an object is needed; mend the record")
        yield where, value


def _parse_json(path: Path, first_line: int, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{path} line {first_line + error.lineno - 1} column {error.colno}"
        shape = "an array of objects, or one object a line" if _kind(path) == "json" else "one object a line"
        raise _refused(where, f"not JSON: {error.msg}; the file must be {shape}") from error
    except RecursionError as error:
        raise _refused(f"{path} line {first_line}", "objects or arrays nested too deeply to be read") from error
    except ValueError as error:
        raise _refused(f"{path} line {first_line}", "a number of too many digits to be read") from error


def _read_parquet(path: Path, file: ByteStream, choose_column: ChooseColumn) -> Generator[str, None, str]:
    if file.read(4) != b"PAR1":
        raise _refused(path, "not a parquet file: it does not begin with PAR1")
    file.seek(0)
    source = pa.BufferReader(file.read()) if _is_gzip(path) else file
    place = ""
    try:
        # By default pyarrow reads the whole of a row group's column, compressed, at once: hundreds of MB.
        parquet = pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=False, buffer_size=2**20)
        schema = parquet.schema_arrow
        _require_distinct_columns(path, schema.names)
        column = choose_column({field.name: _parquet_type(field.type) for field in schema})
        num_rows = 0
        for group in range(parquet.num_row_groups):
            place = f" row group {group + 1} of {parquet.num_row_groups}"
            row = 0
            for batch in parquet.iter_batches(1024, row_groups=[group], columns=[column]):
                texts = batch.column(column)
                texts.validate(full=True)  # pyarrow has not looked at the bytes of a string before
                yield from (text or "" for text in texts.to_pylist())
                row += len(texts)
            num_rows += row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = f"damaged after row {row} of the group" if place else "truncated or damaged"
        raise _refused(f"{path}{place}", f"{reason} ({textwrap.shorten(str(error), 160)}); make it again") from error
    if num_rows != parquet.metadata.num_rows:
        raise _refused(path, f"{num_rows} rows where its footer counts {parquet.metadata.num_rows}; make it again")
    return column


def _parquet_type(column_type: pa.DataType) -> str:
    values = column_type.value_type if pa.types.is_dictionary(column_type) else column_type
    is_text = pa.types.is_string(values) or pa.types.is_large_string(values) or pa.types.is_string_view(values)
    return "string" if is_text else str(column_type)


def _widen_type(types: dict[str, str], name: str, value_type: str) -> None:
    """A column with one string is of strings; else it is what its first value is."""
    if value_type == "string" or types.get(name, "empty") == "empty":
        types[name] = value_type


def _require_distinct_columns(path: Path, names: list[str]) -> None:
    if len(set(names)) < len(names):
        repeated = next(name for number, name in enumerate(names) if name in names[:number])
        raise _refused(path, f"two columns are named {repeated!r}; rename one")


def _choose_column(path: Path, wanted: str, first: str, types: dict[str, str]) -> str:
    """The column of texts among `types` (name -> type): the one wanted, by the user or since file `first` has it."""
    name = wanted or ("text" if "text" in types else "")
    strings = [each for each, its_type in types.items() if its_type == "string"]
    columns = ", ".join(f"{each!r} ({its_type})" for each, its_type in types.items()) or "none"
    as_first = f", which {first} has" if first else ""
    if not name and len(strings) == 1:
        return strings[0]
    if not name and strings:
        reason = f"several columns hold text: {', '.join(map(repr, strings))}; name one of them"
    elif not name:
        reason = f"no column holds text; its columns: {columns}"
    elif name not in types:
        near = difflib.get_close_matches(name, types, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        reason = f"no column {name!r}{as_first}; its columns: {columns}{hint}"
    elif types[name] not in ("string", "empty"):
        reason = f"column {name!r} is of type {types[name]}, not text; its columns: {columns}"
    else:
        return name
    raise _refused(path, reason, "data.text_column")


def _refused(where: str | Path, message: str, setting: str = "data.dataset") -> Refused:
    """One line, whatever stands in a file's name, in a column's or in a library's message."""
    line = f"{setting}: {where}: {message}"
    return Refused("".join(each if each.isprintable() else repr(each)[1:-1] for each in line))
