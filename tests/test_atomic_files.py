"""A file or a directory appears under its name only when it is complete."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tf_mlm import atomic_files
from tf_mlm.atomic_files import atomic_directory, recover, write_atomically


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def test_a_file_is_replaced_atomically(tmp_path: Path) -> None:
    path = tmp_path / "loss.png"
    write_atomically(path, b"\x89old")
    write_atomically(path, "new, ä")
    assert path.read_text(encoding="utf-8") == "new, ä"
    assert os.listdir(tmp_path) == ["loss.png"]


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_content_and_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    path = tmp_path / "README.md"
    write_atomically(path, "old")

    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, fails, fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["README.md"]


@pytest.mark.parametrize(("mask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750)])
def test_modes_follow_the_umask(
    tmp_path: Path, umask: Callable[[int], int], mask: int, file_mode: int, folder_mode: int
) -> None:
    umask(mask)
    write_atomically(tmp_path / "file", "x")
    with atomic_directory(tmp_path / "folder") as temporary:
        (temporary / "inner").write_text("x")
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"file": file_mode, "folder": folder_mode, "inner": file_mode}


@pytest.mark.parametrize("is_there", [True, False])
def test_a_directory_is_replaced_atomically(tmp_path: Path, is_there: bool) -> None:
    folder = tmp_path / "model"
    if is_there:
        folder.mkdir()
        (folder / "old").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_directory(folder) as temporary:
        (temporary / "half").write_text("half")
        raise KeyboardInterrupt
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == (
        ["model", "model/old"] if is_there else []
    )
    with atomic_directory(folder) as temporary:
        (temporary / "new").write_text("new")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["model", "model/new"]


def test_a_kill_between_the_two_renames_loses_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").write_text("old")
    replace, calls = os.replace, []

    def killed(source: Any, target: Any) -> None:
        calls.append((source, target))
        if len(calls) == 2:
            raise SystemExit  # and nothing after it: see below
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    monkeypatch.setattr(atomic_files, "recover_folder", lambda folder: None)
    monkeypatch.setattr(atomic_files.shutil, "rmtree", lambda *arguments, **options: None)
    with pytest.raises(SystemExit), atomic_directory(folder) as temporary:
        (temporary / "new").write_text("new")
    monkeypatch.undo()
    assert not folder.exists()
    recover(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["model", "model/old"]
    (tmp_path / ".model.replaced").mkdir()  # left by a kill before the old directory was removed
    recover(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["model", "model/old"]


def test_a_failed_rename_restores_the_old_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").write_text("old")
    replace = os.replace

    def fail(source: Any, target: Any) -> None:
        if str(source).endswith(".tmp"):
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="Input/output"), atomic_directory(folder) as temporary:
        (temporary / "new").write_text("new")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["model", "model/old"]
