"""The settings: precedence, dumped TOML, and the exact text of each refusal."""

import dataclasses
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT
from tf_mlm.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    MaskingConfig,
    ModelConfig,
    OptimizerConfig,
    TrainingConfig,
    check_new_run,
    dump_config,
    find_recipe,
    load_config,
    setting_fields,
    suggest,
)
from tf_mlm.errors import Refused

same_folder = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def written(tmp_path: Path, content: str | bytes) -> Path:
    file = tmp_path / "my.toml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def refusal(tmp_path: Path, content: str | bytes, overrides: dict[str, Any] | None = None) -> str:
    """The one-line refusal of a file, without its directory."""
    with pytest.raises(Refused) as refused:
        load_config(written(tmp_path, content), overrides)
    message = str(refused.value)
    assert message.isprintable(), message
    return message.replace(f"{tmp_path}/", "")


# --- precedence


def test_the_command_line_overrides_the_file_and_the_file_overrides_defaults(tmp_path: Path) -> None:
    file = written(tmp_path, "[training]\nepochs = 3\nbatch_size = 16\n[optimizer]\nlearning_rate = 1e-3\n")
    config = load_config(file, {"training.epochs": "7", "data.line_by_line": "true"})
    assert config == Config(
        training=TrainingConfig(epochs=7, batch_size=16),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        data=DataConfig(line_by_line=True),
    )
    assert load_config() == Config()


@pytest.mark.parametrize(
    "text, value",
    [("5e-4", 5e-4), (".5", 0.5), ("0.25", 0.25), ("1e-5", 1e-5)],
)
def test_a_rate_may_be_written_in_any_number_format(text: str, value: Any) -> None:
    assert load_config(None, {"optimizer.learning_rate": text}).optimizer.learning_rate == value


@pytest.mark.parametrize("text, value", [("true", True), ("True", True), ("false", False), ("False", False)])
def test_a_boolean_may_be_written_as_in_toml_or_python(text: str, value: Any) -> None:
    assert load_config(None, {"data.line_by_line": text}).data.line_by_line is value


def test_a_string_that_looks_like_a_number_stays_a_string() -> None:
    config = load_config(None, {"model.name": "123", "model.revision": "1e5", "data.text_column": "true"})
    assert (config.model.name, config.model.revision, config.data.text_column) == ("123", "1e5", "true")


def test_example_sentences_are_a_list() -> None:
    sentences = ["a [MASK]", "[MASK] b"]
    config = load_config(None, {"training.example_sentences": sentences})
    assert config.training.example_sentences == tuple(sentences)


def test_the_weights_to_train_are_one_name_or_a_list(tmp_path: Path) -> None:
    assert load_config(None, {"model.train": ["head"]}).model.train == "head"
    assert load_config(None, {"model.train": ["layer.4", "layer.5"]}).model.train == ("layer.4", "layer.5")
    config = load_config(written(tmp_path, '[model]\ntrain = ["layer.4", "head"]\n'))
    assert config.model.train == ("layer.4", "head") and load_config(written(tmp_path, dump_config(config))) == config


@pytest.mark.parametrize("value", ["", [], ["head", ""]])
def test_an_empty_name_of_weights_to_train_is_refused(value: Any) -> None:
    with pytest.raises(Refused, match="--model.train = .*must be all, head, or a list of names"):
        load_config(None, {"model.train": value})


def test_a_config_is_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().training.epochs = 3  # type: ignore[misc]


# --- dumped TOML


def test_a_dumped_config_loads_back_with_one_comment_per_setting(tmp_path: Path) -> None:
    config = Config(
        model=ModelConfig(name="", dim=60, n_heads=5),
        data=DataConfig(dataset="a\nb \"c\" 'd' # \\ \x7f é", document="paragraph", validation_split=""),
        masking=MaskingConfig(0.2, 0.7, 0.3),
        training=TrainingConfig(seed=2**32 - 1, example_sentences=()),
        checkpoint=CheckpointConfig(every_minutes=1e16),
    )
    text = dump_config(config)
    assert load_config(written(tmp_path, text)) == config
    for name, field in setting_fields().items():
        assert f"# {field.default.description}" in text, name


def test_each_setting_is_dumped_under_its_name() -> None:
    dumped = tomllib.loads(dump_config(Config()))
    assert [f"{section}.{key}" for section, values in dumped.items() for key in values] == list(setting_fields())


some_text = st.text(st.characters(exclude_categories=["Cs"]))
rates = st.floats(0, 1, exclude_max=True)
some_config = st.builds(
    Config,
    model=st.builds(ModelConfig, name=some_text.filter(bool), dropout=rates, from_config=st.booleans()),
    data=st.builds(DataConfig, dataset=some_text, sequence_length=st.integers(8, 10**6), line_by_line=st.booleans()),
    optimizer=st.builds(
        OptimizerConfig,
        learning_rate=st.floats(0, 1, exclude_min=True, exclude_max=True),
        power=st.floats(0, exclude_min=True, allow_infinity=False),
    ),
    training=st.builds(TrainingConfig, example_sentences=st.lists(some_text.map(lambda text: f"{text}[MASK]"))),
)


@same_folder
@given(some_config)
def test_any_dumped_config_loads_back_unchanged(tmp_path: Path, config: Config) -> None:
    assert load_config(written(tmp_path, dump_config(config))) == config


# --- the bundled recipes


def test_the_default_recipe_has_every_setting_at_its_default() -> None:
    file = ROOT / "configs" / "imdb.toml"
    assert load_config(file) == Config()
    named = tomllib.loads(file.read_text(encoding="utf-8"))
    assert {f"{section}.{key}" for section, values in named.items() for key in values} == set(setting_fields())


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.toml")), ids=lambda file: file.name)
def test_every_recipe_loads(file: Path) -> None:
    assert isinstance(load_config(file), Config)


def test_the_documented_recipes_exist() -> None:
    names = {file.name for file in (ROOT / "configs").glob("*.toml")}
    assert names >= {"imdb.toml", "imdb-10k.toml", "imdb-full.toml", "sample.toml", "local-text.toml"}


# --- refusals


@pytest.mark.parametrize(
    "content, message",
    [
        ("[trainig]\nepochs = 3", "my.toml: unknown section [trainig]; did you mean 'training'?"),
        (
            "[zzz]",
            "my.toml: unknown section [zzz]; known names: model, data, objective, masking, optimizer, training, "
            "checkpoint, distribution",
        ),
        ("[training]\nepoch = 3", "my.toml: unknown setting training.epoch; did you mean 'epochs'?"),
        (
            "[checkpoint]\nzzz = 3",
            "my.toml: unknown setting checkpoint.zzz; known names: every_minutes, every_steps, keep",
        ),
        ('[checkpoint]\n"kep\\n" = 3', "my.toml: unknown setting checkpoint.'kep\\n'; did you mean 'keep'?"),
        ('["mod\\nel"]', "my.toml: unknown section ['mod\\nel']; did you mean 'model'?"),
        (
            "epochs = 3",
            "my.toml: unknown section [epochs]; known names: model, data, objective, masking, optimizer, training, "
            "checkpoint, distribution",
        ),
        ("model = 'x'", "my.toml: model = 'x': this is a section; write [model] above its keys"),
        (
            "[[model]]\nname = 'x'",
            "my.toml: model = [{'name': 'x'}]: this is a section; write [model] above its keys",
        ),
        (
            "[training]\nepochs = '3'",
            "my.toml: training.epochs = '3': should be a valid integer (passes over the training sequences)",
        ),
        (
            "[training]\nepochs = 3.0",
            "my.toml: training.epochs = 3.0: should be a valid integer (passes over the training sequences)",
        ),
        (
            "[training]\nepochs = true",
            "my.toml: training.epochs = True: should be a valid integer (passes over the training sequences)",
        ),
        (
            "[optimizer]\nlearning_rate = '1e-3'",
            "my.toml: optimizer.learning_rate = '1e-3': should be a valid number "
            "(peak rate, reached at the end of the warmup)",
        ),
        (
            "[data]\nline_by_line = 1",
            "my.toml: data.line_by_line = 1: should be a valid boolean "
            "(one document per sequence, padded, instead of packed documents)",
        ),
        (
            "[model]\nrevision = 3",
            "my.toml: model.revision = 3: should be a valid string "
            "(branch, tag or commit on the Hub; '' is the default branch)",
        ),
        (
            "[data]\ntrain_split = 2020-01-01",
            "my.toml: data.train_split = datetime.date(2020, 1, 1): should be a valid string "
            "(split to train on; join several splits with +)",
        ),
        (
            "[training]\nexample_sentences = 'a [MASK]'",
            "my.toml: training.example_sentences = 'a [MASK]': should be a valid tuple "
            "(sentences with [MASK], filled before and after training, shown in the model card)",
        ),
        (
            "[training]\nepochs = 0",
            "my.toml: training.epochs = 0: should be greater than or equal to 1 (passes over the training sequences)",
        ),
        (
            "[training]\nbatch_size = -1",
            "my.toml: training.batch_size = -1: should be greater than or equal to 1 (sequences per update)",
        ),
        (
            "[training]\nseed = 4294967296",
            "my.toml: training.seed = 4294967296: should be less than 4294967296 "
            "(seed of the data order, masks, dropout, held-out documents and newly initialized weights)",
        ),
        (
            "[data]\nsequence_length = 7",
            "my.toml: data.sequence_length = 7: should be greater than or equal to 8 (tokens in a sequence)",
        ),
        (
            "[data]\nvalidation_fraction = 1",
            "my.toml: data.validation_fraction = 1: should be less than 1 "
            "(share of the documents held out if the data has no splits or validation_split is '')",
        ),
        (
            "[masking]\nmlm_probability = 0",
            "my.toml: masking.mlm_probability = 0: should be greater than 0 "
            "(share of the ordinary tokens to predict in training; validation uses 0.15)",
        ),
        (
            "[masking]\nmask_replace_prob = 1.5",
            "my.toml: masking.mask_replace_prob = 1.5: should be less than or equal to 1 "
            "(share of the predicted tokens that are replaced by the mask token)",
        ),
        (
            "[optimizer]\nlearning_rate = 0",
            "my.toml: optimizer.learning_rate = 0: should be greater than 0 "
            "(peak rate, reached at the end of the warmup)",
        ),
        (
            "[optimizer]\nlearning_rate = nan",
            "my.toml: optimizer.learning_rate = nan: should be a finite number "
            "(peak rate, reached at the end of the warmup)",
        ),
        (
            "[optimizer]\npower = inf",
            "my.toml: optimizer.power = inf: should be a finite number "
            "(exponent of the polynomial decay; 1 is linear)",
        ),
        (
            "[optimizer]\nwarmup_ratio = 1.0",
            "my.toml: optimizer.warmup_ratio = 1.0: should be less than 1 "
            "(share of the steps used for linear warmup)",
        ),
        (
            "[data]\ndocument = 'lines'",
            "my.toml: data.document = 'lines': should be 'line', 'paragraph' or 'file' "
            "(unit of a .txt file that forms one document)",
        ),
        (
            "[masking]\nmask_replace_prob = 0.9\nrandom_replace_prob = 0.2",
            "my.toml: masking: mask_replace_prob + random_replace_prob must be at most 1: 0.9 + 0.2",
        ),
        (
            "[optimizer]\nend_learning_rate = 0.5",
            "my.toml: optimizer: end_learning_rate must be at most learning_rate: "
            "0.5 > 2e-05",
        ),
        (
            "[training]\nbatch_size = 10\naccumulate_steps = 3",
            "my.toml: training: accumulate_steps must divide batch_size: 10 / 3",
        ),
        (
            "[training]\nexample_sentences = ['a [MASK]', 'no mask']",
            "my.toml: training: each of example_sentences must contain [MASK]; 'no mask' does not",
        ),
        (
            "[data]\nisolate_documents = true\nline_by_line = true",
            "my.toml: data: isolate_documents has no effect with line_by_line, which puts one document in each "
            "sequence; omit one",
        ),
        (
            "[data]\nisolate_documents = true\n[objective]\nname = 'classification'",
            "my.toml: data.isolate_documents requires objective.name = 'masked'; omit it",
        ),
        (
            "[data]\nmixture = ['0.2 general']\n[objective]\nname = 'classification'",
            "my.toml: data.mixture requires objective.name = 'masked'; omit it",
        ),
        ("[model]\nname = ''\nn_heads = 7", "my.toml: model.n_heads must divide model.dim: 768 / 7"),
        ("[training\nepochs = 3", "--config: my.toml: not TOML: Expected ']' at the end of a table declaration "
         "(at line 1, column 10)"),
        ("[data]\n[data]", "--config: my.toml: not TOML: Cannot declare ('data',) twice (at line 2, column 6)"),
        (b"[model]\nname = '\xe9'", "--config: my.toml: byte 16 is not UTF-8; save the file as UTF-8"),
        ("a = " + "[" * 5000, "--config: my.toml: not TOML: maximum recursion depth exceeded"),
    ],
)  # fmt: skip
def test_a_file_is_refused_in_one_line_that_names_file_key_value_and_rule(
    tmp_path: Path, content: str, message: str
) -> None:
    assert refusal(tmp_path, content) == message


def test_a_number_of_thousands_of_digits_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, "[training]\nepochs = " + "9" * 5000)
    assert message.startswith("--config: my.toml: not TOML: Exceeds the limit (4300")


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            {"training.epochs": "many"},
            "--training.epochs = 'many': should be a valid integer (passes over the training sequences)",
        ),
        (
            {"training.epochs": "1.5"},
            "--training.epochs = '1.5': should be a valid integer (passes over the training sequences)",
        ),
        (
            {"training.epochs": "3\nbatch_size = 4"},
            "--training.epochs = '3\\nbatch_size = 4': should be a valid integer (passes over the training sequences)",
        ),
        (
            {"optimizer.learning_rate": "-0.5"},
            "--optimizer.learning_rate = -0.5: should be greater than 0 (peak rate, reached at the end of the warmup)",
        ),
        (
            {"data.line_by_line": "yes"},
            "--data.line_by_line = 'yes': should be a valid boolean "
            "(one document per sequence, padded, instead of packed documents)",
        ),
        (
            {"training.batch_size": "10", "training.accumulate_steps": "3"},
            "command line: training: accumulate_steps must divide batch_size: 10 / 3",
        ),
    ],
)
def test_the_command_line_is_refused_in_one_line(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused) as refused:
        load_config(None, overrides)
    assert str(refused.value) == message


@pytest.mark.parametrize("text", ["[" * 5000, "1" * 5000, "\udcff", "\x00"], ids=["nested", "digits", "byte", "nul"])
def test_malformed_text_on_the_command_line_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="^--training.epochs = .*should be a valid integer") as refused:
        load_config(None, {"training.epochs": text})
    assert str(refused.value).isprintable()


def test_an_error_in_the_file_names_the_file_if_the_command_line_sets_another_key(tmp_path: Path) -> None:
    message = refusal(tmp_path, "[data]\nsequence_length = 7", {"training.epochs": "3"})
    assert message == "my.toml: data.sequence_length = 7: should be greater than or equal to 8 (tokens in a sequence)"


def test_a_missing_file_is_refused_with_the_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused) as refused:
        load_config(Path("no.toml"))
    recipes = "finetune, imdb-10k, imdb-full, imdb, local-text, sample"
    assert str(refused.value) == f"--config: no.toml: no such file (recipes: {recipes})"
    with pytest.raises(Refused, match=rf"--config imdb-9k: no such recipe \(recipes: {recipes}\);"):
        find_recipe("imdb-9k")


def test_a_recipe_is_found_by_name_from_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe("imdb-10k") == ROOT / "configs" / "imdb-10k.toml"
    assert find_recipe("own.toml") == Path("own.toml")
    assert find_recipe("folder/own") == Path("folder/own")
    Path("sample").touch()  # a file of that name takes precedence
    assert find_recipe("sample") == Path("sample")


def test_overrides_may_be_values_and_their_names_are_checked() -> None:
    config = load_config(None, {"training.epochs": 3, "data.line_by_line": True, "model.name": ""})
    assert (config.training.epochs, config.data.line_by_line, config.model.name) == (3, True, "")
    with pytest.raises(Refused, match="unknown setting training.epoch; did you mean 'training.epochs'"):
        load_config(None, {"training.epoch": 3})
    with pytest.raises(Refused, match="--training.epochs = 1.5: "):
        load_config(None, {"training.epochs": 1.5})


@pytest.mark.parametrize(
    ("name", "known", "match"),
    [
        ("--lr", ["--plan", "--learning-rate"], "--learning-rate"),
        ("--topk", ["--json", "--top-k"], "--top-k"),
        ("--batchsize", ["--batch-size", "--seed"], "--batch-size"),
        ("--epohcs", ["--epochs", "--seed"], "--epochs"),
        ("--zz", ["--plan", "--seed"], None),
    ],
)
def test_a_setting_is_suggested_by_letters_initials_or_spelling(name: str, known: list[str], match: str | None) -> None:
    assert suggest(name, known) == match


def test_a_directory_as_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused) as refused:
        load_config(tmp_path)
    assert str(refused.value) == f"--config: {tmp_path}: cannot be read: Is a directory"


# --- any input

scalars = st.one_of(
    st.booleans(), st.integers(-(2**70), 2**70), st.floats(), some_text, st.dates(), st.sampled_from(["auto", "token"])
)
values = st.one_of(scalars, st.lists(scalars, max_size=3), st.dictionaries(some_text, scalars, max_size=2))
names = sorted({name for dotted in setting_fields() for name in dotted.split(".")})
some_name = st.one_of(st.sampled_from(names), some_text)


@st.composite
def settings_like(draw: Any) -> dict[str, Any]:
    """Mostly real sections and keys, so that values are checked."""
    result: dict[str, Any] = {}
    for dotted in draw(st.lists(st.sampled_from(list(setting_fields())), max_size=5)):
        section, key = dotted.split(".")
        result.setdefault(section, {})[key] = draw(values)
    return result | draw(st.dictionaries(some_name, values, max_size=1))


def loads_or_is_refused_in_one_line(file: Path) -> None:
    try:
        assert isinstance(load_config(file), Config)
    except Refused as refused:
        assert str(refused).isprintable() and str(refused)


@same_folder
@given(settings_like())
def test_any_toml_loads_or_is_refused_in_one_line(tmp_path: Path, content: dict[str, Any]) -> None:
    loads_or_is_refused_in_one_line(written(tmp_path, tomli_w.dumps(content)))


@same_folder
@given(st.one_of(st.binary(), some_text.map(str.encode), st.text("[]\"'=.#\n\\u0a1,{}").map(str.encode)))
def test_any_bytes_load_or_are_refused_in_one_line(tmp_path: Path, content: str) -> None:
    loads_or_is_refused_in_one_line(written(tmp_path, content))


@settings(deadline=None)
@given(st.sampled_from(list(setting_fields())), st.one_of(some_text, st.sampled_from(["1", "0.5", "1e9", "nan", "-1"])))
def test_any_text_on_the_command_line_is_accepted_or_refused_in_one_line(name: str, text: str) -> None:
    try:
        assert isinstance(load_config(None, {name: text}), Config)
    except Refused as refused:
        assert str(refused).isprintable()


# --- imports


def test_settings_and_command_line_import_neither_tensorflow_nor_hugging_face() -> None:
    heavy = ("tensorflow", "tf_keras", "keras", "transformers", "datasets", "huggingface_hub", "tokenizers", "pyarrow")
    code = (
        "import sys, tf_mlm.config, tf_mlm.commands.main\n"
        f"print(sorted({set(heavy)!r} & sys.modules.keys()), 'tf_mlm.commands.main' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert (done.stdout, done.stderr) == ("[] True\n", "")


@pytest.mark.parametrize("name, value", [("masking.mlm_probability", 0.3), ("data.line_by_line", True)])
def test_a_new_run_with_labels_refuses_settings_of_masking(name: str, value: Any) -> None:
    """An older run may have them, and is still read."""
    settings = {"objective.name": "classification", name: value}
    with pytest.raises(Refused, match=f"^{name} requires objective.name = 'masked'; omit it$"):
        check_new_run(load_config(None, settings))
    check_new_run(load_config(None, {name: value}))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"data.streaming": True}, "data.streaming requires training.num_train_steps above 0"),
        ({"training.validate_every_steps": 0}, "data.streaming requires training.validate_every_steps above 0"),
        ({"data.num_validation_sequences": 0}, "data.streaming requires data.num_validation_sequences above 0"),
        ({"data.line_by_line": True}, "data.line_by_line cannot be combined with data.streaming; omit one"),
        ({"data.mixture": ["0.1 other/"]}, "data.mixture cannot be combined with data.streaming; omit one"),
        (
            {"data.shuffle_buffer_size": 31},
            "data.shuffle_buffer_size must be at least training.batch_size: 31 < 32",
        ),
        (
            {"model.name": ""},
            "data.streaming requires model.name; to train a new vocabulary, run `tf-mlm prepare --model ''`",
        ),
        (
            {"data.streaming": False},
            "data.shuffle_buffer_size requires data.streaming = true; omit it",
        ),
    ],
)
def test_incomplete_settings_of_a_stream_are_refused_in_a_new_run(settings: dict[str, Any], message: str) -> None:
    stream = {
        "data.streaming": True,
        "data.shuffle_buffer_size": 500,
        "training.num_train_steps": 0 if settings == {"data.streaming": True} else 100,
        "training.validate_every_steps": 10,
    }
    config = load_config(None, stream | settings)  # older runs can be read
    with pytest.raises(Refused) as refused:
        check_new_run(config)
    assert str(refused.value) == message
