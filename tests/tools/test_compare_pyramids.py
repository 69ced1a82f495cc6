"""Tests of tools/compare_pyramids.py. Its counts are compared with counts by hand."""

import pytest

from tests.conftest import load_tool
from tests.features import detectron2_module

detectron2_module("utils.analysis")
compare_pyramids = load_tool("compare_pyramids")
CHANNELS = 64


@pytest.fixture(scope="module")
def cases():
    return {case.name: case for case in compare_pyramids.build_cases(160, 192, CHANNELS)}


def pixels(height, width):
    """Returns the number of pixels of the levels p2 to p5."""
    return [height * width // 4**stage for stage in (2, 3, 4, 5)]


def lateral(pixels):
    return sum(n * c * CHANNELS for n, c in zip(pixels, (256, 512, 1024, 2048), strict=True))


def test_multiply_adds_are_those_of_the_definitions(cases):
    counts = {name: compare_pyramids.count_multiply_adds(case) for name, case in cases.items()}
    conv3x3 = 9 * CHANNELS**2
    p2, *others = pixels(160, 192)
    fpn = lateral([p2, *others]) + conv3x3 * (p2 + sum(others))
    assert counts["FPN of Detectron2"] == counts["UpsampleFPN, nearest"] == fpn
    assert counts["PAFPN"] == fpn + 2 * conv3x3 * sum(others)
    # CARAFE (section 3) has a compressor, an encoder and a reassembly at each pixel of its input.
    carafe = CHANNELS * 64 + 9 * 64 * 4 * 25 + 4 * 25 * CHANNELS
    assert counts["UpsampleFPN, carafe"] == fpn + carafe * sum(others)
    # The image of BiFPN is padded to a multiple of 64. In each of three repeats, p2 and p6 have one node,
    # and the other levels have two.
    p2, *others = pixels(192, 192)
    nodes = 3 * (p2 + 2 * sum(others) + others[-1] // 4)
    bifpn = lateral([p2, *others])
    assert counts["BiFPN, full convolutions"] == bifpn + conv3x3 * nodes
    assert counts["BiFPN"] == bifpn + (9 * CHANNELS + CHANNELS**2) * nodes


def test_the_tool_prints_a_row_for_each_pyramid_and_the_command(capsys):
    compare_pyramids.main(["--height", "64", "--width", "64", "--channels", "32", "--turns", "1"])
    out = capsys.readouterr().out
    rows = [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("| ")][1:]
    assert rows == ["ResNet-50, below each", *(name for name, *_ in compare_pyramids.VARIANTS)]
    assert "--height 64 --width 64 --channels 32 --turns 1 --device cpu`" in out


def test_a_row_needs_a_measurement(capsys):
    with pytest.raises(SystemExit):
        compare_pyramids.main(
            ["--height", "64", "--width", "64", "--channels", "8", "--turns", "0"]
        )
    assert "--turns 0: must be at least 1" in capsys.readouterr().err
