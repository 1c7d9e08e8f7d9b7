"""The training recipe: from settings to a run directory with a trained model."""

from collections.abc import Sequence

import tf_keras as keras

from tf_mlm import runtime
from tf_mlm.config import Config
from tf_mlm.errors import NonFiniteLoss
from tf_mlm.model.freezing import freeze
from tf_mlm.model.loading import load_model_config
from tf_mlm.model.optimizer import build_optimizer
from tf_mlm.run.directory import RunDirectory
from tf_mlm.training.beginning import begin
from tf_mlm.training.ending import export
from tf_mlm.training.fit_context import FitContext
from tf_mlm.training.job import Job
from tf_mlm.training.length import RunLength
from tf_mlm.training.objectives.table import OBJECTIVES
from tf_mlm.training.plan import describe_trial, run_trial
from tf_mlm.training.recovery import restore, roll_back
from tf_mlm.training.summary import describe
from tf_mlm.training.workers import reporting_failed_workers, wait_for_chief


def train(config: Config, run: RunDirectory, callbacks: Sequence[keras.callbacks.Callback] = ()) -> None:
    """Train with `config`, from the start or from the newest checkpoint of `run`, and write the results to `run`.

    Args:
        callbacks: additional callbacks. Checkpoints do not contain their state.

    Raises:
        Refused: the data or the model is missing or does not fit; nothing was trained.
        NonFiniteLoss: the loss was not finite, and again after rolling back to a checkpoint.
        Interrupted: a signal stopped the run after a checkpoint.
        WorkerFailed: another worker failed.
    """
    run.write_config(config)
    with reporting_failed_workers():
        job = build_job(run.locate(config), run)
        print(describe(job), flush=True)
        progress = restore(job)
        begin(job, progress)
        while True:
            try:
                with job.reporting_read_errors(), FitContext(job, progress, callbacks) as context:
                    context.finish_epoch()
                    if not context.is_complete():
                        job.model.resume_at(progress.step, job.length.steps_per_epoch)
                        job.model.fit(
                            job.train_dataset(progress),
                            validation_data=job.validation_dataset,
                            validation_steps=job.validation_steps,
                            epochs=job.length.epochs,
                            steps_per_epoch=job.length.steps_per_epoch,
                            callbacks=context.callbacks,
                            verbose=0,
                        )
                break
            except NonFiniteLoss as error:
                progress = roll_back(job, error)
        if job.machine.is_chief:
            export(job, context.progress())
        wait_for_chief(job.machine)


def build_job(config: Config, run: RunDirectory) -> Job:
    """Load the documents and the tokenizer, tokenize, build the model and compile it.

    Raises:
        Refused: the data or the model is missing or does not fit.
    """
    machine, objective = runtime.set_up(config), OBJECTIVES[config.objective.name]
    if config.model.name:
        load_model_config(config.model)  # refuses a wrong model before the data is prepared, which can take long
    documents = objective.load_documents(config)
    tokenizer = objective.load_tokenizer(config, documents)
    data = objective.prepare(config, documents, tokenizer)
    length = RunLength.of(config, len(data.train_rows))
    with machine.strategy.scope():
        model, newly_initialized = objective.load_model(config, tokenizer, data)
        freeze(model, config.model.train, newly_initialized)
        optimizer = build_optimizer(config.optimizer, length.num_train_steps, machine.precision.name)
        model.gradient_precision = config.distribution.gradient_precision
        objective.compile(model, config, optimizer, jit_compile=machine.xla.mode == "step")
    return Job(config, run, machine, tokenizer, data, model, newly_initialized, length)


def plan(config: Config, run: RunDirectory) -> None:
    """Run a few trial steps and print the estimated time and memory of `train`. Only the cache is written."""
    job = build_job(run.locate(config), run)
    print(describe(job), flush=True)
    print(describe_trial(job, run_trial(job)))
