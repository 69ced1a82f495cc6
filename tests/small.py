"""Small models and batches for tests."""

from pathlib import Path
from typing import Any

import detectron2
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.structures import BitMasks, Boxes, Instances

from mrcnn_plugin import load_cfg

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
CONFIG_NAMES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))
# Detectron2's own scripts are in a folder beside the package, in a source checkout and in the wheel.
STOCK_TOOLS = Path(detectron2.__file__).parents[1] / "tools"

# With these settings, a forward and a backward pass take about a second.
TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 50,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 50,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
    "MODEL.ROI_HEADS.NUM_CLASSES": 3,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    # The default of the key. Tests with cross entropy would else get a warning that nothing reads it.
    "MODEL.ROI_BOX_HEAD.FOCAL.GAMMA": 2.0,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "TEST.DETECTIONS_PER_IMAGE": 5,
}

# With these settings, the losses use every anchor and proposal, and not a random sample.
ALL_SAMPLES = {
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 100000,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 1000,
}


def config(name: str = "Base-R18-GN-Small.yaml", **changes: Any) -> CfgNode:
    """Returns a config of this repository with tiny settings, and with changes KEY__SUBKEY=value."""
    settings = {**TINY, **{key.replace("__", "."): value for key, value in changes.items()}}
    return load_cfg(str(CONFIGS / name), [item for pair in settings.items() for item in pair])


def full_config(name: str) -> CfgNode:
    """Returns a config of this repository, unchanged but for the CPU and no weights to download."""
    return load_cfg(str(CONFIGS / name), ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])


def instances(boxes: list[list[float]], classes: list[int], size: tuple[int, int]) -> Instances:
    """Returns ground truth whose masks fill their boxes. The size is (height, width)."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[int(y1) : int(y2), int(x1) : int(x2)] = True
    return Instances(
        size,
        gt_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        gt_classes=torch.tensor(classes, dtype=torch.int64),
        gt_masks=BitMasks(masks),
    )


def batch(*sizes: tuple[int, int], objects: bool = True) -> list[dict[str, Any]]:
    """Returns random images of the given (height, width), each with two objects or none."""
    generator = torch.Generator().manual_seed(0)
    inputs = []
    for height, width in sizes:
        boxes = [[4, 4, width / 2, height / 2], [width / 3, height / 3, width - 4, height - 4]]
        inputs.append(
            {
                "image": torch.randint(256, (3, height, width), generator=generator).to(
                    torch.uint8
                ),
                "height": height,
                "width": width,
                "instances": instances(
                    boxes if objects else [], [0, 2] if objects else [], (height, width)
                ),
            }
        )
    return inputs


class BottomUp(Backbone):
    """A bottom-up network with the strides 4 to 32, which has one channel more at each stage."""

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {f"res{i}": ShapeSpec(channels=i, stride=2**i) for i in range(2, 6)}

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        shapes = self.output_shape()
        return {
            name: F.avg_pool2d(x.mean(1, keepdim=True), s.stride).repeat(1, s.channels, 1, 1)
            for name, s in shapes.items()
        }
