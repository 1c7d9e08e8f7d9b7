"""The wheel: its files, and a full installation used from an empty directory."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the files that it needs, so that the checkout stays clean and old builds do not matter."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("tf_mlm", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and "No matching distribution found for setuptools" in done.stderr:
        pytest.skip("no package index can be reached, from which the build takes setuptools")
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_has_every_module_the_recipes_and_the_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    files = [path for path in (ROOT / "tf_mlm").rglob("*") if path.suffix in (".py", ".pyi", ".typed", ".html")]
    expected = {path.relative_to(ROOT).as_posix() for path in [*files, ROOT / "tf_mlm" / "py.typed"]}
    expected |= {f"tf_mlm/configs/{path.name}" for path in (ROOT / "configs").glob("*.toml")}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert "tf-mlm = tf_mlm.commands.main:console" in entry_points
    assert any(name.endswith("LICENSE") for name in names)


EPOCH = (
    "--config", "sample", "--epochs", "1", "--data.num_train_sequences", "640",
    "--data.num_validation_sequences", "64", "--output-dir", "RUN",
)  # fmt: skip
API = """
import tf_mlm
overrides = {"training.epochs": 1, "data.num_train_sequences": 320, "data.num_validation_sequences": 32}
run = tf_mlm.train("sample", overrides=overrides, output_dir="API")
assert len(run.history) == 1 and run.model.config.dim == 128
(answer,) = tf_mlm.load(run).fill(["This is a great [MASK]."], top_k=3)
assert len(answer.fills[0]) == 3
assert "site-packages" in tf_mlm.__file__, tf_mlm.__file__
"""


@pytest.mark.slow
def test_an_installed_wheel_trains_fills_masks_and_serves_the_api_in_an_empty_directory(
    wheel: Path, tmp_path: Path
) -> None:
    """Installs every dependency into a new environment, which takes minutes."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    binaries = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    folder = tmp_path / "empty"
    folder.mkdir()

    def run(*command: str | Path) -> str:
        done = subprocess.run(
            [binaries / command[0], *command[1:]], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    run("python", "-m", "pip", "install", "--quiet", "-c", ROOT / "requirements.txt", wheel)
    run("python", "-m", "pip", "check")
    run("tf-mlm", "train", *EPOCH)
    assert "%" in run("tf-mlm", "fill-mask", "RUN", "This is a great [MASK].")
    assert "Perplexity" in run("tf-mlm", "evaluate", "RUN")
    run("python", "-m", "tf_mlm", "export", "RUN", "--output", "exported")
    assert (folder / "exported" / "saved_model.pb").exists()
    run("python", "-c", API)
