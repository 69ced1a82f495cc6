#!/usr/bin/env python
"""Checks a data set in COCO format and says everything that is wrong with it.

    python tools/check_dataset.py train.json images
    python tools/check_dataset.py train.json images --config-file my.yaml --json report.json

The checks are those that tools/train_net.py makes before training, but every image is decoded and
every fault is listed. The exit status is 0 if the data set can be used as it is, 1 if something
would be refused, and 2 if there is no such file, it is not COCO JSON, or the config cannot be used.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode

from mrcnn_plugin import load_cfg
from mrcnn_plugin.data import check_categories, check_pixel_range, register_coco_json
from mrcnn_plugin.data.checks import (
    Usage,
    check_keypoints,
    check_values,
    find_problems,
    judge,
    sentence,
)
from mrcnn_plugin.data.checks.annotations import Finding
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


def read_config(args: argparse.Namespace) -> CfgNode | None:
    """The config of --config-file, if it is given.

    Raises:
        ValueError: the config cannot be read, or has a key for data with a value that it cannot have.
    """
    if not args.config_file:
        return None
    try:
        cfg = load_cfg(args.config_file, args.opts)
    except Exception as error:
        # YAML, yacs and Detectron2 raise half a dozen types for files that are no configs. The text
        # of a KeyError has quotes, and YAML's has several lines.
        reason = error.args[0] if isinstance(error, KeyError) else error
        raise ValueError(
            f"--config-file {args.config_file} cannot be read: {' '.join(str(reason).split())}"
        ) from error
    check_values(cfg.DATASETS.CHECK, cfg.DATASETS.ALLOW)
    check_pixel_range(cfg)
    return cfg


def check_fit(cfg: CfgNode, name: str, usage: Usage) -> list[str]:
    """What keeps a registered data set from being used with a config."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (name,), ()
    faults: list[str] = []
    try:
        check_categories(cfg)
    except ValueError as error:
        faults.append(str(error))
    return faults + check_keypoints(name, usage)


def make_usage(args: argparse.Namespace, cfg: CfgNode | None, name: str) -> Usage:
    """How the data set is used, as far as a config says so."""
    usage = Usage(train=(), test=()) if cfg is None else Usage.of(cfg)
    return dataclasses.replace(
        usage,
        train=() if args.only == "test" else (name,),
        test=() if args.only == "train" else (name,),
        check="fast" if args.fast else "full",
    )


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    name = args.json_file
    try:
        cfg = read_config(args)
        usage = make_usage(args, cfg, name)
        register_coco_json(
            [(name, args.json_file, args.image_root)],
            masks=usage.mask_on is not False,
            check_on_load=False,
        )
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    report: list[dict[str, Any]] = []
    for fault in check_fit(cfg, name, usage) if cfg is not None else ():
        finding = Finding("config", 1, 1, [], hint=fault)
        report.append({**dataclasses.asdict(finding), "level": Level.ERROR.value})
        print(f"{WORDS[Level.ERROR]}: {fault}")
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
