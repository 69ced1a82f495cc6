"""Names from before the first release, and the names that replaced them.

The old ones are taken by other projects on Detectron2. They are refused with a message that gives the
new name; only results that were recorded with them are still read.
"""

# Config keys and nodes.
KEYS = {
    "MODEL.BIFPN": "MODEL.MRCNN_PLUGIN.BIFPN",
    "MODEL.BIFPN.NUM_REPEATS": "MODEL.MRCNN_PLUGIN.BIFPN.NUM_REPEATS",
    "MODEL.BIFPN.DEPTHWISE": "MODEL.MRCNN_PLUGIN.BIFPN.DEPTHWISE",
    "MODEL.ROI_ALIGN": "MODEL.MRCNN_PLUGIN.ROI_ALIGN",
    "MODEL.ROI_ALIGN.A": "MODEL.MRCNN_PLUGIN.ROI_ALIGN.A",
}

_DATASETS = {
    "shapes_train": "mrcnn_shapes_train",
    "shapes_val": "mrcnn_shapes_val",
}

# Registered names, by the config key that takes them.
VALUES = {
    "DATASETS.TRAIN": _DATASETS,
    "DATASETS.TEST": _DATASETS,
    "MODEL.BACKBONE.NAME": {
        "build_resnet_bifpn_backbone": "build_mrcnn_resnet_bifpn_backbone",
        "build_resnet_pafpn_backbone": "build_mrcnn_resnet_pafpn_backbone",
        "build_resnet_upsample_fpn_backbone": "build_mrcnn_resnet_upsample_fpn_backbone",
        "build_retinanet_resnet_bifpn_backbone": "build_mrcnn_retinanet_resnet_bifpn_backbone",
        "build_retinanet_resnet_pafpn_backbone": "build_mrcnn_retinanet_resnet_pafpn_backbone",
        "build_retinanet_resnet_upsample_fpn_backbone": (
            "build_mrcnn_retinanet_resnet_upsample_fpn_backbone"
        ),
    },
    "MODEL.PROPOSAL_GENERATOR.NAME": {"FocalRPN": "MRCNNFocalRPN"},
    "MODEL.ROI_HEADS.NAME": {
        "FocalROIHeads": "MRCNNFocalROIHeads",
        "FocalCascadeROIHeads": "MRCNNFocalCascadeROIHeads",
        "FocalRes5ROIHeads": "MRCNNFocalRes5ROIHeads",
    },
}
