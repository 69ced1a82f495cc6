from .focal_rpn import MRCNNFocalRPN

__all__ = ["MRCNNFocalRPN"]
