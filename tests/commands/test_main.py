import gzip
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny_run import inside
from tf_mlm.commands import main as command_line
from tf_mlm.commands.main import main, train_main
from tf_mlm.config import Config, load_config

ROOT = Path(__file__).resolve().parents[2]
Capture = pytest.CaptureFixture[str]


def refusal(capsys: Capture, command: Callable[[list[str]], int], *arguments: str | Path) -> str:
    """The one line that refuses `arguments`; checks that the working directory is unchanged."""
    before = directory_state()
    capsys.readouterr()
    assert command([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    line, end = captured.err.split("\n")  # one line, and nothing else
    assert line.startswith("error: ") and end == ""
    assert directory_state() == before
    return line


def directory_state() -> dict[Path, int]:
    """The files and empty directories of the working directory with their modification times, except for runs/."""
    paths = (path for path in Path().rglob("*") if path != Path("runs") and path.name != ".lock")
    return {path: path.stat().st_mtime_ns for path in paths if path.is_file() or not any(path.iterdir())}


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model(finished_run: Path) -> Path:
    """A small model directory with 300 tokens and 512 positions. Read-only."""
    return finished_run / "model"


@pytest.fixture
def copied_model(model: Path) -> Path:
    return Path(shutil.copytree(model, "model"))


@pytest.fixture
def reviews() -> Path:
    """A file of 40 documents."""
    path = Path("reviews.txt")
    texts = [f"The film of {number} scenes was a delight, and so was the music.\n" for number in range(40)]
    path.write_text("".join(texts))
    return path


# Commands that do not import TensorFlow


@pytest.mark.parametrize(("code", "waits"), [(0, True), (2, True), (130, False), (143, False)])
def test_a_process_stopped_by_a_signal_exits_without_cleanup(code: int, waits: bool) -> None:
    script = f"""
import atexit
from tf_mlm.commands.main import leave
atexit.register(print, "the end of Python")
print("first line")
leave({code})
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == code
    assert result.stdout.splitlines() == ["first line", *(["the end of Python"] if waits else [])]


def test_a_closed_output_pipe_ends_the_command_silently() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command: list[str | Path] = [sys.executable, str(ROOT / "train.py"), "--print-config"]
    result = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (result.returncode, result.stderr) == (141, b"")  # as by SIGPIPE


def test_help_print_config_and_refused_settings_do_not_import_tensorflow() -> None:
    script = """
import sys
from tf_mlm.commands.main import main, train_main
try:
    train_main(["--help"])
except SystemExit as end:
    assert end.code == 0, end.code
assert train_main(["--print-config"]) == 0
assert train_main(["--training.epochs", "0"]) == 2
assert train_main(["--epoch", "3"]) == 2
assert main(["evaluate", "somewhere/else"]) == 2
assert not {"tensorflow", "transformers", "datasets"} & sys.modules.keys()
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    refused = result.stderr.splitlines()
    assert len(refused) == 3 and all(line.startswith("error: ") for line in refused)
    for flag in ("--config", "--resume", "--print-config", "--optimizer.num_warmup_steps", "--checkpoint.keep"):
        assert flag in result.stdout


def test_printed_settings_load_back_with_the_values_of_the_flags(capsys: Capture) -> None:
    flags = [
        "--epochs",
        "7",
        "--masking.mlm_probability",
        "0.3",
        "--dataset",
        "my-texts/",
        "--model",
        "",
    ]
    assert train_main([*flags, "--print-config"]) == 0
    Path("printed.toml").write_text(capsys.readouterr().out)
    config = load_config(Path("printed.toml"))
    assert (config.training.epochs, config.masking.mlm_probability) == (7, 0.3)
    assert (config.data.dataset, config.model.name) == ("my-texts/", "")
    assert config.optimizer == Config().optimizer


def test_flags_override_the_file_and_the_file_overrides_defaults(capsys: Capture) -> None:
    Path("some.toml").write_text("[training]\nepochs = 5\nbatch_size = 24\n")
    assert train_main(["--config", "some.toml", "--epochs", "6", "--print-config"]) == 0
    Path("printed.toml").write_text(capsys.readouterr().out)
    training = load_config(Path("printed.toml")).training
    assert (training.epochs, training.batch_size, training.seed) == (6, 24, 42)


def test_a_boolean_flag_takes_an_optional_value(capsys: Capture) -> None:
    assert train_main(["--data.line_by_line", "--print-config"]) == 0
    assert "line_by_line = true" in capsys.readouterr().out
    assert train_main(["--data.line_by_line", "false", "--print-config"]) == 0
    assert "line_by_line = false" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epcohs", "3"], ["--epcohs", "did you mean '--epochs'"]),
        (["--learning_rate", "0.1"], ["--learning_rate", "did you mean '--learning-rate'"]),
        (["--training.batchsize=3"], ["unknown flag --training.batchsize;", "did you mean '--training.batch_size'?"]),
        (["--lr", "3"], ["unknown flag --lr;", "did you mean '--learning-rate'?"]),
        (["--epoch", "3"], ["unknown flag --epoch;", "'--epochs'"]),  # no abbreviation is taken for the whole
        (["--zzzzzzzz"], ["unknown flag --zzzzzzzz; see --help"]),
        (["--epochs"], ["--epochs", "expected one argument"]),
        (["--epochs", "many"], ["--training.epochs", "'many'"]),
        (["epochs=3"], ["epochs=3"]),
        (["--resume", "RUN", "--output-dir", "OTHER"], ["--resume RUN and --output-dir"]),
        (["--config", "two\nlines.toml"], ["no such file"]),
    ],
)
def test_an_unknown_flag_is_refused_with_the_nearest_flag(
    capsys: Capture, arguments: list[str], words: list[str]
) -> None:
    line = refusal(capsys, train_main, *arguments)
    for word in words:
        assert word in line


def test_an_unknown_command_is_refused_with_the_list_of_commands(capsys: Capture) -> None:
    line = refusal(capsys, main, "evaluat", "RUN")
    assert "evaluat" in line and "fill-mask" in line and "export" in line
    assert "--datset" in refusal(capsys, main, "evaluate", "RUN", "--datset", "x")
    assert "COMMAND" in refusal(capsys, main)


# Data


def test_data_that_cannot_be_trained_on_is_refused(capsys: Capture, model: Path, reviews: Path) -> None:
    def refused_data(dataset: str | Path, *flags: str) -> str:
        return refusal(capsys, train_main, "--model", model, "--dataset", dataset, *flags)

    assert "no/such/folder" in refused_data("no/such/folder")

    Path("nothing.txt").write_text("")
    assert "nothing.txt" in refused_data("nothing.txt")
    Path("blank.csv").write_text('text,label\n"  ",1\n"",0\n" ",1\n" ",1\n')
    assert "no text" in refused_data("blank.csv")
    Path("signs.txt").write_text("\n".join(map(chr, range(0x4E00, 0x4E28))))  # each [UNK] to this vocabulary
    assert "no ordinary token" in refused_data("signs.txt")

    Path("table.csv").write_text("title,rating\nJaws,8\nHeat,9\n")
    line = refused_data("table.csv", "--data.text_column", "body")
    assert "body" in line and "title" in line
    line = refused_data("table.csv", "--data.text_column", "rating")
    assert "rating" in line
    Path("broken.csv").write_text('text,label\nfine,1\n"open to the end,2\n')
    line = refused_data("broken.csv")
    assert "broken.csv" in line and "3" in line
    Path("broken.jsonl").write_text('{"text": "fine"}\n{"text": "fine"}\n{"text": \n')
    line = refused_data("broken.jsonl")
    assert "broken.jsonl" in line and "3" in line

    Path("latin.txt").write_bytes(b"plain\ncaf\xe9\n")
    line = refused_data("latin.txt")
    assert "latin.txt" in line and "9" in line and "UTF-8" in line
    Path("latin.txt.gz").write_bytes(gzip.compress(b"plain\ncaf\xe9\n"))
    assert "9 after decompression" in refused_data("latin.txt.gz")

    assert "'unsupervised'" in refused_data(reviews, "--data.train_split", "unsupervised")
    Path("one.txt").write_text("A single document.\n")
    assert "has only 1 document" in refused_data("one.txt")


def test_impossible_durations_and_lengths_are_refused_with_both_numbers(
    capsys: Capture, model: Path, reviews: Path
) -> None:
    flags: list[str | Path] = [
        "--model",
        model,
        "--dataset",
        reviews,
        "--batch-size",
        "8",
        "--data.sequence_length",
        "16",
    ]
    line = refusal(capsys, train_main, *flags, "--training.num_train_steps", "5", "--optimizer.num_warmup_steps", "5")
    assert "num_warmup_steps = 5" in line and "5 steps" in line
    line = refusal(capsys, train_main, *flags[:-1], "513")
    assert "513" in line and "512" in line


# Models


def test_a_model_that_cannot_be_trained_is_refused(
    capsys: Capture, copied_model: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused_model() -> str:
        return refusal(capsys, train_main, "--model", copied_model, "--dataset", reviews)

    config = json.loads((copied_model / "config.json").read_text())
    (copied_model / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    assert "gpt2" in refused_model() and "distilbert" in refused_model()
    (copied_model / "config.json").write_text(json.dumps(config | {"vocab_size": 200}))
    assert "300" in refused_model() and "200" in refused_model()
    (copied_model / "config.json").write_text(json.dumps(config))

    weights = (copied_model / "model.safetensors").read_bytes()
    (copied_model / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "cannot be loaded" in refused_model()
    (copied_model / "model.safetensors").unlink()
    assert "model.safetensors" in refused_model()
    (copied_model / "pytorch_model.bin").write_bytes(b"")
    assert "pickle" in refused_model()

    (copied_model / "config.json").unlink()
    assert "config.json" in refused_model()


def test_a_tokenizer_without_a_mask_is_refused(capsys: Capture, copied_model: Path, reviews: Path) -> None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        settings = json.loads((copied_model / name).read_text())
        settings.pop("mask_token")
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # DistilBERT's own would put [MASK] back
        (copied_model / name).write_text(json.dumps(settings))
    assert "no mask token" in refusal(capsys, train_main, "--model", copied_model, "--dataset", reviews)


def test_a_hub_name_is_refused_offline_and_never_replaced(capsys: Capture, model: Path, reviews: Path) -> None:
    cases: list[tuple[list[str | Path], str]] = [
        (["--model", "someone/model", "--dataset", reviews], "model.name = 'someone/model'"),
        (["--model", model, "--dataset", "someone/texts"], "data.dataset = 'someone/texts'"),
        (["--config", ROOT / "configs" / "imdb.toml"], "model.name = 'distilbert-base-uncased'"),
    ]
    for arguments, asked in cases:
        line = refusal(capsys, train_main, *arguments)
        assert asked in line and "no connection" in line
        for option in ("connect once", "local directory", "configs/sample.toml"):
            assert option in line


def test_out_of_memory_is_one_line_with_a_solution(capsys: Capture) -> None:
    def run_out(arguments: list[str]) -> None:
        raise MemoryError

    assert command_line._run(run_out, []) == 2
    line = "error: out of memory; lower training.batch_size, or raise training.accumulate_steps\n"
    assert capsys.readouterr().err == line


# The run directory


def test_an_output_dir_in_use_is_refused_and_unchanged(capsys: Capture, finished_run: Path) -> None:
    taken = Path(shutil.copytree(finished_run, "TAKEN"))
    flags: list[str | Path] = ["--config", finished_run.parent / "tiny.toml", "--output-dir"]
    assert "contains a finished run; choose a new directory" in refusal(capsys, train_main, *flags, taken)
    metrics = (taken / "metrics.jsonl").read_text()
    (taken / "metrics.jsonl").write_text(metrics[: metrics.rindex('{"event": "end"')])
    assert "unfinished run; continue it with --resume" in refusal(capsys, train_main, *flags, taken)
    Path("full").mkdir()
    Path("full/thesis.txt").write_text("mine")
    assert "thesis.txt" in refusal(capsys, train_main, *flags, "full")
    assert Path("full/thesis.txt").read_text() == "mine"
    assert "is a file" in refusal(capsys, train_main, *flags, "full/thesis.txt")
    assert "cannot be written" in refusal(capsys, train_main, *flags, "full/thesis.txt/run")


def test_resume_needs_an_unfinished_run(capsys: Capture, finished_run: Path) -> None:
    assert "no resumable run in runs/" in refusal(capsys, train_main, "--resume")
    assert "config.toml" in refusal(capsys, train_main, "--resume", "nowhere")
    with inside(finished_run.parent):
        assert train_main(["--resume", "RUN"]) == 0
        assert "finished run" in capsys.readouterr().out
        assert train_main(["--resume", "RUN", "--seed", "8"]) == 2
        assert "training.seed = 8, but the run has 7" in capsys.readouterr().err
        assert train_main(["--resume", "RUN", "--epochs", "9"]) == 2
        assert (
            "training.epochs = 9, but the run has 3; omit the setting, or to continue from its weights, start a new "
            "run with --model RUN/model (" in capsys.readouterr().err
        )


# The bare default offline


def test_the_bare_default_offline_uses_the_sample_with_a_banner_before_and_after(
    capsys: Capture, tensorflow: None
) -> None:
    assert train_main(["--epochs", "4", "--plan"]) == 0
    out = capsys.readouterr().out
    banner = "THE HUB CANNOT BE REACHED. THIS RUN USES THE SAMPLE"
    before, between, after = out.split(banner)
    assert before.strip("=\n") == "" and "4 epochs" in between
    assert "tokens/s in 5 trial steps" in between and "validation; without the export" in between
    assert "model.name = 'distilbert-base-uncased'" in after
    assert not Path("runs").exists()


def test_a_refusal_after_tensorflow_was_imported_leaves_one_line_on_stderr() -> None:
    """A separate process, because TensorFlow writes to file descriptor 2. --batch-size excludes the sample."""
    command: list[str | Path] = [sys.executable, ROOT / "train.py", "--batch-size", "16"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    line, end = result.stderr.split("\n")
    assert line.startswith("error: model.name = 'distilbert-base-uncased': no connection") and end == ""
    assert result.stdout == ""
    assert not list(Path("runs").glob("*"))


@pytest.mark.slow
def test_the_bare_default_offline_trains_the_sample_and_resumes_it() -> None:
    command: list[str | Path] = [sys.executable, ROOT / "train.py", "--epochs", "1", "--output-dir", "RUN", "--resume"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("THE HUB CANNOT BE REACHED") == 2
    assert all(line.startswith(("step ", "epoch ")) for line in result.stderr.splitlines())
    assert load_config(Path("RUN/config.toml")).data.dataset == "sample"
    again = subprocess.run(command, capture_output=True, text=True)
    assert (again.returncode, again.stderr) == (0, "")
    assert "finished run" in again.stdout


@pytest.mark.slow
def test_the_bare_default_offline_names_the_run_sample() -> None:
    environment = os.environ | {"TF_NUM_INTRAOP_THREADS": "2"}
    command: list[str | Path] = [sys.executable, ROOT / "train.py", "--epochs", "1"]
    assert subprocess.run(command, env=environment).returncode == 0
    (run,) = Path("runs").iterdir()
    assert run.name.startswith("sample-")
    assert Path(f"plots/{run.name}.png").exists()


# Using a model


def test_a_model_that_cannot_be_used_is_refused(capsys: Capture, model: Path) -> None:
    assert "no/model" in refusal(capsys, main, "fill-mask", "no/model", "A [MASK].")
    assert "RUN_OR_MODEL is empty" in refusal(capsys, main, "fill-mask", "", "A [MASK].")
    assert "no connection" in refusal(capsys, main, "fill-mask", "someone/model", "A [MASK].")
    Path("started").mkdir()
    Path("started/config.toml").write_text("")
    assert "no model yet" in refusal(capsys, main, "fill-mask", "started", "A [MASK].")
    assert "no model yet" in refusal(capsys, main, "evaluate", "started")
    assert "no model yet" in refusal(capsys, main, "export", "started", "--output", "exported")


@pytest.mark.parametrize("kind", ["model", "saved_model"])
def test_fill_mask_refuses_text_without_a_mask_or_too_long(capsys: Capture, finished_run: Path, kind: str) -> None:
    model = finished_run / kind
    for sentence in ("There is nothing to fill in.", ""):
        assert f"{sentence!r} has no [MASK]" in refusal(capsys, main, "fill-mask", model, sentence)
    line = refusal(capsys, main, "fill-mask", model, "a " * 510 + "[MASK]")  # with [CLS] and [SEP]
    assert "more tokens than the model has positions" in line or "513 tokens, and the model has 512 positions" in line
    assert "--top-k 0" in refusal(capsys, main, "fill-mask", model, "A [MASK].", "--top-k", "0")
    assert main(["fill-mask", str(model), "A [MASK].", "--top-k", str(10**12)]) == 0


def test_fill_mask_reports_missing_arguments(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no model given; pass a run directory" in refusal(capsys, main, "fill-mask")
    assert "expected 2 arguments" in refusal(capsys, main, "fill-mask", "--compare", "A")
    assert "unknown flag --topk; did you mean '--top-k'?" in refusal(
        capsys, main, "fill-mask", "A", "--topk", "3", "A [MASK]."
    )
    Path("model").mkdir()
    for content, words in [(b"", "contains no sentence"), (b" \n\n", "contains no sentence"), (b"a\xff", "at byte 1")]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert words in refusal(capsys, main, "fill-mask", "model")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert "pass one after the model, or pipe sentences in" in refusal(capsys, main, "fill-mask", "model")


def test_an_argument_that_is_not_utf_8_is_refused(capsys: Capture, finished_run: Path) -> None:
    for kind in ("model", "saved_model"):
        line = refusal(capsys, main, "fill-mask", finished_run / kind, os.fsdecode(b"caf\xe9 [MASK]"))
        assert "is not UTF-8" in line


def test_a_saved_model_without_strings_or_a_damaged_one_is_refused(capsys: Capture, tensorflow: None) -> None:
    import tensorflow as tf

    module = tf.Module()
    signature = tf.function(lambda x: {"y": x}, input_signature=[tf.TensorSpec([None])], autograph=False)
    tf.saved_model.save(module, "foreign", signatures={"serving_default": signature})
    capsys.readouterr()
    line = refusal(capsys, main, "fill-mask", "foreign", "A [MASK].")
    assert "takes no strings (it has no signature fill_mask, only serving_default)" in line
    Path("damaged").mkdir()
    Path("damaged/saved_model.pb").write_bytes(b"no protocol buffer")
    assert "this SavedModel cannot be loaded" in refusal(capsys, main, "fill-mask", "damaged", "A [MASK].")
    assert "which only fill-mask can load" in refusal(capsys, main, "evaluate", "foreign")
    assert "which only fill-mask can load" in refusal(capsys, main, "export", "foreign", "--output", "exported")


def test_evaluate_requires_a_dataset_for_a_model_without_a_run(capsys: Capture, model: Path) -> None:
    assert "--dataset" in refusal(capsys, main, "evaluate", model)
    assert "nowhere/at-all.txt" in refusal(capsys, main, "evaluate", model, "--dataset", "nowhere/at-all.txt")


def test_export_never_overwrites(capsys: Capture, model: Path) -> None:
    Path("exported").mkdir()
    Path("exported/kept.txt").write_text("mine")
    assert "already exists" in refusal(capsys, main, "export", model, "--output", "exported")
    assert Path("exported/kept.txt").read_text() == "mine"
