"""Sets up TensorFlow: environment variables before it is imported, then precision, XLA and devices.

Call `prepare` before importing any module that imports TensorFlow.
"""

import atexit
import contextlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tf_mlm import __version__
from tf_mlm.config import Config, TrainingConfig
from tf_mlm.errors import Refused

# XLA compiles only element-wise operations, because oneDNN computes matrix products faster.
_ELEMENT_WISE_CLUSTERS = "--tf_xla_auto_jit=2 --tf_xla_cpu_global_jit --tf_xla_ops_to_cluster=FUSIBLE"

_BFLOAT16_UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}


class Precision(NamedTuple):
    name: str
    reason: str

    @property
    def policy(self) -> str:
        """Name of the Keras policy: variables are float32, matrix products and activations use `name`."""
        return self.name if self.name == "float32" else f"mixed_{self.name}"


def prepare(training: TrainingConfig, verbose: bool = False, connect: Callable[[], None] | None = None) -> None:
    """Set the environment and import TensorFlow, Keras 2 and transformers without their log output.

    Importing TensorFlow prints several lines at any log level. They are shown only if the import fails or `verbose` is
    true.

    Args:
        connect: connects the workers of multi-worker training; called before the first operation.
    """
    with importing_tensorflow(training, verbose):
        import tensorflow as tf
        import tf_keras  # noqa: F401
        import transformers

        if connect:
            connect()
        if number := int(os.environ.get("TF_MLM_LOGICAL_DEVICES", 0)):  # for tests of several devices
            cpu = tf.config.list_physical_devices("CPU")[0]
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * number)
        tf.zeros(1)  # the first operation initializes the devices and logs them
    if not verbose:
        tf.get_logger().setLevel("ERROR")
        transformers.logging.set_verbosity_error()


@contextlib.contextmanager
def importing_tensorflow(training: TrainingConfig, verbose: bool = False) -> Iterator[None]:
    """Set the environment for TensorFlow and the Hugging Face libraries. Import them in the block.

    See `prepare` for their log output.
    """
    set_environment(verbose)
    flags = os.environ.get("TF_XLA_FLAGS", "")
    if training.xla != "off" and not has_nvidia_gpu() and _ELEMENT_WISE_CLUSTERS not in flags:
        os.environ["TF_XLA_FLAGS"] = f"{flags} {_ELEMENT_WISE_CLUSTERS}".strip()
    with contextlib.nullcontext() if verbose else captured_stderr():
        yield


def set_environment(verbose: bool = False) -> None:
    """Set the environment for the Hugging Face libraries and TensorFlow, before one of them is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if verbose else "3")
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # transformers' TF models are Keras 2 models
    os.environ.setdefault("USE_TORCH", "0")  # an installed PyTorch is not imported
    os.environ.setdefault("USE_JAX", "0")
    if not verbose:
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # an error is reported once, by the command line
        os.environ.setdefault("DATASETS_VERBOSITY", "error")
    require_writable_cache()
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def require_writable_cache() -> None:
    """Use a temporary directory as the cache of datasets if the default one is not writable.

    Models are still loaded from a read-only Hub cache.
    """
    caches = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = Path(os.environ.get("HF_HOME", f"{caches}/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_DATASETS_CACHE", home / "datasets")).expanduser()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            pass
    except OSError:
        folder = tempfile.mkdtemp(prefix="tf_mlm-cache-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["HF_DATASETS_CACHE"] = folder
        os.environ.setdefault("MPLCONFIGDIR", folder)  # otherwise matplotlib creates one too, with a long warning


@contextlib.contextmanager
def captured_stderr() -> Iterator[None]:
    """Capture what C++ and Python write to file descriptor 2, and show it only if the block raises."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except Refused:
            raise  # its message says enough
        except BaseException:
            sys.stderr.flush()
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


def has_nvidia_gpu() -> bool:
    """Whether the machine has an NVIDIA GPU that this process may use; needs no TensorFlow."""
    return Path("/proc/driver/nvidia/version").exists() and os.environ.get("CUDA_VISIBLE_DEVICES", "0") not in (
        "",
        "-1",
    )


def processor() -> tuple[str, set[str]]:
    """Name of the processor and its feature flags; no flags on systems that do not list them (macOS, Windows)."""
    with contextlib.suppress(OSError):
        lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
        facts = {key.strip(): value.strip() for key, _, value in reversed(lines)}
        return facts.get("model name", platform.processor()), set(facts.get("flags", "").split())
    return platform.processor() or platform.machine(), set()


def choose_precision(requested: str) -> Precision:
    """The precision to compute in: as requested, or with "auto" bfloat16 if the hardware supports it."""
    if requested != "auto":
        return Precision(requested, "set in the config")
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        capability = details.get("compute_capability", (0, 0))
        name = details.get("device_name", "the GPU")
        if capability >= (8, 0):
            return Precision("bfloat16", f"{name} supports it (compute capability {capability[0]}.{capability[1]})")
        return Precision("float32", f"{name} does not support bfloat16")
    name, flags = processor()
    for flag, unit in _BFLOAT16_UNITS.items():
        if flag in flags:
            return Precision("bfloat16", f"the processor ({name}) has {unit}")
    return Precision("float32", f"the processor ({name}) does not support bfloat16")


class XLA(NamedTuple):
    """How XLA is used: "step" (`jit_compile` of the whole step), "clusters" (element-wise operations), or "off"."""

    mode: str
    reason: str

    def __str__(self) -> str:
        return f"{self.mode} ({self.reason})"


def choose_xla(requested: str) -> XLA:
    """How TensorFlow actually uses XLA in this process, which can differ from the environment variables."""
    import tensorflow as tf

    if requested == "off":
        return XLA("off", "set in the config")
    if tf.config.list_physical_devices("GPU"):
        return XLA("step", "the whole step on GPU")
    if clusters_element_wise_ops():
        return XLA("clusters", "element-wise operations on CPU")
    return XLA("off", "TensorFlow was initialized before; train in a new process for about 1.2 times the speed")


def clusters_element_wise_ops() -> bool:
    """Whether TensorFlow compiles element-wise operations with XLA: runs a few and inspects the executed graph.

    TensorFlow reads `TF_XLA_FLAGS` once, at the first operation of the process.
    """
    import tensorflow as tf
    from tensorflow.python.eager import context  # the graph after all optimizations is not in the public API

    @tf.function(autograph=False)
    def compute(values: Any) -> Any:
        for _ in range(8):  # XLA does not compile clusters of very few operations
            values = tf.tanh(1.5 * values + 1.0)
        return values

    context.enable_run_metadata()
    try:
        compute(tf.ones([16]))
        graphs = context.export_run_metadata().partition_graphs
    finally:
        context.disable_run_metadata()
    return any(node.op == "_XlaRun" for graph in graphs for node in graph.node)


@dataclass(frozen=True)
class Workers:
    """The connected workers of multi-worker training.

    Attributes:
        strategy: the `tf.distribute` strategy.
        number: number of workers.
        index: index of this worker; worker 0 is the chief.
    """

    strategy: Any
    number: int
    index: int


_workers: Workers | None = None  # TensorFlow can connect a process only once


def use_workers(strategy: Any, number: int, index: int) -> None:
    """Train with these workers from now on."""
    global _workers
    _workers = Workers(strategy, number, index)


def connected_workers() -> Workers | None:
    """The workers that this process is connected to; None if it trains alone."""
    return _workers


def choose_strategy(requested: str) -> Any:
    """The `tf.distribute` strategy.

    It covers all workers if they are connected. Otherwise it is the default one, or a mirrored one over all GPUs (all
    logical CPUs if none).
    """
    import tensorflow as tf

    if _workers and requested in ("auto", "multi_worker"):
        return _workers.strategy

    gpus = tf.config.list_logical_devices("GPU")
    if requested == "mirrored" or (requested == "auto" and len(gpus) > 1):
        devices = gpus or tf.config.list_logical_devices("CPU")
        if len(devices) < 2:
            raise Refused(
                f"distribution.strategy = 'mirrored': requires two devices, and this machine has {len(devices)}; "
                "set it to 'none'"
            )
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a run depends on."""
    from importlib.metadata import version

    packages = ("tensorflow", "tf_keras", "transformers", "datasets", "tokenizers", "safetensors", "numpy")
    return {"tf_mlm": __version__, "python": platform.python_version()} | {
        package: version(package) for package in packages
    }


class Machine(NamedTuple):
    """Precision, XLA mode, devices and workers of a training.

    Attributes:
        strategy: the `tf.distribute` strategy.
        num_workers: number of processes that train together.
        worker: index of this process; worker 0 is the chief, which writes the run directory.
    """

    precision: Precision
    xla: XLA
    strategy: Any
    num_workers: int = 1
    worker: int = 0

    @property
    def is_chief(self) -> bool:
        return self.worker == 0


def set_up(config: Config) -> Machine:
    """Choose precision, XLA and devices, and set Keras' precision policy and seeds: before a model is built.

    Raises:
        Refused: the devices do not exist, or the batch cannot be divided among them.
    """
    import tf_keras as keras

    training = config.training
    precision = choose_precision(training.precision)
    keras.mixed_precision.set_global_policy(precision.policy)  # applies only to models built later
    keras.utils.set_random_seed(training.seed)
    strategy = choose_strategy(config.distribution.strategy)
    parts = training.accumulate_steps * strategy.num_replicas_in_sync
    if training.batch_size % parts:
        raise Refused(
            f"training.batch_size = {training.batch_size}: must be a multiple of {parts} (training.accumulate_steps x "
            f"{strategy.num_replicas_in_sync} devices)"
        )
    workers = _workers if _workers and _workers.strategy is strategy else Workers(strategy, 1, 0)
    return Machine(precision, choose_xla(training.xla), strategy, workers.number, workers.index)
