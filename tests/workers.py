"""Starts the workers of multi-worker training on this machine, and sends a signal to one at a chosen call."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT
from tests.tiny_run import TINY

# Sends a signal to itself when FAIL_AT is reached: the function of that name, at its FAIL_CALL-th call.
_PROGRAM = """
import importlib, os, sys
from tf_mlm import runtime
from tf_mlm.commands.main import leave, train_main

prepare = runtime.prepare

def prepare_and_patch(*arguments):
    prepare(*arguments)
    module, _, name = os.environ["FAIL_AT"].partition(":")
    owner = importlib.import_module(module)
    *path, name = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), []

    def fail(*arguments, **options):
        calls.append(1)
        if len(calls) == int(os.environ["FAIL_CALL"]):
            os.kill(os.getpid(), int(os.environ["FAIL_SIGNAL"]))
        return original(*arguments, **options)

    setattr(owner, name, fail)

def prepare_and_spoil(*arguments):
    prepare(*arguments)
    import tensorflow as tf
    from tf_mlm.model.masked_lm import MaskedPositionsHead
    first, end = map(int, os.environ["BAD_STEPS"].split())
    original = MaskedPositionsHead.label_outputs

    def label_outputs(self, features, labels, training):
        losses, *others = original(self, features, labels, training)
        step = self.optimizer.iterations
        is_bad = tf.logical_and(tf.logical_and(step >= first, step < end), training)
        return losses * tf.where(is_bad, float("nan"), 1.0), *others

    MaskedPositionsHead.label_outputs = label_outputs

if "FAIL_AT" in os.environ:
    runtime.prepare = prepare_and_patch
if "BAD_STEPS" in os.environ:
    runtime.prepare = prepare_and_spoil
leave(train_main())
"""


@dataclass(frozen=True)
class Failure:
    """A signal that one worker receives.

    Attributes:
        worker: index of the worker.
        at: module:function at whose call the signal arrives.
        call: number of the call, from 1.
    """

    worker: int
    signal: int
    at: str
    call: int = 1


@dataclass(frozen=True)
class Ended:
    returncode: int
    stdout: str
    stderr: str


def train_with_workers(
    folder: Path,
    number: int,
    *flags: str,
    failure: Failure | None = None,
    bad_steps: tuple[int, int] | None = None,
    devices: int = 1,
    seconds: float = 600,
) -> list[Ended]:
    """Run `python train.py --config tiny.toml FLAGS` in `folder` in `number` processes; alone if `number` is 1.

    Args:
        bad_steps: the loss is not a number from the first of these steps, counted from 0, up to the second one.
        devices: logical devices of a process that trains alone.
    """
    folder.mkdir(exist_ok=True)
    (folder / "tiny.toml").write_text(TINY)
    addresses = _free_addresses(number)
    started = []
    for index in range(number):
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        environment.pop("TF_CONFIG", None)
        if number > 1:
            task = {"type": "worker", "index": index}
            environment["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})
        if devices > 1:
            environment["TF_MLM_LOGICAL_DEVICES"] = str(devices)
        if bad_steps:
            environment["BAD_STEPS"] = "{} {}".format(*bad_steps)
        if failure and failure.worker == index:
            environment |= {
                "FAIL_AT": failure.at,
                "FAIL_CALL": str(failure.call),
                "FAIL_SIGNAL": str(failure.signal),
            }
        command = [sys.executable, "-c", _PROGRAM, "--config", "tiny.toml", *flags]
        started.append(
            subprocess.Popen(
                command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    try:
        outputs = [process.communicate(timeout=seconds) for process in started]
    finally:
        for process in started:
            process.kill()
    return [Ended(process.returncode, *output) for process, output in zip(started, outputs, strict=True)]


def _free_addresses(number: int) -> list[str]:
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    addresses = [f"127.0.0.1:{server.getsockname()[1]}" for server in servers]
    for server in servers:
        server.close()
    return addresses
