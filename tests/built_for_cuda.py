"""python -m tests.built_for_cuda FILE: checks an extension that was built with its CUDA kernels.

It has to work on the CPU of a machine without a GPU, and to have the kernels.
"""

import sys

import torch


def main(file: str) -> None:
    torch.ops.load_library(file)
    features, rois = torch.ones(1, 3, 8, 8), torch.tensor([[0.0, 1.0, 1.0, 6.0, 6.0]])
    for name in ("roi_align", "roi_align_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"mrcnn_plugin::{name}", "CUDA")
    output = torch.ops.mrcnn_plugin.roi_align(
        [features], rois, None, [1.0], 2, 2, 0, True, "bicubic", -0.5
    )
    torch.testing.assert_close(output, torch.ones(1, 3, 2, 2))
    print(f"{file} has CUDA kernels and works on the CPU.")


if __name__ == "__main__":
    main(*sys.argv[1:])
