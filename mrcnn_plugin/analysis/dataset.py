"""What is in a data set: its numbers in words, a page of charts, and images with their objects drawn on them."""

import os
import re
import tempfile
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data.detection_utils import read_image
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.structures import Boxes, BoxMode
from detectron2.utils.visualizer import GenericMask
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from ..data.checks.annotations import Finding
from ..data.pixels import scaled_path
from ..data.statistics import Statistics
from ..evaluation import COCO_DETECTIONS
from .charts import LISTED, listed, plain
from .fonts import find_fonts
from .images import draw

PICTURES = ("samples.png", "extremes.png", "statistics.png")
# A page of samples has as many images, and up to MAX_SAMPLES if more classes appear so.
NUM_SAMPLES = 12
MAX_SAMPLES = 28
# With more classes than this, the chart shows those with the most and those with the fewest objects.
MAX_BARS = 80

_COLUMNS = 4
# The legend of an image names as many classes.
_LEGEND_CLASSES = 8
_LEGEND_LENGTH = 16
_TITLE_LENGTH = 40
# As many examples of a fault are looked at to find images for it.
_MAX_EXAMPLES = 20
_MIN_WINDOW = 48
# ROIPooler's defaults, which Detectron2's ROI heads do not change.
_CANONICAL_SIZE, _CANONICAL_LEVEL = 224, 4
# The level of a feature map is its stride as a power of 2.
_FPN_LEVELS = (2, 5)

_Record = dict[str, Any]
_Reader = Callable[[str], NDArray[np.uint8]]


@dataclass(frozen=True)
class Settings:
    """What a config says that object sizes and numbers are to be compared with.

    Attributes:
        min_size: `INPUT.MIN_SIZE_TEST`, in px.
        max_size: `INPUT.MAX_SIZE_TEST`, in px.
        anchors: the sizes of the anchors, in px of the input, in ascending order.
        levels: the first and the last level of the pyramid that the ROI heads pool from; None if there is no pyramid.
        detections: `TEST.DETECTIONS_PER_IMAGE`.
    """

    min_size: int
    max_size: int
    anchors: tuple[float, ...]
    levels: tuple[int, int] | None
    detections: int

    @classmethod
    def of(cls, cfg: CfgNode | None) -> "Settings":
        """Those of a config; without one Detectron2's defaults, with the pyramid of its FPN configs."""
        if cfg is None:
            return replace(cls.of(get_cfg()), levels=_FPN_LEVELS)
        features = cfg.MODEL.ROI_HEADS.IN_FEATURES
        levels = sorted(int(f[1:]) for f in features if re.fullmatch(r"p\d+", f))
        if cfg.MODEL.META_ARCHITECTURE not in ("GeneralizedRCNN", "PanopticFPN"):
            levels = []
        anchors: set[float] = set()
        for sizes in cfg.MODEL.ANCHOR_GENERATOR.SIZES:
            # A list for each level, or one of numbers for all levels.
            anchors.update(map(float, sizes if isinstance(sizes, (list, tuple)) else [sizes]))
        return cls(
            min_size=cfg.INPUT.MIN_SIZE_TEST,
            max_size=cfg.INPUT.MAX_SIZE_TEST,
            anchors=tuple(sorted(anchors)),
            levels=(levels[0], levels[-1]) if levels else None,
            detections=cfg.TEST.DETECTIONS_PER_IMAGE,
        )


def describe(statistics: Statistics, settings: Settings) -> list[str]:
    """Returns the numbers of a data set as a few sentences."""
    widths, heights = statistics.image_widths, statistics.image_heights
    if not len(widths):
        return ["The data set has no images."]
    counts = statistics.objects_per_image
    sizes = sorted(zip(widths.tolist(), heights.tolist(), strict=True))
    smallest, largest = (f(sizes, key=lambda size: size[0] * size[1]) for f in (min, max))
    shapes = f"{smallest[0]} x {smallest[1]}"
    if largest != smallest:
        shapes += f" to {largest[0]} x {largest[1]}"
    lines = [
        f"{_number(len(widths), 'image')} of {shapes} px; {(counts == 0).sum()} without objects."
    ]
    total = len(statistics.classes)
    if not total:
        return lines
    of_class = statistics.objects_per_class
    order = np.argsort(-of_class, kind="stable")
    present = int((of_class > 0).sum())
    names = [f"{statistics.class_names[i]} {of_class[i]}" for i in order[: min(present, LISTED)]]
    more = f" and {_number(present - LISTED, 'more class')}" if present > LISTED else ""
    absent = [name for name, n in zip(statistics.class_names, of_class, strict=True) if not n]
    line = f"{_number(total, 'object')} of {_number(present, 'class')}: {', '.join(names)}{more}."
    if absent:
        line += f" Without objects: {listed(absent)}."
    lines.append(line)
    inputs = statistics.sizes_in_input(settings.min_size, settings.max_size)
    for where, values in (("image", statistics.sizes), ("input", inputs)):
        valid = _finite(values)
        low, five, half, most, high = np.quantile(
            valid if len(valid) else [0.0], (0, 0.05, 0.5, 0.95, 1)
        )
        lines.append(
            f"Object sizes in px of the {where} (root of the area of the box): median {half:.0f}, 90 % in "
            f"{five:.0f} to {most:.0f}, all in {low:.0f} to {high:.0f}."
        )
    lines[-1] += f" {_of_anchors(_finite(inputs), settings)}"
    line = f"Objects per image: {counts.mean():.1f} on average, at most {counts.max()}."
    for name, limit in _limits(settings):
        if (counts > limit).any():
            above = int((counts > limit).sum())
            line += f" More than {name} {limit}: {_number(above, 'image')}."
    return [*lines, line]


def check_folder(folder: str) -> None:
    """Checks that :func:`plot_dataset` can write to a folder, and makes it.

    Raises:
        ValueError: there is a picture already, or the folder cannot be made or written to.
    """
    existing = [p for name in PICTURES if os.path.lexists(p := os.path.join(folder, name))]
    if existing:
        raise ValueError(f"--pictures: {existing[0]} exists already; name another folder.")
    try:
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"--pictures {folder} cannot be written to: {error}") from error


def plot_dataset(
    dicts: Sequence[_Record],
    statistics: Statistics,
    cfg: CfgNode | None,
    findings: Sequence[Finding],
    name: str,
    folder: str,
) -> list[str]:
    """Draws PICTURES of a data set.

    Args:
        dicts: the data set in Detectron2's form.
        statistics: those of the data set.
        cfg: what it is compared with; None for Detectron2's defaults.
        findings: what the checks of the data set found.
        name: the name of the data set, for titles.
        folder: the folder to write to.

    Returns:
        the files.
    """
    pixel_range, unit = (cfg.INPUT.PIXEL_RANGE, cfg.INPUT.PIXEL_RANGE_UNIT) if cfg else ([], "")
    if not pixel_range:
        # Images of more than 8 bits would be white.
        pixel_range, unit = [0.1, 99.9], "percentile"

    def read(file: str) -> NDArray[np.uint8]:
        return read_image(scaled_path(file, pixel_range, unit), format="RGB")

    find_fonts(statistics.class_names)
    samples, extremes, charts = files = [os.path.join(folder, picture) for picture in PICTURES]
    objects = _number(len(statistics.classes), "object")
    title = f"{plain(name)}: {_number(len(dicts), 'image')}, {objects}"
    compared = "the config" if cfg else "Detectron2's defaults"
    plot_statistics(statistics, Settings.of(cfg), f"{title}. Compared with {compared}.", charts)
    plot_samples(dicts, statistics, read, title, samples)
    plot_extremes(dicts, statistics, findings, read, title, extremes)
    return files


def levels_of(sizes: NDArray[np.float64], levels: tuple[int, int]) -> NDArray[np.int64]:
    """Returns the level of the pyramid that Detectron2 pools each object from.

    Args:
        sizes: [N], the root of the area of the box, in px of the input.
        levels: the first and the last level.
    """
    corners = torch.zeros(len(sizes), 4)
    corners[:, 2:] = torch.from_numpy(sizes)[:, None]
    assigned = assign_boxes_to_levels([Boxes(corners)], *levels, _CANONICAL_SIZE, _CANONICAL_LEVEL)
    return assigned.numpy() + levels[0]


def plot_statistics(statistics: Statistics, settings: Settings, title: str, file: str) -> None:
    """Draws a page of charts: objects per class, object sizes, and objects per image.

    Args:
        statistics: those of the data set.
        settings: what the sizes and numbers are compared with.
        title: a line about the data set.
        file: the picture to write.
    """
    figure = Figure(figsize=(16, 11), layout="constrained")
    figure.suptitle(title, fontsize=14)
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1), squeeze=False).flat
    _plot_sizes(top.add_subplot(1, 2, 1), statistics, settings)
    _plot_objects_per_image(top.add_subplot(1, 2, 2), statistics, settings)
    _plot_classes(bottom.add_subplot(), statistics)
    figure.savefig(file, dpi=110)


def _plot_sizes(axes: Axes, statistics: Statistics, settings: Settings) -> None:
    sizes = _finite(statistics.sizes_in_input(settings.min_size, settings.max_size))
    axes.set(xlabel="root of the area of the box, in px of the input", ylabel="objects")
    scale = "images as they are"
    if settings.min_size:
        scale = f"shorter side {settings.min_size} px, longer side at most {settings.max_size} px"
    axes.set_title(f"Object sizes in the input ({scale})\n{_of_anchors(sizes, settings)}")
    logs = np.log2(sizes)
    shown = np.concatenate([logs, np.log2(settings.anchors)])
    first = np.floor(min(shown))
    last = max(np.ceil(max(shown)), first + 1)
    bins = np.arange(first, last + 0.01, 0.25).tolist()
    if settings.levels is None:
        axes.hist(logs, bins, color="tab:blue", label="objects")
    else:
        levels = levels_of(sizes, settings.levels)
        numbers = range(settings.levels[0], settings.levels[1] + 1)
        colors = colormaps["viridis"](np.linspace(0.2, 0.9, len(numbers)))
        labels = [
            f"pooled from p{n}: {(levels == n).sum()} ({100 * (levels == n).mean() if len(levels) else 0:.0f} %)"
            for n in numbers
        ]
        axes.hist(
            [logs[levels == n] for n in numbers],
            bins,
            stacked=True,
            color=list(colors),
            label=labels,
        )
    for anchor in settings.anchors:
        label = "size of anchors" if anchor == settings.anchors[0] else None
        axes.axvline(np.log2(anchor), color="tab:red", linestyle="--", linewidth=1.2, label=label)
    ticks = np.arange(first, last + 1)
    axes.set_xticks(ticks, [f"{2**tick:g}" for tick in ticks])
    axes.set_xlim(first - 0.1, last + 0.1)
    # Room for the legend.
    axes.set_ylim(0, 1.45 * max(axes.get_ylim()[1], 1))
    axes.legend(loc="upper center", ncols=2, fontsize=9, framealpha=1)
    _grid(axes)


def _plot_objects_per_image(axes: Axes, statistics: Statistics, settings: Settings) -> None:
    counts = statistics.objects_per_image
    highest = int(counts.max(initial=0))
    width = max(1, -(-(highest + 1) // 40))
    bins = (np.arange(0, highest + width + 1, width) - 0.5).tolist()
    axes.hist(counts, bins, color="tab:blue", rwidth=0.9)
    axes.set(xlabel="objects in an image", ylabel="images")
    axes.set_title(
        f"Objects per image\n{counts.mean() if len(counts) else 0:.1f} on average, at most {highest}; "
        f"{_number(int((counts == 0).sum()), 'image')} without objects"
    )
    for (name, limit), color, style in zip(
        _limits(settings), ("tab:red", "tab:orange"), ("--", ":"), strict=False
    ):
        label = f"{name} {limit}: {_number(int((counts > limit).sum()), 'image')} with more"
        # A limit far beyond all bars would make them narrow.
        near = limit <= 1.5 * highest
        axes.plot(
            [limit if near else np.nan] * 2,
            [0, 1],
            transform=axes.get_xaxis_transform(),
            color=color,
            linestyle=style,
            linewidth=2,
            label=label if near else f"{label} (beyond this chart)",
        )
    axes.set_ylim(0, 1.3 * max(axes.get_ylim()[1], 1))
    axes.legend(loc="upper right", fontsize=9, framealpha=1)
    _grid(axes)


def _plot_classes(axes: Axes, statistics: Statistics) -> None:
    objects, images = statistics.objects_per_class, statistics.images_per_class
    order = np.argsort(-objects, kind="stable")
    note = ""
    places = np.arange(min(len(order), MAX_BARS))
    if len(order) > MAX_BARS:
        half = MAX_BARS // 2
        note = f"\nThe {half} classes with the most and the {half} with the fewest objects of {len(order)} are shown."
        order = np.concatenate([order[:half], order[-half:]])
        places[half:] += 1
        axes.text(half, 0.5, "…", transform=axes.get_xaxis_transform(), ha="center", fontsize=16)
    axes.bar(places, objects[order], 0.8, color="tab:blue", alpha=0.45, label="objects")
    axes.bar(places, images[order], 0.5, color="tab:blue", label="images with the class")
    for place, i in zip(places, order, strict=True):
        axes.annotate(
            str(objects[i]),
            (place, max(objects[i], 0.5)),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            va="bottom",
            rotation=90 if len(order) > 30 else 0,
            fontsize=8 if len(order) > 12 else 10,
        )
    names = [plain(statistics.class_names[i], 24) for i in order]
    # A bar has 15 inches over the number of bars, and a character of this size a bit less than 0.09.
    rotated = max(map(len, names), default=0) * 0.09 > 15 / max(len(order), 12)
    axes.set_xticks(
        places, names, rotation=90 if rotated else 0, fontsize=8 if len(order) > 40 else 9
    )
    # Few bars are as wide as one of twelve.
    last = places.max(initial=0)
    width = max(last + 1, 12)
    axes.set_xlim((last - width) / 2, (last + width) / 2)
    present = objects[objects > 0]
    if len(present) and present.max() > 30 * present.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        # A fifth of the height is left for the numbers.
        axes.set_ylim(0.5, 0.5 * (2 * present.max()) ** 1.25)
    else:
        axes.set_ylim(0, 1.25 * max(objects.max(initial=0), 1))
    absent = int((objects == 0).sum())
    without = f"; {absent} without objects" if absent else ""
    axes.set_title(f"Objects per class: {_number(len(objects), 'class')}{without}{note}")
    axes.legend(loc="upper right", fontsize=9, framealpha=1)
    _grid(axes)


def choose_samples(
    classes: Sequence[set[int]], numbers: Sequence[int], *, least: int, most: int
) -> list[int]:
    """Chooses images in which as many classes appear as possible. The choice is always the same.

    Args:
        classes: the classes in each image.
        numbers: the number of objects in each image. Of images with as many new classes, that with the fewest objects
            is chosen, because it is easier to look at.
        least: how many images to choose if so many suffice, or else `most`.

    Returns:
        the indices of images, in ascending order. If all classes are there before `least` are chosen, the others are
        spread over the data set.
    """
    missing = set().union(*classes)
    chosen: list[int] = []
    while missing and len(chosen) < most:
        best = min(range(len(classes)), key=lambda i: (-len(classes[i] & missing), numbers[i], i))
        chosen.append(best)
        missing -= classes[best]
    others = [i for i in range(len(classes)) if i not in chosen and numbers[i]]
    wanted = min(least - len(chosen), len(others))
    if wanted > 0:
        chosen += [others[i * len(others) // wanted] for i in range(wanted)]
    return sorted(chosen)


def plot_samples(
    dicts: Sequence[_Record], statistics: Statistics, read: _Reader, title: str, file: str
) -> None:
    """Draws images with their objects, so that every class appears if it can.

    Args:
        dicts: the data set in Detectron2's form.
        statistics: those of the data set.
        read: reads a file as uint8 RGB [H, W, 3].
        title: a line about the data set.
        file: the picture to write.
    """
    names = statistics.class_names
    classes: list[set[int]] = [set() for _ in dicts]
    for image, category in zip(
        statistics.images.tolist(), statistics.classes.tolist(), strict=True
    ):
        classes[image].add(category)
    numbers = statistics.objects_per_image.tolist()
    chosen = choose_samples(classes, numbers, least=NUM_SAMPLES, most=MAX_SAMPLES)
    present = set().union(*classes)
    shown = set().union(*(classes[i] for i in chosen))
    note = "Every class that has objects appears." if len(names) > 1 else ""
    if shown != present:
        absent = [plain(names[i], _LEGEND_LENGTH) for i in sorted(present - shown)]
        note = (
            f"{len(shown)} of {len(present)} classes with objects appear, all but {listed(absent)}."
        )
    rows = max(1, -(-len(chosen) // _COLUMNS))
    figure = Figure(figsize=(4.6 * _COLUMNS, 4.9 * rows + 0.8), layout="constrained")
    figure.suptitle(f"Samples. {title}\n{note}".strip(), fontsize=14)
    for place, index in enumerate(chosen):
        axes = figure.add_subplot(rows, _COLUMNS, place + 1)
        _show(axes, dicts[index], names, read)
    figure.savefig(file, dpi=100)


def plot_extremes(
    dicts: Sequence[_Record],
    statistics: Statistics,
    findings: Sequence[Finding],
    read: _Reader,
    title: str,
    file: str,
) -> None:
    """Draws the images with the most objects, the smallest objects, and images in which something was found.

    Args:
        dicts: the data set in Detectron2's form.
        statistics: those of the data set.
        findings: what the checks of the data set found.
        read: reads a file as uint8 RGB [H, W, 3].
        title: a line about the data set.
        file: the picture to write.
    """
    counts = statistics.objects_per_image
    crowded = [i for i in np.argsort(-counts, kind="stable")[:_COLUMNS] if counts[i]]
    found = find_images(findings, dicts)
    rows: list[tuple[str, list[dict[str, Any]]]] = [
        ("Most objects", [{"record": dicts[i]} for i in crowded]),
        ("Smallest objects, enlarged", _smallest(dicts, statistics)),
    ]
    for start in range(0, len(found), _COLUMNS):
        part_found = found[start : start + _COLUMNS]
        shown = [{"record": dicts[i], "text": text, "boxes": True} for i, text in part_found]
        rows.append(("Found by the check" if start == 0 else "", shown))
    rows = [(heading, row) for heading, row in rows if row]
    figure = Figure(figsize=(4.6 * _COLUMNS, 5.4 * max(len(rows), 1) + 0.6), layout="constrained")
    figure.suptitle(f"Images to look at. {title}", fontsize=14)
    parts = figure.subfigures(max(len(rows), 1), 1, squeeze=False).flat
    part: SubFigure
    for part, (heading, row) in zip(parts, rows, strict=False):
        if heading:
            part.suptitle(heading, fontsize=13, weight="bold")
        for column, options in enumerate(row):
            axes = part.add_subplot(1, _COLUMNS, column + 1)
            _show(axes, class_names=statistics.class_names, read=read, **options)
    figure.savefig(file, dpi=100)


def find_images(findings: Sequence[Finding], dicts: Sequence[_Record]) -> list[tuple[int, str]]:
    """Finds images in which the checks found something that can be seen.

    Args:
        findings: what the checks found.
        dicts: the data set in Detectron2's form.

    Returns:
        (index of the image, what was found) of up to 8 images, the first ones of each kind of fault in turn.
    """
    by_file = {record["file_name"]: i for i, record in enumerate(dicts)}
    by_id = {record["image_id"]: i for i, record in enumerate(dicts)}
    of_kind: list[list[tuple[int, str]]] = []
    for finding in findings:
        if not finding.kind.startswith(_VISIBLE):
            continue
        images: list[tuple[int, str]] = []
        of_files = finding.kind.startswith("file_")
        index_of = by_file if of_files else by_id
        for example, image in zip(finding.examples[:_MAX_EXAMPLES], finding.images, strict=False):
            if image in index_of:
                # The title of the picture names the image.
                named = image if of_files else f" of image {image!r:.100}"
                text = example.replace(named, "", 1).lstrip(": ")
                images.append((index_of[image], f"{finding.kind}: {text}"))
        of_kind.append(images)
    chosen: dict[int, str] = {}
    for turn in range(2 * _COLUMNS):
        for images in of_kind:
            if turn < len(images) and len(chosen) < 2 * _COLUMNS:
                chosen.setdefault(*images[turn])
    return list(chosen.items())


# Kinds of findings that a picture can show, by what they begin with.
_VISIBLE = (
    "bbox_",
    "box_mask",
    "segmentation_",
    "rle_",
    "mask_empty",
    "polygon_",
    "area_odd",
    "object_twice",
    "file_size",
    "file_rotated",
    "crowd",
)


def _smallest(dicts: Sequence[_Record], statistics: Statistics) -> list[dict[str, Any]]:
    """What `_show` needs to show the smallest objects, each of another image."""
    images = statistics.images[np.argsort(statistics.sizes, kind="stable")]
    shown: list[dict[str, Any]] = []
    for index in dict.fromkeys(images.tolist()):
        record = dicts[index]
        boxes = [_corners(a) for a in record["annotations"] if not a.get("iscrowd", 0)]
        boxes = [
            box for box in boxes if 0 < box[2] - box[0] < np.inf and 0 < box[3] - box[1] < np.inf
        ]
        if not boxes:
            continue
        x0, y0, x1, y1 = box = min(boxes, key=lambda b: (b[2] - b[0]) * (b[3] - b[1]))
        side = int(max(_MIN_WINDOW, 6 * max(x1 - x0, y1 - y0)))
        left, right = _window((x0 + x1) / 2, side, record["width"])
        top, bottom = _window((y0 + y1) / 2, side, record["height"])
        text = f"the framed object has {x1 - x0:.3g} x {y1 - y0:.3g} px"
        shown.append(
            {"record": record, "text": text, "window": (left, top, right, bottom), "framed": box}
        )
        if len(shown) == _COLUMNS:
            break
    return shown


def _window(center: float, side: int, length: int) -> tuple[int, int]:
    start = int(min(max(center - side / 2, 0), max(length - side, 0)))
    return start, min(start + side, length)


def _show(
    axes: Axes,
    record: _Record,
    class_names: Sequence[str],
    read: _Reader,
    text: str = "",
    window: tuple[int, int, int, int] | None = None,
    framed: tuple[float, float, float, float] | None = None,
    boxes: bool = False,
) -> None:
    """Draws an image with a legend of the classes in it.

    Args:
        axes: where to draw.
        record: the image in Detectron2's form.
        class_names: the names of the classes.
        read: reads a file as uint8 RGB [H, W, 3].
        text: what is said of the image.
        window: (x0, y0, x1, y1) of the part to draw; by default the whole image.
        framed: a box (x0, y0, x1, y1) to be framed.
        boxes: whether to draw the boxes of objects that have masks, too.
    """
    axes.axis("off")
    name = plain(os.path.basename(record["file_name"]), _TITLE_LENGTH)
    annotations = record.get("annotations", ())
    lines = [
        name,
        *(plain(line) for line in textwrap.wrap(text, 52, max_lines=3, placeholder=" …")),
    ]
    axes.set_title("\n".join(lines), fontsize=9)
    try:
        image = read(record["file_name"])
        if window is not None:
            image, annotations = _crop(image, annotations, window)
        kinds = [(a["category_id"], a.get("iscrowd", 0)) for a in annotations]
        counts = Counter(kinds)
        order = [kind for kind, _ in counts.most_common()]
        palette = colormaps["tab20" if len(order) > 9 else "Set1"]
        # In an image of one class, colours tell neighbours apart.
        one = len(order) == 1
        colors = [
            palette((i if one else order.index(kind)) % palette.N)[:3]
            for i, kind in enumerate(kinds)
        ]
        drawn = draw(image, annotations, class_names, colors, boxes)
        left, top, right, bottom = window or (0, 0, image.shape[1], image.shape[0])
        axes.imshow(drawn, extent=(left, right, bottom, top))
        if framed is not None:
            x0, y0, x1, y1 = framed
            margin = 0.04 * (right - left)
            frame = (x0 - margin, y0 - margin), x1 - x0 + 2 * margin, y1 - y0 + 2 * margin
            # It is seen on white and on black.
            for edge, width in (("black", 3), ("white", 1.5)):
                axes.add_patch(Rectangle(*frame, fill=False, edgecolor=edge, linewidth=width))
    except Exception as error:  # Faulty images and annotations raise dozens of types, and are to be shown if they can.
        message = "\n".join(textwrap.wrap(f"cannot be drawn: {error}", 40, max_lines=6))
        axes.text(0.5, 0.5, plain(message), ha="center", va="center", transform=axes.transAxes)
        return
    handles = []
    for place, (category, crowd) in enumerate(order[:_LEGEND_CLASSES]):
        name = plain(class_names[category], _LEGEND_LENGTH) + (" (crowd)" if crowd else "")
        color = "0.6" if one else palette(place % palette.N)
        handles.append(Patch(color=color, label=f"{name} {counts[category, crowd]}"))
    if len(order) > _LEGEND_CLASSES:
        rest = order[_LEGEND_CLASSES:]
        label = f"{_number(len(rest), 'more class')} {sum(counts[kind] for kind in rest)}"
        handles.append(Patch(color="white", label=label))
    if handles:
        axes.legend(
            handles=handles,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.01),
            ncols=min(3, len(handles)),
            fontsize=8,
            frameon=False,
            handlelength=1,
            columnspacing=1,
        )


def _crop(
    image: NDArray[np.uint8], annotations: Sequence[_Record], window: tuple[int, int, int, int]
) -> tuple[NDArray[np.uint8], list[_Record]]:
    """A window (x0, y0, x1, y1) of an image, and the annotations that reach into it."""
    left, top, right, bottom = window
    kept = []
    for annotation in annotations:
        x0, y0, x1, y1 = _corners(annotation)
        if x0 >= right or y0 >= bottom or x1 <= left or y1 <= top:
            continue
        box = [x0 - left, y0 - top, x1 - left, y1 - top]
        changed = {**annotation, "bbox": box, "bbox_mode": BoxMode.XYXY_ABS}
        if "segmentation" in annotation:
            mask = GenericMask(annotation["segmentation"], *image.shape[:2]).mask
            changed["segmentation"] = mask_util.encode(
                np.asfortranarray(mask[top:bottom, left:right], dtype=np.uint8)
            )
        kept.append(changed)
    return image[top:bottom, left:right], kept


def _corners(annotation: _Record) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = BoxMode.convert(
        list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS
    )
    return x0, y0, x1, y1


def _limits(settings: Settings) -> list[tuple[str, int]]:
    limits = [("COCO's maxDets", COCO_DETECTIONS)]
    # A negative number is no limit.
    if settings.detections >= 0:
        limits.insert(0, ("TEST.DETECTIONS_PER_IMAGE", settings.detections))
    return limits


def _finite(sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Leaves out faulty boxes, which have no size or an infinite one."""
    return sizes[(sizes > 0) & (sizes < np.inf)]


def _of_anchors(sizes: NDArray[np.float64], settings: Settings) -> str:
    """How many objects no anchor fits, because each has less than a quarter of their area or they of its."""
    if not len(sizes):
        return "There are no objects."
    smallest, largest = min(settings.anchors), max(settings.anchors)
    below, above = (sizes < smallest / 2).mean(), (sizes > 2 * largest).mean()
    return (
        f"{100 * below:.1f} % are smaller than half of the smallest anchor ({smallest:.4g}), "
        f"{100 * above:.1f} % larger than twice the largest ({largest:.4g})."
    )


def _number(count: int, what: str) -> str:
    if count == 1:
        return f"1 {what}"
    return f"{count} {what}{'es' if what.endswith('s') else 's'}"


def _grid(axes: Axes) -> None:
    axes.grid(True, axis="y", alpha=0.25)
    axes.set_axisbelow(True)
