#!/usr/bin/env python
"""Detects objects in images and videos with a trained model, and draws what it finds.

    python tools/demo.py --config-file configs/quickstart.yaml \\
        --input photo.jpg clip.mp4 folder 'more/*.png' --output output/demo --json output/demo.json \\
        --opts MODEL.WEIGHTS output/quickstart/model_final.pth

The picture of an image is called <name of the image>.png. Small images are enlarged. A video becomes
a video of the same name, size and frame rate. --json writes all detections in COCO's result format.
`image_id` is then the name of the file without its extension. It is an integer if the name is a
number, as in COCO. The detections of a video also have a `frame_number`, from 0. `category_id` is
that of the data set in DATASETS.TEST (or TRAIN) if Detectron2 knows it, and otherwise the number of
the class.

A file that cannot be read or drawn stops no other. It is named at the end, and the exit status is 1.
Ctrl-C and SIGTERM end the run after the image or frame in work, with everything up to there kept.
"""

import argparse
import contextlib
import dataclasses
import glob
import itertools
import json
import logging
import math
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

import cv2
import numpy as np
import torch
import tqdm
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.detection_utils import convert_image_to_rgb, convert_PIL_to_numpy
from detectron2.engine import DefaultPredictor
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils.logger import setup_logger
from detectron2.utils.video_visualizer import VideoVisualizer
from detectron2.utils.visualizer import Visualizer
from numpy.typing import NDArray
from PIL import Image

from mrcnn_plugin import load_cfg
from mrcnn_plugin.analysis.charts import plain
from mrcnn_plugin.analysis.fonts import find_fonts, use_fonts
from mrcnn_plugin.checkpoint import check_weights, load_model, removing
from mrcnn_plugin.data import (
    check_categories,
    check_pixel_range,
    read_input,
    register_coco_json,
)
from mrcnn_plugin.data.checks.images import frames_of
from mrcnn_plugin.engine import escape_output

# Files with these extensions are read from a folder. An image that --input names can have any other.
IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
# The longer side of a picture has at least this many pixels, so that labels do not hide objects.
MIN_PICTURE_SIZE = 600
# (codec, extension), best first. OpenCV's wheels can write both, and each OpenCV has its own MJPG.
CODECS = (("mp4v", ".mp4"), ("MJPG", ".avi"))
# What a video is written with if the file does not say its own, in frames per second.
FRAME_RATE = 25.0
# The number of names that a line lists.
MAX_NAMES = 5

logger = logging.getLogger("detectron2.demo")


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
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        help="images, videos, folders of these, or quoted patterns",
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder for the pictures and videos"
    )
    parser.add_argument("--json", metavar="FILE", help="file for the detections in COCO format")
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        default=0.5,
        metavar="SCORE",
        help="detections with a lower score are left out (default: 0.5)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace pictures, videos and JSON that are there already",
    )
    parser.add_argument(
        "--opts", default=[], nargs=argparse.REMAINDER, help="config changes: KEY VALUE ..."
    )
    return parser.parse_args(argv)


def setup_cfg(args: argparse.Namespace) -> CfgNode:
    """The config to predict with.

    Raises:
        ValueError: `--confidence-threshold` is not in [0, 1], or `MODEL.WEIGHTS` is empty.
        FileNotFoundError: `MODEL.WEIGHTS` is a local file that does not exist.
    """
    if not 0 <= args.confidence_threshold <= 1:
        raise ValueError(
            f"--confidence-threshold is {args.confidence_threshold}; it must be in [0, 1]."
        )
    cfg = load_cfg(args.config_file, args.opts)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = args.confidence_threshold
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = args.confidence_threshold
    check_pixel_range(cfg)
    check_weights(cfg)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("MODEL.DEVICE is %s, but there is no GPU: using the CPU.", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


class Predictor(DefaultPredictor):
    """DefaultPredictor for images in any INPUT.FORMAT, and for weights that must fit."""

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg.clone()
        self.model = load_model(cfg)
        size = cfg.INPUT.MIN_SIZE_TEST
        self.aug = T.ResizeShortestEdge([size, size], cfg.INPUT.MAX_SIZE_TEST)
        # DefaultPredictor takes BGR for the order that needs no change.
        self.input_format = "BGR"


def find_metadata(cfg: CfgNode) -> Metadata:
    """Class names and category ids of the first test (or train) data set; empty if not known.

    Raises:
        ValueError: the data set has another number of classes than the model.
    """
    names = (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)
    if not names:
        return Metadata()
    name = names[0]
    try:
        # The categories are all that is needed of it.
        register_coco_json(cfg.DATASETS.COCO_JSON, names=[name], check="off", check_on_load=False)
    except (FileNotFoundError, ValueError) as error:
        logger.warning("Classes are shown by number, because their names are not known: %s", error)
    if name in DatasetCatalog:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), (name,)
        check_categories(cfg)
    return MetadataCatalog.get(name)


def find_inputs(inputs: Sequence[str]) -> list[str]:
    """The files that images, videos, folders and patterns name, each once.

    Raises:
        FileNotFoundError: one of `inputs` names nothing.
    """
    paths: list[str] = []
    for name in inputs:
        name = os.path.expanduser(name)
        if os.path.isdir(name):
            files = sorted(file for file in os.listdir(name) if not file.startswith("."))
            chosen = [file for file in files if file.lower().endswith(IMAGES + VIDEOS)]
            found = [os.path.join(name, file) for file in chosen]
            if others := [file for file in files if file not in chosen]:
                logger.warning(
                    "%d other files or folders in %s are left out, the first %s. To draw one, name it after --input.",
                    len(others),
                    name,
                    others[0],
                )
        elif os.path.exists(name):
            found = [name]
        else:
            found = sorted(filter(os.path.isfile, glob.glob(name, recursive=True)))
        if not found:
            raise FileNotFoundError(
                f"--input {name}: there is no such file, nor a folder with images or videos "
                f"({', '.join(IMAGES + VIDEOS)}), nor does it match any file as a pattern."
            )
        paths += found
    return list(dict.fromkeys(map(os.path.normpath, paths)))


def is_video(path: str) -> bool:
    return path.lower().endswith(VIDEOS)


def find_codec() -> tuple[str, str]:
    """The first of CODECS that the installed OpenCV can write.

    Raises:
        RuntimeError: it can write none of them.
    """
    with tempfile.TemporaryDirectory() as folder:
        for codec, extension in CODECS:
            file = os.path.join(folder, f"video{extension}")
            writer = cv2.VideoWriter(file, cv2.VideoWriter.fourcc(*codec), FRAME_RATE, (64, 64))
            writer.write(np.zeros((64, 64, 3), np.uint8))
            writer.release()
            if count_frames(file) == 1:
                return codec, extension
    tried = " and ".join(f"{codec} in {extension}" for codec, extension in CODECS)
    raise RuntimeError(
        f"--input names a video, but OpenCV {cv2.__version__} can write none here (tried {tried}). "
        f"`pip install opencv-python-headless` installs one that can; without videos none is needed."
    )


def plan_outputs(
    args: argparse.Namespace, paths: Sequence[str], video_extension: str
) -> dict[str, str]:
    """Input -> picture or video to write.

    Raises:
        ValueError: two inputs have the same output or `image_id`, or an output would replace an input, or
            `--output` is a file.
        FileExistsError: something is there already, and `--overwrite` is not given.
    """
    if os.path.exists(args.output) and not os.path.isdir(args.output):
        raise ValueError(f"--output: {args.output} is a file; it must be a folder.")
    taken: dict[str, str] = {}
    for path in paths:
        extension = video_extension if is_video(path) else ".png"
        output = os.path.join(args.output, f"{stem(path)}{extension}")
        if taken.setdefault(output, path) != path:
            raise ValueError(
                f"--input: {taken[output]} and {path} would both be drawn to {output}; run them "
                f"one by one, with another --output each."
            )
    ids: dict[int | str, str] = {}
    for path in paths if args.json else ():
        if ids.setdefault(image_id(path), path) != path:
            raise ValueError(
                f"--json: {ids[image_id(path)]} and {path} would both have the image_id "
                f"{image_id(path)}; run them one by one, with another --json each."
            )
    inputs = {os.path.realpath(path) for path in paths}
    options = {**dict.fromkeys(taken, "--output"), **({args.json: "--json"} if args.json else {})}
    for output, option in options.items():
        if os.path.realpath(output) in inputs:
            what = "a video" if is_video(output) else "an image"
            raise ValueError(f"{option}: {output} would replace {what} of --input.")
    if args.json and os.path.isdir(args.json):
        raise ValueError(f"--json: {args.json} is a folder; it must be a file.")
    files = [*taken, *((args.json, partial_json(args.json)) if args.json else ())]
    existing = [file for file in files if os.path.exists(file)]
    if existing and not args.overwrite:
        raise FileExistsError(
            f"{len(existing)} of the files to write exist already, the first {existing[0]}; give "
            f"--overwrite to replace them, or another --output and --json."
        )
    return {path: output for output, path in taken.items()}


def stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def image_id(path: str) -> int | str:
    return int(stem(path)) if stem(path).isdecimal() else stem(path)


def partial_json(file: str) -> str:
    return f"{file}.partial"


class Results:
    """A JSON list of detections that is whole on the disk after every image, so that it survives everything.

    It has the name <file>.partial until it is closed. Even a process that is killed leaves it.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        # Without a buffer, what could not be written is not tried again later.
        self._raw = open(partial_json(file), "wb", buffering=0)
        # The place of what closes the list.
        self._end = 0
        self._write(b"[")

    def add(self, results: Sequence[dict[str, Any]]) -> None:
        """Adds the results of an image: all of them, or none if that fails.

        Raises:
            OSError: the disk is full, say.
        """
        if results:
            start = b"\n" if self._end == 1 else b",\n"
            self._write(start + ",\n".join(map(json.dumps, results)).encode())

    def close(self) -> None:
        self._raw.close()
        os.replace(partial_json(self.file), self.file)

    def _write(self, text: bytes) -> None:
        try:
            self._put(text + b"\n]")
        except BaseException:
            # There is room for this, because it was there before.
            self._put(b"\n]")
            self._raw.truncate()
            raise
        self._end += len(text)

    def _put(self, text: bytes) -> None:
        self._raw.seek(self._end)
        while text:
            text = text[self._raw.write(text) :]


class Signals:
    """Notes Ctrl-C and SIGTERM, so that the image or frame in work is finished. A second one ends at once.

    Attributes:
        received: the signal that came, if any.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        for number in (signal.SIGINT, signal.SIGTERM):
            # Shells let jobs in the background ignore SIGINT on purpose.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.__exit__()
        self.received = signal.Signals(number)
        print(
            "\nStopping after the image or frame in work. Ctrl-C again stops at once.",
            file=sys.stderr,
        )


@dataclasses.dataclass
class Tally:
    """What was found in a file.

    Attributes:
        objects: the number of detections.
        images: the number of images or frames that were looked at.
        empty: how many of them have no detection.
    """

    objects: int = 0
    images: int = 0
    empty: int = 0

    def count(self, instances: Instances) -> None:
        self.objects += len(instances)
        self.images += 1
        self.empty += len(instances) == 0


class Demo:
    """Detects and draws.

    Args:
        cfg: the config of the model.
        predictor: the model.
        metadata: class names and category ids, as far as they are known.
        results: where the detections are written, if they are.
        codec: that of videos.
        signals: the signals that end a video early.
    """

    def __init__(
        self,
        cfg: CfgNode,
        predictor: Predictor,
        metadata: Metadata,
        results: Results | None,
        codec: str,
        signals: Signals,
    ) -> None:
        self.cfg = cfg
        self.predictor = predictor
        self.results = results
        self.codec = codec
        self.signals = signals
        self.unfinished = False  # whether a signal ended the last video
        contiguous_ids = metadata.get("thing_dataset_id_to_contiguous_id", {})
        self.category_ids = {contiguous: id for id, contiguous in contiguous_ids.items()}
        self.drawn = Metadata()
        if "thing_classes" in metadata.as_dict():
            find_fonts(metadata.thing_classes)
            self.drawn.thing_classes = [plain(name) for name in metadata.thing_classes]

        names = metadata.get("keypoint_names", ())
        if len(names) == cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS:
            # Detectron2 needs them to connect keypoints.
            for key in ("keypoint_names", "keypoint_flip_map", "keypoint_connection_rules"):
                if key in metadata.as_dict():
                    self.drawn.set(**{key: metadata.get(key)})

    def run_on_image(self, path: str, output: str, tally: Tally) -> None:
        image = read_input(path, self.cfg)
        # A torn file may have a whole first page.
        with contextlib.suppress(Exception), Image.open(path) as opened:
            if frames_of(opened) > 1:
                logger.warning("%s has several frames or pages. Only the first is drawn.", path)
        instances = self._detect(image, tally, image_id=image_id(path))
        scale = max(1.0, MIN_PICTURE_SIZE / max(image.shape[:2]))
        rgb = convert_image_to_rgb(image, self.cfg.INPUT.FORMAT)
        visualizer = Visualizer(rgb, self.drawn, scale=scale)
        with kept_if_whole(output) as part:
            picture = visualizer.draw_instance_predictions(instances)
            use_fonts(picture.ax)
            picture.save(part)

    def run_on_video(self, path: str, output: str, tally: Tally) -> None:
        """Writes as many frames as can be read and drawn.

        Raises:
            ValueError: these are not all, or there are none.
        As :func:`find_name_for_opencv`.
        """
        capture = cv2.VideoCapture(find_name_for_opencv(path))
        frames = read_frames(capture)
        first = next(frames, None)
        if first is None:
            raise ValueError("OpenCV cannot read it as a video.")
        expected = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        rate = capture.get(cv2.CAP_PROP_FPS)
        if not 0 < rate < math.inf:
            rate = FRAME_RATE
            logger.warning("%s does not say its frame rate; %g per second are written.", path, rate)
        fault = None
        with kept_if_whole(output) as part:
            part = find_name_for_opencv(part)
            size = even(first).shape[1::-1]
            writer, written_rate = open_writer(part, self.codec, rate, size)
            if written_rate != rate:
                logger.warning(
                    "%s has %.7g frames per second, which its codec cannot have; %.7g are written.",
                    path,
                    rate,
                    written_rate,
                )
            visualizer = VideoVisualizer(self.drawn)
            written = 0
            try:
                for frame in tqdm.tqdm(
                    itertools.chain([first], frames),
                    desc=os.path.basename(path),
                    total=int(expected) if expected >= 1 else None,
                    unit="frame",
                    leave=False,
                ):
                    if self.signals.received:
                        self.unfinished = True
                        break
                    writer.write(self._draw_frame(frame, visualizer, path, written, tally))
                    written += 1
            except Exception as error:
                # What was drawn before is kept.
                fault = f"frame {written}: {error}"
            finally:
                writer.release()
            if not written:
                raise ValueError(fault or "the run ended before its first frame.")
            # OpenCV does not say what it could not write.
            if count_frames(part) < written:
                raise OSError(f"OpenCV could not write all frames of {output}; is the disk full?")
        if fault:
            raise ValueError(f"{fault}. The frames before are in {output}.")
        # The number in a header may be an estimate.
        if not self.signals.received and written < 0.99 * expected - 1:
            raise ValueError(
                f"only {written} frames can be read, while its header says {expected:.0f}. "
                f"They are in {output}."
            )

    def _draw_frame(
        self, frame: Any, visualizer: VideoVisualizer, path: str, number: int, tally: Tally
    ) -> Any:
        """A frame with the objects found in it. Both are BGR."""
        rgb = frame[:, :, ::-1]
        image = convert_PIL_to_numpy(Image.fromarray(rgb), self.cfg.INPUT.FORMAT)
        instances = self._detect(image, tally, image_id=image_id(path), frame_number=number)
        picture = visualizer.draw_instance_predictions(rgb, instances)
        use_fonts(picture.ax)
        return even(picture.get_image()[:, :, ::-1])

    def _detect(self, image: Any, tally: Tally, **keys: Any) -> Instances:
        found = self.predictor(image)
        if "instances" not in found:
            raise ValueError(
                f"MODEL.META_ARCHITECTURE is {self.cfg.MODEL.META_ARCHITECTURE!r}, which finds {', '.join(found)}, "
                f"but no objects to draw."
            )
        instances = found["instances"].to("cpu")
        if self.results is not None:
            results = instances_to_coco_json(instances, keys["image_id"])
            for result in results:
                id = result["category_id"]
                result.update(keys, category_id=self.category_ids.get(id, id))
            self.results.add(results)
        tally.count(instances)
        return instances


def find_name_for_opencv(file: str) -> str:
    """The name by which OpenCV reads or writes a video.

    Raises:
        ValueError: there is none.
    """
    try:
        file.encode()
    except UnicodeEncodeError as error:
        # It would end the process.
        raise ValueError(f"OpenCV cannot take a name that is not UTF-8: {file}") from error
    # FFmpeg takes what is before a colon for a protocol, unless a slash comes first.
    return os.path.join(os.curdir, file)


def read_frames(capture: cv2.VideoCapture) -> Iterator[Any]:
    """The frames of a video, uint8 BGR [H, W, 3]."""
    there, frame = capture.read()
    while there:
        yield frame
        there, frame = capture.read()


def open_writer(
    file: str, codec: str, rate: float, size: tuple[int, int]
) -> tuple[cv2.VideoWriter, float]:
    """Opens a video to write, and returns it and its frame rate.

    Raises:
        ValueError: OpenCV cannot write such a video.
    """
    # MPEG-4 counts time in fractions with a denominator of at most 65535. Odd high rates need a larger one.
    for tried in (rate, round(rate, 2), float(max(1, round(rate)))):
        writer = cv2.VideoWriter(file, cv2.VideoWriter.fourcc(*codec), tried, size)
        if writer.isOpened():
            return writer, tried
    raise ValueError(
        f"OpenCV cannot write a video of {size[0]} x {size[1]} pixels and {rate:.7g} frames per second."
    )


def even(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A frame of even height and width, which codecs need. OpenCV would cut off the last row or column."""
    height, width = frame.shape[:2]
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def count_frames(file: str) -> int:
    """The number of frames that the header of a video says; 0 or less if there is no such video."""
    return int(cv2.VideoCapture(file).get(cv2.CAP_PROP_FRAME_COUNT))


@contextlib.contextmanager
def kept_if_whole(file: str) -> Iterator[str]:
    """Gives a name to write to. The file gets its own name once it is whole, and is removed if that fails."""
    folder, name = os.path.split(file)
    part = os.path.join(folder, f".partial-{name}")
    with removing(part):
        yield part
        os.replace(part, file)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    escape_output()
    # Shows what Detectron2 says about the weights that it loads.
    setup_logger(name="fvcore")
    setup_logger()

    cfg = setup_cfg(args)
    paths = find_inputs(args.input)
    codec, extension = find_codec() if any(map(is_video, paths)) else CODECS[0]
    outputs = plan_outputs(args, paths, extension)
    metadata = find_metadata(cfg)
    predictor = Predictor(cfg)
    os.makedirs(args.output, exist_ok=True)
    if args.json:
        os.makedirs(os.path.dirname(os.path.abspath(args.json)), exist_ok=True)

    tallies: dict[str, Tally] = {}
    failed: list[str] = []
    with Signals() as signals:
        results = Results(args.json) if args.json else None
        demo = Demo(cfg, predictor, metadata, results, codec, signals)
        try:
            for path, output in tqdm.tqdm(outputs.items(), unit="file"):
                if signals.received:
                    break
                tallies[path] = Tally()
                run = demo.run_on_video if is_video(path) else demo.run_on_image
                try:
                    run(path, output, tallies[path])
                except Exception as error:
                    # Pillow raises a dozen types for damaged files, and a model may run out of memory
                    # for a large one. None should cost the other files.
                    failed.append(f"{path}: {error}")
        finally:
            if results is not None:
                results.close()

    if any(tally.images for tally in tallies.values()):
        print(summary(tallies, args.confidence_threshold))
    if failed:
        count = f"{len(failed)} of {len(paths)}"
        lines = "\n  ".join(failed)
        print(f"{count} files could not be read or drawn:\n  {lines}", file=sys.stderr)
    if signals.received:
        last = list(tallies)[-1:]
        frames = "".join(f"; {tallies[p].images} frames of {p}" for p in last if is_video(p))
        done = len(tallies) - demo.unfinished
        print(
            f"{signals.received.name} ended the run after {done} of {len(paths)} files{frames}.",
            file=sys.stderr,
        )
        return 128 + signals.received
    return 1 if failed else 0


def summary(tallies: dict[str, Tally], threshold: float) -> str:
    """What was found, and in which files nothing was."""
    scores = f"with a score above {threshold:g} (--confidence-threshold)"
    objects = sum(tally.objects for tally in tallies.values())
    if not objects:
        return f"Nothing was found {scores}."
    text = f"{objects} objects were found {scores}."
    empty = [
        f"{tally.empty} of {tally.images} frames of {path}" if is_video(path) else path
        for path, tally in tallies.items()
        if tally.empty
    ]
    if empty:
        more = len(empty) - MAX_NAMES
        names = ", ".join(empty[:MAX_NAMES]) + (f" and {more} more files" if more > 0 else "")
        text += f" Nothing was found in {names}."
    return text


if __name__ == "__main__":
    sys.exit(main())
