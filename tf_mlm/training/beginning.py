"""The beginning of a run: checks the disk, records the environment and validates the model before training."""

import math
import platform
from typing import Any

from tf_mlm import runtime
from tf_mlm.data.corpus import SAMPLE
from tf_mlm.errors import Refused
from tf_mlm.hub import Source
from tf_mlm.model.matmul_peak import measure_matmul_peak
from tf_mlm.model.metrics import LOSS, metric_values
from tf_mlm.run.checkpoint import Progress
from tf_mlm.run.events import StartEvent
from tf_mlm.training.callbacks.best_model import save_best_model
from tf_mlm.training.job import Job
from tf_mlm.training.plan import disk_bytes, step_products_of

_SCHEDULE_POINTS = 200  # of the curve of the learning rate


def begin(job: Job, progress: Progress) -> None:
    """Check the disk and record the environment. Validate the model of a new run and save it as the best model.

    Raises:
        Refused: the disk is too small, or the loss before training is not finite.
    """
    is_chief = job.machine.is_chief
    if is_chief:
        job.run.check_disk(disk_bytes(job))
        job.run.write_environment(_environment(job, progress))
    if progress.metrics_bytes == 0:
        print("validating the model before training", flush=True)
        start = _start_event(job)
        if is_chief:
            save_best_model(job.model, job.tokenizer, job.run.model_path)
            if job.data.train_hashes is not None:
                job.run.write_train_hashes(job.data.train_hashes)
        job.run.append_event(start)


def _start_event(job: Job) -> StartEvent:
    config, length = job.config, job.length
    validation = metric_values(job.evaluate(), objective=config.objective.name)
    if not math.isfinite(validation[LOSS.name]):
        raise Refused(
            f"model.name = {config.model.name!r}: the loss before training is not finite, because the weights are "
            "damaged or too large; choose another model, or set training.precision = 'float32'"
        )
    peak = None
    if config.training.measure_matmul_peak:
        seconds = measure_matmul_peak(step_products_of(job), job.machine.precision.name)
        peak = round(config.training.batch_size * config.data.sequence_length / seconds, 1)
    every = max(length.num_train_steps // _SCHEDULE_POINTS, 1)
    steps = sorted({*range(0, length.num_train_steps, every), length.num_warmup_steps, length.num_train_steps - 1})
    return StartEvent(
        validation=validation,
        second_validation=job.evaluate_second(),
        second_validation_name=job.data.facts.get("second_validation", {}).get("dataset"),
        steps_per_epoch=length.steps_per_epoch,
        num_train_steps=length.num_train_steps,
        num_warmup_steps=length.num_warmup_steps,
        schedule=[(step + 1, float(job.schedule(step))) for step in steps],
        matmul_peak_tokens_per_second=peak,
        **job.objective.start_facts(config, job.data, job.model, job.tokenizer),
    )


def _environment(job: Job, progress: Progress) -> dict[str, Any]:
    machine = job.machine
    return runtime.versions() | {
        "platform": platform.platform(),
        "processor": runtime.processor()[0],
        "precision": machine.precision.name,
        "precision_reason": machine.precision.reason,
        "xla": machine.xla.mode,
        "xla_reason": machine.xla.reason,
        "num_replicas": machine.strategy.num_replicas_in_sync,
        "num_workers": machine.num_workers,
        "num_parameters": job.model.count_params(),
        "new_weights": job.newly_initialized,
        "data": job.data.facts,
        "paths": {
            "model.name": job.config.model.source.absolute_path,
            "data.dataset": job.config.data.source.absolute_path if job.config.data.dataset != SAMPLE else "",
            "data.second_validation_dataset": Source.of(job.config.data.second_validation_dataset).absolute_path,
            "data.mixture": [Source.of(dataset).absolute_path for _, dataset in job.config.data.mixture_shares],
        },
        "fingerprint": progress.fingerprint,
    }
