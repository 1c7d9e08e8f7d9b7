"""Guarantees of SECURITY.md for untrusted input. Other guarantees are tested elsewhere: pickled weights and unknown
architectures in tests/model/, links and `..` in data directories in tests/data/ and test_properties.py."""

import ast
import builtins
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.conftest import ROOT
from tf_mlm.config import Config, ModelConfig
from tf_mlm.errors import Refused
from tf_mlm.run.directory import RunDirectory

FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib", "subprocess", "runpy"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}


def test_the_package_uses_no_pickle_and_executes_no_text() -> None:
    for path in (ROOT / "tf_mlm").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not FORBIDDEN_MODULES & {alias.name.partition(".")[0] for alias in node.names}, path
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").partition(".")[0] not in FORBIDDEN_MODULES, path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in FORBIDDEN_CALLS, path
            if isinstance(node, ast.keyword):
                named = (node.arg, getattr(node.value, "value", None))
                assert named not in {("trust_remote_code", True), ("allow_pickle", True)}, path


@pytest.fixture
def model(finished_run: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in (finished_run / "model").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def load(folder: Path) -> Any:
    from tf_mlm.model.loading import load_trained

    return load_trained(str(folder))


def refusal(folder: Path) -> str:
    with pytest.raises(Refused) as refused:
        load(folder)
    assert str(refused.value).isprintable()
    return str(refused.value)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_in_a_model_directory_never_runs_and_nothing_asks_about_it(
    model: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    def asked(*arguments: object) -> str:
        pytest.fail("asked whether to run the code")

    monkeypatch.setattr(builtins, "input", asked)
    mark = model.parent / "it ran"
    (model / "theirs.py").write_text(f"open({str(mark)!r}, 'w')\nclass Theirs: pass\n")
    settings = json.loads((model / file).read_text())
    if file == "config.json":
        settings |= {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Theirs"}}
    else:
        settings |= {"tokenizer_class": "Theirs", "auto_map": {"AutoTokenizer": ["theirs.Theirs", "theirs.Theirs"]}}
    (model / file).write_text(json.dumps(settings))
    expected = "the architecture 'theirs' is not supported" if file == "config.json" else "cannot be loaded"
    assert expected in refusal(model)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/elsewhere.safetensors", "parts/../../elsewhere"])
def test_an_index_of_weights_cannot_name_files_outside_its_directory(model: Path, name: str) -> None:
    (model / "model.safetensors").rename(model.parent / "elsewhere.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": {"distilbert.embeddings.word_embeddings.weight": name}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"model.safetensors.index.json names {name!r}" in refusal(model)


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 5}', '{"weight_map": {"a": 5}}'])
def test_a_malformed_index_is_refused(model: Path, content: str) -> None:
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(content)
    refusal(model)


@pytest.mark.parametrize("kind", ["link", "storage"])
def test_an_h5_file_cannot_include_other_files(model: Path, kind: str) -> None:
    """HDF5 can refer to any file. Its bytes would become weights and be published with them."""
    (model / "model.safetensors").unlink()
    secret = model.parent / "secret"
    secret.write_bytes(b"sixteen letters." * 4)
    with h5py.File(model / "tf_model.h5", "w") as file:
        group = file.create_group("distilbert")
        if kind == "link":
            with h5py.File(model.parent / "other.h5", "w") as other:
                other["weights"] = np.zeros(3)
            group["inside"] = h5py.ExternalLink("../other.h5", "/weights")
        else:
            group.create_dataset("inside", (16,), np.float32, external=[(str(secret), 0, 64)])
    assert "tf_model.h5: 'distilbert/inside' is stored in another file" in refusal(model)


@pytest.mark.parametrize("setting", ["vocab_file", "tokenizer_file"])
def test_a_tokenizer_cannot_use_files_outside_its_directory(model: Path, setting: str) -> None:
    """They would be read and published with the model."""
    (model / "tokenizer.json").rename(model.parent / "tokenizer.json")
    (model / "vocab.txt").rename(model.parent / "vocab.txt")
    outside = model.parent / {"vocab_file": "vocab.txt", "tokenizer_file": "tokenizer.json"}[setting]
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {setting: str(outside)}))
    assert f"tokenizer_config.json names {str(outside)!r}, which lies outside its directory" in refusal(model)


def test_a_tokenizer_config_with_old_paths_that_are_not_used_is_loaded(model: Path) -> None:
    settings = json.loads((model / "tokenizer_config.json").read_text())
    remembered = {"special_tokens_map_file": str(model.parent), "tokenizer_file": None}
    (model / "tokenizer_config.json").write_text(json.dumps(settings | remembered))
    load(model)


def test_a_run_cannot_write_its_plot_over_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunDirectory.create(tmp_path / "theirs")
    run.write_config(Config())
    for name in ("../mine.png", str(tmp_path / "mine.png"), "plots/../mine.png"):
        run.environment_path.write_text(json.dumps({"curve": name}))
        assert run.choose_curve() == Path("plots") / "mine.png"


@pytest.mark.parametrize("content", ["", "{}", "5", '{"curve": 5}', "[" * 3000, '{"curve": ".."}'])
def test_a_damaged_environment_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    run = RunDirectory.create(tmp_path / "theirs")
    run.write_config(Config())
    run.environment_path.write_text(content)
    run.release()
    with pytest.raises(Refused, match=r"environment\.json: is damaged.*; remove it") as refused:
        RunDirectory.open(run.path)
    assert str(refused.value).isprintable()
    run.environment_path.unlink()
    RunDirectory.open(run.path).release()


def test_random_weights_read_no_file_of_weights(model: Path) -> None:
    from tf_mlm.model.loading import load_model
    from tf_mlm.model.tokenizer import load_tokenizer

    (model / "model.safetensors").write_bytes(b"anything")
    config = ModelConfig(name=str(model), from_config=True)
    load_model(config, load_tokenizer(config, ()), 8)
