"""Tests of the CPU kernels: layouts, tails of vectors, threads and instruction sets."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from mrcnn_plugin.layers import roi_align
from mrcnn_plugin.layers.roi_align_reference import (
    roi_align_backward_reference,
    roi_align_reference,
)
from tests.emulation import CSRC
from tests.layers.cases import (
    CHANNELS_LAST,
    CONTIGUOUS,
    DTYPES,
    KERNEL_TOLERANCE,
    assert_same,
    boxes_dtype,
    layouts,
    random_features,
    random_rois,
)

OPTIONS = (0, True, "bicubic", -0.5)


def forward(features, rois, size):
    return torch.ops.mrcnn_plugin.roi_align([features], rois, None, [1.0], *size, *OPTIONS)


def backward(grad, rois, shape):
    (grad_input,) = torch.ops.mrcnn_plugin.roi_align_backward(
        grad, rois, None, [1.0], shape[0], [shape[2]], [shape[3]], [True], *OPTIONS
    )
    return grad_input


# A vector has 4 or 8 floats, or 2 or 4 doubles. The sizes fill whole and partial vectors of channels
# and of columns, and whole and partial groups of 8 bin rows.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels, width", [(1, 1), (3, 7), (8, 8), (16, 9), (21, 5), (40, 33)])
@pytest.mark.parametrize("size", [(1, 1), (7, 1), (1, 7), (3, 2), (8, 8), (9, 7), (17, 14)])
def test_every_layout_and_vector_tail_equals_the_reference(dtype, channels, width, size):
    features = random_features(2, channels, 10, width, dtype=torch.float64).to(dtype)
    rois = random_rois(12, 2, 10, width, boxes_dtype(dtype))
    grad = random_features(12, channels, *size, dtype=torch.float64, seed=1).to(dtype)
    for name, map in layouts(features):
        expected = roi_align_reference([map.double()], rois.double(), None, [1.0], *size, *OPTIONS)
        actual = forward(map, rois, size)
        assert actual.dtype == dtype, name
        assert_same(actual.double(), expected, KERNEL_TOLERANCE[dtype])
    for name, gradient in layouts(grad):
        (expected,) = roi_align_backward_reference(
            gradient.double(), rois.double(), None, [1.0], 2, [10], [width], [True], *OPTIONS
        )
        actual = backward(gradient, rois, features.shape)
        assert actual.dtype == dtype, name
        assert_same(actual.double(), expected, KERNEL_TOLERANCE[dtype])


@pytest.mark.parametrize("format", [CONTIGUOUS, CHANNELS_LAST])
def test_results_have_the_memory_format_of_the_input(format):
    features = random_features(2, 5, 6, 7).contiguous(memory_format=format)
    output = forward(features, random_rois(4, 2, 6, 7, torch.float32), (3, 2))
    assert output.is_contiguous(memory_format=format)
    grad_input = backward(output, random_rois(4, 2, 6, 7, torch.float32), features.shape)
    assert grad_input.is_contiguous(memory_format=format)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("format", [CONTIGUOUS, CHANNELS_LAST])
@pytest.mark.parametrize("height", [12, 70])
def test_any_number_of_threads_gives_the_same_bits(dtype, format, height, threads):
    # Many RoIs on a small map share a copy of it, unless there are more threads than units of work. For
    # so many threads the gradient of a high map is divided into bands. The numbers cover all cases.
    features = random_features(2, 24, height, 15).to(dtype).contiguous(memory_format=format)
    rois = random_rois(64, 2, height, 15, boxes_dtype(dtype))
    grad = random_features(64, 24, 7, 7, seed=1).to(dtype).contiguous(memory_format=format)
    results = []
    for count in (1, 2, 3, 5, 64):
        threads(count)
        results.append((forward(features, rois, (7, 7)), backward(grad, rois, features.shape)))
    for output, grad_input in results[1:]:
        assert torch.equal(output, results[0][0])
        assert torch.equal(grad_input, results[0][1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_rounded_once_and_to_the_nearest(dtype):
    features = random_features(1, 9, 8, 9).to(dtype)
    rois = random_rois(16, 1, 8, 9, torch.float32)
    assert torch.equal(
        forward(features, rois, (5, 3)), forward(features.float(), rois, (5, 3)).to(dtype)
    )
    # If bins are pixels and samples are their centres, RoIAlign returns the map. Only conversions of the
    # dtype remain.
    values = torch.tensor([0.0, -0.0, 1.0, 65504.0, 6e-8, 3e-5, float("inf"), -float("inf")])
    features = values.to(dtype).view(1, 1, 1, 8).expand(1, 9, 1, 8)
    rois = torch.tensor([[0.0, 0.0, 0.0, 8.0, 1.0]])
    identity = roi_align(features, rois, (1, 8), 1.0, 1, True)
    assert torch.equal(identity, features)
    # A sum in float16 or bfloat16 would lose gradients: in float16, 2048 + 1 = 2048.
    grad = torch.ones(512, 9, 1, 8, dtype=dtype)
    sizes, options = (1, [1], [8], [True]), (1, True, "bicubic", -0.5)
    (total,) = torch.ops.mrcnn_plugin.roi_align_backward(
        grad, rois.repeat(512, 1), None, [1.0], *sizes, *options
    )
    assert (total == 512).all()
    assert roi_align(features * float("nan"), rois, (1, 8), 1.0, 1, True).isnan().all()


def test_pixels_without_a_weight_are_not_read():
    features = random_features(1, 8, 20, 20)
    rois = torch.tensor([[0.0, 5.0, 6.0, 12.0, 11.0]])
    expected = forward(features, rois, (3, 3))
    outside = torch.full_like(features, float("nan"))
    # The samples of the box lie in [4.5, 11.5] x [5.5, 10.5], and have two taps on either side.
    outside[..., 4:13, 3:14] = features[..., 4:13, 3:14]
    assert torch.equal(forward(outside, rois, (3, 3)), expected)


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="there is only one instruction set, or the test below is running this file",
)
def test_the_kernels_for_any_cpu_pass_these_tests():
    """This runs the file again with the kernels for a CPU without AVX2."""
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}

    program = f"""
import pytest, sys
status = pytest.main(["-q", "-p", "no:cacheprovider", {__file__!r}])
from tests.layers.test_roi_align_cpu import bits
print(bits())
sys.exit(status)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 skipped" in result.stdout
    # These kernels have no fused multiply-adds, so different bits show that they ran.
    assert result.stdout.splitlines()[-1] != bits()


def bits():
    """Returns the exact sum of the results of a call."""
    rois = random_rois(8, 1, 12, 15, torch.float32)
    return forward(random_features(1, 8, 12, 15), rois, (5, 3)).double().sum().item().hex()


POSITIONS = """
#include "interpolation.h"
#include <cstdio>
#include <cstdlib>

int main(int count, char** numbers) {
  for (int i = 1; i + 2 < count; i += 3) {
    const float low = strtof(numbers[i], 0), high = strtof(numbers[i + 1], 0), scale = strtof(numbers[i + 2], 0);
    const auto axis = mrcnn_plugin::make_axis(low, high, scale, 7, 2, true);
    for (int bin = 0; bin < 7; ++bin) {
      std::printf("%a ", mrcnn_plugin::sample_position(axis, bin, 1));
    }
  }
}
"""


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="the CPU has no fused multiply-adds, or another architecture",
)
def test_samples_lie_at_the_same_places_on_cpus_with_fused_multiply_adds(tmp_path):
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        pytest.skip("needs a C++ compiler")
    boxes = torch.rand(300, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    numbers = (boxes * torch.tensor([50.0, 900.0, 1.0])).flatten().tolist()
    places = []
    for flags in ([], ["-mavx2", "-mfma"]):
        command = [compiler, "-std=c++20", "-O3", *flags, f"-I{CSRC}", "-x", "c++", "-"]
        subprocess.run(
            [*command, "-o", tmp_path / "positions"], input=POSITIONS, text=True, check=True
        )
        places.append(subprocess.check_output([tmp_path / "positions", *map(str, numbers)]))
    assert places[0] == places[1] and b"nan" not in places[0]


def test_a_map_may_be_so_long_that_float32_rounds_its_last_pixel():
    width = 2**24 + 4
    rois = torch.tensor([[0.0, 2.0**24 + 2, 0.0, 2.0**24 + 6, 1.0]])
    pooled = torch.ops.mrcnn_plugin.roi_align(
        [torch.ones(1, 1, 1, width)], rois, None, [1.0], 1, 1, 1, False, "bilinear", -0.5
    )
    assert pooled.item() == 1
