"""Export of trained models to TorchScript and ONNX, and comparison of their detections with those of the model."""

import contextlib
import functools
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from detectron2.modeling import GeneralizedRCNN
from torch import nn

# In the order in which an exported model returns them.
_FIELDS = ("pred_boxes", "scores", "pred_classes", "pred_masks", "pred_keypoints")
# The largest differences that are accepted: boxes and keypoints in px, scores and masks from 0 to 1.
TOLERANCES = {"boxes": 0.1, "scores": 1e-3, "masks": 1e-2, "keypoints": 0.1}
OPSETS = range(11, 21)

Detections = dict[str, torch.Tensor]
Detector = Callable[[torch.Tensor], Detections]


class Traceable:
    """A model as a function of one image, made traceable by Detectron2's TracingAdapter.

    Args:
        model: a GeneralizedRCNN in evaluation mode.
        image: float32 [C, H, W], as Detectron2 takes it: in INPUT.FORMAT, from 0 to 255, resized. Other
            images may have other heights and widths.

    Attributes:
        names: what the model returns, in this order. Of N detections these are "boxes" [N, 4] (x0, y0, x1, y1 in px
            of the resized image), "scores" [N], "classes" int64 [N], "masks" [N, 1, M, M] (probabilities
            within the box) and "keypoints" [N, K, 3], if it has them.

    Raises:
        ValueError: the model is another one.
        ImportError: this Detectron2 cannot export without caffe2.
    """

    def __init__(self, model: nn.Module, image: torch.Tensor) -> None:
        if type(model) is not GeneralizedRCNN:
            raise ValueError(
                f"MODEL.META_ARCHITECTURE is {type(model).__name__!r}; only 'GeneralizedRCNN' can be exported."
            )
        try:
            from detectron2.export import TracingAdapter
        except ImportError as error:
            raise ImportError(
                f"detectron2.export cannot be imported ({error}); use a newer Detectron2, see docs/detectron2.md."
            ) from error
        self.image = image
        self.names: list[str] = []
        self._adapter = TracingAdapter(model, [{"image": image}], self._detect).eval()
        self.detect(image)

    def detect(self, image: torch.Tensor) -> Detections:
        """Returns the detections of the model itself."""
        found = self._adapter(image)
        return dict(zip(self.names, found, strict=True))

    def _detect(self, model: Any, inputs: list[dict[str, torch.Tensor]]) -> tuple[Any, ...]:
        (instances,) = model.inference(inputs, do_postprocess=False)
        fields = [name for name in _FIELDS if instances.has(name)]
        self.names = [name.removeprefix("pred_") for name in fields]
        found = [instances.get(name) for name in fields]
        return tuple(getattr(field, "tensor", field) for field in found)

    def to_torchscript(self, file: str) -> Detector:
        """Writes a TorchScript file by tracing, loads it, and returns its detector.

        The file computes on the device of the model. It needs torchvision's operators and those of this
        package, see :func:`operator_library`.
        """
        with warnings.catch_warnings():
            # The warnings are about Python values that become constants. Comparing other images finds what matters.
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(self._adapter, (self.image,), check_trace=False)
            # Where torch opens the file itself, a full disk ends the process.
            with open(file, "wb") as f:
                torch.jit.save(traced, f)
            loaded = torch.jit.load(file)

        def detect(image: torch.Tensor) -> Detections:
            with torch.no_grad():
                return dict(zip(self.names, loaded(image), strict=True))

        return detect

    def to_onnx(self, file: str, opset: int) -> Detector:
        """Writes an ONNX file, loads it with onnxruntime on the CPU, and returns its detector.

        The file has standard operators only. Its input is called "image", and its outputs have the names in `names`.

        Raises:
            ImportError: onnx or onnxruntime is not installed.
        """
        check_onnx()
        import onnxruntime

        with warnings.catch_warnings(), _without_empty_batches(self._adapter.model):
            warnings.simplefilter("ignore")
            # The newer exporter (dynamo) fixes the number of boxes to that of `image`.
            torch.onnx.export(
                self._adapter,
                (self.image,),
                file,
                dynamo=False,
                opset_version=opset,
                input_names=["image"],
                output_names=self.names,
                dynamic_axes={
                    "image": {1: "height", 2: "width"},
                    **{name: {0: "detections"} for name in self.names},
                },
            )
        options = onnxruntime.SessionOptions()
        # Only errors are logged, because there is a warning for every folded constant.
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

        def detect(image: torch.Tensor) -> Detections:
            found = session.run(self.names, {"image": image.cpu().numpy()})
            return {name: torch.from_numpy(x) for name, x in zip(self.names, found, strict=True)}

        return detect


@contextlib.contextmanager
def _without_empty_batches(model: Any) -> Iterator[None]:
    """Gives one more row, of zeros, to the layers of heads that run once for each detection.

    In an ONNX file a GroupNorm fails where there is no row, and so does a whole image without detections.
    """
    heads: list[Any] = [
        getattr(model.roi_heads, name, None) for name in ("mask_head", "keypoint_head")
    ]
    heads = [head for head in heads if callable(getattr(head, "layers", None))]

    def padded(layers: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return layers(torch.cat([x, x.new_zeros(1, *x.shape[1:])]))[:-1]

    for head in heads:
        head.layers = functools.partial(padded, head.layers)
    try:
        yield
    finally:
        for head in heads:
            del head.layers


def check_onnx() -> None:
    """Checks that ONNX files can be written and run.

    Raises:
        ImportError: onnx or onnxruntime is not installed.
    """
    missing = [name for name in ("onnx", "onnxruntime") if not importlib.util.find_spec(name)]
    if missing:
        raise ImportError(
            f"{' and '.join(missing)} must be installed to export to ONNX and to check the file: "
            f"python -m pip install {' '.join(missing)}"
        )


def operator_library() -> str | None:
    """Returns the library that a TorchScript file needs, for torch.ops.load_library. It is None if it was not built."""
    extension = sys.modules.get("mrcnn_plugin._C")
    return None if extension is None else extension.__file__


def differences(expected: Detections, actual: Detections) -> dict[str, float]:
    """Compares the detections of an exported model with those of the model.

    Detections of nearly equal scores may come in another order, so each is compared with the nearest of its class.

    Returns:
        The largest difference of boxes, scores, masks and keypoints, in the units of `TOLERANCES`; 0 without
        detections. Infinite, if the number of detections, a class, or a shape differs.
    """
    kinds = [name for name in expected if name in TOLERANCES]
    if any(expected[name].shape != actual[name].shape for name in expected):
        return dict.fromkeys(kinds, float("inf"))
    if not len(expected["boxes"]):
        return dict.fromkeys(kinds, 0.0)
    expected, actual = ({name: x.cpu() for name, x in d.items()} for d in (expected, actual))
    distances = torch.cdist(expected["boxes"].double(), actual["boxes"].double(), p=torch.inf)
    distances += (expected["scores"][:, None] - actual["scores"]).abs()
    distances[expected["classes"][:, None] != actual["classes"]] = torch.inf
    nearest = distances.argmin(dim=1)
    if len(nearest.unique()) < len(nearest) or distances.min(dim=1).values.isinf().any():
        return dict.fromkeys(kinds, float("inf"))
    return {name: float((expected[name] - actual[name][nearest]).abs().max()) for name in kinds}
