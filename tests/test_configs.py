"""Every config in configs/ builds a model, which detects, is evaluated and takes a training step."""

import json
import re

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.modeling import build_model
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.solver import build_optimizer
from detectron2.structures import Keypoints, PolygonMasks
from detectron2.utils.events import EventStorage

from mrcnn_plugin import load_cfg
from mrcnn_plugin.layers import CARAFE
from mrcnn_plugin.modeling import MultiscaleROIPooler
from tests import small
from tests.small import CONFIG_NAMES, full_config

NUM_KEYPOINTS = 17  # those of a person in COCO


def one_of_each_model():
    """Returns one config for each different model, because schedules and data sets do not change it."""
    names = {}
    for name in CONFIG_NAMES:
        cfg = full_config(name)
        names.setdefault(f"{cfg.MODEL} {cfg.INPUT.MASK_FORMAT}", name)
    return list(names.values())


@pytest.mark.parametrize("name", one_of_each_model())
def test_every_model_detects_is_evaluated_and_takes_a_step(name, tmp_path):
    torch.manual_seed(0)
    cfg = full_config(name)
    # With these settings, an untrained model detects something, and does so in little time.
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 20
    cfg.TEST.DETECTIONS_PER_IMAGE = 20
    num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if cfg.MODEL.META_ARCHITECTURE == "RetinaNet":
        num_classes = cfg.MODEL.RETINANET.NUM_CLASSES
    model = build_model(cfg)
    # Without pretrained weights, the frozen statistics do not fit, and features grow with every block.
    for module in model.modules():
        if isinstance(module, BottleneckBlock):
            torch.nn.init.zeros_(module.conv3.norm.weight)
    (image,) = small.batch((64, 96))
    evaluator = COCOEvaluator(dataset(tmp_path, image, num_classes), output_dir=str(tmp_path))
    results = inference_on_dataset(model, [[{**image, "image_id": 1}]], evaluator)
    tasks = {"bbox": True, "segm": cfg.MODEL.MASK_ON, "keypoints": cfg.MODEL.KEYPOINT_ON}
    assert results.keys() == {task for task, on in tasks.items() if on}
    detections = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert detections and all(d["image_id"] == 1 for d in detections)

    optimizer = build_optimizer(cfg, model)
    before = [p.detach().clone() for p in model.parameters()]
    inputs = small.batch((64, 96), (96, 64))
    for x in inputs:
        annotate(x["instances"], cfg, num_classes)
    with EventStorage():
        losses = model.train()(inputs)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    optimizer.step()
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def annotate(instances, cfg, num_classes):
    """Gives objects the ground truth that the losses of the config need."""
    instances.gt_classes %= num_classes
    if cfg.INPUT.MASK_FORMAT == "polygon":
        instances.gt_masks = polygons(instances.gt_boxes)
    if cfg.MODEL.KEYPOINT_ON:
        centres = instances.gt_boxes.get_centers()[:, None].expand(-1, NUM_KEYPOINTS, -1)
        visible = torch.full((len(instances), NUM_KEYPOINTS, 1), 2.0)
        instances.gt_keypoints = Keypoints(torch.cat([centres, visible], dim=2))


def dataset(folder, image, num_classes):
    """Returns the name of a data set of this image, which has the ground truth of its first object."""
    height, width = image["height"], image["width"]
    x1, y1, x2, y2 = image["instances"].gt_boxes.tensor[0].tolist()
    annotation = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "iscrowd": 0,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
        "keypoints": [x1, y1, 2] * NUM_KEYPOINTS,
        "num_keypoints": NUM_KEYPOINTS,
    }
    content = {
        "info": {},
        "images": [{"id": 1, "file_name": "1.png", "height": height, "width": width}],
        "annotations": [annotation],
        "categories": [{"id": i + 1, "name": str(i)} for i in range(num_classes)],
    }
    json_file = folder / "instances.json"
    json_file.write_text(json.dumps(content))
    name = f"one_image_of_{folder}"
    MetadataCatalog.get(name).set(
        json_file=str(json_file),
        thing_dataset_id_to_contiguous_id={i + 1: i for i in range(num_classes)},
    )
    return name


def polygons(boxes):
    return PolygonMasks([[b[[0, 1, 2, 1, 2, 3, 0, 3]].double().numpy()] for b in boxes])


def test_the_headline_has_the_three_components():
    cfg = full_config("mask_rcnn_focal.yaml")
    model = build_model(cfg)
    assert type(model.backbone).__name__ == "UpsampleFPN" and cfg.MODEL.RESNETS.DEPTH == 50
    assert {type(m).__name__ for m in model.backbone.upsample.values()} == {"CARAFE"}
    heads = model.roi_heads
    assert type(heads).__name__ == "MRCNNFocalROIHeads"
    predictor = heads.box_predictor
    assert (predictor.cls_loss, predictor.focal_gamma) == ("softmax_focal", 0.5)
    assert (predictor.focal_alpha, predictor.normalizer) == (-1.0, "proposals")
    for pooler in (heads.box_pooler, heads.mask_pooler):
        assert type(pooler) is MultiscaleROIPooler and pooler.interpolation == "bicubic"


def test_the_bicubic_config_is_the_stock_model_with_other_poolers():
    name = "mask_rcnn_bicubic_R_50_FPN_1x.yaml"
    model = build_model(full_config(name))
    cfg = load_cfg(
        model_zoo.get_config_file("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"),
        ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""],
    )
    stock = build_model(cfg)
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in stock.state_dict().items()
    }
    assert model.roi_heads.box_predictor.cls_loss == "cross_entropy"
    for pooler in (model.roi_heads.box_pooler, model.roi_heads.mask_pooler):
        assert type(pooler) is MultiscaleROIPooler and pooler.interpolation == "bicubic"


def test_the_headline_trains_under_autocast():
    torch.manual_seed(0)
    model = build_model(full_config("mask_rcnn_focal.yaml"))
    inputs = small.batch((64, 96))
    inputs[0]["instances"].gt_masks = polygons(inputs[0]["instances"].gt_boxes)
    with EventStorage(), torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(inputs)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    "name, classes", [("mask_rcnn_focal.yaml", 80), ("quickstart.yaml", None), ("nuclei.yaml", 1)]
)
def test_the_model_has_the_classes_of_its_data(name, classes):
    cfg = full_config(name)
    if classes is None:
        classes = len(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == classes


@pytest.mark.parametrize("pyramid", ["FPN", "PAFPN", "BiFPN"])
def test_the_configs_of_other_pyramids_have_no_carafe(pyramid):
    model = build_model(full_config(f"mask_rcnn_focal_R_50_{pyramid}_1x.yaml"))
    assert type(model.backbone).__name__ == {"FPN": "UpsampleFPN"}.get(pyramid, pyramid)
    assert not any(isinstance(module, CARAFE) for module in model.modules())


COMPONENTS = {
    "MODEL.BACKBONE.NAME",
    "MODEL.FPN.UPSAMPLE",
    "MODEL.PROPOSAL_GENERATOR.NAME",
    "MODEL.ROI_HEADS.NAME",
    "MODEL.ROI_BOX_HEAD.FOCAL.GAMMA",
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE",
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE",
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_TYPE",
    "OUTPUT_DIR",
}


@pytest.mark.parametrize(
    "name, stock, others",
    [
        ("mask_rcnn_focal", "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x", {}),
        (
            "mask_rcnn_bicubic_R_50_FPN_1x",
            "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x",
            {"MODEL.ROI_BOX_HEAD.CLS_LOSS"},
        ),
        ("mask_rcnn_focal_R_50_CARAFE_3x", "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x", {}),
        ("mask_rcnn_focal_R_101_CARAFE_3x", "COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x", {}),
        ("mask_rcnn_focal_R_50_FPN_1x", "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x", {}),
        ("mask_rcnn_focal_R_50_PAFPN_1x", "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x", {}),
        (
            "mask_rcnn_focal_R_50_BiFPN_1x",
            "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x",
            {"MODEL.FPN.NORM"},
        ),
        (
            "mask_rcnn_focal_R_50_CARAFE_1x_focal_rpn",
            "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x",
            {},
        ),
        ("mask_rcnn_focal_R_50_C4_1x", "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x", {}),
        ("cascade_mask_rcnn_focal_R_50_CARAFE_1x", "Misc/cascade_mask_rcnn_R_50_FPN_1x", {}),
        ("cascade_mask_rcnn_focal_R_50_CARAFE_3x", "Misc/cascade_mask_rcnn_R_50_FPN_3x", {}),
        ("keypoint_rcnn_focal_R_50_CARAFE_1x", "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x", {}),
        ("retinanet_R_50_PAFPN_1x", "COCO-Detection/retinanet_R_50_FPN_1x", {}),
    ],
)
@pytest.mark.filterwarnings("ignore:pkg_resources")
def test_only_the_components_differ_from_the_stock_config(name, stock, others):
    ours = settings(full_config(f"{name}.yaml"))
    theirs = load_cfg(model_zoo.get_config_file(f"{stock}.yaml"))
    theirs.MODEL.DEVICE, theirs.MODEL.WEIGHTS = "cpu", ""
    assert {k for k, v in settings(theirs).items() if ours[k] != v} <= COMPONENTS | set(others)


def settings(node, prefix=""):
    """Returns the values of a config in one dictionary, whose keys are KEY.SUBKEY."""
    flat = {}
    for key, value in node.items():
        if isinstance(value, CfgNode):
            flat.update(settings(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


@pytest.mark.filterwarnings("ignore:pkg_resources")
def test_the_readme_lists_every_config_and_names_checkpoints_that_there_are():
    text = (small.CONFIGS / "README.md").read_text()
    listed = re.findall(r"^\| `([\w-]+\.yaml)`", text, re.MULTILINE)
    assert sorted(listed) == CONFIG_NAMES
    checkpoints = re.findall(r"detectron2://(.*?\.pkl)", text)
    assert len(checkpoints) == 6
    for checkpoint in checkpoints:
        config_path = "/".join(checkpoint.split("/")[:2]) + ".yaml"
        assert model_zoo.get_checkpoint_url(config_path).endswith(checkpoint)
