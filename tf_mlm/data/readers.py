"""Reads the documents of local files; an error names the file and the place in it."""

import contextlib
import csv
import difflib
import gzip
import json
import re
import textwrap
import zlib
from collections.abc import Callable, Generator, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from tf_mlm.data.local_files import kind_of, refusal, require_known_kinds

ByteStream = BinaryIO | gzip.GzipFile
ChooseColumn = Callable[[dict[str, str]], str]  # maps column -> type to the text column
_LONGEST_NAME, _MOST_WORDS_IN_NAME = 64, 8  # of a column in the header of a csv file
ROWS_LOOKED_AT = 100  # rows that determine which columns of a csv or json file contain text
TYPE_NAMES = {str: "string", bool: "boolean", int: "number", float: "number", list: "array", dict: "object"}


def find_text_column(paths: list[Path], text_column: str, csv_header: bool = True) -> tuple[str, list[str]] | None:
    """The column of texts and all columns of the first file that has columns; None if all are txt files.

    Raises:
        Refused: as `read_documents`.
    """
    path = next((path for path in paths if kind_of(path) != "txt"), None)
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
    """Yield the texts of the files in order and unchanged; a null becomes "".

    The files are streamed, except for a json array, a gzipped parquet file and document = "file", which are read whole.

    Args:
        paths: files as `find_split_files` gives them.
        text_column: the text column of a csv, tsv, json or parquet file; "" selects `text` or the only
            string column of the first file. All other files must have the same column.
        document: unit of a txt file that is one document; a blank line ends a paragraph.
        csv_header: whether the first line of a csv or tsv file names the columns; otherwise they are column_1, ...

    Raises:
        Refused: a file cannot be read, is malformed or not UTF-8 (the message gives the place), or the column is
            missing, not text or ambiguous.
    """
    column, first = text_column, ""
    require_known_kinds(paths)
    for path in paths:
        choose_column = partial(_choose_column, path, column, first)
        with _reading(path), _open(path) as file:
            if kind_of(path) == "txt":
                yield from _read_txt(path, file, document)
            else:
                column = (yield from _read_table(path, file, choose_column, csv_header)) or column
        if not text_column:
            first = first or column and str(path)


def read_rows(path: Path, csv_header: bool = True) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place of each row of a csv, tsv, json or jsonl file, and its values by column; csv values are text.

    Raises:
        Refused: as `read_documents`.
    """
    with _reading(path), _open(path) as file:
        if kind_of(path) in ("csv", "tsv"):
            header, head, rows = _csv_table(path, file, "," if kind_of(path) == "csv" else "\t", csv_header)
            for number, row in enumerate(chain(head, rows), start=1):
                yield f"{path} row {number}", dict(zip(header, row, strict=True))
        else:
            yield from _json_records(path, file)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn a damaged gzip file or a file that cannot be read into `Refused`."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise refusal(path, f"damaged or truncated gzip: {error}; create it again") from error
    except OSError as error:
        raise refusal(path, f"cannot be read: {error.strerror or error}") from error


def _read_table(
    path: Path, file: ByteStream, choose_column: ChooseColumn, csv_header: bool
) -> Generator[str, None, str]:
    match kind_of(path):
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
    """Decode `data`, which starts `offset` bytes into the file, without a byte order mark."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        where = f"{path} byte offset {offset + error.start}" + " after decompression" * _is_gzip(path)
        raise refusal(where, f"0x{data[error.start]:02x} is not UTF-8 ({error.reason}); save it as UTF-8") from error
    return text if offset else text.removeprefix("\ufeff")


def _lines(path: Path, file: ByteStream) -> Iterator[str]:
    """Lines with their endings, split at \\n only: a \\r or a Unicode line separator is part of the text."""
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
    header, head, rows = _csv_table(path, file, delimiter, has_header)
    types = dict.fromkeys(header, "empty")
    for row in head:
        for name, value in zip(header, row, strict=True):
            _widen_type(types, name, "empty" if not value else "number" if is_number(value) else "string")
    column = choose_column(types)
    index = header.index(column)
    for row in chain(head, rows):
        yield row[index]
    return column


def _csv_table(
    path: Path, file: ByteStream, delimiter: str, has_header: bool
) -> tuple[list[str], list[list[str]], Iterator[list[str]]]:
    """The names of the columns, the first `ROWS_LOOKED_AT` rows, and the other rows."""
    rows = _csv_rows(path, file, delimiter)
    first_row = next(rows, [])
    if not has_header:
        rows = chain([first_row], rows)
        first_row = [f"column_{number}" for number in range(1, len(first_row) + 1)]
    header = first_row
    if not any(name.strip() for name in header):
        raise refusal(path, "no header; the first line must name the columns")
    _require_distinct_columns(path, header)
    if len(header) == 1 and (other := re.search("[;\t,]", header[0].replace(delimiter, ""))):
        raise refusal(path, f"its only column is {header[0]!r}; separate columns by {delimiter!r}, not {other[0]!r}")
    head = list(islice(rows, ROWS_LOOKED_AT))
    if has_header and (reason := _why_no_header(header, head)):
        raise refusal(path, f"{reason}; pass --data.csv_header false if the first line is a row")
    return header, head, rows


def _why_no_header(header: list[str], head: list[list[str]]) -> str:
    """The reason why the first line looks like data; "" if it looks like column names."""
    for index, name in enumerate(header):
        shown = textwrap.shorten(name, 40, placeholder="…")
        if len(name) > _LONGEST_NAME or len(name.split()) > _MOST_WORDS_IN_NAME:
            return f"the first line has the text {shown!r} instead of a column name"
        if is_number(name):
            return f"the first line has the number {shown!r} instead of a column name"
        if name.strip() and sum(row[index] == name for row in head) > len(head) // 10:
            return f"the first line has {shown!r}, which is also a value of that column"
    return ""


def _csv_rows(path: Path, file: ByteStream, delimiter: str) -> Iterator[list[str]]:
    """Rows, all with as many fields as the first one."""
    csv.field_size_limit(2**31 - 1)  # the largest value that all platforms accept; the default is 128 KiB
    row_lines: list[str] = []  # lines of the current row, to find a quote that is never closed

    def lines_without_nul() -> Iterator[str]:
        for number, line in enumerate(_lines(path, file), 1):
            if "\0" in line:
                raise refusal(f"{path} line {number}", "a NUL byte, which csv does not allow; remove it")
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
                raise refusal(f"{path} line {line}", "a quote opens here and is never closed; close it") from error
            if "new-line" in str(error):
                reason = r"a carriage return outside quotes; end lines with \n or \r\n"
            elif "expected after" in str(error):
                reason = (
                    f"text after a closing quote, in the row that begins on line {first_line}; "
                    "double each quote inside a quoted text"
                )
            else:
                reason = str(error)
            raise refusal(f"{path} line {reader.line_num}", reason) from error
        if row and len(row) != (width := width or len(row)):
            fields = f"{len(row)} field{'s' * (len(row) != 1)}, but the header has {width}"
            raise refusal(f"{path} line {first_line}", f"{fields}; quote the text or fix the line")
        if row:  # skip blank lines
            yield row


def _lines_before_open_quote(row: str, delimiter: str) -> int:
    whole_field = re.compile(rf'(?:"(?:[^"]++|"")*+"|[^"{delimiter}][^{delimiter}]*+)?{delimiter}')
    start = 0
    while field := whole_field.match(row, start):
        start = field.end()
    return row.count("\n", 0, start)


def is_number(value: str) -> bool:
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
            raise refusal(where, f"the object has no {column!r}; add it, or null")
        text = record[column]
        if text is not None and not isinstance(text, str):
            raise refusal(where, f"{column!r} is of type {TYPE_NAMES[type(text)]}, not a string; fix the record")
        try:
            (text or "").encode()
        except UnicodeEncodeError as error:
            reason = f"{column!r} has an unpaired surrogate at character {error.start}"
            raise refusal(where, f"{reason}; fix the \\u escape") from error
        yield text or ""
    return column


def _json_records(path: Path, file: ByteStream) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects and their places: one object per line, or in .json also the elements of an array."""
    beginning = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    file.seek(0)
    values: Iterator[tuple[str, Any]]
    if kind_of(path) == "json" and beginning.startswith(b"["):
        array = _parse_json(path, 1, _decode(path, file.read(), 0))
        values = ((f"{path} record {number}", value) for number, value in enumerate(array, 1))
    else:
        lines = ((number, line.rstrip(" \t\r\n")) for number, line in enumerate(_lines(path, file), 1))
        values = ((f"{path} line {number}", _parse_json(path, number, line)) for number, line in lines if line)
    for where, value in values:
        if not isinstance(value, dict):
            raise refusal(where, f"{TYPE_NAMES.get(type(value), 'null')} instead of an object; fix the record")
        yield where, value


def _parse_json(path: Path, first_line: int, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{path} line {first_line + error.lineno - 1} column {error.colno}"
        shape = "an array of objects, or one object per line" if kind_of(path) == "json" else "one object per line"
        raise refusal(where, f"not JSON: {error.msg}; the file must be {shape}") from error
    except RecursionError as error:
        raise refusal(f"{path} line {first_line}", "too deeply nested to parse; flatten the object") from error
    except ValueError as error:
        raise refusal(
            f"{path} line {first_line}", "a number with too many digits to parse; write it as a string"
        ) from error


def _read_parquet(path: Path, file: ByteStream, choose_column: ChooseColumn) -> Generator[str, None, str]:
    if file.read(4) != b"PAR1":
        raise refusal(path, "not a parquet file: it does not begin with PAR1; convert it or fix the name")
    file.seek(0)
    source = pa.BufferReader(file.read()) if _is_gzip(path) else file
    place = ""
    try:
        # By default pyarrow reads the compressed column of a row group at once: hundreds of MB.
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
                texts.validate(full=True)  # pyarrow has not checked the bytes of a string until here
                yield from (text or "" for text in texts.to_pylist())
                row += len(texts)
            num_rows += row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = f"damaged after row {row} of the group" if place else "truncated or damaged"
        raise refusal(f"{path}{place}", f"{reason} ({textwrap.shorten(str(error), 160)}); create it again") from error
    if num_rows != parquet.metadata.num_rows:
        raise refusal(path, f"{num_rows} rows, but its footer counts {parquet.metadata.num_rows}; create it again")
    return column


def _parquet_type(column_type: pa.DataType) -> str:
    values = column_type.value_type if pa.types.is_dictionary(column_type) else column_type
    is_text = pa.types.is_string(values) or pa.types.is_large_string(values) or pa.types.is_string_view(values)
    return "string" if is_text else str(column_type)


def _widen_type(types: dict[str, str], name: str, value_type: str) -> None:
    """Update the type of a column: string if any value is one, else the type of its first value."""
    if value_type == "string" or types.get(name, "empty") == "empty":
        types[name] = value_type


def _require_distinct_columns(path: Path, names: list[str]) -> None:
    if len(set(names)) < len(names):
        repeated = next(name for number, name in enumerate(names) if name in names[:number])
        raise refusal(path, f"two columns are named {repeated!r}; rename one")


def _choose_column(path: Path, wanted: str, first: str, types: dict[str, str]) -> str:
    """The text column among `types` (name -> type): `wanted` (by the user or of the file `first`) or the only one."""
    name = wanted or ("text" if "text" in types else "")
    strings = [each for each, its_type in types.items() if its_type == "string"]
    columns = ", ".join(f"{each!r} ({its_type})" for each, its_type in types.items()) or "none"
    as_first = f", which {first} has" if first else ""
    if not name and len(strings) == 1:
        return strings[0]
    if not name and strings:
        reason = f"several columns contain text: {', '.join(map(repr, strings))}; choose one with --data.text_column"
    elif not name:
        reason = f"no column contains text; its columns: {columns}"
    elif name not in types:
        near = difflib.get_close_matches(name, types, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        reason = f"no column {name!r}{as_first}; its columns: {columns}{hint}"
    elif types[name] not in ("string", "empty"):
        reason = f"column {name!r} is of type {types[name]}, not text; its columns: {columns}"
    else:
        return name
    raise refusal(path, reason, "data.text_column")
