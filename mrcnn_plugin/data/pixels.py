"""Images of more than 8 bits per pixel, scaled to 8 bits as they are read."""

import io
import math
import os
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.detection_utils import read_image
from detectron2.utils.file_io import PathHandler, PathManager
from numpy.typing import NDArray
from PIL import Image, ImageOps

from .checks.images import is_deep, pixel_mode

_PREFIX = "mrcnn-plugin-scaled://"


class _ScaledImages(PathHandler):
    """Files under mrcnn-plugin-scaled://low:high:unit/path: as they are, or scaled if they are deep images.

    Detectron2 reads all images through its PathManager, so that training, evaluation and drawing see the same.
    """

    def _get_supported_prefixes(self) -> list[str]:
        return [_PREFIX]

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[Any]:
        if mode != "rb":
            raise ValueError(f"{path} can be read in the mode 'rb' only, not in {mode!r}.")
        low, high, unit, real = _parse(path)
        with PathManager.open(real, "rb") as f:
            data = f.read()
        with Image.open(io.BytesIO(data)) as image:
            pixels = _read_deep(image, data)
            if pixels is None:
                return io.BytesIO(data)
            exif = image.getexif()
        scaled = Image.fromarray(scale_pixels(pixels, low, high, unit))
        scaled.getexif().update(exif)
        file = io.BytesIO()
        ImageOps.exif_transpose(scaled).save(file, "ppm")
        file.seek(0)
        return file

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return PathManager.get_local_path(_parse(path)[3])

    def _exists(self, path: str, **kwargs: Any) -> bool:
        return PathManager.exists(_parse(path)[3])

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return PathManager.isfile(_parse(path)[3])

    def _isdir(self, path: str, **kwargs: Any) -> bool:
        return PathManager.isdir(_parse(path)[3])


def read_deep(path: str) -> NDArray[np.float64] | None:
    """Pixels of an image of more than 8 bits per pixel as they are stored, [H, W] or [H, W, C]; None for others."""
    with PathManager.open(path, "rb") as f:
        data = f.read()
    with Image.open(io.BytesIO(data)) as image:
        return _read_deep(image, data)


def _read_deep(image: Any, data: bytes) -> NDArray[np.float64] | None:
    mode = pixel_mode(image)
    if not is_deep(mode):
        return None
    if mode == image.mode:
        return np.asarray(image, dtype=np.float64)
    return _read_colours(data)


def _read_colours(data: bytes) -> Any:
    """Pixels of an image of several channels of 16 bits, of which Pillow keeps 8. RGB, or grey without alpha."""
    import cv2

    flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
    if pixels is None:
        raise ValueError("OpenCV cannot read it, and Pillow keeps 8 of its 16 bits.")
    return pixels[:, :, ::-1].astype(np.float64)


def scale_pixels(pixels: Any, low: float, high: float, unit: str) -> Any:
    """Scales pixels linearly, low to 0 and high to 255; beyond them they are cut off.

    Args:
        pixels: floats of any shape. NaN becomes 0.
        low: what becomes 0.
        high: what becomes 255.
        unit: "value", or "percentile" for percentiles of the finite pixels.

    Returns:
        uint8 of the same shape.
    """
    if unit == "percentile":
        finite = pixels[np.isfinite(pixels)]
        low, high = np.percentile(finite, (low, high)) if finite.size else (0.0, 1.0)
    scaled = (pixels - low) / max(high - low, 1e-12) * 255
    return np.rint(np.clip(np.nan_to_num(scaled, nan=0.0), 0, 255)).astype(np.uint8)


def is_deep_image(path: str) -> bool:
    """Whether an image has more than 8 bits per pixel; False if it cannot be read."""
    try:
        with PathManager.open(path, "rb") as f, Image.open(f) as image:
            return is_deep(pixel_mode(image))
    except Exception:  # Pillow raises a dozen types for damaged files.
        return False


def read_input(path: str, cfg: CfgNode) -> NDArray[np.uint8]:
    """Reads an image as training reads it: uint8 in `INPUT.FORMAT`, [H, W] or [H, W, C].

    Raises:
        ValueError: the image has more than 8 bits per pixel, and `INPUT.PIXEL_RANGE` is not set.
        Others, if Pillow cannot read it.
    """
    limits = cfg.INPUT.PIXEL_RANGE
    if not limits and is_deep_image(path):
        raise ValueError(
            "it has 16 or 32 bits or floats per pixel, which would be cut off at 255; set INPUT.PIXEL_RANGE as in "
            "the training."
        )
    return read_image(
        scaled_path(path, limits, cfg.INPUT.PIXEL_RANGE_UNIT), format=cfg.INPUT.FORMAT
    )


def check_pixel_range(cfg: CfgNode) -> None:
    """Checks `INPUT.PIXEL_RANGE` and `INPUT.PIXEL_RANGE_UNIT`.

    Raises:
        ValueError: a value is not allowed.
    """
    limits, unit = cfg.INPUT.PIXEL_RANGE, cfg.INPUT.PIXEL_RANGE_UNIT
    if unit not in ("value", "percentile"):
        raise ValueError(f"INPUT.PIXEL_RANGE_UNIT is {unit!r}; it must be 'value' or 'percentile'.")
    if not limits:
        return
    numbers = len(limits) == 2 and all(type(x) in (int, float) and math.isfinite(x) for x in limits)
    if (
        not numbers
        or limits[0] >= limits[1]
        or (unit == "percentile" and not 0 <= limits[0] < limits[1] <= 100)
    ):
        raise ValueError(
            f"INPUT.PIXEL_RANGE is {limits!r}; it must be [] or [low, high], two numbers with low < high"
            + (", of percentiles within [0, 100]." if unit == "percentile" else ".")
        )


def scaled_path(path: str, limits: Sequence[float], unit: str) -> str:
    """The path under which a file or folder is read scaled; the path itself if `limits` is empty.

    Args:
        path: a file, or a folder of images.
        limits: `INPUT.PIXEL_RANGE`.
        unit: `INPUT.PIXEL_RANGE_UNIT`.
    """
    if not limits:
        return path
    if "://" not in path:
        path = os.path.abspath(path)
    return f"{_PREFIX}{float(limits[0])!r}:{float(limits[1])!r}:{unit}/{path}"


def _parse(path: str) -> tuple[float, float, str, str]:
    limits, _, real = path[len(_PREFIX) :].partition("/")
    low, high, unit = limits.split(":")
    return float(low), float(high), unit, real


PathManager.register_handler(_ScaledImages(), allow_override=True)
