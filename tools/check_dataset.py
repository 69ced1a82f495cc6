#!/usr/bin/env python
"""Checks a data set in COCO format and says everything that is wrong with it.

    python tools/check_dataset.py train.json images
    python tools/check_dataset.py train.json images --config-file my.yaml --json report.json

The checks are those that tools/train_net.py makes before training, but every image is decoded and
every fault is listed. The exit status is 0 if the data set can be used as it is, 1 if something
would be refused, and 2 if there is no such file or it is not COCO JSON.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

from mrcnn_plugin import load_cfg
from mrcnn_plugin.data import register_coco_json
from mrcnn_plugin.data.checks import Usage, find_problems, judge, sentence
from mrcnn_plugin.data.checks.kinds import Level

REFUSED = (Level.ERROR, Level.JUDGEMENT)
WORDS = {
    Level.ERROR: "REFUSED",
    Level.JUDGEMENT: "REFUSED",
    Level.LEFT_OUT: "LEFT OUT",
    Level.REPAIRED: "REPAIRED",
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("json_file", metavar="JSON", help="the annotations")
    parser.add_argument("image_root", metavar="IMAGES", help="the folder of the images")
    parser.add_argument(
        "--config-file", metavar="FILE", help="check that the data set fits this config as well"
    )
    parser.add_argument(
        "--only",
        choices=("train", "test"),
        help="check it as a training set or as a test set only (default: as both)",
    )
    parser.add_argument("--fast", action="store_true", help="do not decode the images")
    parser.add_argument(
        "--examples",
        type=int,
        metavar="N",
        help="list at most N examples of each fault (default: all)",
    )
    parser.add_argument("--json", metavar="FILE", help="file for the report in JSON")
    parser.add_argument(
        "--opts", default=[], nargs=argparse.REMAINDER, help="config changes: KEY VALUE ..."
    )
    return parser.parse_args(argv)


def make_usage(args: argparse.Namespace, name: str) -> Usage:
    """How the data set is used, as far as a config says so."""
    usage = Usage(train=(), test=())
    if args.config_file:
        usage = Usage.of(load_cfg(args.config_file, args.opts))
    return dataclasses.replace(
        usage,
        train=() if args.only == "test" else (name,),
        test=() if args.only == "train" else (name,),
        check="fast" if args.fast else "full",
    )


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    name = args.json_file
    usage = make_usage(args, name)
    masks = usage.mask_on is not False
    try:
        register_coco_json(
            [(name, args.json_file, args.image_root)], masks=masks, check_on_load=False
        )
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    report: list[dict[str, Any]] = []
    for finding in find_problems(name, usage, limit=args.examples):
        level = judge(finding, usage, train=bool(usage.train), test=bool(usage.test))
        if level is None:
            continue
        report.append({**dataclasses.asdict(finding), "level": level.value})
        text = sentence(finding, refused=level is Level.JUDGEMENT, examples=False)
        print(f"{WORDS.get(level, 'NOTE')}: {text}")
        for example in filter(None, finding.examples):
            print(f"    {example}")
    refused = sum(entry["level"] in [level.value for level in REFUSED] for entry in report)
    print(
        f"{args.json_file}: {refused} kinds of faults are refused, {len(report) - refused} others found."
    )
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump(report, f, indent=1)
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
