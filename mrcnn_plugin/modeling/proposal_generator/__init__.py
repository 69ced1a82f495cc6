from .focal_rpn import FocalRPN

__all__ = ["FocalRPN"]
