#!/usr/bin/env python
"""Draws the predictions and the losses of a training, and prints a table of its AP.

    python tools/plot_results.py --config-file configs/quickstart.yaml [KEY VALUE ...]

Run it after tools/train_net.py, with the same config file and changes. It reads the results of that
run in OUTPUT_DIR, and writes predictions.png and losses.png there.
"""

import argparse
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode
from detectron2.utils.visualizer import GenericMask, Visualizer
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tabulate import tabulate

from mrcnn_plugin import load_cfg
from mrcnn_plugin.data import register_coco_json
from mrcnn_plugin.engine import read_metrics
from mrcnn_plugin.evaluation import results_folder

NUM_IMAGES = 4
MIN_SCORE = 0.5
# With more labels than this, the labels would hide the objects.
MAX_LABELS = 20
# The number of pixels along the longer side of a picture.
PICTURE_SIZE = 480
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def setup_cfg(argv: Sequence[str] | None = None) -> CfgNode:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument(
        "opts", default=[], nargs=argparse.REMAINDER, help="config changes: KEY VALUE ..."
    )
    args = parser.parse_args(argv)
    cfg = load_cfg(args.config_file, args.opts)
    if not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST is empty; there are no predictions to show.")
    register_coco_json(
        cfg.DATASETS.COCO_JSON,
        check=cfg.DATASETS.CHECK,
        masks=cfg.MODEL.MASK_ON,
        pixel_range=cfg.INPUT.PIXEL_RANGE,
        pixel_range_unit=cfg.INPUT.PIXEL_RANGE_UNIT,
        check_on_load=False,
    )
    return cfg


def plot_losses(metrics: dict[int, dict[str, float]], file: str) -> None:
    """Plots all losses over the iterations into the picture `file`.

    Raises:
        ValueError: `metrics` has no losses.
    """
    names = sorted({name for values in metrics.values() for name in values if "loss" in name})
    if not names:
        raise ValueError("metrics.json holds no losses; was the model trained in OUTPUT_DIR?")
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot(
        title="Training losses", xlabel="iteration", ylabel="loss", yscale="log"
    )
    for name in names:
        points = [(i, values[name]) for i, values in sorted(metrics.items()) if name in values]
        style: dict[str, Any] = (
            {"color": "black", "linewidth": 2.5} if name == "total_loss" else {"linewidth": 1.5}
        )
        axes.plot(*zip(*points, strict=True), label=name, **style)
    axes.grid(True, which="both", alpha=0.25)
    figure.legend(loc="outside right upper")
    figure.savefig(file, dpi=120)


def read_results(file: str) -> dict[Any, list[dict[str, Any]]]:
    """Reads the detections that COCOEvaluator wrote, and returns them by image id.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    if not os.path.isfile(file):
        raise FileNotFoundError(
            f"There is no {file}; evaluate first (tools/train_net.py --eval-only), or set "
            f"OUTPUT_DIR to the folder of a training."
        )
    results: dict[Any, list[dict[str, Any]]] = {}
    with open(file, encoding="utf-8") as f:
        for result in json.load(f):
            results.setdefault(result["image_id"], []).append(result)
    return results


def draw(
    image: NDArray[np.uint8], annotations: Sequence[dict[str, Any]], names: Sequence[str]
) -> NDArray[np.uint8]:
    """Draws annotations of the form in Detectron2's data set dicts on an RGB image [H, W, 3]."""
    height, width = image.shape[:2]
    # A pale image lets the colours of the annotations stand out.
    pale = 0.2 * image + 0.8 * image.mean(axis=2, keepdims=True)
    scale = PICTURE_SIZE / max(height, width)
    visualizer = Visualizer(pale, scale=scale)
    palette = colormaps["Set1"]
    for index, annotation in enumerate(annotations):
        category = annotation["category_id"]
        color = palette((category if len(names) > 1 else index) % palette.N)[:3]
        x0, y0, x1, y1 = BoxMode.convert(
            annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS
        )
        visualizer.draw_box((x0, y0, x1, y1), edge_color=color)
        # Masks are drawn one by one, because Visualizer.overlay_instances would fill their holes.
        if "segmentation" in annotation:
            mask = GenericMask(annotation["segmentation"], height, width).mask
            visualizer.draw_binary_mask(mask, color)
        if len(annotations) <= MAX_LABELS:
            # Matplotlib takes what is between two dollars for mathematics.
            label = names[category].replace("$", r"\$")
            if "score" in annotation:
                label += f" {100 * annotation['score']:.0f}%"
            # The label is above the box and inside the image. A line of text is 15 px high.
            x, alignment = (x0, "left") if x0 < 0.75 * width else (x1, "right")
            visualizer.draw_text(
                label,
                (x, max(0, y0 - 15 / scale)),
                font_size=8 / scale,
                color=color,
                horizontal_alignment=alignment,
            )
    return visualizer.output.get_image()


def plot_predictions(
    dicts: Sequence[dict[str, Any]],
    results: dict[Any, list[dict[str, Any]]],
    metadata: Metadata,
    file: str,
) -> None:
    """Draws the ground truth and the detections of some images with many objects into a picture.

    Args:
        dicts: the data set in Detectron2's form. The chosen images are spread over it.
        results: the detections by image id, as :func:`read_results` returns them.
        metadata: the metadata of the data set.
        file: the picture to write.
    """
    many = np.median([len(d["annotations"]) for d in dicts])
    full = [d for d in dicts if len(d["annotations"]) >= many]
    step = max(1, len(full) // NUM_IMAGES)
    chosen = full[::step][:NUM_IMAGES]

    rows = -(-len(chosen) // 2)
    figure = Figure(figsize=(16, 4.2 * rows), layout="constrained")
    for number, d in enumerate(chosen):
        try:
            image = read_image(d["file_name"], format="RGB")
        except Exception as error:  # Pillow raises a dozen types for damaged files.
            print(f"{d['file_name']} cannot be read and is left out: {error}")
            continue
        detections = [
            {
                **result,
                "category_id": metadata.thing_dataset_id_to_contiguous_id[result["category_id"]],
                "bbox_mode": BoxMode.XYWH_ABS,
            }
            for result in results.get(d["image_id"], [])
            if result["score"] >= MIN_SCORE
        ]
        name = os.path.basename(d["file_name"]).replace("$", r"\$")
        for column, (title, annotations) in enumerate(
            (
                (f"{name}: ground truth", d["annotations"]),
                (f"prediction (score ≥ {MIN_SCORE})", detections),
            )
        ):
            axes = figure.add_subplot(rows, 4, 2 * number + column + 1, title=title)
            axes.imshow(draw(image, annotations, metadata.thing_classes))
            axes.axis("off")
    figure.savefig(file, dpi=120)


def ap_table(metrics: dict[int, dict[str, float]], prefix: str = "") -> str:
    """Returns a Markdown table of the last AP of boxes and masks. A dash stands for a missing value.

    Raises:
        ValueError: `metrics` has no AP.
    """
    last = {name: value for _, values in sorted(metrics.items()) for name, value in values.items()}
    rows: list[list[Any]] = []
    for task in ("bbox", "segm"):
        values = [last.get(f"{prefix}{task}/{metric}") for metric in METRICS]
        if any(value is not None for value in values):
            rows.append([task, *(None if v is None or np.isnan(v) else v for v in values)])
    if not rows:
        raise ValueError(f"metrics.json holds no AP ({prefix}bbox/AP); was the model evaluated?")
    return tabulate(rows, ("", *METRICS), tablefmt="github", floatfmt=".1f", missingval="-")


def main(argv: Sequence[str] | None = None) -> None:
    cfg = setup_cfg(argv)
    name = cfg.DATASETS.TEST[-1]
    metrics = read_metrics(os.path.join(cfg.OUTPUT_DIR, "metrics.json"))
    folder = results_folder(cfg, name)
    if not os.path.isdir(folder):
        # Detectron2's own tool keeps the results of the last data set only.
        folder = os.path.join(cfg.OUTPUT_DIR, "inference")
    results = read_results(os.path.join(folder, "coco_instances_results.json"))
    table = ap_table(metrics, f"{name}/" if len(cfg.DATASETS.TEST) > 1 else "")

    losses, predictions = (
        os.path.join(cfg.OUTPUT_DIR, file) for file in ("losses.png", "predictions.png")
    )
    plot_losses(metrics, losses)
    dicts = DatasetCatalog.get(name)
    plot_predictions(dicts, results, MetadataCatalog.get(name), predictions)
    print(f"{name}:\n{table}\n\n{losses}\n{predictions}")


if __name__ == "__main__":
    main()
