#!/usr/bin/env python
"""Detects objects in images with a trained model, and draws what it finds.

    python tools/demo.py --config-file configs/quickstart.yaml \\
        --input photo.jpg folder 'more/*.png' --output output/demo --json output/demo.json \\
        --opts MODEL.WEIGHTS output/quickstart/model_final.pth

The picture of an image is called <name of the image>.png. Small images are enlarged. --json writes
all detections in COCO's result format. `image_id` is then the name of the file without its extension.
It is an integer if the name is a number, as in COCO. `category_id` is that of the data set in
DATASETS.TEST (or TRAIN) if Detectron2 knows it, and otherwise the number of the class.
"""

import argparse
import glob
import json
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
import tqdm
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.engine import DefaultPredictor
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import build_model
from detectron2.utils.logger import setup_logger
from detectron2.utils.visualizer import Visualizer

from mrcnn_plugin import load_cfg
from mrcnn_plugin.checkpoint import FittingCheckpointer, check_weights
from mrcnn_plugin.data import (
    check_categories,
    check_pixel_range,
    read_input,
    register_coco_json,
)
from mrcnn_plugin.data.coco_json import check_entries

# Files with these extensions are read from a folder. A file that --input names can have any other.
EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
# The longer side of a picture has at least this many pixels, so that labels do not hide objects.
MIN_PICTURE_SIZE = 600

logger = logging.getLogger("detectron2.demo")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument(
        "--input", required=True, nargs="+", help="images, folders of images, or quoted patterns"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the pictures")
    parser.add_argument("--json", metavar="FILE", help="file for the detections in COCO format")
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        default=0.5,
        metavar="SCORE",
        help="detections with a lower score are left out (default: 0.5)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace pictures and JSON that are there already"
    )
    parser.add_argument(
        "--opts", default=[], nargs=argparse.REMAINDER, help="config changes: KEY VALUE ..."
    )
    return parser.parse_args(argv)


def setup_cfg(args: argparse.Namespace) -> CfgNode:
    """The config to predict with.

    Raises:
        ValueError: `--confidence-threshold` is not in [0, 1], or `MODEL.WEIGHTS` is empty.
        FileNotFoundError: `MODEL.WEIGHTS` is a local file that does not exist.
    """
    if not 0 <= args.confidence_threshold <= 1:
        raise ValueError(
            f"--confidence-threshold is {args.confidence_threshold}; it must be in [0, 1]."
        )
    cfg = load_cfg(args.config_file, args.opts)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = args.confidence_threshold
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = args.confidence_threshold
    check_pixel_range(cfg)
    check_weights(cfg)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("MODEL.DEVICE is %s, but there is no GPU: using the CPU.", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


class Predictor(DefaultPredictor):
    """DefaultPredictor for images in any INPUT.FORMAT, and for weights that must fit."""

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg.clone()
        self.model = build_model(self.cfg)
        self.model.eval()
        must_fit = not cfg.MODEL.MRCNN_PLUGIN.PARTIAL_WEIGHTS
        FittingCheckpointer(self.model, must_fit=must_fit).load(cfg.MODEL.WEIGHTS)
        size = cfg.INPUT.MIN_SIZE_TEST
        self.aug = T.ResizeShortestEdge([size, size], cfg.INPUT.MAX_SIZE_TEST)
        # DefaultPredictor takes BGR for the order that needs no change.
        self.input_format = "BGR"


def find_metadata(cfg: CfgNode) -> Metadata:
    """Class names and category ids of the first test (or train) data set; empty if not known.

    Raises:
        ValueError: the data set has another number of classes than the model.
    """
    names = (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)
    if not names:
        return Metadata()
    name = names[0]
    try:
        check_entries(cfg.DATASETS.COCO_JSON)
        # The categories are all that is needed of it.
        register_coco_json(
            [entry for entry in cfg.DATASETS.COCO_JSON if entry[0] == name],
            check="off",
            check_on_load=False,
        )
    except (FileNotFoundError, ValueError) as error:
        logger.warning("Classes are shown by number, because their names are not known: %s", error)
    if name in DatasetCatalog:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), (name,)
        check_categories(cfg)
    return MetadataCatalog.get(name)


def find_images(inputs: Sequence[str]) -> list[str]:
    """The files that images, folders and patterns name, each once.

    Raises:
        FileNotFoundError: one of `inputs` names nothing.
    """
    paths: list[str] = []
    for name in inputs:
        name = os.path.expanduser(name)
        if os.path.isdir(name):
            found = [
                os.path.join(name, file)
                for file in sorted(os.listdir(name))
                if file.lower().endswith(EXTENSIONS)
            ]
        elif os.path.exists(name):
            found = [name]
        else:
            found = sorted(filter(os.path.isfile, glob.glob(name, recursive=True)))
        if not found:
            raise FileNotFoundError(
                f"--input {name}: there is no such image, nor a folder with images "
                f"({', '.join(EXTENSIONS)}), nor does it match any file as a pattern."
            )
        paths += found
    return list(dict.fromkeys(map(os.path.normpath, paths)))


def plan_outputs(args: argparse.Namespace, paths: Sequence[str]) -> dict[str, str]:
    """Image -> picture to write.

    Raises:
        ValueError: two images have the same name or `image_id`, or a picture would replace an image.
        FileExistsError: something is there already, and `--overwrite` is not given.
    """
    outputs: dict[str, str] = {}
    taken: dict[str, str] = {}
    for path in paths:
        output = os.path.join(args.output, f"{stem(path)}.png")
        if output in taken:
            raise ValueError(
                f"--input: {taken[output]} and {path} would both be drawn to {output}; run them "
                f"one by one, with another --output each."
            )
        taken[output] = path
        outputs[path] = output
    ids: dict[int | str, str] = {}
    for path in paths if args.json else ():
        if ids.setdefault(image_id(path), path) != path:
            raise ValueError(
                f"--json: {ids[image_id(path)]} and {path} would both have the image_id "
                f"{image_id(path)}; run them one by one, with another --json each."
            )
    inputs = {os.path.realpath(path) for path in paths}
    for output in taken:
        if os.path.realpath(output) in inputs:
            raise ValueError(f"--output: {output} would replace an image of --input.")
    if args.json and os.path.isdir(args.json):
        raise ValueError(f"--json: {args.json} is a folder; it must be a file.")
    existing = [file for file in (*taken, args.json) if file and os.path.exists(file)]
    if existing and not args.overwrite:
        raise FileExistsError(
            f"{len(existing)} of the files to write exist already, the first {existing[0]}; give "
            f"--overwrite to replace them, or another --output and --json."
        )
    return outputs


def stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def image_id(path: str) -> int | str:
    return int(stem(path)) if stem(path).isdecimal() else stem(path)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    # Shows what Detectron2 says about the weights that it loads.
    setup_logger(name="fvcore")
    setup_logger()

    cfg = setup_cfg(args)
    paths = find_images(args.input)
    outputs = plan_outputs(args, paths)
    metadata = find_metadata(cfg)
    predictor = Predictor(cfg)
    os.makedirs(args.output, exist_ok=True)
    if args.json:
        os.makedirs(os.path.dirname(os.path.abspath(args.json)), exist_ok=True)

    contiguous_ids = metadata.get("thing_dataset_id_to_contiguous_id", {})
    category_ids = {contiguous: id for id, contiguous in contiguous_ids.items()}
    drawn = Metadata()
    if "thing_classes" in metadata.as_dict():
        # Matplotlib takes what is between two dollars for mathematics.
        drawn.thing_classes = [name.replace("$", r"\$") for name in metadata.thing_classes]
    results: list[dict[str, Any]] = []
    failed: list[str] = []
    for path, output in tqdm.tqdm(outputs.items(), unit="image"):
        try:
            image = read_input(path, cfg)
            instances = predictor(image)["instances"].to("cpu")
            found = instances_to_coco_json(instances, image_id(path))
            scale = max(1.0, MIN_PICTURE_SIZE / max(image.shape[:2]))
            visualizer = Visualizer(
                convert_image_to_rgb(image, cfg.INPUT.FORMAT), drawn, scale=scale
            )
            visualizer.draw_instance_predictions(instances).save(output)
        except Exception as error:
            # Pillow raises a dozen types for damaged files, and a model may run out of memory for a
            # large one. None should cost the other images.
            failed.append(f"{path}: {error}")
            continue
        for result in found:
            result["category_id"] = category_ids.get(result["category_id"], result["category_id"])
            results.append(result)

    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump(results, f)
    if failed:
        count = f"{len(failed)} of {len(paths)}"
        listed = "\n  ".join(failed)
        print(f"{count} files could not be read or drawn:\n  {listed}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
