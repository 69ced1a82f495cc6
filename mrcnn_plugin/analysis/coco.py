"""Numbers from the results that Detectron2's COCOEvaluator wrote.

AP comes from COCO's own evaluation, and so do the matches of detections with objects.
"""

import contextlib
import io
import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.evaluation.coco_evaluation import COCOeval_opt
from detectron2.utils.file_io import PathManager
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

# The sizes of COCO's evaluation, in its order.
SIZES = ("all", "small", "medium", "large")
TASKS = {"bbox": "boxes", "segm": "masks", "keypoints": "keypoints"}
# How COCO measures whether a detection and an object match.
MEASURES = {"bbox": "IoU", "segm": "IoU", "keypoints": "OKS"}
# A detection and an object match from this IoU on, as in AP50.
MATCH_IOU = 0.5

_Result = dict[str, Any]


class Evaluated(NamedTuple):
    """COCO's evaluation of boxes, masks or keypoints.

    Attributes:
        task: one of `TASKS`.
        precision: [10 thresholds of IoU, 101 recalls, classes, 4 sizes], in [0, 1]; -1 where there are no objects.
            Sizes are those of `SIZES`. COCO's evaluation of keypoints leaves small objects out.
        ious: the thresholds of IoU, or of OKS for keypoints, [10].
        recalls: the recalls, [101].
        num_objects: [classes, 4 sizes]. Crowds do not count. For keypoints, objects without any do not either.
    """

    task: str
    precision: NDArray[np.float64]
    ious: NDArray[np.float64]
    recalls: NDArray[np.float64]
    num_objects: NDArray[np.int64]

    def curve(self, iou: float | None = None) -> NDArray[np.float64]:
        """Returns the precision for objects of all sizes, [101, classes]. It is NaN for classes without objects.

        Args:
            iou: one of `ious`; None for the mean over all.
        """
        chosen = self.precision[self._chosen(iou), :, :, 0]
        return np.where(chosen > -1, chosen, np.nan).mean(axis=0)

    def ap(self, iou: float | None = None, size: str = "all", index: int | None = None) -> float:
        """Returns AP in percent, or NaN if there are no objects.

        Args:
            iou: one of `ious`; None for the mean over all.
            size: one of `SIZES`.
            index: the class; None for the mean over all.
        """
        chosen = self.precision[self._chosen(iou), ..., SIZES.index(size)]
        if index is not None:
            chosen = chosen[..., index]
        chosen = chosen[chosen > -1]
        return float(100 * chosen.mean()) if chosen.size else float("nan")

    def _chosen(self, iou: float | None) -> Any:
        if iou is None:
            return slice(None)
        return np.flatnonzero(np.isclose(self.ious, iou))


class Outcome(NamedTuple):
    """The objects and detections of one image, and which of them match.

    They are annotations in the form of pycocotools, with `bbox` (x, y, width, height in px).

    Attributes:
        image_id: the image.
        pairs: (detection, object, IoU) of every match, whether or not the classes are the same.
        missed: objects without a match.
        false: detections without a match.
    """

    image_id: Any
    pairs: list[tuple[_Result, _Result, float]]
    missed: list[_Result]
    false: list[_Result]

    @property
    def right(self) -> list[tuple[_Result, _Result, float]]:
        return [p for p in self.pairs if p[0]["category_id"] == p[1]["category_id"]]

    @property
    def swapped(self) -> list[tuple[_Result, _Result, float]]:
        return [p for p in self.pairs if p[0]["category_id"] != p[1]["category_id"]]


def read_results(file: str) -> list[_Result]:
    """Reads the detections that COCOEvaluator wrote to coco_instances_results.json.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged.
    """
    if not os.path.isfile(file):
        raise FileNotFoundError(
            f"There is no {file}; evaluate first (tools/train_net.py --eval-only), or set "
            f"OUTPUT_DIR to the folder of a training."
        )
    with open(file, encoding="utf-8") as f:
        try:
            results = json.load(f)
        except ValueError as error:
            raise ValueError(
                f"{file} is no JSON ({error}); evaluate again (tools/train_net.py --eval-only)."
            ) from error
    if not isinstance(results, list):
        raise ValueError(
            f"{file} is no list of detections; evaluate again (tools/train_net.py --eval-only)."
        )
    return results


def load_ground_truth(name: str, folder: str) -> COCO:
    """Loads the objects of a registered data set.

    Args:
        name: the data set.
        folder: the folder for a JSON file, if the data set has none. COCOEvaluator writes the same file.

    Raises:
        ValueError: the data set has no annotations.
    """
    file = MetadataCatalog.get(name).get("json_file")
    if file is None:
        file = os.path.join(folder, f"{name}_coco_format.json")
        convert_to_coco_json(name, file)
    file = PathManager.get_local_path(file)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(file)
    if "annotations" not in truth.dataset:
        raise ValueError(
            f"{file} of the data set {name!r} has no annotations to compare results with."
        )
    # COCO's evaluation leaves out objects of unknown images too.
    return _subset(truth, [a for a in truth.dataset["annotations"] if a["image_id"] in truth.imgs])


def class_names(truth: COCO) -> list[str]:
    """Returns the names of the classes in the order of their category ids, which is Detectron2's order."""
    return [str(truth.cats[id]["name"]) for id in sorted(truth.cats)]


def tasks(results: Sequence[_Result]) -> list[str]:
    """Returns the keys of `TASKS` that there are results of."""
    keys = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}
    # Boxes are always there.
    return [task for task, key in keys.items() if task == "bbox" or any(key in r for r in results)]


def check_results(truth: COCO, results: Sequence[_Result], file: str) -> None:
    """Checks that results belong to a data set.

    Raises:
        ValueError: the results name images or categories that the data set does not have.
    """
    for key, known in (("image_id", truth.imgs), ("category_id", truth.cats)):
        unknown = sorted({repr(r[key]) for r in results if r[key] not in known})
        if unknown:
            raise ValueError(
                f"{file} has {len(unknown)} values of {key} that the data set does not have, the first "
                f"{unknown[0]}. It belongs to another data set; evaluate again (tools/train_net.py --eval-only)."
            )


def evaluate(
    truth: COCO,
    results: Sequence[_Result],
    task: str,
    max_detections: int = 100,
    sigmas: Sequence[float] = (),
) -> Evaluated:
    """Evaluates boxes, masks or keypoints with COCO's evaluation, as COCOEvaluator does.

    Args:
        truth: the objects.
        results: in COCO's result format.
        task: one of `TASKS`.
        max_detections: the number of detections of a class that count in an image. For keypoints, COCO counts 20.
        sigmas: `TEST.KEYPOINT_OKS_SIGMAS`; by default those of COCO's persons.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        coco_eval = COCOeval_opt(truth, _load(truth, results, task), task)
        if task != "keypoints":
            coco_eval.params.maxDets = [1, 10, max_detections]
        elif sigmas:
            coco_eval.params.kpt_oks_sigmas = np.array(sigmas)
        coco_eval.evaluate()
        coco_eval.accumulate()
    params = coco_eval.params
    index = {id: i for i, id in enumerate(params.catIds)}
    num_objects = np.zeros((len(index), len(SIZES)), dtype=np.int64)
    sizes = [SIZES.index(label) for label in params.areaRngLbl]
    for annotation in truth.anns.values():
        if not annotation["iscrowd"] and (task != "keypoints" or annotation["num_keypoints"]):
            for size, (low, high) in zip(sizes, params.areaRng, strict=True):
                inside = low <= annotation["area"] <= high
                num_objects[index[annotation["category_id"]], size] += inside
    found = coco_eval.eval["precision"][..., -1]
    precision = np.full((*found.shape[:3], len(SIZES)), -1.0)
    precision[..., sizes] = found
    return Evaluated(task, precision, params.iouThrs, params.recThrs, num_objects)


def match(truth: COCO, results: Sequence[_Result], task: str, min_score: float) -> list[Outcome]:
    """Matches detections and objects at IoU >= `MATCH_IOU`.

    Each detection, in the order of scores, takes the free object of its class with the largest IoU. COCO does the same
    for AP50. A detection in a crowd of its class does not count. The remaining detections then take
    remaining objects of other classes in the same way.

    Args:
        truth: the objects.
        results: in COCO's result format.
        task: "bbox" or "segm".
        min_score: detections with a lower score are left out.

    Returns:
        An outcome for each image, in the order of image ids.
    """
    detections = _load(truth, [r for r in results if r["score"] >= min_score], task)
    pairs, crowded = _match(truth, detections, task, use_classes=True)
    used = crowded | {detection for detection, _ in pairs}
    found = {id for _, id in pairs}
    left = [a for a in truth.anns.values() if not a["iscrowd"] and a["id"] not in found]
    left_detections = [d for d in detections.anns.values() if d["id"] not in used]
    swapped, _ = _match(
        _subset(truth, left), _subset(truth, left_detections), task, use_classes=False
    )

    outcomes = {id: Outcome(id, [], [], []) for id in sorted(truth.imgs)}
    for detection_id, object_id in (*pairs, *swapped):
        detection, one = detections.anns[detection_id], truth.anns[object_id]
        outcomes[one["image_id"]].pairs.append((detection, one, _iou(truth, detection, one, task)))
    used |= {detection for detection, _ in swapped}
    found |= {id for _, id in swapped}
    for one in left:
        if one["id"] not in found:
            outcomes[one["image_id"]].missed.append(one)
    for detection in left_detections:
        if detection["id"] not in used:
            outcomes[detection["image_id"]].false.append(detection)
    return list(outcomes.values())


def confusion_matrix(outcomes: Sequence[Outcome], category_ids: Sequence[int]) -> NDArray[np.int64]:
    """Counts the pairs of (class of the object, class of the detection).

    Args:
        outcomes: what :func:`match` returns.
        category_ids: the classes, in the order of the matrix.

    Returns:
        [classes + 1, classes + 1]. The last row is for detections of no object, the last column for missed objects.
    """
    index = {id: i for i, id in enumerate(category_ids)}
    background = len(index)
    matrix = np.zeros((background + 1, background + 1), dtype=np.int64)
    for outcome in outcomes:
        for detection, one, _ in outcome.pairs:
            matrix[index[one["category_id"]], index[detection["category_id"]]] += 1
        for one in outcome.missed:
            matrix[index[one["category_id"]], background] += 1
        for detection in outcome.false:
            matrix[background, index[detection["category_id"]]] += 1
    return matrix


def _load(truth: COCO, results: Sequence[_Result], task: str) -> COCO:
    if not results:
        return _subset(truth, [])
    # Without boxes, COCO takes the area of a detection from its mask. COCOEvaluator leaves them out too.
    # For keypoints it is that of the box.
    kept = {"bbox": ("bbox",), "segm": ("segmentation",), "keypoints": ("bbox", "keypoints")}[task]
    keys = ("image_id", "category_id", "score", *kept)
    with contextlib.redirect_stdout(io.StringIO()):
        return truth.loadRes([{key: result[key] for key in keys} for result in results])


def _subset(truth: COCO, annotations: Sequence[_Result]) -> COCO:
    coco = COCO()
    coco.dataset = {**truth.dataset, "annotations": list(annotations)}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _match(
    truth: COCO, detections: COCO, task: str, use_classes: bool
) -> tuple[list[tuple[int, int]], set[int]]:
    """Returns (detection id, object id) of COCO's matches, and the ids of detections in crowds."""
    # Detectron2's faster evaluation does not say what it matched.
    coco_eval = COCOeval(truth, detections, task)
    params = coco_eval.params
    params.useCats = int(use_classes)
    params.iouThrs = np.array([MATCH_IOU])
    params.areaRng, params.areaRngLbl = [[0, 1e10]], ["all"]
    params.maxDets = [max(len(detections.anns), 1)]
    with contextlib.redirect_stdout(io.StringIO()):
        coco_eval.evaluate()
    pairs, crowded = [], set()
    for image in coco_eval.evalImgs:
        if image is None:
            continue
        # dtMatches has the ids of objects as floats, which round those above 2^53.
        object_of = dict(zip(image["gtMatches"][0], image["gtIds"], strict=True))
        for detection, ignored in zip(image["dtIds"], image["dtIgnore"][0], strict=True):
            if ignored:
                crowded.add(detection)
            elif object_of.get(detection):  # COCO takes the id 0 for no match.
                pairs.append((detection, object_of[detection]))
    return pairs, crowded


def _iou(truth: COCO, detection: _Result, one: _Result, task: str) -> float:
    shapes: list[Any]
    if task == "bbox":
        shapes = [np.array([a["bbox"]], dtype=np.float64) for a in (detection, one)]
    else:
        shapes = [[truth.annToRLE(a)] for a in (detection, one)]
    return float(mask_util.iou(*shapes, [0])[0, 0])
