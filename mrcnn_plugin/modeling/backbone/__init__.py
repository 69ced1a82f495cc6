from . import build  # noqa: F401, registers the backbones
from .bifpn import BiFPN
from .pafpn import PAFPN
from .upsample_fpn import UpsampleFPN

__all__ = ["BiFPN", "PAFPN", "UpsampleFPN"]
