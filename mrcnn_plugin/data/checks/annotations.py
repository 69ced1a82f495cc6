"""What is wrong in the content of a COCO JSON file, and a repaired copy of it.

The checks are vectorised by hand rather than written as a schema. A schema library would check the types of the
fields, one object at a time, and that is the smaller part: most faults are relations, between a box and its mask, an
annotation and its image, a run-length encoding and the size of its image. The 860,000 annotations of COCO are read in
chunks, so that the memory beyond the content itself stays small.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from numpy.typing import NDArray

from .read import keypoint_names

_CHUNK = 20000
_NUMBERS = {int, float}
_MISSING: Any = object()
# A coordinate may lie outside of its image by this many px, or by this share of the longer side.
_OVERHANG_PIXELS = 2.0
_OVERHANG_SHARE = 0.02
# A box and the box around its mask overlap less than this (intersection over union): they contradict each other.
_MIN_BOX_IOU = 0.5
# Where both are shorter than this, they are too small to be compared so.
_MIN_COMPARED_SIDE = 4.0

_Floats = NDArray[np.float64]
_Bools = NDArray[np.bool_]


@dataclass
class Finding:
    """All faults of one kind.

    Attributes:
        kind: a key of `mrcnn_plugin.data.checks.kinds.KINDS`.
        count: how many images, annotations or categories have the fault.
        total: how many there are.
        examples: the first of them, each with its ids and its value.
        hint: what the faults have in common, if that is known.
        images: of each example, the id of its image, or the path if the fault is one of files; None if it has none.
            Empty for faults of other things.
    """

    kind: str
    count: int
    total: int
    examples: list[str]
    hint: str = ""
    images: list[Any] = field(default_factory=list)


@dataclass(kw_only=True)
class Checked:
    """What :func:`check_content` finds out.

    Attributes:
        findings: the faults, kind by kind.
        images: (file name, width, height) of each image that has all three. Sizes are in px.
        objects: number of objects -> number of images with as many; images without any are left out.
        crowded: (number of objects, image id) of the images with the most objects, most first; as many as examples.
        images_of_category: category id -> number of images with an object of it.
    """

    findings: list[Finding] = field(default_factory=list)
    images: list[tuple[str, int, int]] = field(default_factory=list)
    objects: dict[int, int] = field(default_factory=dict)
    crowded: list[tuple[int, Any]] = field(default_factory=list)
    images_of_category: dict[int, int] = field(default_factory=dict)


@dataclass
class Findings:
    """Collects faults.

    Attributes:
        limit: how many examples of a kind are kept; None for all.
        found: kind -> its faults.
    """

    limit: int | None
    found: dict[str, Finding] = field(default_factory=dict)

    def add(
        self,
        kind: str,
        items: Iterable[Any],
        total: int,
        describe: Callable[[Any], str],
        image_of: Callable[[Any], Any] | None = None,
    ) -> list[Any]:
        """Records the items of a kind, with the images of the examples; returns them."""
        items = list(items)
        if items:
            finding = self.found.setdefault(kind, Finding(kind, 0, total, []))
            finding.count += len(items)
            room = self.limit and max(self.limit - len(finding.examples), 0)
            finding.examples += [describe(item) for item in items[:room]]
            if image_of:
                finding.images += [image_of(item) for item in items[:room]]
        return items


def check_content(
    content: dict[str, Any], *, masks: bool = True, limit: int | None = 5
) -> tuple[Checked, dict[str, Any] | None]:
    """Checks the content of a COCO JSON file whose categories are known to be well formed.

    Args:
        content: an object with the lists `images` and `categories`, and in general `annotations`. It is not changed.
        masks: whether masks are of interest. If not, faulty segmentations do no harm: the repaired copy has none.
        limit: how many examples of a kind are kept; None for all.

    Returns:
        What was found out, and the content with what can be repaired repaired, and without the objects that cannot be
        used; None where nothing had to change.
    """
    findings = Findings(limit)
    categories, images = content["categories"], content["images"]
    _check_categories(categories, findings)
    found = _check_images(images, findings)
    checker = _AnnotationChecker(content, found, masks, findings)
    annotations = content.get("annotations")
    if isinstance(annotations, list):
        checker.check()
    elif "annotations" in content:
        findings.add("annotations_no_list", [f"annotations: {annotations!r:.60}"], 1, str)
    else:
        findings.add("annotations_missing", [""], 1, str)
    numbers = checker.objects_of_image
    images_of_category = Counter(category for category, _ in checker.pairs)
    checked = Checked(
        findings=list(findings.found.values()),
        images=found.usable,
        objects=dict(Counter(numbers.values())),
        crowded=[(number, images[i]["id"]) for i, number in numbers.most_common(limit)],
        images_of_category={c["id"]: images_of_category[c["id"]] for c in categories},
    )
    if not (checker.changes or checker.left_out or found.changed):
        return checked, None
    repaired = {
        **content,
        "images": [found.changed.get(i, image) for i, image in enumerate(images)],
    }
    if checker.changes or checker.left_out:
        repaired["annotations"] = checker.repaired()
    return checked, repaired


def _check_categories(categories: list[dict[str, Any]], findings: Findings) -> None:
    seen: dict[str, Any] = {}
    again = [c for c in categories if seen.setdefault(c["name"], c["id"]) != c["id"]]
    findings.add(
        "category_names",
        again,
        len(categories),
        lambda c: f"{c['name']!r} has the ids {seen[c['name']]} and {c['id']}",
    )


@dataclass
class _Images:
    """The images of a file.

    Attributes:
        index: id -> index in the list of images; the first if several have the id.
        heights: of each image in px, NaN if it is not known.
        widths: the same.
        usable: as :attr:`Checked.images`.
        changed: index -> the image with integers for height and width, where they are whole floats.
    """

    index: dict[Any, int]
    heights: _Floats
    widths: _Floats
    usable: list[tuple[str, int, int]]
    changed: dict[int, dict[str, Any]]


def _check_images(images: list[Any], findings: Findings) -> _Images:
    total = len(images)
    add = findings.add
    found = _Images({}, np.full(total, np.nan), np.full(total, np.nan), [], {})
    if not images:
        add("images_empty", ["images: []"], 1, str)
    add(
        "image_form",
        (i for i, image in enumerate(images) if not isinstance(image, dict)),
        total,
        lambda i: f"images[{i}] is {images[i]!r:.60}",
    )
    forms = [i for i, image in enumerate(images) if isinstance(image, dict)]

    def shown(i: int, *keys: str) -> str:
        image = images[i]
        values = ", ".join(f"{key} {image[key]!r:.60}" for key in keys if key in image)
        named = f"image {image.get('id', f'images[{i}]')!r} ({image.get('file_name')!r:.80})"
        return f"{named}: {values}" if values else named

    bad_ids = add(
        "image_id_form",
        (i for i in forms if type(images[i].get("id")) not in (int, str, float)),
        total,
        lambda i: shown(i, "id"),
    )
    with_id = sorted(set(forms).difference(bad_ids))
    for i in with_id:
        found.index.setdefault(images[i]["id"], i)
    add(
        "image_id_twice",
        (i for i in with_id if found.index[images[i]["id"]] != i),
        total,
        lambda i: (
            f"the id {images[i]['id']!r} is that of "
            f"{images[found.index[images[i]['id']]].get('file_name')!r} and of "
            f"{images[i].get('file_name')!r}"
        ),
    )
    kinds_of_id = {type(id) is str for id in found.index}
    if len(kinds_of_id) > 1:
        texts = [i for i in forms if type(images[i].get("id")) is str]
        add("image_id_mixed", texts, total, lambda i: shown(i))

    bad_names = add(
        "file_name",
        (
            i
            for i in forms
            if not isinstance(images[i].get("file_name"), str) or not images[i]["file_name"]
        ),
        total,
        lambda i: shown(i, "file_name"),
    )
    first: dict[str, int] = {}
    bad = set(bad_names)
    named = [i for i in forms if i not in bad]
    add(
        "file_name_twice",
        (i for i in named if first.setdefault(images[i]["file_name"], i) != i),
        total,
        lambda i: (
            f"{images[i]['file_name']!r} is the file of the images "
            f"{images[first[images[i]['file_name']]].get('id')!r} and {images[i].get('id')!r}"
        ),
    )
    sizes_missing, sizes_wrong = [], []
    for i in forms:
        image = images[i]
        size = [image.get("height"), image.get("width")]
        if None in size:
            sizes_missing.append(i)
            continue
        if all(_is_number(s) and 0 < s < 2**31 and s == int(s) for s in size):
            found.heights[i], found.widths[i] = size
            if float in map(type, size):
                found.changed[i] = {**image, "height": int(size[0]), "width": int(size[1])}
            if i not in bad:
                found.usable.append((image["file_name"], int(size[1]), int(size[0])))
        else:
            sizes_wrong.append(i)
    add("size_missing", sizes_missing, total, lambda i: shown(i, "height", "width"))
    add("size_form", sizes_wrong, total, lambda i: shown(i, "height", "width"))
    add("size_float", found.changed, total, lambda i: shown(i, "height", "width"))
    return found


class _AnnotationChecker:
    """Checks annotations in chunks, and keeps what only all of them together tell.

    Attributes:
        changes: changes of annotations, by index: new values, and fields to be deleted.
        left_out: the indices of the annotations that cannot be used.
        objects_of_image: index of an image -> number of its objects.
        pairs: (category id, index of an image) of the objects.
    """

    def __init__(
        self, content: dict[str, Any], images: _Images, masks: bool, findings: Findings
    ) -> None:
        self.content = content
        self.annotations: Any = content.get("annotations")  # a list where :meth:`check` is called
        self.images = images
        self.masks = masks
        self.findings = findings
        self.categories = {category["id"] for category in content["categories"]}
        self.keypoints = len(keypoint_names(content["categories"]))
        self.changes: dict[int, dict[str, Any]] = {}
        self.left_out: set[int] = set()
        self.objects_of_image: Counter[int] = Counter()
        self.pairs: set[tuple[Any, int]] = set()
        self.crowds = 0
        self.contradictions: list[tuple[int, _Floats, _Floats, _Floats]] = []
        self.compared = 0
        self.odd_areas: list[int] = []
        self.areas_compared = 0
        self.first_object: dict[int, int] = {}

    def check(self) -> None:
        annotations = self.annotations
        forms = [i for i, a in enumerate(annotations) if isinstance(a, dict)]
        self.findings.add(
            "annotation_form",
            (i for i, a in enumerate(annotations) if not isinstance(a, dict)),
            len(annotations),
            lambda i: f"annotations[{i}] is {annotations[i]!r:.60}",
        )
        for start in range(0, len(forms), _CHUNK):
            self.check_chunk(forms[start : start + _CHUNK])
        self.check_annotation_ids(forms)
        self.conclude(forms)

    def shown(self, i: int, *keys: str) -> str:
        annotation = self.annotations[i]
        named = (
            f"annotation {annotation['id']!r:.100}" if "id" in annotation else f"annotations[{i}]"
        )
        if "image_id" in annotation and "image_id" not in keys:
            image = annotation["image_id"]
            named += f" of image {image!r:.100}"
        values = ", ".join(f"{k} {_short(annotation[k])}" for k in keys if k in annotation)
        return f"{named}: {values}" if values else named

    def add(self, kind: str, items: Iterable[int], *keys: str) -> list[int]:
        return self.findings.add(
            kind, items, len(self.annotations), lambda i: self.shown(i, *keys), self.image_of
        )

    def image_of(self, i: int) -> Any:
        index = _find(self.images.index, self.annotations[i].get("image_id"))
        return self.content["images"][index]["id"] if index >= 0 else None

    def change(self, i: int, **values: Any) -> None:
        self.changes.setdefault(i, {}).update(values)

    def check_chunk(self, indices: list[int]) -> None:
        chunk = [self.annotations[i] for i in indices]
        ids = np.array(indices, dtype=np.int64)
        image = np.array([_find(self.images.index, a.get("image_id")) for a in chunk])
        known = [_contains(self.categories, a.get("category_id")) for a in chunk]
        rows = list(zip(indices, chunk, image.tolist(), known, strict=True))
        self.add("image_id_missing", (i for i, a, _, _ in rows if "image_id" not in a))
        self.add("category_id_missing", (i for i, a, _, _ in rows if "category_id" not in a))
        unknown = (i for i, a, k, _ in rows if k < 0 and "image_id" in a)
        self.left_out.update(self.add("image_id_unknown", unknown, "image_id"))
        unknown = (i for i, a, _, ok in rows if not ok and "category_id" in a)
        self.left_out.update(self.add("category_id_unknown", unknown, "category_id"))
        # Index -1, no such image, is that of the NaN at the end.
        height = np.append(self.images.heights, np.nan)[image]
        width = np.append(self.images.widths, np.nan)[image]

        crowd = self.check_crowds(indices, chunk)
        self.check_ignore(indices, chunk)
        boxes = self.check_boxes(indices, chunk, height, width)
        mask_boxes, mask_areas = self.check_masks(indices, chunk, height, width, crowd)
        self.compare(ids, boxes, mask_boxes, width, height, crowd)
        self.check_areas(indices, chunk, boxes, mask_areas)
        self.find_duplicates(indices, chunk)
        self.check_keypoints(indices, chunk, crowd)
        self.crowds += int(crowd.sum())
        kept = np.array([i not in self.left_out for i in indices], dtype=bool)
        kept &= (image >= 0) & np.array(known, dtype=bool) & ~crowd
        self.pairs.update((chunk[k]["category_id"], int(image[k])) for k in np.flatnonzero(kept))
        self.objects_of_image.update(image[kept].tolist())

    def check_crowds(self, indices: list[int], chunk: list[dict[str, Any]]) -> _Bools:
        crowd = np.zeros(len(chunk), dtype=bool)
        missing, text, wrong = [], [], []
        for k, (i, a) in enumerate(zip(indices, chunk, strict=True)):
            value = a.get("iscrowd", _MISSING)
            if value is _MISSING or value is None:
                missing.append(i)
                self.change(i, iscrowd=0)
            elif isinstance(value, (bool, int, float)) and value in (0, 1):
                crowd[k] = bool(value)
            elif isinstance(value, str) and value.strip() in ("0", "1"):
                text.append(i)
                crowd[k] = value.strip() == "1"
                self.change(i, iscrowd=int(value))
            else:
                wrong.append(i)
        self.add("iscrowd_missing", missing)
        self.add("iscrowd_text", text, "iscrowd")
        self.add("iscrowd_value", wrong, "iscrowd")
        self.add("crowd", (indices[k] for k in np.flatnonzero(crowd)))
        return crowd

    def check_ignore(self, indices: list[int], chunk: list[dict[str, Any]]) -> None:
        bad = []
        for i, a in zip(indices, chunk, strict=True):
            value = a.get("ignore", 0)
            if value is None:
                self.change(i, ignore=0)
            elif value != 0:
                bad.append(i)
        self.add("ignore", bad, "ignore")

    def check_boxes(
        self, indices: list[int], chunk: list[dict[str, Any]], height: _Floats, width: _Floats
    ) -> _Floats:
        """The boxes of a chunk as [N, 4] of (x, y, width, height) in px, NaN where a box is none."""
        boxes = np.full((len(chunk), 4), np.nan)
        missing, wrong, good = [], [], []
        for k, (i, a) in enumerate(zip(indices, chunk, strict=True)):
            box = a.get("bbox")
            if box is None or box == []:
                missing.append(i)
            elif type(box) is list and len(box) == 4 and set(map(type, box)) <= _NUMBERS:
                good.append(k)
            else:
                wrong.append(i)
        boxes[good] = _to_floats([chunk[k]["bbox"] for k in good]).reshape(-1, 4)
        ids = np.array(indices, dtype=np.int64)
        self.add("bbox_missing", missing)
        self.add("bbox_form", wrong, "bbox")
        finite = np.isfinite(boxes).all(1)
        self.add("bbox_not_finite", (indices[k] for k in good if not finite[k]), "bbox")
        boxes[~finite] = np.nan
        x, y, w, h = boxes.T
        with np.errstate(invalid="ignore"):
            negative = (w < 0) | (h < 0)
            self.add("bbox_negative", ids[negative].tolist(), "bbox")
            empty = ~negative & ((w == 0) | (h == 0))
            positive = (w > 0) & (h > 0)
            outside = positive & ((x >= width) | (y >= height) | (x + w <= 0) | (y + h <= 0))
            self.left_out.update(self.add("bbox_empty", ids[empty].tolist(), "bbox"))
            self.left_out.update(self.add("bbox_outside", ids[outside].tolist(), "bbox"))
            overhang = np.max([-x, -y, x + w - width, y + h - height], axis=0)
            allowed = np.maximum(_OVERHANG_PIXELS, _OVERHANG_SHARE * np.maximum(width, height))
            overhangs = positive & ~outside & (overhang > allowed)
            self.add("bbox_overhang", ids[overhangs].tolist(), "bbox")
            relative = (x >= 0) & (y >= 0) & (x + w <= 1.001) & (y + h <= 1.001)
            relative &= positive & (np.minimum(width, height) > 8)
        self.add("bbox_relative", ids[relative].tolist(), "bbox")
        boxes[negative] = np.nan
        return boxes

    def check_masks(
        self,
        indices: list[int],
        chunk: list[dict[str, Any]],
        height: _Floats,
        width: _Floats,
        crowd: _Bools,
    ) -> tuple[_Floats, _Floats]:
        """Boxes around the masks of a chunk, [N, 4] of (x, y, width, height) in px, and areas in px², NaN for none."""
        number = len(chunk)
        mask_boxes = np.full((number, 4), np.nan)
        areas = np.full(number, np.nan)
        kinds: dict[str, list[int]] = {}

        def bad(kind: str, k: int) -> None:
            kinds.setdefault(kind, []).append(k)

        numbers: list[float] = []
        lengths: list[int] = []
        owners: list[int] = []
        rles: list[int] = []
        for k, a in enumerate(chunk):
            segmentation = a.get("segmentation")
            is_list = type(segmentation) is list
            if segmentation in (None, "", {}) or (is_list and not any(segmentation)):
                bad("mask_missing_crowd" if crowd[k] else "mask_missing", k)
                if segmentation:
                    # Detectron2 would take [[]] for a faulty mask and leave the object out.
                    self.change(indices[k], segmentation=_MISSING)
            elif is_list:
                kind = _polygons_kind(segmentation)
                if kind:
                    bad(kind, k)
                    continue
                long = [p for p in segmentation if len(p) >= 6]
                if not long:
                    bad("segmentation_short", k)
                    continue
                if len(long) < len(segmentation):
                    bad("polygon_short", k)
                    if self.masks:
                        # Detectron2 leaves the others out of training, but pycocotools fails if the first one is short.
                        self.change(indices[k], segmentation=long)
                for polygon in long:
                    numbers += polygon
                    lengths.append(len(polygon) // 2)
                    owners.append(k)
            elif type(segmentation) is dict:
                rles.append(k)
                if not crowd[k]:
                    bad("rle", k)
            elif isinstance(segmentation, str):
                bad("segmentation_text", k)
            else:
                bad("segmentation_form", k)

        if owners:
            _check_polygons(
                chunk,
                _to_floats(numbers),
                np.array(lengths),
                np.array(owners),
                height,
                width,
                mask_boxes,
                areas,
                bad,
            )
        _check_rles(chunk, rles, height, width, mask_boxes, areas, bad)
        ids = np.array(indices)
        for kind, ks in kinds.items():
            found = self.add(kind, ids[ks].tolist(), "segmentation")
            if kind in ("segmentation_short", "mask_empty") and self.masks:
                self.left_out.update(found)
        return mask_boxes, areas

    def compare(
        self,
        ids: NDArray[np.int64],
        boxes: _Floats,
        mask_boxes: _Floats,
        width: _Floats,
        height: _Floats,
        crowd: _Bools,
    ) -> None:
        with np.errstate(invalid="ignore"):
            sides = np.maximum(mask_boxes[:, 2:], boxes[:, 2:])
            compared = sides.min(1) >= _MIN_COMPARED_SIDE
            compared &= ~crowd & (boxes[:, 2:] > 0).all(1)
            different = compared & (_iou(boxes, mask_boxes) < _MIN_BOX_IOU)
        self.compared += int(compared.sum())
        for k in np.flatnonzero(different):
            size = np.array([width[k], height[k]])
            self.contradictions.append((int(ids[k]), boxes[k], mask_boxes[k], size))

    def check_areas(
        self,
        indices: list[int],
        chunk: list[dict[str, Any]],
        boxes: _Floats,
        mask_areas: _Floats,
    ) -> None:
        missing, wrong, zero = [], [], []
        box_areas = boxes[:, 2] * boxes[:, 3]
        best = np.where(np.isfinite(mask_areas) & self.masks, mask_areas, box_areas)
        values = np.full(len(chunk), np.nan)
        for k, (i, a) in enumerate(zip(indices, chunk, strict=True)):
            value = a.get("area", _MISSING)
            if value is _MISSING:
                missing.append(i)
            elif not _is_number(value):
                wrong.append(i)
            elif value <= 0 < best[k]:
                zero.append(i)
            else:
                values[k] = value
                continue
            self.change(i, area=round(float(best[k]), 2) if np.isfinite(best[k]) else 0.0)
        self.add("area_missing", missing)
        self.add("area_form", wrong, "area")
        self.add("area_zero", zero, "area")
        with np.errstate(invalid="ignore", divide="ignore"):
            # COCO's area is that of the mask; many programs write that of the box.
            low, high = np.fmin(mask_areas, box_areas), np.fmax(mask_areas, box_areas)
            # A mask that is not known may be much smaller than its box.
            low = np.where(np.isfinite(mask_areas), low, 0.01 * high)
            compared = (high > 100) & np.isfinite(values)
            odd = compared & ((values > 2 * high) | (values < 0.5 * low))
        self.areas_compared += int(compared.sum())
        self.odd_areas += np.array(indices)[odd].tolist()

    def check_keypoints(
        self, indices: list[int], chunk: list[dict[str, Any]], crowd: _Bools
    ) -> None:
        numbers = 3 * self.keypoints
        bad, missing_crowd = [], []
        missing: list[int] = []
        wrong: list[int] = []
        for i, a, in_crowd in zip(indices, chunk, crowd.tolist(), strict=True):
            points: Any = a.get("keypoints")
            are_numbers = type(points) is list and _are_finite(points)
            if points and not are_numbers:
                # Detectron2 would fail while it loads the data set, even for a model without keypoints.
                self.change(i, keypoints=_MISSING)
            if not numbers:
                continue
            if in_crowd and (points is None or points == []):
                missing_crowd.append(i)
                self.change(i, keypoints=[0] * numbers, num_keypoints=0)
            elif not are_numbers or len(points) != numbers:
                bad.append(i)
            else:
                value, labelled = a.get("num_keypoints", _MISSING), sum(v > 0 for v in points[2::3])
                # pycocotools needs it in every annotation, and ignores an object with 0.
                if value != labelled:
                    (missing if value is _MISSING else wrong).append(i)
                    self.change(i, num_keypoints=labelled)
        self.add("keypoints_form", bad, "keypoints")
        self.add("keypoints_missing_crowd", missing_crowd)
        self.add("num_keypoints_missing", missing)
        self.add("num_keypoints_wrong", wrong, "num_keypoints")

    def find_duplicates(self, indices: list[int], chunk: list[dict[str, Any]]) -> None:
        again = []
        for i, a in zip(indices, chunk, strict=True):
            box = a.get("bbox")
            if type(box) is not list:
                continue
            try:
                key = hash((a.get("image_id"), a.get("category_id"), *box))
            except TypeError:
                # Something unhashable is a fault that has its own message.
                continue
            first = self.first_object.setdefault(key, i)
            if first != i and all(
                self.annotations[first].get(name) == a.get(name)
                for name in ("image_id", "category_id", "bbox", "segmentation")
            ):
                again.append(i)
        self.add("object_twice", again, "bbox")

    def check_annotation_ids(self, forms: list[int]) -> None:
        missing, other, low, again = [], [], [], []
        seen: set[int] = set()
        for i in forms:
            id = self.annotations[i].get("id")
            if id is None:
                missing.append(i)
            elif type(id) is not int:
                other.append(i)
            elif id in seen:
                again.append(i)
            else:
                seen.add(id)
                if id <= 0:
                    low.append(i)
        self.add("annotation_id_missing", missing)
        self.add("annotation_id_form", other)
        self.add("annotation_id_twice", again)
        self.add("annotation_id_zero", low)
        if missing or other or low or again:
            for number, i in enumerate(forms, start=1):
                self.change(i, id=number)

    def conclude(self, forms: list[int]) -> None:
        """What can only be said of all annotations together."""
        found = self.findings.found
        # What lies in [0, 1] is a share of the image's size only if most do.
        for kind in ("bbox_relative", "segmentation_relative"):
            if kind in found and found[kind].count <= 0.5 * len(self.annotations):
                del found[kind]
        self.contradictions = [c for c in self.contradictions if c[0] not in self.left_out]
        items = [i for i, *_ in self.contradictions]
        self.add("box_mask", items, "bbox")
        if items:
            found["box_mask"].total = self.compared
            found["box_mask"].hint = _guess_boxes(self.contradictions)
        self.add("area_odd", self.odd_areas, "area")
        if self.odd_areas:
            found["area_odd"].total = self.areas_compared
        if not self.objects_of_image:
            what = (
                f"{len(forms)} annotations, {self.crowds} with iscrowd 1, {len(self.left_out)} left out"
                if forms
                else "annotations: []"
            )
            self.findings.add("no_objects", [what], 1, str)
        are_faulty = any(k.startswith(("segmentation", "rle_", "mask_empty")) for k in found)
        if are_faulty and not self.masks:
            for i in forms:
                if "segmentation" in self.annotations[i]:
                    self.change(i, segmentation=_MISSING)

    def repaired(self) -> list[Any]:
        """The annotations with the changes, without those that are left out."""
        kept = (i for i in range(len(self.annotations)) if i not in self.left_out)
        return [self.changed(i) for i in kept]

    def changed(self, i: int) -> Any:
        if i not in self.changes:
            return self.annotations[i]
        fields = {**self.annotations[i], **self.changes[i]}
        return {key: value for key, value in fields.items() if value is not _MISSING}


def _are_finite(values: list[Any]) -> bool:
    """Whether all are numbers, whose sum a float can hold. This is fast."""
    try:
        return set(map(type, values)) <= _NUMBERS and math.isfinite(sum(values))
    except OverflowError:
        return False


def _is_number(value: Any) -> bool:
    """Whether it is a number that a float can hold, and no bool."""
    if type(value) is int:
        return abs(value) < 2**63
    return type(value) is float and math.isfinite(value)


def _find(table: dict[Any, int], key: Any) -> int:
    try:
        return table.get(key, -1)
    except TypeError:
        return -1


def _contains(items: set[Any], key: Any) -> bool:
    try:
        return key in items and type(key) is not bool
    except TypeError:
        return False


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _to_floats(values: Sequence[Any]) -> _Floats:
    try:
        return np.array(values, dtype=np.float64)
    except OverflowError:
        # An integer beyond 1e308.
        flat = np.array(values, dtype=object)
        return np.vectorize(lambda v: float(v) if abs(v) < 1e300 else math.inf, otypes=[float])(
            flat
        )


def _polygons_kind(polygons: list[Any]) -> str:
    """The fault in the form of a list of polygons, if it has one."""
    for polygon in polygons:
        if type(polygon) is not list:
            if type(polygon) in _NUMBERS:
                return "segmentation_flat"
            return "segmentation_rle_list" if type(polygon) is dict else "segmentation_form"
        types = set(map(type, polygon))
        if not types <= _NUMBERS:
            return "segmentation_points" if list in types else "segmentation_form"
        if len(polygon) % 2:
            return "segmentation_odd"
    return ""


def _check_polygons(
    chunk: list[dict[str, Any]],
    numbers: _Floats,
    lengths: NDArray[np.int64],
    owners: NDArray[np.int64],
    height: _Floats,
    width: _Floats,
    mask_boxes: _Floats,
    areas: _Floats,
    bad: Callable[[str, int], None],
) -> None:
    """Fills in the boxes and areas of objects made of polygons.

    Args:
        chunk: the annotations.
        numbers: x and y of all points, one polygon after the other.
        lengths: the number of points of each polygon.
        owners: the object of each polygon, in ascending order.
    """
    x, y = numbers[0::2], numbers[1::2]
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    ends = starts + lengths - 1
    next_point = np.arange(1, len(x) + 1)
    next_point[ends] = starts
    with np.errstate(invalid="ignore", over="ignore"):
        finite = np.logical_and.reduceat(np.isfinite(x) & np.isfinite(y), starts)
        crosses = x * y[next_point] - x[next_point] * y
        polygon_areas = np.abs(np.add.reduceat(crosses, starts)) / 2
        # Polygons of one object follow each other.
        first = np.flatnonzero(np.diff(owners, prepend=-1))
        objects = owners[first]
        finite = np.logical_and.reduceat(finite, first)
        area = np.add.reduceat(polygon_areas, first)
        x0 = np.minimum.reduceat(np.minimum.reduceat(x, starts), first)
        y0 = np.minimum.reduceat(np.minimum.reduceat(y, starts), first)
        x1 = np.maximum.reduceat(np.maximum.reduceat(x, starts), first)
        y1 = np.maximum.reduceat(np.maximum.reduceat(y, starts), first)
        w, h = width[objects], height[objects]
        overhang = np.max([-x0, -y0, x1 - w, y1 - h], axis=0)
        longer = np.maximum(w, h)
        far = overhang > longer
        overhanging = ~far & (overhang > np.maximum(_OVERHANG_PIXELS, _OVERHANG_SHARE * longer))
        empty = (x1 <= 0) | (y1 <= 0) | (x0 >= w) | (y0 >= h)
        relative = (x0 >= 0) & (y0 >= 0) & (x1 <= 1.001) & (y1 <= 1.001) & (np.minimum(w, h) > 8)
        # A small or thin one may lie between the centres of pixels. If one crosses itself, its parts may cancel.
        unsure = (area < 32) | (area <= 0.3 * (x1 - x0) * (y1 - y0))
        # pycocotools counts pixels in 32 bits.
        unsure &= ~empty & ~far & finite & (w * h < 2**32) & (longer < 10**6)
    for n in np.flatnonzero(unsure).tolist():
        polygons = [p for p in chunk[objects[n]]["segmentation"] if len(p) >= 6]
        rles = mask_util.frPyObjects(polygons, int(h[n]), int(w[n]))
        pixels = int(mask_util.area(mask_util.merge(rles)))
        empty[n] = pixels == 0
        if area[n] < 0.5 * pixels:
            area[n] = pixels
    good = finite & ~far & ~empty
    for kind, found in (
        ("segmentation_relative", relative),
        ("segmentation_not_finite", ~finite),
        ("segmentation_far", finite & far),
        ("mask_empty", finite & ~far & empty),
        ("segmentation_overhang", good & overhanging),
    ):
        for k in objects[found].tolist():
            bad(kind, k)
    mask_boxes[objects[good]] = np.stack([x0, y0, x1 - x0, y1 - y0], axis=1)[good]
    areas[objects[good]] = area[good]


def _check_rles(
    chunk: list[dict[str, Any]],
    rles: list[int],
    height: _Floats,
    width: _Floats,
    mask_boxes: _Floats,
    areas: _Floats,
    bad: Callable[[str, int], None],
) -> None:
    """Fills in the boxes and areas of objects whose masks are run-length encoded."""
    whole: list[tuple[int, bytes]] = []
    good: list[tuple[int, Any]] = []
    for k in rles:
        rle = chunk[k]["segmentation"]
        size, counts = rle.get("size"), rle.get("counts")
        if (
            not (type(size) is list and len(size) == 2 and set(map(type, size)) <= {int})
            or min(size) <= 0
            or type(counts) not in (str, list)
            or not counts
        ):
            bad("rle_form", k)
        # pycocotools counts in 32 bits.
        elif size[0] * size[1] >= 2**32 or (
            np.isfinite(height[k]) and tuple(size) != (height[k], width[k])
        ):
            bad("rle_size", k)
        elif isinstance(counts, str):
            text = counts.encode("utf-8", "replace")
            # Each value ends in a byte without its bit 32, the text in such a value.
            if min(text) < 48 or max(text) >= 112 or (text[-1] - 48) & 32:
                bad("rle_text", k)
            else:
                whole.append((k, text))
        elif not set(map(type, counts)) <= {int} or min(counts) < 0:
            bad("rle_form", k)
        elif sum(counts) != size[0] * size[1]:
            bad("rle_sum", k)
        else:
            good.append((k, mask_util.frPyObjects(rle, *size)))
    if whole:
        totals = _rle_totals([text for _, text in whole])
        for (k, text), total in zip(whole, totals, strict=True):
            size = chunk[k]["segmentation"]["size"]
            if total < 0:
                bad("rle_text", k)
            elif total != size[0] * size[1]:
                bad("rle_sum", k)
            else:
                good.append((k, {"size": size, "counts": text}))
    if not good:
        return
    ks = [k for k, _ in good]
    masks = [rle for _, rle in good]
    mask_boxes[ks] = mask_util.toBbox(masks)
    # pycocotools 2.0.11 with NumPy 2 takes at most 255 at a time.
    batches = (masks[start : start + 255] for start in range(0, len(masks), 255))
    areas[ks] = np.concatenate([mask_util.area(batch) for batch in batches])
    for k in ks:
        if areas[k] == 0:
            bad("mask_empty", k)
            mask_boxes[k] = areas[k] = np.nan


def _rle_totals(texts: Sequence[bytes]) -> NDArray[np.int64]:
    """Sums of the counts of COCO's compressed run-length encodings; -1 where a count is negative or too large.

    A text holds one number after the other, each in groups of 5 bits with the lowest first and the sign in the last;
    from the fourth on, it is the difference from the number before the last.
    """
    codes = np.frombuffer(b"".join(texts), dtype=np.uint8).astype(np.int64) - 48
    text_ends = np.cumsum([len(text) for text in texts]) - 1
    last = (codes & 32) == 0
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    groups = ends - starts + 1
    position = np.arange(len(codes)) - np.repeat(starts, groups)
    shift = 5 * np.minimum(position, 11)
    values = np.add.reduceat((codes & 31) << shift, starts)
    negative = (codes[ends] & 16) != 0
    values -= np.where(negative, np.int64(1) << (5 * np.minimum(groups, 12)), 0)

    # The numbers of each text: first[t] to first[t] + number[t] - 1.
    stop = np.searchsorted(ends, text_ends) + 1
    first = np.concatenate([[0], stop[:-1]])
    number = stop - first
    index = np.arange(len(values)) - np.repeat(first, number)
    counts = values.copy()
    for chain in ((index % 2 == 1), (index % 2 == 0) & (index >= 2)):
        sums = np.cumsum(np.where(chain, values, 0))
        before = np.repeat(np.concatenate([[0], sums])[first], number)
        counts[chain] = (sums - before)[chain]
    totals = np.add.reduceat(counts, first)
    wrong = np.logical_or.reduceat((counts < 0) | (counts > 2**40) | (groups > 12), first)
    totals[wrong] = -1
    return totals


def _iou(boxes: _Floats, others: _Floats) -> _Floats:
    low = np.maximum(boxes[:, :2], others[:, :2])
    high = np.minimum(boxes[:, :2] + boxes[:, 2:], others[:, :2] + others[:, 2:])
    both = np.clip(high - low, 0, None).prod(1)
    union = boxes[:, 2:].prod(1) + others[:, 2:].prod(1) - both
    return both / np.maximum(union, 1e-12)


def _guess_boxes(contradictions: list[tuple[int, _Floats, _Floats, _Floats]]) -> str:
    """How boxes that do not fit their masks are probably meant."""
    _, boxes, mask_boxes, sizes = (np.array(c) for c in zip(*contradictions, strict=True))
    both = np.concatenate([sizes, sizes], axis=1)
    corner = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    centre = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], axis=1)
    for what, meant in (
        ("[x1, y1, x2, y2]", corner),
        ("[x, y, width, height] as shares of the image's size", boxes * both),
        ("[x1, y1, x2, y2] as shares of the image's size", corner * both),
        ("[centre x, centre y, width, height]", centre),
        ("[centre x, centre y, width, height] as shares of the image's size", centre * both),
        ("[y, x, height, width]", boxes[:, [1, 0, 3, 2]]),
    ):
        if (_iou(np.maximum(meant, 0), mask_boxes) > 0.7).mean() > 0.8:
            return f"They look like {what}."
    return ""
