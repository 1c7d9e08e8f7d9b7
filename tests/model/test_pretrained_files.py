"""The files of a pretrained model are found and checked before they are read."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.model.conftest import refusal
from tf_mlm import hub
from tf_mlm.config import ModelConfig
from tf_mlm.errors import HubOutOfReach, Refused
from tf_mlm.model.pretrained_files import PretrainedModel, check_tokenizer_files, find_weights


@pytest.fixture
def model(tmp_path: Path) -> PretrainedModel:
    """An empty directory, named by an argument of a command."""
    (tmp_path / "model").mkdir()
    return PretrainedModel.named(str(tmp_path / "model"))


def folder_of(model: PretrainedModel) -> Path:
    assert model.source.path
    return model.source.path


def write_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_group("layer").create_dataset("kernel", data=np.zeros(3))


def write_index(folder: Path, *names: object) -> None:
    weight_map = {f"weight {number}": name for number, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_the_name_is_resolved_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    is_local = hub.is_local

    def count(name: str) -> bool:
        asked.append(name)
        return is_local(name)

    monkeypatch.setattr(hub, "is_local", count)
    model = PretrainedModel.of(ModelConfig(name=str(tmp_path), revision="v1"))
    (tmp_path / "model.safetensors").write_bytes(b"")
    check_tokenizer_files(model)
    assert find_weights(model) == tmp_path
    assert model.revision == "v1"
    assert asked == [str(tmp_path)]


def test_a_message_begins_with_the_name_as_the_user_gave_it(tmp_path: Path) -> None:
    name = str(tmp_path / "nothing")
    problem = "no such file or directory; a Hub name is written owner/name"
    assert refusal(PretrainedModel.named, name) == f"{name}: {problem}"
    assert refusal(PretrainedModel.of, ModelConfig(name=name)) == f"model.name = {name!r}: {problem}"
    name = f"{tmp_path}/no\nthing"
    assert refusal(PretrainedModel.named, name) == f"{name!r}: {problem}"  # one line


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tf_model.h5").write_bytes(b"")
    assert find_weights(PretrainedModel.named("~/model")) == tmp_path / "model"


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer_config.json"])
def test_a_hub_name_is_out_of_reach_off_line_and_its_uncached_files_do_not_exist(missing: str) -> None:
    """Offline, only the cache is searched. Loading the model then reports that the Hub is unreachable."""
    model = PretrainedModel.named("someone/model")
    assert model.source.path is None
    assert model.find_file(missing) is None

    class Loader:
        @staticmethod
        def from_pretrained(name: str, revision: str) -> Any:
            raise ConnectionError(f"{name} {revision}")

    with pytest.raises(HubOutOfReach, match="^someone/model: no connection to .* and not in the cache; connect once"):
        model.load(Loader)


@pytest.mark.parametrize("name", ["model.safetensors", "tf_model.h5"])
def test_weights_in_one_file_are_found(model: PretrainedModel, name: str) -> None:
    (folder_of(model) / name).write_bytes(b"")
    assert find_weights(model) == folder_of(model)


def test_weights_in_several_files_are_found(model: PretrainedModel) -> None:
    write_index(folder_of(model), "one.safetensors", "two.safetensors", "one.safetensors")
    assert find_weights(model) == folder_of(model)


@pytest.mark.parametrize("setting", ["", "model.name"])
def test_missing_weights_are_refused_with_a_solution_that_the_user_has(tmp_path: Path, setting: str) -> None:
    model = PretrainedModel(hub.Source.of(str(tmp_path)), setting=setting)
    message = refusal(find_weights, model)
    assert "has no weights (model.safetensors or tf_model.h5); add them" in message
    assert ("model.from_config" in message) == bool(setting)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    message = refusal(find_weights, model)
    assert "pytorch_model.bin is a pickle, which is never loaded; save them as safetensors" in message
    assert ("model.from_config" in message) == bool(setting)


@pytest.mark.parametrize("name", ["../other", "/etc/passwd", "parts/one.safetensors", ".."])
def test_an_index_that_names_a_file_outside_the_folder_is_refused(model: PretrainedModel, name: str) -> None:
    write_index(folder_of(model), "one.safetensors", name)
    message = refusal(find_weights, model)
    assert f"model.safetensors.index.json names {name!r}, which lies outside the directory" in message


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"weight_map": 5}', '{"weight_map": {"a": 5}}', pytest.param("[" * 100_000, id="deep")],
)
def test_a_damaged_index_is_refused(model: PretrainedModel, content: str) -> None:
    (folder_of(model) / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json is damaged (" in refusal(find_weights, model)


def test_hdf5_files_without_links_to_others_are_accepted(model: PretrainedModel) -> None:
    write_hdf5(folder_of(model) / "tf_model.h5")
    with h5py.File(folder_of(model) / "tf_model.h5", "a") as file:
        file["soft"] = h5py.SoftLink("/layer/kernel")
        file["hard"] = file["layer/kernel"]
    assert find_weights(model) == folder_of(model)
    (folder_of(model) / "tf_model.h5").write_bytes(b"damaged; its reader reports that")
    assert find_weights(model) == folder_of(model)


@pytest.mark.parametrize("kind", ["link", "storage", "virtual", "circle"])
@pytest.mark.parametrize("beside", [False, True])
def test_an_hdf5_file_that_includes_another_file_is_refused(model: PretrainedModel, kind: str, beside: bool) -> None:
    """Also next to safetensors, which are read instead: transformers must not fall back to it."""
    folder = folder_of(model)
    write_hdf5(folder.parent / "other.h5")
    with h5py.File(folder / "tf_model.h5", "w") as file:
        group = file.create_group("a/b")
        if kind == "link":
            group["kernel"] = h5py.ExternalLink("../other.h5", "/layer/kernel")
        elif kind == "storage":
            group.create_dataset("kernel", (4,), np.float32, external=[(str(folder.parent / "other.h5"), 0, 16)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((3,), np.float64)
            layout[:] = h5py.VirtualSource("../other.h5", "/layer/kernel", (3,))
            group.create_virtual_dataset("kernel", layout)
        else:
            group["kernel"] = file["a"]
    if beside:
        (folder / "model.safetensors").write_bytes(b"")
    entry = "/" if kind == "circle" else "a/b/kernel"
    assert f"tf_model.h5: {entry!r} is stored in another file" in refusal(find_weights, model)


@pytest.mark.parametrize("setting", ["vocab_file", "tokenizer_file"])
def test_a_tokenizer_file_outside_the_folder_is_refused(model: PretrainedModel, setting: str) -> None:
    settings, outside = folder_of(model) / "tokenizer_config.json", folder_of(model).parent / "vocab.txt"
    outside.write_text("[MASK]")
    settings.write_text(json.dumps({setting: str(outside)}))
    expected = f"tokenizer_config.json names {str(outside)!r}, which lies outside its directory"
    expected += f"; remove {setting} from it"
    assert expected in refusal(check_tokenizer_files, model)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        [],
        {"vocab_file": "/nonexistent/vocab.txt"},
        {"vocab_file": None},
        {"special_tokens_map_file": "/"},
        {"mask_token": "/"},
    ],
)
def test_other_settings_of_a_tokenizer_are_accepted(model: PretrainedModel, settings: Any) -> None:
    (folder_of(model) / "tokenizer_config.json").write_text(json.dumps(settings))
    check_tokenizer_files(model)


def test_a_tokenizer_file_inside_the_folder_is_accepted(model: PretrainedModel) -> None:
    (folder_of(model) / "vocab.txt").write_text("[MASK]")
    settings = {"vocab_file": str(folder_of(model) / "vocab.txt")}
    (folder_of(model) / "tokenizer_config.json").write_text(json.dumps(settings))
    check_tokenizer_files(model)


@pytest.mark.parametrize("content", ["", "{", pytest.param("[" * 100_000, id="deep")])
def test_a_damaged_tokenizer_config_is_left_to_its_reader(model: PretrainedModel, content: str) -> None:
    (folder_of(model) / "tokenizer_config.json").write_text(content)
    check_tokenizer_files(model)


def test_an_error_of_the_reader_is_one_line_that_ends_after_a_word(model: PretrainedModel) -> None:
    class Loader:
        @staticmethod
        def from_pretrained(name: str, revision: str) -> Any:
            assert (name, revision) == (str(folder_of(model)), "main")
            raise ValueError("first line\n" + "word " * 100)

    message = refusal(model.load, Loader)
    assert message.startswith(f"{model.source.name}: cannot be loaded: first line word word")
    assert message.endswith("word …")
    with pytest.raises(Refused):
        model.load(None)
