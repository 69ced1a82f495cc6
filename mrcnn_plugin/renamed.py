"""Names from before the first release, and the names that replaced them.

Other projects that use Detectron2 have taken the old names. A config with an old name gives an error
that says the new one. Results that were recorded with old names are still read.
"""

# The config keys and nodes.
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

# The registered names, by the config key that they are a value of.
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
