"""A file system of its own, which can be filled and made read-only without harm to others."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.conftest import cache as cache
from tests.data.conftest import tokenizer as tokenizer


class Disk:
    """A mounted file system of a few MB."""

    def __init__(self, path: Path):
        self.path = path

    def fill(self) -> None:
        """Take all the room there is, to the last byte."""
        with open(self.path / "filler", "wb", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                try:
                    while file.write(bytes(size)) == size:
                        pass
                except OSError:
                    pass

    def make_room(self) -> None:
        (self.path / "filler").unlink()

    def remount(self, mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", self.path], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tf_mlm-tests", path], capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no command `mount` here")
    if mounted.returncode:
        pytest.skip(f"a file system may not be mounted here: {mounted.stderr.decode().strip()}")
    yield Disk(path)
    subprocess.run(["umount", "--lazy", path], check=True)
