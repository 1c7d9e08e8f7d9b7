"""Finds the local files that a path names, by split."""

import glob
import os
import textwrap
from collections.abc import Iterable
from pathlib import Path, PurePath

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

PREPARED, STARTED = "prepared.json", "started.json"
"""The record in a complete and in an incomplete directory of `tf-mlm prepare`; see `shards`."""

KINDS = ("txt", "csv", "tsv", "json", "jsonl", "ndjson", "parquet")


def find_split_files(path: str, config_name: str = "") -> dict[str, list[Path]]:
    """The files that `path` names, by split.

    Args:
        path: a file, a glob (`**` matches nested directories), a directory of files, or a directory in the Hub's
            layout: a README.md whose `configs` list the files of each split, or files and directories named after
            their splits.
        config_name: one of the `configs` in README.md; "" for its default or only one.

    Returns:
        Split name -> sorted files, splits in the layout's order. The only key is "" if no name and no README.md gives
        a split.

    Raises:
        Refused: no file matches, a file's format is not supported, its split is ambiguous, or it lies outside the
            directory.
    """
    root = Path(os.path.expanduser(path))
    if is_prepared(root):
        raise refusal(path, "contains token ids, not texts, because tf-mlm prepare wrote it; pass a dataset with text")
    if path and os.path.isdir(root):
        return _find_in_folder(root, config_name)
    if config_name:
        raise refusal(path, f"only a directory has configurations; omit data.config_name {config_name!r}")
    if os.path.isfile(root):
        files = [root]
    elif glob.has_magic(path):
        matches = [Path(match) for match in sorted(glob.glob(str(root), recursive=True))]
        files = [file for file in matches if os.path.isfile(file) and not _is_metadata(file)]
        if not files:
            raise refusal(path, "the glob matches no file; check it, and quote it so that the shell does not expand it")
    else:
        raise refusal(path or "''", "no such file or directory, or no permission to read it; check the path")
    require_known_kinds(files)
    return {"": files}


def is_prepared(path: Path) -> bool:
    """Whether `path` is a complete or incomplete directory of `tf-mlm prepare`."""
    return (path / PREPARED).is_file() or (path / STARTED).is_file()


def _find_in_folder(folder: Path, config_name: str) -> dict[str, list[Path]]:
    patterns, inside, named_by_card = _split_patterns(folder, config_name)
    splits = {split: _resolve(folder, inside, each) for split, each in patterns.items()}
    for split, files in splits.items():
        if not files:
            of_split = f" of split {split!r}" if split else ""
            raise refusal(folder, f"no data file{of_split} matches {', '.join(patterns[split])}; check the directory")
        require_known_kinds(files)
    if not named_by_card and "" not in splits:
        _require_one_split_each(folder, splits, _resolve(folder, inside, ["**"]))
    return splits


def _split_patterns(folder: Path, config_name: str) -> tuple[dict[str, list[str]], Path, bool]:
    """Patterns by split, the directory they are relative to, and whether README.md lists them."""
    card = folder / "README.md"
    patterns: dict[str, list[str]] = {}
    try:
        metadata = (metadata_load(card) if card.is_file() else None) or {}
        configs = MetadataConfigs.from_dataset_card_data(DatasetCardData(**metadata))
        chosen = config_name or configs.get_default_config_name()
        data_files = configs.get(chosen, {}).get("data_files")
        if data_files is not None:
            patterns = {split: [str(each) for each in paths] for split, paths in sanitize_patterns(data_files).items()}
    except Exception as error:  # three libraries parse the card and raise many types
        reason = textwrap.shorten(str(error), 160)
        raise refusal(card, f"its metadata cannot be read: {reason}; fix the block between the --- lines") from error
    if chosen not in configs and (configs or config_name):
        names = ", ".join(map(str, configs)) or "none"
        wrong = f"it has no {config_name!r}" if config_name else "none is the default"
        raise refusal(folder, f"{wrong}; data.config_name must be one of the configurations in README.md: {names}")
    inside = folder / _checked_pattern(folder, str(configs.get(chosen, {}).get("data_dir") or "."))
    if patterns:
        # `datasets` puts files without a split into "train"; named splits are written as {split, path}.
        named = any(isinstance(each, dict) for each in data_files)
        return (patterns if named else {"": patterns["train"]}), inside, True
    try:
        patterns = get_data_patterns(_base_path(inside))
    except (OSError, ValueError) as error:
        reason = "no data file in it" if isinstance(error, OSError) else str(error)
        raise refusal(inside, f"{reason}; it must contain files of these formats: {_kinds_in_words()}") from error
    if (
        patterns == DEFAULT_PATTERNS_ALL
    ):  # the fallback of `datasets`: all files become "train", although no name says so
        return {"": ["**"]}, inside, False
    return {str(split): each for split, each in patterns.items()}, inside, False


def _resolve(folder: Path, inside: Path, patterns: Iterable[str]) -> list[Path]:
    files: dict[Path, Path] = {}  # by resolved path, because one file may match several patterns of a split
    for pattern in patterns:
        try:
            found = resolve_pattern(_checked_pattern(folder, pattern), _base_path(inside))
        except FileNotFoundError as error:
            if glob.has_magic(pattern):
                continue
            raise refusal(folder, f"README.md names {pattern!r}, which does not exist; fix the name") from error
        for file in (inside / os.path.relpath(name, os.path.abspath(inside)) for name in sorted(found)):
            if not _is_metadata(file):
                files.setdefault(_resolved_within(folder, file), file)
    return sorted(files.values())


def _base_path(folder: Path) -> str:
    return glob.escape(os.path.abspath(folder))  # else `datasets` reads [ ] in the directory's name as a pattern


def _checked_pattern(folder: Path, pattern: str) -> str:
    if ".." in PurePath(pattern).parts or os.path.isabs(pattern) or "://" in pattern or "::" in pattern:
        raise refusal(folder, f"README.md names {pattern!r}; its files must be relative to the directory and inside it")
    return pattern


def _resolved_within(folder: Path, file: Path) -> Path:
    home, resolved = folder.resolve(), file.resolve()
    # In the Hub's cache, the files of a snapshot are links into the directory `blobs` next to `snapshots`.
    blobs = home.parents[1] / "blobs" if home.parent.name == "snapshots" else home
    if not resolved.is_relative_to(home) and not resolved.is_relative_to(blobs):
        raise refusal(file, f"a link to {resolved}, outside the directory; copy the file there or pass its path")
    return resolved


def _require_one_split_each(folder: Path, splits: dict[str, list[Path]], everything: list[Path]) -> None:
    """Refuse what `datasets` accepts silently: it skips files without a split and reads files with two splits twice."""
    split_of: dict[Path, str] = {}
    for split, files in splits.items():
        for file in files:
            if file in split_of:
                raise refusal(file, f"its name matches the splits {split_of[file]!r} and {split!r}; rename it")
            split_of[file] = split
    kinds = {kind_of(file) for file in split_of}
    left_out = [file for file in everything if file not in split_of and kind_of(file) in kinds]
    if left_out:
        named, split = next(iter(split_of.items()))
        others = f" (and {len(left_out) - 1} more)" if len(left_out) > 1 else ""
        raise refusal(
            folder,
            f"{left_out[0].relative_to(folder)}{others} is in no split, while the name of "
            f"{named.relative_to(folder)} puts it in {split!r}; rename or move it, list the splits in README.md "
            "(`configs`), or pass a glob",
        )


def _is_metadata(file: Path) -> bool:
    return (
        file.name.startswith(".") or file.name in {*FILES_TO_IGNORE, "_SUCCESS"} or file.stem in {"README", "LICENSE"}
    )


def require_known_kinds(files: list[Path]) -> None:
    unknown = [file for file in files if not kind_of(file)]
    if unknown:
        others = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise refusal(f"{unknown[0]}{others}", f"only {_kinds_in_words()} are supported; convert it, or pass a glob")


def kind_of(file: Path) -> str:
    """The format by the file name, one of KINDS, or "" for any other name."""
    extension = PurePath(file.name.lower().removesuffix(".gz")).suffix[1:]
    return extension if extension in KINDS else ""


def _kinds_in_words() -> str:
    return f"{', '.join(KINDS)} (each also with .gz)"


def refusal(where: str | Path, message: str, setting: str = "data.dataset") -> Refused:
    """The error as one printable line, also if a file name, a column or a library's message has control characters."""
    line = f"{setting}: {where}: {message}"
    return Refused("".join(each if each.isprintable() else repr(each)[1:-1] for each in line))
