"""configs/mask_rcnn_focal.yaml as a LazyConfig, for Detectron2's tools/lazyconfig_train_net.py.

Needs no DETECTRON2_ENV_MODULE: it imports this package by itself.
"""

from detectron2.config import LazyCall as L
from detectron2.model_zoo import get_config

from mrcnn_plugin.modeling import PAFPN, FocalFastRCNNOutputLayers, FocalROIHeads
from mrcnn_plugin.modeling.poolers import use_bicubic

# Detectron2's Mask R-CNN, of which the components below are replaced.
_stock = get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py")
dataloader = _stock.dataloader
lr_multiplier = _stock.lr_multiplier
model = _stock.model
optimizer = _stock.optimizer
train = _stock.train

model.backbone._target_ = PAFPN

_heads = model.roi_heads
_heads._target_ = FocalROIHeads
_heads.box_pooler = L(use_bicubic)(pooler=_heads.box_pooler, a=-0.5)
_heads.mask_pooler = L(use_bicubic)(pooler=_heads.mask_pooler, a=-0.5)
_heads.box_predictor.update(
    _target_=FocalFastRCNNOutputLayers,
    cls_loss="softmax_focal",
    focal_alpha=-1.0,
    focal_gamma=2.0,
    normalizer="proposals",
)

train.output_dir = "./output/mask_rcnn_focal"
