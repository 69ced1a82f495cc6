"""Which checkpoints `FittingCheckpointer` refuses."""

import pytest
import torch
from detectron2.layers import Conv2d, get_norm

from mrcnn_plugin.checkpoint import FittingCheckpointer


def model(norm):
    return Conv2d(3, 32, 1, norm=get_norm(norm, 32))


# FrozenBN, BN and SyncBN fill in some of their buffers, which are then not reported as missing.
@pytest.mark.parametrize("norm", ["FrozenBN", "BN", "SyncBN", "GN", ""])
def test_a_checkpoint_of_another_model_is_refused(norm, tmp_path):
    file = str(tmp_path / "torchvision.pth")
    torch.save({"layer1.0.conv1.weight": torch.ones(64, 64, 1, 1), "fc.bias": torch.ones(9)}, file)
    with pytest.raises(ValueError, match="no parameter of the model of the config.*layer1.0"):
        FittingCheckpointer(model(norm)).load(file)
