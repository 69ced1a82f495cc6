"""Images with objects and detections drawn on them."""

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import Metadata
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode
from detectron2.utils.visualizer import GenericMask, Visualizer
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from .charts import plain
from .coco import MATCH_IOU, TASKS, Outcome
from .fonts import use_fonts

NUM_IMAGES = 4
MIN_SCORE = 0.5
# With more labels than this, the labels would hide the objects.
MAX_LABELS = 20
# The number of pixels along the longer side of a picture.
PICTURE_SIZE = 480

_RIGHT, _SWAPPED, _MISSED, _FALSE = "tab:green", "tab:purple", "tab:red", "tab:orange"
_LEGEND = {
    _RIGHT: "found (the object's outline is white)",
    _SWAPPED: "found as another class",
    _MISSED: "missed object",
    _FALSE: "false detection",
}


def draw(
    image: NDArray[np.uint8],
    annotations: Sequence[dict[str, Any]],
    names: Sequence[str],
    colors: Sequence[Any] | None = None,
    boxes: bool = True,
) -> NDArray[np.uint8]:
    """Draws annotations of the form in Detectron2's data set dicts on an RGB image [H, W, 3].

    Args:
        image: uint8 RGB [H, W, 3].
        annotations: what to draw.
        names: the names of the classes.
        colors: a colour of Matplotlib for each annotation, which then has no label. By default the class has a colour.
        boxes: whether to draw boxes around masks.
    """
    visualizer = _visualizer(image)
    palette = colormaps["Set1"]
    for index, annotation in enumerate(annotations):
        category = annotation["category_id"]
        color = palette((category if len(names) > 1 else index) % palette.N)[:3]
        label = ""
        if colors is not None:
            color = colors[index]
        elif len(annotations) <= MAX_LABELS:
            label = plain(names[category])
            if "score" in annotation:
                label += f" {100 * annotation['score']:.0f}%"
        box = boxes or "segmentation" not in annotation
        _draw_one(visualizer, annotation, color, label, box=box)
    use_fonts(visualizer.output.ax)
    return visualizer.output.get_image()


def draw_outcome(
    image: NDArray[np.uint8], outcome: Outcome, names: dict[int, str], masks: bool
) -> NDArray[np.uint8]:
    """Draws the objects and detections of an image in the colours of the legend.

    Args:
        image: uint8 RGB [H, W, 3].
        outcome: one of what :func:`match` returns.
        names: category id -> class name.
        masks: whether to draw masks, or else boxes.
    """
    visualizer = _visualizer(image)
    labels = len(outcome.missed) + len(outcome.false) + len(outcome.swapped) <= MAX_LABELS

    def draw_result(annotation: dict[str, Any], color: str, label: str, **options: Any) -> None:
        # A box around a mask would say nothing new.
        options.update(box=not masks, mask=masks, label_color="white")
        _draw_one(visualizer, annotation, color, label if labels else "", **options)

    def name(annotation: dict[str, Any]) -> str:
        label = plain(names[annotation["category_id"]]) if len(names) > 1 else ""
        score = f"{100 * annotation['score']:.0f}%" if "score" in annotation else ""
        return f"{label} {score}".strip()

    for detection, one, _ in outcome.right:
        draw_result(detection, _RIGHT, "")
        draw_result(one, "white", "", alpha=0)
    for one in outcome.missed:
        draw_result(one, _MISSED, name(one), alpha=0.3)
    for detection in outcome.false:
        draw_result(detection, _FALSE, name(detection))
    for detection, one, _ in outcome.swapped:
        draw_result(detection, _SWAPPED, f"{plain(names[one['category_id']])} as {name(detection)}")
    use_fonts(visualizer.output.ax)
    return visualizer.output.get_image()


def plot_predictions(
    dicts: Sequence[dict[str, Any]],
    results: Sequence[dict[str, Any]],
    metadata: Metadata,
    file: str,
    min_score: float = MIN_SCORE,
) -> None:
    """Draws the ground truth and the detections of some images with many objects into a picture.

    Args:
        dicts: the data set in Detectron2's form. The chosen images are spread over it.
        results: the detections, as :func:`read_results` returns them.
        metadata: the metadata of the data set.
        file: the picture to write.
        min_score: the lowest score of a detection that is drawn.
    """
    detections = defaultdict(list)
    for result in results:
        if result["score"] >= min_score:
            contiguous = metadata.thing_dataset_id_to_contiguous_id[result["category_id"]]
            changed = {"category_id": contiguous, "bbox_mode": BoxMode.XYWH_ABS}
            detections[result["image_id"]].append({**result, **changed})
    # An image without objects may lack the key.
    objects = [d.get("annotations", []) for d in dicts]
    many = np.median([len(truth) for truth in objects])
    full = [(d, truth) for d, truth in zip(dicts, objects, strict=True) if len(truth) >= many]
    step = max(1, len(full) // NUM_IMAGES)
    chosen = full[::step][:NUM_IMAGES]

    rows = -(-len(chosen) // 2)
    figure = Figure(figsize=(16, 4.2 * rows), layout="constrained")
    for number, (d, truth) in enumerate(chosen):
        name = plain(os.path.basename(d["file_name"]), 40)
        titles = (f"{name}: ground truth", f"prediction (score ≥ {min_score:g})")
        drawn = _draw_file(
            d["file_name"],
            *(
                partial(draw, annotations=shown, names=metadata.thing_classes)
                for shown in (truth, detections[d["image_id"]])
            ),
        )
        # Of a file that cannot be drawn, nothing is.
        for column, (title, picture) in enumerate(zip(titles, drawn, strict=False)):
            axes = figure.add_subplot(rows, 4, 2 * number + column + 1, title=title)
            axes.imshow(picture)
            axes.axis("off")
    figure.savefig(file, dpi=120)


class _Ranking(NamedTuple):
    """A respect in which images can be bad.

    Attributes:
        title: the title of the row.
        badness: a function that says how bad an image is. 0 means that nothing is wrong.
    """

    title: str
    badness: Callable[[Outcome], float]


def mean_iou(outcome: Outcome) -> float:
    """Returns the mean IoU of the detections of the right class, or NaN if there are none."""
    return float(np.mean([iou for *_, iou in outcome.right])) if outcome.right else float("nan")


RANKINGS = (
    _Ranking("most missed objects", lambda outcome: len(outcome.missed)),
    _Ranking("most false detections", lambda outcome: len(outcome.false)),
    _Ranking(
        "lowest mean IoU of what was found",
        lambda outcome: 1 - mean_iou(outcome) if outcome.right else 0,
    ),
)


def worst(outcomes: Sequence[Outcome], badness: Callable[[Outcome], float]) -> list[Outcome]:
    """Returns the worst images, the worst one first. Images in which nothing is wrong are left out."""
    bad = [outcome for outcome in outcomes if badness(outcome) > 0]
    # sorted() keeps the order of equals, so that the choice is always the same.
    return sorted(bad, key=lambda outcome: -badness(outcome))[:NUM_IMAGES]


def plot_worst(
    outcomes: Sequence[Outcome],
    files: dict[Any, str],
    names: dict[int, str],
    task: str,
    title: str,
    file: str,
) -> None:
    """Draws the images with the most missed objects, the most false detections and the lowest IoU.

    Args:
        outcomes: what :func:`match` returns.
        files: image id -> file of the image.
        names: category id -> class name.
        task: "bbox" or "segm".
        title: a line about the test set.
        file: the picture to write.
    """
    figure = Figure(figsize=(4.6 * NUM_IMAGES, 5.0 * len(RANKINGS) + 1), layout="constrained")
    heights = [1.0] * len(RANKINGS) + [0.08]
    *rows, bottom = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False).flat
    for row, ranking in zip(rows, RANKINGS, strict=True):
        chosen = worst(outcomes, ranking.badness)
        row.suptitle(
            f"Images with the {ranking.title}" if chosen else f"No image: {ranking.title}",
            fontsize=14,
            weight="bold",
        )
        for column, outcome in enumerate(chosen):
            axes = row.add_subplot(1, NUM_IMAGES, column + 1)
            axes.axis("off")
            path = files[outcome.image_id]
            axes.set_title(f"{plain(os.path.basename(path), 34)}\n{describe(outcome)}", fontsize=9)
            one = partial(draw_outcome, outcome=outcome, names=names, masks=task == "segm")
            for picture in _draw_file(path, one):
                axes.imshow(picture)
    patches = [Patch(color=color, label=label) for color, label in _LEGEND.items()]
    bottom.legend(handles=patches, loc="center", ncols=len(patches), fontsize=12)
    figure.suptitle(
        f"The worst images. {TASKS[task].capitalize()} match at IoU ≥ {MATCH_IOU}. {title}",
        fontsize=14,
    )
    figure.savefig(file, dpi=100)


def describe(outcome: Outcome) -> str:
    """Returns two lines that say how good the detections of an image are."""
    objects = len(outcome.pairs) + len(outcome.missed)
    first = f"{len(outcome.missed)} of {objects} objects missed, {len(outcome.false)} false"
    second = f"{len(outcome.right)} found"
    if outcome.right:
        second += f" with mean IoU {mean_iou(outcome):.2f}"
    if outcome.swapped:
        second += f", {len(outcome.swapped)} as another class"
    return f"{first}\n{second}"


def _visualizer(image: NDArray[np.uint8]) -> Visualizer:
    # A pale image lets the colours of the annotations stand out.
    pale = 0.2 * image + 0.8 * image.mean(axis=2, keepdims=True)
    # The shorter side of a thin image keeps a pixel.
    height, width = image.shape[:2]
    return Visualizer(pale, scale=max(PICTURE_SIZE / max(height, width), 1 / min(height, width)))


def _draw_one(
    visualizer: Visualizer,
    annotation: dict[str, Any],
    color: Any,
    label: str,
    box: bool = True,
    mask: bool = True,
    alpha: float = 0.5,
    label_color: Any = None,
) -> None:
    height, width = visualizer.output.height, visualizer.output.width
    mode = annotation.get("bbox_mode", BoxMode.XYWH_ABS)
    x0, y0, x1, y1 = BoxMode.convert(list(annotation["bbox"]), mode, BoxMode.XYXY_ABS)
    if box:
        visualizer.draw_box((x0, y0, x1, y1), edge_color=color)
    # Masks are drawn one by one, because Visualizer.overlay_instances would fill their holes.
    if mask and "segmentation" in annotation:
        generic = GenericMask(annotation["segmentation"], height, width)
        if alpha:
            visualizer.draw_binary_mask(generic.mask, color, alpha=alpha)
        else:
            for polygon in generic.polygons:
                visualizer.draw_polygon(polygon.reshape(-1, 2), color, edge_color=color, alpha=0)
    if label:
        # The label is above the box and inside the image. A line of text is 15 px high.
        scale = visualizer.output.scale
        x, alignment = (x0, "left") if x0 < 0.75 * width else (x1, "right")
        visualizer.draw_text(
            label,
            (x, max(0, y0 - 15 / scale)),
            font_size=8 / scale,
            color=label_color or color,
            horizontal_alignment=alignment,
        )


def _draw_file(
    path: str, *draws: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
) -> list[NDArray[np.uint8]]:
    """What each of `draws` makes of an image. If that fails, a line says so, and there is nothing."""
    what = "read"
    try:
        image = read_image(path, format="RGB")
        what = "drawn"
        return [draw_one(image) for draw_one in draws]
    except Exception as error:  # Damaged files and faulty objects raise dozens of types.
        print(f"{path} cannot be {what} and is left out: {error}")
        return []
