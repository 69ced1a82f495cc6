#!/usr/bin/env python
"""Draws the losses and the results of a training, and prints a table of AP.

    python tools/plot_results.py --config-file configs/quickstart.yaml [KEY VALUE ...]

Run it after tools/train_net.py, with the same config file and changes. It reads the results of that
run in OUTPUT_DIR, and writes losses.png there. The table shows the last evaluation, even if that was
one with --eval-only. For the test set it writes:

    ap_over_time.png            AP of every evaluation during the training
    predictions.png             predictions beside the ground truth
    precision_recall_boxes.png  for each class; masks and keypoints have such pictures too
    average_precision.png       by object size and by class
    confusion_matrix.png        which class is taken for which, missed objects and false detections
    worst_images.png            with the most missed objects, false detections and poorest masks

If DATASETS.TEST names several sets, each has a folder of its name for these.
"""

import argparse
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from tabulate import tabulate

from mrcnn_plugin import engine, load_cfg
from mrcnn_plugin.analysis import charts, coco, images
from mrcnn_plugin.analysis.fonts import find_fonts
from mrcnn_plugin.evaluation import max_detections, results_folder, tasks_of
from mrcnn_plugin.output_dir import last_test_sets, read_metrics

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file",
        metavar="FILE",
        help="the config that the model was trained with",
    )
    parser.add_argument(
        "--min-score",
        type=float,
        default=images.MIN_SCORE,
        metavar="SCORE",
        help="detections with a lower score are left out of predictions, the confusion matrix and the worst images "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "opts", default=[], nargs=argparse.REMAINDER, help="config changes: KEY VALUE ..."
    )
    args = engine.parse_args(parser, argv)
    # argparse would not find it after config keys.
    if not args.config_file:
        parser.error("--config-file is missing")
    if not 0 <= args.min_score <= 1:
        raise ValueError(f"--min-score is {args.min_score}; it must be in [0, 1].")
    return args


def setup_cfg(args: argparse.Namespace) -> CfgNode:
    cfg = load_cfg(args.config_file, args.opts)
    if not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST is empty; there are no predictions to show.")
    engine.register_datasets(cfg, train=False)
    return cfg


def ap_table(evaluated: Sequence[coco.Evaluated]) -> str:
    """Returns a Markdown table of AP. A dash stands for the AP of sizes without objects."""
    rows: list[list[Any]] = []
    for one in evaluated:
        values = [one.ap(), one.ap(0.5), one.ap(0.75)]
        values += [one.ap(size=size) for size in coco.SIZES[1:]]
        rows.append([one.task, *(None if np.isnan(value) else value for value in values)])
    return tabulate(rows, ("", *METRICS), tablefmt="github", floatfmt=".1f", missingval="-")


def metrics_file(cfg: CfgNode) -> str:
    return os.path.join(cfg.OUTPUT_DIR, "metrics.json")


def find_results(cfg: CfgNode, name: str) -> str:
    """Returns the file with the results of a test set. The file may be missing.

    Where it is depends on the test sets of the last run in `OUTPUT_DIR`.
    """
    cfg = cfg.clone()
    cfg.defrost()
    names = last_test_sets(cfg)
    # An earlier run may have evaluated another set as one of several.
    cfg.DATASETS.TEST = names if name in names else [*names, name, ""]
    folder = results_folder(cfg, name)
    if names[-1:] == [name] and not os.path.isdir(folder):
        # Detectron2's own tool keeps the results of the last data set only.
        folder = os.path.join(cfg.OUTPUT_DIR, "inference")
    return os.path.join(folder, "coco_instances_results.json")


def plot_test_set(
    cfg: CfgNode,
    name: str,
    metrics: dict[int, dict[str, float]],
    file: str,
    folder: str,
    min_score: float,
) -> tuple[str, list[str]]:
    """Draws the results of one test set.

    Args:
        cfg: the config.
        name: the test set.
        metrics: the metrics of the training.
        file: the file with the results.
        folder: the folder for the pictures.
        min_score: the lowest score of a detection that is shown.

    Returns:
        The table of AP, and the pictures that were written.

    Raises:
        As :func:`read_results`, :func:`load_ground_truth` and :func:`check_results`.
    """
    results = coco.read_results(file)
    truth = coco.load_ground_truth(name, os.path.dirname(file))
    coco.check_results(truth, results, file)
    dicts = DatasetCatalog.get(name)
    metadata = MetadataCatalog.get(name)
    # A repaired copy, or a local one of a remote file, may be younger than its source.
    annotations = metadata.get("coco_json_source", metadata.get("json_file", ""))
    if os.path.isfile(annotations) and os.path.getmtime(annotations) > os.path.getmtime(file):
        print(
            f"{name}: {annotations} is younger than {file}, so the table may differ from what the training printed. "
            f"To evaluate again, run tools/train_net.py with --eval-only."
        )
    classes = coco.class_names(truth)
    find_fonts(classes)
    crowds = sum(1 for annotation in truth.anns.values() if annotation["iscrowd"])
    title = (
        f"{charts.plain(name, 40)}: {len(truth.imgs)} images, {len(truth.anns) - crowds} objects"
    )
    if crowds:
        title += f", {crowds} crowds"
    scores = [result["score"] for result in results]
    title += f", {len(scores)} detections" if scores else ", no detection at all"
    shown = sum(score >= min_score for score in scores)
    of_score = f"{title}, {shown} with a score ≥ {min_score:g}" if scores else title
    if scores and not shown:
        print(
            f"{name}: no detection has a score of {min_score:g}; the highest is {max(scores):.3f}. "
            f"To see detections, add --min-score {max(scores) / 2:.2g}."
        )

    os.makedirs(folder, exist_ok=True)
    pictures: list[str] = []

    def picture(kind: str) -> str:
        pictures.append(os.path.join(folder, f"{kind}.png"))
        return pictures[-1]

    prefix = f"{name}/" if len(cfg.DATASETS.TEST) > 1 else ""
    if any(f"{prefix}bbox/AP" in values for values in metrics.values()):
        charts.plot_ap_over_time(metrics, picture("ap_over_time"), prefix, title)
    else:
        # An evaluation after the training (--eval-only) writes nothing there.
        print(
            f"{name}: there is no ap_over_time.png, because {metrics_file(cfg)} has no {prefix}bbox/AP."
        )
    images.plot_predictions(dicts, results, metadata, picture("predictions"), min_score)
    limit = max_detections(cfg)
    sigmas = cfg.TEST.KEYPOINT_OKS_SIGMAS
    tasks = coco.tasks(results) if results else tasks_of(cfg)
    evaluated = [coco.evaluate(truth, results, task, limit, sigmas) for task in tasks]
    for one in evaluated:
        charts.plot_precision_recall(
            one, classes, title, picture(f"precision_recall_{coco.TASKS[one.task]}")
        )
    charts.plot_ap(evaluated, classes, title, picture("average_precision"))
    # Keypoints alone do not say which object a detection is of.
    task = [one.task for one in evaluated if one.task != "keypoints"][-1]
    outcomes = coco.match(truth, results, task, min_score)
    matrix = coco.confusion_matrix(outcomes, sorted(truth.cats))
    charts.plot_confusion(matrix, classes, task, min_score, of_score, picture("confusion_matrix"))
    images.plot_worst(
        outcomes,
        {d["image_id"]: d["file_name"] for d in dicts},
        dict(zip(sorted(truth.cats), classes, strict=True)),
        task,
        of_score,
        picture("worst_images"),
    )
    return ap_table(evaluated), pictures


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    engine.escape_output()
    cfg = setup_cfg(args)
    file = metrics_file(cfg)
    metrics = read_metrics(file) if os.path.isfile(file) else {}
    names = cfg.DATASETS.TEST
    files = {name: find_results(cfg, name) for name in names}
    found = [name for name in names if os.path.isfile(files[name])]
    if not found:
        # This raises an error that says what to do.
        coco.read_results(files[names[-1]])
    if any("loss" in name for values in metrics.values() for name in values):
        losses = os.path.join(cfg.OUTPUT_DIR, "losses.png")
        charts.plot_losses(metrics, losses)
        print(losses)
    else:
        why = "has no losses" if metrics else "is not there"
        print(f"There is no losses.png, because {file} {why}.")
    failed: list[ValueError] = []
    for name in names:
        if name not in found:
            print(
                f"\n{name}: there is no {files[name]}; evaluate first (tools/train_net.py --eval-only)."
            )
            continue
        folder = cfg.OUTPUT_DIR
        if len(names) > 1:
            folder = os.path.join(folder, os.path.basename(results_folder(cfg, name)))
        try:
            table, pictures = plot_test_set(cfg, name, metrics, files[name], folder, args.min_score)
        except ValueError as error:
            # The pictures of the other test sets come first.
            failed.append(error)
            continue
        print("\n".join([f"\n{name}:", table, "", *pictures]))
    if failed:
        raise ValueError("\n".join(map(str, failed))) from failed[0]


if __name__ == "__main__":
    main()
