"""Separate environments for slow tests, with packages that tf_mlm does not use."""

import subprocess
import sys
from pathlib import Path

import pytest


def install(folder: Path, *packages: str) -> Path:
    """Create an environment in `folder`, install `packages`, return its Python; skip the test if that fails."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    done = subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{' '.join(packages)} cannot be installed: {done.stderr.splitlines()[-1]}")
    return python
