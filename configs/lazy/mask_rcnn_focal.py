"""configs/mask_rcnn_focal.yaml as a LazyConfig, for Detectron2's tools/lazyconfig_train_net.py.

It imports this package, so the script needs no DETECTRON2_ENV_MODULE.
"""

from detectron2.model_zoo import get_config

from mrcnn_plugin.modeling import (
    FocalFastRCNNOutputLayers,
    MRCNNFocalROIHeads,
    MultiscaleROIPooler,
    UpsampleFPN,
)

# Detectron2's Mask R-CNN. The lines below replace some of its components.
_stock = get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py")
dataloader = _stock.dataloader
lr_multiplier = _stock.lr_multiplier
model = _stock.model
optimizer = _stock.optimizer
train = _stock.train

model.backbone.update(_target_=UpsampleFPN, upsample="carafe")

_heads = model.roi_heads
_heads._target_ = MRCNNFocalROIHeads
for _pooler in (_heads.box_pooler, _heads.mask_pooler):
    _pooler.update(_target_=MultiscaleROIPooler, pooler_type="ROIAlignBicubic", a=-0.5)
_heads.box_predictor.update(
    _target_=FocalFastRCNNOutputLayers,
    cls_loss="softmax_focal",
    focal_alpha=-1.0,
    focal_gamma=0.5,
    normalizer="proposals",
)

train.output_dir = "./output/mask_rcnn_focal"
