"""`tf-mlm compare`."""

import argparse
from pathlib import Path

from tf_mlm.atomic_files import require_writable, write_atomically
from tf_mlm.errors import Refused

NAME = "compare"
DESCRIPTION = "Compare runs: settings that differ, results, and a plot of their validation losses."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUN", nargs="+", help="two or more run directories, also unfinished ones")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the curves to this png file")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> None:
    if len(arguments.runs) < 2:
        raise Refused("compare: requires at least two run directories; pass another one")
    if arguments.plot:
        require_writable(arguments.plot, "--plot")
    from tf_mlm.json_text import dump_json
    from tf_mlm.run.comparison import (
        ComparedRun,
        describe_comparison,
        differing_settings,
        plot_comparison,
        why_not_comparable,
        why_probes_not_comparable,
    )

    runs = [ComparedRun.load(name) for name in arguments.runs]
    if arguments.plot:
        write_atomically(arguments.plot, plot_comparison(runs))
    if arguments.json:
        content = {
            "runs": [each.row() for each in runs],
            "settings": differing_settings(runs),
            "not_comparable": why_not_comparable(runs),
            "probes_not_comparable": why_probes_not_comparable(runs),
        }
        print(dump_json(content))
        return
    print(describe_comparison(runs))
    if arguments.plot:
        print(f"curves in {arguments.plot}")
