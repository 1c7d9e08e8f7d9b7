"""A hash of everything that determines the numbers of a run."""

import json
from dataclasses import asdict

import xxhash

from tf_mlm.training.job import Job


def fingerprint(job: Job) -> str:
    """Hash of settings, precision, text, vocabulary and starting weights.

    Text and weights are hashed by content: the same files under another path have the same hash.
    """
    decisive = asdict(job.config)
    decisive.pop("checkpoint")
    decisive["training"].pop("log_every")
    # A run can be resumed on another number of workers.
    strategy = decisive["distribution"]["strategy"]
    gradient_precision = decisive["distribution"]["gradient_precision"]
    decisive["distribution"] = {"strategy": "auto" if strategy == "multi_worker" else strategy}
    if gradient_precision != "float32":
        decisive["distribution"]["gradient_precision"] = gradient_precision
    decisive["data"].pop("dataset")
    decisive["data"].pop("wait_minutes")
    decisive["model"].pop("name")
    # Settings that were added later are omitted at their defaults, so that older runs can be resumed.
    if job.config.objective.name == "masked":
        decisive.pop("objective")
    if job.config.model.train == "all":
        decisive["model"].pop("train")
    decisive["data"]["mixture"] = [share for share, _ in job.config.data.mixture_shares]
    if not job.config.data.mixture:
        decisive["data"].pop("mixture")
    decisive["data"].pop("second_validation_dataset")  # does not change the training
    if not job.config.data.streaming:
        decisive["data"].pop("shuffle_buffer_size")
        decisive["training"].pop("validate_every_steps")
    if not job.config.data.isolate_documents:
        decisive["data"].pop("isolate_documents")
    digest = xxhash.xxh3_128()
    digest.update(
        json.dumps([decisive, job.machine.precision.name, job.data.facts["fingerprint"]], sort_keys=True).encode()
    )
    digest.update(job.tokenizer.backend_tokenizer.to_str().encode())
    for weight in job.model.weights:
        digest.update(weight.numpy().tobytes())
    return digest.hexdigest()
