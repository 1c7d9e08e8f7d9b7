"""`tf-mlm serve`."""

import argparse
import ipaddress
import os
import sys
from typing import TYPE_CHECKING, Any

from tf_mlm import hub
from tf_mlm.commands.libraries import start_libraries_for
from tf_mlm.errors import Refused
from tf_mlm.inference.locate import find_model, is_saved_model

if TYPE_CHECKING:
    from tf_mlm.serving.requests import Limits
    from tf_mlm.serving.served_model import ServedModel

NAME = "serve"
DESCRIPTION = "Show a local page that fills masks, scores texts and draws curves, and answer REST requests."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="RUN", help="a run directory, a model directory, a SavedModel or a name on the Hub"
    )
    parser.add_argument(
        "other", metavar="OTHER", nargs="?", help="a model to compare with [the starting model of the run, if found]"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on [127.0.0.1, only this machine]")
    parser.add_argument("--port", type=int, default=8501, help="port to listen on; 0 chooses a free one [8501]")
    parser.add_argument(
        "--allow-host",
        metavar="NAME",
        action="append",
        default=[],
        help="also answer requests to this host name; may be repeated [the --host, localhost, 127.0.0.1, [::1]]",
    )
    parser.add_argument("--batch-texts", type=int, metavar="N", help="maximum number of texts in a batch [32]")
    parser.add_argument("--batch-tokens", type=int, metavar="N", help="maximum of estimated tokens in a batch [2048]")
    parser.add_argument(
        "--batch-wait", type=float, metavar="MS", help="longest wait for a fuller batch under load [20]"
    )
    parser.add_argument(
        "--max-waiting",
        type=int,
        metavar="N",
        help="maximum number of waiting requests; others get 429 [256]",
    )


def run(arguments: argparse.Namespace) -> None:
    try:
        from tf_mlm.serving.server import bind
    except ModuleNotFoundError as error:
        raise Refused(
            f"serve: requires the package {error.name}; install it with: pip install -c requirements.txt -e '.[serve]'"
        ) from None
    limits = _limits(arguments)
    if not 0 <= arguments.port <= 65535:
        raise Refused(f"--port {arguments.port}: must be from 0 to 65535")
    if wrong := [host for host in arguments.allow_host if "*" in host or not host]:
        raise Refused(f"--allow-host {wrong[0]!r}: must be a host name without a wildcard")
    names = [arguments.model, *([arguments.other] if arguments.other is not None else [])]
    sources = [name if is_saved_model(name) else find_model(name).model for name in names]
    with bind(arguments.host, arguments.port) as bound:
        if all(hub.is_local(source) for source in sources):
            # The default other model and the examples are shown only if they need no network.
            os.environ["HF_HUB_OFFLINE"] = "1"
        start_libraries_for(*sources)
        from tf_mlm.serving.app import build_app
        from tf_mlm.serving.server import serve
        from tf_mlm.serving.service import Service

        models, content = _load(names, limits)
        service = Service(models, limits)
        hosts = ["localhost", "127.0.0.1", "[::1]", _in_url(arguments.host), *arguments.allow_host]
        app = build_app(service, content, hosts)
        if not _is_loopback(arguments.host):
            print(
                f"warning: --host {arguments.host}: other machines can reach this server, which has no authentication; "
                "it answers requests to localhost, this address and each --allow-host NAME",
                file=sys.stderr,
            )
        print(f"serving    http://{_in_url(arguments.host)}:{bound.getsockname()[1]}/  (Ctrl-C stops)", flush=True)
        serve(app, bound, service.refuse_new)


_LONGEST_WAIT = 10_000  # a stopping server waits as long for the last batch


def _limits(arguments: argparse.Namespace) -> "Limits":
    from tf_mlm.serving.requests import Limits

    limits: dict[str, Any] = {}
    for flag, name, least in (
        ("batch_texts", "batch_texts", 1),
        ("batch_tokens", "batch_tokens", 1),
        ("batch_wait", "batch_wait", 0),
        ("max_waiting", "waiting", 1),
    ):
        value = getattr(arguments, flag)
        if value is not None:
            if not value >= least:
                raise Refused(f"--{flag.replace('_', '-')} {value}: must be at least {least}")
            if flag == "batch_wait" and value > _LONGEST_WAIT:
                raise Refused(f"--batch-wait {value}: must be at most {_LONGEST_WAIT} milliseconds")
            limits[name] = value / 1000 if flag == "batch_wait" else value
    return Limits(**limits)


def _load(names: list[str], limits: "Limits") -> "tuple[list[ServedModel], Any]":
    """The models, and what the page shows of them."""
    from tf_mlm.serving.page import PageContent, find_examples
    from tf_mlm.serving.served_model import ServedWeights, load_served, load_starting_model

    models: list[ServedModel] = []
    for name in names:
        models.append(load_served(name, limits, [model.name for model in models]))
        print(f"model      {models[-1].name}: {name}", flush=True)
    roles = {model.name: "model" for model in models}
    found = {model.name: model.loaded.found for model in models if isinstance(model, ServedWeights)}
    runs = {name: (each.run, each.config) for name, each in found.items() if each.run and each.config}
    examples: list[str] = []
    first = models[0]
    if isinstance(first, ServedWeights) and first.name in runs:
        directory, config = runs[first.name]
        examples = find_examples(first.loaded.tokenizer, directory, config)
        if len(models) == 1:
            try:
                models.append(load_starting_model(config, limits, [first.name]))
                roles = {first.name: "adapted", models[1].name: "starting"}
                print(f"model      {models[1].name}: the starting model of {first.name}", flush=True)
            except Refused as error:
                print(f"model      no starting model to compare with: {error}", flush=True)
    for model in models:
        model.warm_up()
    return models, PageContent(roles, examples, runs)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
