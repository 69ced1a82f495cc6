"""Trains and compares configs with several seeds.

    python -m ablations run --config 'nuclei/*' my.yaml --seeds 1 2 3 --jobs 2
    python -m ablations table --config 'nuclei/*' my.yaml
    python -m ablations overview --results ablations/results/ablations.jsonl
    python -m ablations power --results ablations/results/ablations.jsonl --config 'shapes_scales/*' --pairs 5 10
    python -m ablations losses --config 'shapes_scales/softmax_focal*' --seeds 1 --opts SOLVER.MAX_ITER 300
    python -m ablations report

`run` trains each cell, a config with a seed, as tools/train_net.py does, and adds a line to the
results. It may be killed and started again: a cell with a line is not run again, and one that was
interrupted goes on from its last checkpoint. `table` prints a Markdown table of the cells that have
a line. `overview` prints one table of all variants and data sets. `power` prints how wide the
interval of a number of seeds would be, as known pairs scatter. `losses` trains cells without an
evaluation and records what each loss weighs, and `shares` prints a table of these records. `report`
makes the tables and plots of this study's pages again.

A config is a name of ablations/cells.py, a pattern of such names, or a YAML file. A file is compared
with its _BASE_ if that lies in the same folder and is not called Base-*.yaml, as Detectron2 calls
what is not a model yet. The config that it is compared with is run and shown too.
"""

import argparse
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from . import cells

FOLDER = Path(__file__).resolve().parent
PAGES = (FOLDER / "README.md", FOLDER / "report.md")
RESULTS = "output/ablations/results.jsonl"
LOSS_SHARES = "output/ablations/loss_shares.jsonl"


def parse(argv: Sequence[str] | None = None) -> Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ablations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train cells", allow_abbrev=False)
    table = commands.add_parser("table", help="print a table of cells", allow_abbrev=False)
    overview = commands.add_parser(
        "overview", help="print one table of all variants and data sets", allow_abbrev=False
    )
    power = commands.add_parser(
        "power",
        help="print how wide the interval of a number of pairs would be",
        allow_abbrev=False,
    )
    losses = commands.add_parser(
        "losses", help="record what each loss weighs in trainings", allow_abbrev=False
    )
    shares = commands.add_parser(
        "shares", help="print a table of what `losses` recorded", allow_abbrev=False
    )
    commands.add_parser("report", help="make the pages of this study again")

    for command in (run, table, power, losses, shares):
        command.add_argument("--config", nargs="+", required=True, metavar="NAME_OR_FILE")
    overview.add_argument("--config", nargs="+", default=["*"], metavar="NAME")
    for command in (run, table, overview, power, losses, shares):
        command.add_argument(
            "--results",
            default=LOSS_SHARES if command in (losses, shares) else RESULTS,
            metavar="FILE",
            help="a JSON line for each cell; default: %(default)s",
        )
        command.add_argument(
            "--opts",
            nargs=argparse.REMAINDER,
            default=[],
            metavar="KEY VALUE",
            help="config changes of all cells; what follows --opts belongs to it",
        )
    both = ["bbox/AP", "segm/AP"]
    for command, metrics in ((table, both), (overview, ["bbox/AP"]), (power, both)):
        command.add_argument(
            "--metrics",
            nargs="+",
            default=metrics,
            metavar="NAME",
            help=f"of the evaluation, or a cost of a result's line; default: {' '.join(metrics)}",
        )
    power.add_argument(
        "--pairs", nargs="+", type=int, default=[3, 5, 10], metavar="N", help="default: 3 5 10"
    )
    table.add_argument(
        "--against",
        default="",
        metavar="VARIANT",
        help="compare with this variant of the same base, in place of what ablations/cells.py says",
    )
    table.add_argument(
        "--plots", metavar="PREFIX", help="draw PREFIX_ap.png and PREFIX_curves.png too"
    )
    for command, folder in ((run, "output/ablations"), (losses, "output/ablations/losses")):
        command.add_argument("--seeds", nargs="+", type=int, required=True, metavar="N")
        command.add_argument(
            "--output-dir",
            default=folder,
            metavar="FOLDER",
            help="for the trainings; default: %(default)s",
        )
    losses.add_argument(
        "--every", type=int, default=20, metavar="N", help="iterations; default: %(default)s"
    )
    run.add_argument("--jobs", type=int, default=1, metavar="N", help="cells at a time; default: 1")
    run.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="of each cell; default: the cores of this machine divided by the jobs",
    )
    run.add_argument(
        "--ema",
        type=float,
        metavar="DECAY",
        help="evaluate the exponential moving average of the weights too, as metrics ema/...",
    )
    run.add_argument("--only-this-cell", action="store_true", help=argparse.SUPPRESS)

    args = parser.parse_args(argv)
    if args.command != "report":
        check(args, parser)
    return args


def check(args: Namespace, parser: argparse.ArgumentParser) -> None:
    """Ends the program with a message where arguments cannot be."""
    try:
        chosen = cells.choose(args.config)
    except ValueError as error:
        parser.error(str(error))
    if args.command == "table" and args.against:
        for config in chosen:
            base = "" if cells.is_file(config) else config.split("/")[0]
            if args.against not in cells.BASES.get(base, {}):
                parser.error(
                    f"--against names {args.against}, which is no variant of the base of {config}"
                )
    if args.command == "overview" and any(map(cells.is_file, args.config)):
        parser.error(
            "--config names a file; the overview has the configs of ablations/cells.py only"
        )
    if any(word.startswith("--") for word in args.opts):
        parser.error(f"--opts has {args.opts}; it must come last")
    if len(args.opts) % 2:
        parser.error(f"--opts has {args.opts}; say a value for each key")
    if args.command not in ("run", "losses"):
        if not os.path.isfile(args.results):
            parser.error(f"--results names {args.results}, which is no file")
        if args.command == "power" and min(args.pairs) < 2:
            parser.error(f"--pairs has {min(args.pairs)}; an interval needs at least 2")
        return
    for key, option in (("SEED", "--seeds"), ("OUTPUT_DIR", "--output-dir")):
        if key in args.opts[::2]:
            parser.error(f"--opts has {key}; say it by {option}")
    if any(seed < 0 for seed in args.seeds):
        parser.error(f"--seeds has {min(args.seeds)}; seeds must be at least 0")
    if args.command == "run" and args.threads is None:
        args.threads = max(1, (os.cpu_count() or 1) // max(1, args.jobs))
    if args.command == "run" and args.ema is not None:
        if not 0 <= args.ema < 1:
            parser.error(f"--ema is {args.ema}; it must be at least 0 and below 1")
        # A training that was begun without the average, or with another one, cannot be resumed.
        if not args.only_this_cell:
            args.output_dir = os.path.join(args.output_dir, f"ema{args.ema:g}")
    for name in ("jobs", "threads") if args.command == "run" else ("every",):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}; it must be at least 1")


def printed_by(args: Namespace) -> str:
    """What a command without side effects on results prints: `table`, `overview`, `power` or `shares`."""
    from . import loss_shares, report

    return {
        "table": report.print_table,
        "overview": report.print_overview,
        "power": report.print_power,
        "shares": loss_shares.print_shares,
    }[args.command](args)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    if args.command == "run":
        # A training does not wait for the imports of the plots, nor a table for those of a training.
        from .run import run_all, run_alone

        # Trainings that are under way are ended in order, as by ^C.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        if args.only_this_cell:
            run_alone(cells.Cell(args.config[0], tuple(args.opts), args.seeds[0]), args)
        else:
            run_all(cells.all_cells(args.config, args.opts, args.seeds), args)
        return
    if args.command == "losses":
        from .loss_shares import record_all

        record_all(cells.all_cells(args.config, args.opts, args.seeds), args)
        return
    from . import report

    if args.command == "report":
        # The commands of the pages name files from the root of the repository.
        os.chdir(FOLDER.parent)
        for page in PAGES:
            report.write_page(page, lambda argv: printed_by(parse(argv)))
    else:
        print(printed_by(args))


if __name__ == "__main__":
    main()
