"""A generated data set for instance segmentation: discs, squares, triangles and rings.

It is for trying out a model without a data set at hand. It is small and is written in seconds. Its
images have properties of real ones: occlusion, texture, noise, and sizes in a range of 1 : 4.
OpenCV is imported only inside of functions, because Detectron2 trains without it.
"""

import functools
import json
import logging
import os
import shutil
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from numpy.typing import NDArray

CLASSES = ("disc", "square", "triangle", "ring")

# Every data set records this version. A change of how images look has to increase it, so that files
# from before the change are not used after it.
_VERSION = 1
_GENERATOR = "mrcnn_plugin.data.shapes"

_MIN_SIDE = 64
# A shape is not drawn where it would leave less than this of another shape visible.
_MIN_VISIBLE_FRACTION = 0.35
_MIN_VISIBLE_PIXELS = 24
# The Euclidean distance between the mean colour of a shape and that of the pixels below it. Each
# channel goes from 0 to 255.
_MIN_CONTRAST = 120.0
_SUPERSAMPLING = 4


class Scene(NamedTuple):
    """The content of images. A scene can make a data set difficult in one respect.

    Attributes:
        diameter: the smallest and the largest diameter of a shape's circumscribed circle, as fractions
            of the shorter side of the image. The logarithm of the diameter is uniformly distributed.
        number: the smallest and the largest number of shapes in an image. There are fewer if there is
            no room.
        frequency: how often each class of `CLASSES` is drawn, relative to the others.
    """

    diameter: tuple[float, float] = (0.125, 0.45)
    number: tuple[int, int] = (4, 9)
    frequency: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)


PLAIN = Scene()

_FloatImage = NDArray[np.float32]
_Mask = NDArray[np.bool_]


def register_shapes() -> None:
    """Registers the quickstart's data sets, `mrcnn_shapes_train` (400 images) and `mrcnn_shapes_val` (60).

    See :func:`register_scene`.
    """
    register_scene("mrcnn_shapes_train", 400, seed=1)
    register_scene("mrcnn_shapes_val", 60, seed=2)


def register_scene(name: str, num_images: int, seed: int, scene: Scene = PLAIN) -> None:
    """Registers a generated data set of images of 128 x 128 px in Detectron2's catalogs.

    The files are generated once, when Detectron2 first asks for the data set. Those of
    `mrcnn_shapes_train`, for example, are in the subfolder `mrcnn_shapes/train` of
    `$DETECTRON2_DATASETS`. If the variable is not set, they are in that subfolder of `$FVCORE_CACHE`,
    or else of `~/.torch/iopath_cache`, to which Detectron2 downloads.

    Masks are in RLE and need `INPUT.MASK_FORMAT: "bitmask"`. If the name is already registered, nothing
    happens.

    Args:
        name: the name to register. The part after its last `_` is the name of the inner folder.
        num_images: the number of images, at least 1.
        seed: the seed of the random generator, at least 0.
        scene: the number, sizes and classes of the shapes.
    """
    if name in DatasetCatalog:
        return
    root = os.path.join(_datasets_root(), *name.rsplit("_", 1))
    DatasetCatalog.register(name, functools.partial(_load, name, root, num_images, seed, scene))
    MetadataCatalog.get(name).set(
        json_file=os.path.join(root, "instances.json"),
        image_root=os.path.join(root, "images"),
        evaluator_type="coco",
        thing_classes=list(CLASSES),
        thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(CLASSES))},
    )


def generate_shapes(
    root: str,
    num_images: int,
    seed: int,
    image_size: tuple[int, int] = (128, 128),
    scene: Scene = PLAIN,
) -> str:
    """Writes a data set in COCO format: `root/instances.json` and `root/images/<image id>.png`.

    The result depends on the arguments only. Image i of a seed and size does not depend on
    `num_images`. The folder gets its name only when it is complete. Therefore neither a killed run
    nor a second process that generates the same files can leave it incomplete. A folder that was
    generated with the same arguments is used again.

    Every image has some shapes of the classes `CLASSES` (with category ids from 1), which can cover
    each other. Masks are COCO RLE and have the visible pixels only. At least 24 pixels of a shape are
    visible, and at least 35 % of its pixels inside the image. `area` (in px²) and `bbox` (x, y, width
    and height in px) are those of the mask.

    Args:
        root: the folder of the data set.
        num_images: the number of images, at least 1.
        seed: the seed of the random generator, at least 0.
        image_size: the height and width in px, both at least 64.
        scene: the number, sizes and classes of the shapes.

    Returns:
        The path of the JSON file.

    Raises:
        ValueError: an argument is out of range.
        FileExistsError: `root` has other content than this data set. It is not changed.
    """
    height, width = image_size
    for argument, value, least in (
        ("num_images", num_images, 1),
        ("seed", seed, 0),
        ("image_size[0]", height, _MIN_SIDE),
        ("image_size[1]", width, _MIN_SIDE),
    ):
        if value < least:
            raise ValueError(f"{argument} is {value}; it must be at least {least}.")
    _check(scene)

    info: dict[str, Any] = {
        "description": "Generated shapes",
        "generator": _GENERATOR,
        "version": _VERSION,
        "num_images": num_images,
        "seed": seed,
        "image_size": [height, width],
    }
    # Tuples become lists, as JSON reads them. The plain scene is not recorded, so that folders from
    # before there were scenes stay valid.
    info.update(
        (f"scene.{key}", list(value))
        for key, value in scene._asdict().items()
        if value != getattr(PLAIN, key)
    )
    json_file = os.path.join(root, "instances.json")
    if _is_generated(root, json_file, info):
        return json_file

    final = os.path.realpath(root)
    partial = f"{final}.partial-{uuid.uuid4().hex}"
    os.makedirs(os.path.join(partial, "images"))
    logging.getLogger("detectron2").info("Generating %d images in %s", num_images, final)
    try:
        _write(partial, info, scene)
        try:
            os.rename(partial, final)
        except OSError:
            # Another process may have been faster.
            if not _is_generated(root, json_file, info):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return json_file


def draw_shapes(
    seed: int,
    index: int,
    image_size: tuple[int, int] = (128, 128),
    scene: Scene = PLAIN,
) -> tuple[NDArray[np.uint8], list[tuple[int, _Mask]]]:
    """Draws image `index` of the data set with this seed.

    Returns:
        The image, uint8 [H, W, 3] in OpenCV's BGR order, and a list of all shapes from back to front.
        A shape is its index in `CLASSES` and the mask of its visible pixels, bool [H, W].
    """
    rng = np.random.default_rng([seed, index])
    height, width = image_size
    image = _texture(rng, image_size, rng.uniform(0, 255, 3))
    # The index of the shape that each pixel shows, or -1 for the background.
    top = np.full(image_size, -1)
    classes: list[int] = []
    pixels_in_image: list[int] = []

    number = rng.integers(scene.number[0], scene.number[1] + 1)
    frequency = np.array(scene.frequency)
    # choice() draws other random numbers than integers(), so it would change the existing images.
    equal = np.ptp(frequency) == 0
    low, high = np.log(scene.diameter)
    for _ in range(20 * number):
        if equal:
            class_index = int(rng.integers(len(CLASSES)))
        else:
            class_index = int(rng.choice(len(CLASSES), p=frequency / frequency.sum()))
        radius = 0.5 * min(height, width) * np.exp(rng.uniform(low, high))
        # Up to a quarter of the width and height may lie outside the image.
        center = rng.uniform(radius / 2, np.array([width, height]) - radius / 2)
        contours = [
            center + radius * contour @ _rotation(rng.uniform(0, 2 * np.pi))
            for contour in _unit_contours(rng, CLASSES[class_index])
        ]
        coverage = _coverage(contours, image_size)
        mask = coverage >= 0.5
        texture = _texture(rng, image_size, rng.uniform(0, 255, 3))
        if mask.sum() < _MIN_VISIBLE_PIXELS:
            continue

        visible = np.bincount(top[~mask & (top >= 0)], minlength=len(classes))
        hides_another = any(
            seen < max(_MIN_VISIBLE_PIXELS, _MIN_VISIBLE_FRACTION * whole)
            for seen, whole in zip(visible, pixels_in_image, strict=True)
        )
        contrast = np.linalg.norm(texture[mask].mean(0) - image[mask].mean(0))
        if hides_another or contrast < _MIN_CONTRAST:
            continue
        image += coverage[..., None] * (texture - image)
        top[mask] = len(classes)
        classes.append(class_index)
        pixels_in_image.append(int(mask.sum()))
        if len(classes) == number:
            break

    image += rng.normal(0, rng.uniform(2, 10), image.shape)
    shapes = [(class_index, top == i) for i, class_index in enumerate(classes)]
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), shapes


def _datasets_root() -> str:
    """Returns the folder of the user's data sets, or else that of downloads.

    Detectron2 would use a folder in the working directory, but nothing should be written there
    unasked.
    """
    root = os.environ.get("DETECTRON2_DATASETS") or os.environ.get("FVCORE_CACHE")
    return os.path.expanduser(root or "~/.torch/iopath_cache")


def _load(name: str, root: str, num_images: int, seed: int, scene: Scene) -> list[dict[str, Any]]:
    json_file = generate_shapes(root, num_images, seed, scene=scene)
    return load_coco_json(json_file, os.path.join(root, "images"), name)


def _check(scene: Scene) -> None:
    smallest, largest = scene.diameter
    if not 0 < smallest <= largest <= 1:
        raise ValueError(
            f"scene.diameter is {scene.diameter}; it must be 0 < smallest <= largest <= 1."
        )
    fewest, most = scene.number
    if not 1 <= fewest <= most:
        raise ValueError(f"scene.number is {scene.number}; it must be 1 <= fewest <= most.")
    if (
        len(scene.frequency) != len(CLASSES)
        or min(scene.frequency) < 0
        or max(scene.frequency) == 0
    ):
        raise ValueError(
            f"scene.frequency is {scene.frequency}; it must be {len(CLASSES)} numbers, one for each of "
            f"{', '.join(CLASSES)}, none negative and not all 0."
        )


def _is_generated(root: str, json_file: str, info: dict[str, Any]) -> bool:
    """Returns True if `root` holds the data set of `info`, and False if it is empty or missing.

    Raises:
        FileExistsError: `root` holds something else.
    """
    if not os.path.lexists(root) or (os.path.isdir(root) and not os.listdir(root)):
        return False
    found: dict[str, Any] | None = None
    try:
        with open(json_file, encoding="utf-8") as f:
            found = json.load(f)["info"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    if found == info:
        return True
    if isinstance(found, dict) and found.get("generator") == _GENERATOR:
        different = [
            f"{key} {found.get(key)!r} instead of {info.get(key)!r}"
            for key in {**info, **found}
            if found.get(key) != info.get(key)
        ]
        what = f"a generated data set with {', '.join(different)}"
    else:
        what = "something other than a generated shapes data set"
    raise FileExistsError(
        f"{os.path.abspath(root)} holds {what}. Delete this folder, or generate the shapes into "
        f"another one."
    )


def _write(root: str, info: dict[str, Any], scene: Scene) -> None:
    import cv2
    import pycocotools.mask as mask_util

    height, width = info["image_size"]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(info["num_images"]):
        image, shapes = draw_shapes(info["seed"], index, (height, width), scene)
        image_id = index + 1
        file_name = f"{image_id:06d}.png"
        path = os.path.join(root, "images", file_name)
        if not cv2.imwrite(path, image):
            raise OSError(f"OpenCV could not write {path}.")
        images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        for class_index, mask in shapes:
            rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
            annotations.append(
                {
                    # COCOeval treats a match with the annotation of id 0 as no match.
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": class_index + 1,
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
                    "area": int(mask_util.area(rle)),
                    "bbox": mask_util.toBbox(rle).tolist(),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    with open(os.path.join(root, "instances.json"), "w", encoding="utf-8") as f:
        json.dump(
            {
                "info": info,
                "images": images,
                "annotations": annotations,
                "categories": categories,
            },
            f,
        )


def _unit_contours(rng: np.random.Generator, name: str) -> list[NDArray[np.float64]]:
    """Returns outlines [N, 2] of a shape of radius 1 around the origin. A second outline is a hole."""
    if name == "square":
        return [_regular_polygon(4)]
    if name == "triangle":
        return [_regular_polygon(3)]
    circle = _regular_polygon(128)
    return [circle] if name == "disc" else [circle, circle * rng.uniform(0.45, 0.65)]


def _regular_polygon(corners: int) -> NDArray[np.float64]:
    angles = np.arange(corners) * (2 * np.pi / corners)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _rotation(angle: float) -> NDArray[np.float64]:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])


def _coverage(contours: Sequence[NDArray[np.float64]], image_size: tuple[int, int]) -> _FloatImage:
    """Returns the fraction of each pixel that lies inside the contours.

    Contours are [N, 2] in px, x first. Pixel (0, 0) extends from 0 to 1.
    """
    import cv2

    height, width = image_size
    fine = np.zeros((height * _SUPERSAMPLING, width * _SUPERSAMPLING), np.float32)
    # OpenCV places integers at pixel centres, and takes fixed-point numbers with `shift` binary digits.
    shift = 8
    points = [
        np.rint((contour * _SUPERSAMPLING - 0.5) * 2**shift).astype(np.int32)
        for contour in contours
    ]
    cv2.fillPoly(fine, points, color=1.0, shift=shift)
    coverage = cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA)
    return coverage.astype(np.float32, copy=False)


def _texture(
    rng: np.random.Generator, image_size: tuple[int, int], color: NDArray[np.float64]
) -> _FloatImage:
    """Returns a pattern [H, W, 3] that varies between two colours, with `color` in the middle."""
    import cv2

    height, width = image_size
    y, x = np.mgrid[:height, :width].astype(np.float32)
    # Lengths are multiples of this, so that patterns look alike in images of any size.
    unit = min(height, width) / 128
    u, v = np.tensordot(_rotation(rng.uniform(0, 2 * np.pi)), [x, y], axes=1)
    pattern = rng.choice(["gradient", "clouds", "stripes", "checks", "speckle"])
    if pattern == "gradient":
        field = (u - u.min()) / np.ptp(u) * 2 - 1
    elif pattern == "clouds":
        cells = rng.uniform(-1, 1, rng.integers(3, 12, 2)).astype(np.float32)
        field = cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC)
    elif pattern == "stripes":
        field = np.sin(u * 2 * np.pi / (unit * rng.uniform(6, 24)))
    elif pattern == "checks":
        wave_number = 2 * np.pi / (unit * rng.uniform(8, 24))
        field = np.sign(np.sin(u * wave_number) * np.sin(v * wave_number))
    else:
        field = cv2.blur(rng.uniform(-2, 2, image_size), (3, 3))
    difference = rng.normal(size=3)
    difference *= rng.uniform(5, 25) / np.linalg.norm(difference)
    return (color + field[..., None] * difference).astype(np.float32)
