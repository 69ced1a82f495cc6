#!/usr/bin/env python
"""Checks a data set in COCO format and says everything that is wrong with it.

    python tools/check_dataset.py train.json images
    python tools/check_dataset.py train.json images --config-file my.yaml --json report.json
    python tools/check_dataset.py train.json images --pictures output/pictures
    python tools/check_dataset.py train.json images --val val.json images --write-config my.yaml

The checks are those that tools/train_net.py makes before training, but every image is decoded and
every fault is listed. The exit status is 0 if the data set can be used as it is, 1 if something
would be refused, and 2 if there is no such file, it is not COCO JSON, or the config cannot be used.

--pictures draws samples of the images, those with the most and the smallest objects and with faults,
and charts that compare the objects with the config, or with Detectron2's defaults.

--write-config writes a config that trains on the data set, if nothing is refused. A comment at each
value says from which number of the data it follows. Values that --config-file or --opts set stay.
"""

import argparse
import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Sequence

import numpy as np
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from mrcnn_plugin import get_config_file, load_cfg
from mrcnn_plugin.analysis.dataset import Settings, check_folder, describe, plot_dataset
from mrcnn_plugin.checkpoint import write_whole
from mrcnn_plugin.config import find_own_keys
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
from mrcnn_plugin.data.pixels import is_deep_image
from mrcnn_plugin.data.statistics import Statistics
from mrcnn_plugin.data.suggest import Suggestion, suggest_config, to_yaml
from mrcnn_plugin.engine import escape_output
from mrcnn_plugin.validation import check_config

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
    parser.add_argument(
        "--val",
        nargs="+",
        default=[],
        metavar=("JSON", "IMAGES"),
        help="a data set to evaluate on, while the other one is for training; IMAGES can be left out if the folder is "
        "the same",
    )
    parser.add_argument(
        "--write-config", metavar="FILE", help="write a config that trains on the data set"
    )
    parser.add_argument(
        "--base",
        metavar="FILE",
        help="the config that the written one inherits from (default: mask_rcnn_focal.yaml of this package); unlike "
        "those of --config-file, its values do not stay where the data suggest others",
    )
    parser.add_argument(
        "--fast", action="store_true", help="do not decode every image, as with DATASETS.CHECK fast"
    )
    parser.add_argument(
        "--examples",
        type=int,
        metavar="N",
        help="list at most N examples of each fault (default: all)",
    )
    parser.add_argument("--json", metavar="FILE", help="file for the report in JSON")
    parser.add_argument(
        "--pictures",
        metavar="FOLDER",
        help="folder for pictures of the data set; those of --val go into its folder val",
    )
    parser.add_argument(
        "--opts", default=[], nargs=argparse.REMAINDER, help="config changes: KEY VALUE ..."
    )
    args = parser.parse_args(argv)
    if len(args.val) > 2:
        parser.error(f"--val takes JSON and IMAGES, not {' '.join(args.val)}")
    if args.only and (args.val or args.write_config):
        parser.error("--only cannot be used with --val or --write-config")
    if args.base and (args.config_file or not args.write_config):
        parser.error("--base can only be used with --write-config, and without --config-file")
    if args.opts and not (args.config_file or args.write_config):
        parser.error("--opts can only be used with --config-file or --write-config")
    if args.write_config and not args.config_file:
        args.base = args.base or get_config_file("mask_rcnn_focal.yaml")
    return args


def check_target(option: str, file: str) -> None:
    """Checks that the file of an option can be written, before any work.

    Raises:
        ValueError: it exists already, or its folder does not exist.
    """
    if os.path.lexists(file):
        raise ValueError(f"{option} {file} exists already; name another file.")
    folder = os.path.abspath(os.path.dirname(file))
    if not (os.path.isdir(folder) and os.access(folder, os.W_OK)):
        raise ValueError(f"{option} {file}: there is no folder {folder} to write to.")


def read_config(args: argparse.Namespace) -> CfgNode | None:
    """The config of --config-file or --base, if one is needed.

    Raises:
        ValueError: the config cannot be read, or has a key for data with a value that it cannot have.
    """
    file = args.config_file or args.base
    if not file:
        return None
    what = f"{'--config-file' if args.config_file else '--base'} {file} cannot be read"
    try:
        cfg = load_cfg(file)
        what = f"--opts {' '.join(args.opts)} cannot be used"
        cfg = load_cfg(file, args.opts)
    except Exception as error:
        # YAML, yacs and Detectron2 raise half a dozen types for files that are no configs. The text
        # of a KeyError has quotes, and YAML's has several lines.
        reason = error.args[0] if isinstance(error, KeyError) else error
        raise ValueError(f"{what}: {' '.join(str(reason).split())}") from error
    check_values(cfg.DATASETS.CHECK, cfg.DATASETS.ALLOW)
    check_pixel_range(cfg)
    return cfg


def check_fit(cfg: CfgNode | None, name: str, usage: Usage) -> list[str]:
    """What keeps a registered data set from being used with the training set, and with a config if there is one."""
    if cfg is None:
        cfg = get_cfg()
        # Only the classes of a known model are counted.
        cfg.MODEL.META_ARCHITECTURE = ""
    else:
        cfg = cfg.clone()
        cfg.defrost()
    # A test set must have the categories of the training set.
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = tuple(usage.train), (name,)
    faults: list[str] = []
    try:
        check_categories(cfg)
    except ValueError as error:
        faults.append(str(error))
    return faults + check_keypoints(name, usage)


def data_sets(args: argparse.Namespace) -> list[tuple[str, str]]:
    """(JSON file, image root) of the data set, and of that of --val."""
    found = [(args.json_file, args.image_root)]
    if args.val:
        found.append((args.val[0], args.val[1] if len(args.val) > 1 else args.image_root))
    return found


def check_val(args: argparse.Namespace) -> None:
    """Checks that the data set of --val has a name of its own, or is the other one.

    Raises:
        ValueError: only their folders of images differ.
    """
    (json_file, root), *val = data_sets(args)
    if val and val[0][0] == json_file and val[0][1] != root:
        raise ValueError(
            f"--val names {json_file} too, but with the images in {val[0][1]} instead of {root}; name another JSON "
            f"file, or leave the folder out."
        )


def find_real_path(path: str) -> str:
    """The path of a file, which is the same however its folder is written."""
    return path if "://" in path else os.path.realpath(path)


def count_shared_images(args: argparse.Namespace) -> int:
    """How many image files the data set and that of --val have in common."""
    train, val = (
        {find_real_path(record["file_name"]) for record in DatasetCatalog.get(name)}
        for name, _ in data_sets(args)
    )
    return len(train & val)


def make_usage(args: argparse.Namespace, cfg: CfgNode | None) -> Usage:
    """How the data sets are used, as far as a config says so."""
    usage = Usage(train=(), test=()) if cfg is None else Usage.of(cfg)
    return dataclasses.replace(
        usage,
        train=() if args.only == "test" else (args.json_file,),
        test=() if args.only == "train" else (args.val[0] if args.val else args.json_file,),
        check="fast" if args.fast else "full",
    )


def make_first_usage(args: argparse.Namespace, cfg: CfgNode) -> Usage:
    """The usage by which data sets are checked before a config is made for them."""
    return dataclasses.replace(
        make_usage(args, None),
        allow=cfg.DATASETS.ALLOW,
        mask_on=None if cfg.MODEL.MASK_ON else False,
        scaled=True,
    )


Faults = list[tuple[Finding, Level | None]]


def find_faults(name: str, cfg: CfgNode | None, usage: Usage, limit: int | None) -> Faults:
    """The faults of a registered data set, and what they lead to; None for nothing."""
    faults: Faults = []
    for fault in check_fit(cfg, name, usage):
        faults.append((Finding("config", 1, 1, [], hint=fault), Level.ERROR))
    for finding in find_problems(name, usage, limit=limit):
        level = judge(finding, usage, train=name in usage.train, test=name in usage.test)
        faults.append((finding, level))
    return faults


def count_refused(faults: Faults) -> int:
    return sum(level in REFUSED for _, level in faults)


def show(name: str, cfg: CfgNode | None, findings: list[Finding], folder: str | None) -> None:
    """Prints the numbers of a data set, and draws it if there is a folder for pictures."""
    # Boxes of negative width, which are among the findings, have no size.
    with np.errstate(invalid="ignore"):
        try:
            dicts = DatasetCatalog.get(name)
            statistics = Statistics.of(dicts, MetadataCatalog.get(name).thing_classes)
        except Exception as error:
            # Detectron2 raises any type for data that it cannot load. The findings say why.
            print(f"NOTE: there are no numbers and pictures, as the data cannot be read: {error!r}")
            return
        for line in describe(statistics, Settings.of(cfg)):
            print(line)
        if folder is not None:
            files = plot_dataset(dicts, statistics, cfg, findings, os.path.basename(name), folder)
            print(f"Pictures: {', '.join(files)}")


def write_report(file: str, faults: dict[str, Faults]) -> None:
    report = [
        {**dataclasses.asdict(finding), "level": level.value, "json_file": name}
        for name, of_name in faults.items()
        for finding, level in of_name
        if level is not None
    ]
    with open(file, "w", encoding="utf-8") as f:
        json.dump(report, f, indent=1)


def print_faults(name: str, faults: Faults, cfg: CfgNode | None, folder: str | None) -> None:
    """Prints the faults and the numbers of a data set, and draws it."""
    findings: list[Finding] = []
    for finding, level in faults:
        if level is None:
            continue
        findings.append(finding)
        if finding.kind == "config":
            print(f"{WORDS[level]}: {finding.hint}")
            continue
        text = sentence(finding, refused=level is Level.JUDGEMENT, examples=False)
        print(f"{WORDS.get(level, 'NOTE')}: {text}")
        for example in filter(None, finding.examples):
            print(f"    {example}")
    show(name, cfg, findings, folder)
    refused = count_refused(faults)
    print(f"{name}: kinds of faults refused: {refused}; others found: {len(findings) - refused}.")


def suggest(args: argparse.Namespace, cfg: CfgNode, faults: dict[str, Faults]) -> Suggestion:
    """What the data suggest for the config.

    Raises:
        As :func:`suggest_config`.
    """
    kept = (
        dict.fromkeys(find_own_keys(args.config_file), args.config_file) if args.config_file else {}
    )
    kept.update(dict.fromkeys(args.opts[::2], "--opts"))
    statistics, deep = [], []
    for name in faults:
        dicts = DatasetCatalog.get(name)
        statistics.append(Statistics.of(dicts, MetadataCatalog.get(name).thing_classes))
        if any(finding.kind == "file_16_bit" for finding, _ in faults[name]):
            deep += [path for d in dicts if is_deep_image(path := d["file_name"])]
    val = statistics[-1] if args.val else None
    name, _ = os.path.splitext(os.path.basename(args.write_config))
    return suggest_config(
        cfg, kept, statistics[0], val, data_sets(args), deep, output_dir=f"./output/{name}"
    )


def write_config(args: argparse.Namespace, suggestion: Suggestion) -> None:
    base = args.config_file or args.base
    if "://" in base:
        base = PathManager.get_local_path(base)
    if not os.path.isabs(base):
        # That is how Detectron2 reads it.
        base = os.path.relpath(base, os.path.dirname(os.path.abspath(args.write_config)))
    header = (
        f"Written by tools/check_dataset.py for {args.json_file}. Each comment says from which number of the data "
        f"the value follows. What is not here is as in the config that _BASE_ names."
    )
    text = to_yaml(suggestion, base, header)
    # Bytes of file names that are not UTF-8 become YAML's escapes, since all such texts are in double quotes.
    content = text.encode("utf-8", "backslashreplace")
    write_whole({args.write_config: lambda f: f.write(content)})


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    escape_output()
    suggestion = None
    try:
        if args.write_config:
            check_target("--write-config", args.write_config)
        if args.json:
            check_target("--json", args.json)
        targets = [find_real_path(file) for file in (args.write_config, args.json) if file]
        if len(set(targets)) < len(targets):
            raise ValueError(
                f"--json and --write-config both name {args.write_config}; name two files."
            )
        folders = [args.pictures] if args.pictures else []
        if args.pictures and args.val:
            folders.append(os.path.join(args.pictures, "val"))
        for folder in folders:
            check_folder(folder)
        check_val(args)
        cfg = read_config(args)
        usage = make_first_usage(args, cfg) if args.write_config else make_usage(args, cfg)
        # A data set has the name of its file. The same one may be for training and for evaluation.
        entries = dict.fromkeys(data_sets(args))
        register_coco_json(
            [(name, name, root) for name, root in entries],
            masks=usage.mask_on is not False,
            check_on_load=False,
        )
        model = None if args.write_config else cfg
        faults = {name: find_faults(name, model, usage, args.examples) for name, _ in entries}
        if args.write_config and not any(map(count_refused, faults.values())):
            suggestion = suggest(args, cfg, faults)
            cfg = suggestion.cfg
            check_config(cfg, argparse.Namespace(eval_only=False, resume=False))
            usage = make_usage(args, cfg)
            faults = {name: find_faults(name, cfg, usage, args.examples) for name in faults}
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    # There is one data set where --val names the same file.
    folder_of = dict(zip(faults, folders, strict=False))
    try:
        if args.json:
            write_report(args.json, faults)
    finally:
        # Whatever becomes of the file, the faults are printed. The pictures, which may fail too, come after it.
        for name in faults:
            print_faults(name, faults[name], cfg, folder_of.get(name))
    refused = any(map(count_refused, faults.values()))
    if args.val and not refused and (shared := count_shared_images(args)):
        print(
            f"NOTE: {shared} images of --val are in {args.json_file} as well. AP is higher on images "
            f"that a model was trained on."
        )
    if args.write_config and refused:
        print(f"{args.write_config} is not written, because data are refused.")
    elif suggestion is not None:
        write_config(args, suggestion)
        print(
            f"Wrote {args.write_config}. To train: tools/train_net.py --config-file "
            f"{shlex.quote(args.write_config)}"
        )
        keypoints = MetadataCatalog.get(next(iter(faults))).get("keypoint_names")
        if keypoints and not suggestion.cfg.MODEL.KEYPOINT_ON:
            print(
                f"Keypoints are not trained. For that, take a config with a keypoint head as --base, and add --opts "
                f"MODEL.KEYPOINT_ON True MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS {len(keypoints)} "
                f"TEST.KEYPOINT_OKS_SIGMAS, with a number for each."
            )
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
