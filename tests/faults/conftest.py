"""A separate file system, which a test can fill and make read-only."""

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
        """Use all free space, to the last byte."""
        with open(self.path / "filler", "wb", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                try:
                    while file.write(bytes(size)) == size:
                        pass
                except OSError:
                    pass

    def free_space(self) -> None:
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
        pytest.skip("needs the command `mount`")
    if mounted.returncode:
        pytest.skip(f"no permission to mount a file system: {mounted.stderr.decode().strip()}")
    yield Disk(path)
    subprocess.run(["umount", "--lazy", path], check=True)
