"""COCO evaluation that follows the config."""

import logging
import os
import re
from collections.abc import Collection
from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

# COCO's own limit of detections per image.
COCO_DETECTIONS = 100
# More than any image has: for TEST.DETECTIONS_PER_IMAGE -1, which keeps all.
_ALL_DETECTIONS = 10**6

logger = logging.getLogger("detectron2.mrcnn_plugin.evaluation")


class WholeResults(COCOEvaluator):
    """Detectron2's COCOEvaluator, whose results are written to a folder `partial`, and moved when they are whole.

    Without any detection, every task of the model is evaluated all the same. Detectron2 has NaN for the boxes then, and
    nothing for other tasks.

    Args:
        name: the test set.
        expected: the tasks of the model: "bbox", "segm", "keypoints".
        more: as in COCOEvaluator.
    """

    _output_dir: str | None

    def __init__(self, name: str, expected: Collection[str], **more: Any) -> None:
        super().__init__(name, **more)
        self._expected = set(expected)

    def _tasks_from_predictions(self, predictions: list[dict[str, Any]]) -> set[str]:
        return super()._tasks_from_predictions(predictions) if predictions else self._expected

    def _derive_coco_results(
        self, coco_eval: Any, iou_type: str, class_names: Any = None
    ) -> dict[str, float]:
        if coco_eval is None:
            nothing = COCO()
            nothing.dataset = {**self._coco_api.dataset, "annotations": []}
            nothing.createIndex()
            coco_eval = COCOeval(self._coco_api, nothing, iou_type)
            coco_eval.evaluate()
            coco_eval.accumulate()
            coco_eval.summarize()
        return super()._derive_coco_results(coco_eval, iou_type, class_names)

    def evaluate(self, img_ids: Any = None) -> Any:
        folder = self._output_dir
        if not folder or "://" in folder:
            return super().evaluate(img_ids)
        self._output_dir = partial = os.path.join(folder, "partial")
        try:
            results = super().evaluate(img_ids)
        finally:
            self._output_dir = folder
        # The other processes write nothing.
        if comm.is_main_process() and os.path.isdir(partial):
            for name in os.listdir(partial):
                os.replace(os.path.join(partial, name), os.path.join(folder, name))
            os.rmdir(partial)
            logger.info("The results are whole, and moved to %s.", folder)
        return results


def results_folder(cfg: CfgNode, name: str, folder: str = "inference") -> str:
    """Where the results of a test set are: `OUTPUT_DIR/inference`, or a folder in it for each if there are several."""
    folder = os.path.join(cfg.OUTPUT_DIR, folder)
    if len(cfg.DATASETS.TEST) <= 1:
        return folder
    return os.path.join(folder, re.sub(r"[^\w.+-]", "_", name).lstrip("."))


def tasks_of(cfg: CfgNode) -> list[str]:
    """What COCO evaluates of a model."""
    tasks = ["bbox"]
    if cfg.MODEL.MASK_ON:
        tasks.append("segm")
    if cfg.MODEL.KEYPOINT_ON:
        tasks.append("keypoints")
    return tasks


def max_detections(cfg: CfgNode) -> int:
    """How many detections of an image count: those of `TEST.DETECTIONS_PER_IMAGE`, but at least COCO's 100."""
    limit = int(cfg.TEST.DETECTIONS_PER_IMAGE)
    return _ALL_DETECTIONS if limit < 0 else max(limit, COCO_DETECTIONS)


def build_coco_evaluator(
    cfg: CfgNode, name: str, output_folder: str | None = None
) -> COCOEvaluator:
    """An evaluator of a test set.

    COCO counts the 100 best detections of an image. If `TEST.DETECTIONS_PER_IMAGE` allows more, all that it allows
    count, so that AP is that of the model; it is then not comparable with COCO's where an image has more than 100
    detections. `TEST.KEYPOINT_OKS_SIGMAS` is followed too.

    Args:
        cfg: a Detectron2 config.
        name: the test set.
        output_folder: where to write results; by default :func:`results_folder`.
    """
    limit = max_detections(cfg)
    if limit > COCO_DETECTIONS:
        logger.info(
            "AP of %s counts up to %s detections in an image, as TEST.DETECTIONS_PER_IMAGE says; COCO's counts %d.",
            name,
            "all" if limit == _ALL_DETECTIONS else limit,
            COCO_DETECTIONS,
        )
    return WholeResults(
        name,
        tasks_of(cfg),
        output_dir=output_folder or results_folder(cfg, name),
        max_dets_per_image=limit,
        kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS,
    )
