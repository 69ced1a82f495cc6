#!/usr/bin/env python
"""Exports a trained model to TorchScript or ONNX, and checks the file on images.

    python tools/export_model.py --config-file my.yaml --format torchscript \\
        --input images/*.jpg --output model.ts --opts MODEL.WEIGHTS output/my/model_final.pth

The check runs the file and the model itself on every image, and prints the largest differences of
boxes, scores and masks. It also runs both on a blank image, if the model finds nothing there. The
exit status is 1 if a difference is larger than its tolerance, or if there was nothing to compare. The
file then stays under the name FILE.partial, and replaces none.
docs/after_training.md says what goes in and what comes out.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from tabulate import tabulate

from mrcnn_plugin import load_cfg
from mrcnn_plugin.checkpoint import check_weights, load_model, removing
from mrcnn_plugin.data import check_pixel_range, read_input
from mrcnn_plugin.engine import escape_output
from mrcnn_plugin.export import (
    OPSETS,
    TOLERANCES,
    Traceable,
    check_onnx,
    differences,
    operator_library,
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file",
        required=True,
        metavar="FILE",
        help="the config that the model was trained with",
    )
    parser.add_argument("--format", required=True, choices=("torchscript", "onnx"))
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        metavar="IMAGE",
        help="images with objects, best of several sizes; the first one is traced",
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="the file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    parser.add_argument(
        "--opset",
        type=int,
        default=17,
        choices=OPSETS,
        metavar="NUMBER",
        help=f"of ONNX, from {OPSETS[0]} to {OPSETS[-1]} (default: %(default)s)",
    )
    parser.add_argument(
        "--opts", default=[], nargs=argparse.REMAINDER, help="config changes: KEY VALUE ..."
    )
    return parser.parse_args(argv)


def setup_cfg(args: argparse.Namespace) -> CfgNode:
    """Returns the config of the model, and checks all arguments.

    Raises:
        ValueError: `MODEL.WEIGHTS` is empty, ONNX cannot have the keypoints of the model, or `--output` is a folder.
        FileNotFoundError: an image, the weights or the folder of `--output` does not exist.
        FileExistsError: `--output` exists, and `--overwrite` is not given.
        ImportError: onnx or onnxruntime is not installed.
    """
    if args.format == "onnx":
        check_onnx()
    cfg = load_cfg(args.config_file, args.opts)
    if args.format == "onnx" and cfg.MODEL.KEYPOINT_ON:
        raise ValueError(
            "MODEL.KEYPOINT_ON is True, but Detectron2 cannot export keypoints to ONNX; use --format torchscript."
        )
    check_pixel_range(cfg)
    check_weights(cfg)
    for path in args.input:
        if not os.path.isfile(path):
            raise FileNotFoundError(f"--input: {path} is no file.")
    folder = os.path.abspath(os.path.dirname(args.output))
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"--output: there is no folder {folder}.")
    if os.path.isdir(args.output):
        raise ValueError(f"--output: {args.output} is a folder; it must be a file.")
    if os.path.exists(args.output) and not args.overwrite:
        raise FileExistsError(
            f"--output: {args.output} is there already; give --overwrite to replace it."
        )
    # A TorchScript file stays on the device of its export, and an ONNX file is checked on the CPU.
    if args.format == "onnx" or not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def read(path: str, cfg: CfgNode) -> torch.Tensor:
    """Reads an image in the form that the model takes: float32 [C, H, W], resized as at test time.

    Raises:
        ValueError: the image has more than 8 bits per pixel, and INPUT.PIXEL_RANGE is not set.
    """
    try:
        image = read_input(path, cfg)
    except ValueError as error:
        raise ValueError(f"--input: {path}: {error}") from error
    size = cfg.INPUT.MIN_SIZE_TEST
    resize = T.ResizeShortestEdge([size, size], cfg.INPUT.MAX_SIZE_TEST)
    resized = resize.get_transform(image).apply_image(image)
    return torch.as_tensor(resized.astype("float32").transpose(2, 0, 1)).to(cfg.MODEL.DEVICE)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    escape_output()
    cfg = setup_cfg(args)
    images = {path: read(path, cfg) for path in args.input}
    traceable = Traceable(load_model(cfg), images[args.input[0]])
    # It gets its name when it has been checked, and an older file stays until then.
    partial = f"{args.output}.partial"
    with removing(partial):
        if args.format == "onnx":
            exported = traceable.to_onnx(partial, args.opset)
        else:
            exported = traceable.to_torchscript(partial)
    print(f"{args.output}: {', '.join(traceable.names)} of an image of {cfg.INPUT.FORMAT} values")
    library = operator_library()
    if args.format == "torchscript" and library:
        print(f"Before it is loaded, call torch.ops.load_library with a copy of {library}")

    rows: list[list[Any]] = []
    failed, compared = [], 0
    kinds = [name for name in traceable.names if name in TOLERANCES]
    # Some files fail without detections.
    mean = torch.tensor(cfg.MODEL.PIXEL_MEAN, device=cfg.MODEL.DEVICE)
    blank = mean[:, None, None].expand_as(images[args.input[0]]).contiguous()
    for path, image in [*images.items(), ("a blank image", blank)]:
        expected = traceable.detect(image)
        if image is blank and len(expected["boxes"]):
            # All its scores are equal, so the best ones are a matter of chance.
            continue
        try:
            found = differences(expected, exported(image))
        except Exception as error:  # onnxruntime's own types, and torch's.
            print(f"{args.output} fails for {path}: {error}", file=sys.stderr)
            found = dict.fromkeys(kinds, float("inf"))
        compared += len(expected["boxes"])
        rows.append([path, "x".join(map(str, image.shape[1:])), len(expected["boxes"])])
        rows[-1] += [f"{found[kind]:.2g}" for kind in kinds]
        # With `>`, a NaN would pass.
        if not all(found[kind] <= TOLERANCES[kind] for kind in kinds):
            failed.append(path)
    rows.append(["tolerance", "", "", *(f"{TOLERANCES[kind]:g}" for kind in kinds)])
    units = {"boxes": "boxes (px)", "keypoints": "keypoints (px)"}
    headers = ["image", "height x width", "detections", *(units.get(k, k) for k in kinds)]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))
    if failed:
        print(
            f"{len(failed)} of {len(rows) - 1} images differ by more than the tolerance, the first {failed[0]}; do not "
            f"use {partial}, which is not renamed. inf: another number of detections, another class, or a failure.",
            file=sys.stderr,
        )
        return 1
    if not compared:
        print(
            f"The model finds nothing in these images, so that the check says nothing, and the file is in {partial}; "
            f"name images with objects, or add --opts MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.01",
            file=sys.stderr,
        )
        return 1
    os.replace(partial, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
