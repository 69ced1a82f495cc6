"""The emulation of CUDA finds each kind of bug that it is trusted to find (tests/emulation)."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import torchvision

from tests.emulation import costs

FOLDER = Path(__file__).parent / "emulation"
CXX = os.environ.get("CXX", "c++")
SANITIZERS = {
    "none": [],
    "address": ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """run(kernel, sanitizer, order) -> (exit status, output) of a kernel of planted_bugs.cpp."""
    if shutil.which(CXX) is None:
        pytest.skip("needs a C++ compiler")
    folder = tmp_path_factory.mktemp("planted_bugs")

    def run(kernel, sanitizer="none", order=0):
        program = folder / sanitizer
        if not program.exists():
            command = [CXX, "-std=c++17", "-O1", "-g", "-pthread", *SANITIZERS[sanitizer]]
            command += ["-o", program, FOLDER / "planted_bugs.cpp"]
            built = subprocess.run(command, capture_output=True, text=True)
            if built.returncode and ("-lasan" in built.stderr or "-ltsan" in built.stderr):
                pytest.skip(f"the compiler has no {sanitizer} sanitizer")
            assert built.returncode == 0, built.stderr
        result = subprocess.run(
            [program, kernel, str(order)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"},
        )
        return result.returncode, result.stdout

    return run


@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("order", [0, 1])
def test_a_correct_kernel_passes(run, sanitizer, order):
    status, output = run("correct", sanitizer, order)
    assert status == 0, output
    assert "2 3 4 1, 12\n0 loads, 12 stores, 12 atomics" in output


@pytest.mark.parametrize(
    "kernel, sanitizer, message",
    [
        ("missing_barrier", "thread", "data race"),
        ("addition_that_is_not_atomic", "thread", "data race"),
        ("beyond_global_memory", "address", "heap-buffer-overflow"),
        ("beyond_a_shared_array", "address", "use-after-poison"),
        ("misaligned_vector", "none", "not aligned to 16"),
        ("number_beyond_an_integer", "address", "outside the range of representable values"),
        ("barrier_that_some_threads_skip", "none", "thread 2 has ended"),
        ("barriers_of_two_branches", "none", "a barrier that not all threads of block 0 reach"),
        ("too_much_shared_memory", "none", "more than 48 KiB of shared memory"),
        ("too_many_threads", "none", "cannot launch 3 blocks of 1025 threads"),
        ("too_many_blocks", "none", "cannot launch 2147483648 blocks"),
        ("no_blocks", "none", "cannot launch 0 blocks"),
    ],
)
def test_a_bug_is_an_error(run, kernel, sanitizer, message):
    status, output = run(kernel, sanitizer)
    assert status != 0 and message in output


def test_shared_memory_that_nobody_wrote_holds_no_zeros(run):
    _, output = run("shared_memory_that_nobody_wrote")
    assert output.startswith(str(int.from_bytes(b"\xab" * 4, "little", signed=True)))


def test_what_depends_on_the_order_of_blocks_changes_with_it(run):
    results = [run("last_block_wins", order=order)[1].split()[0] for order in (0, 1)]
    assert results == ["2", "0"]


@pytest.fixture(scope="module")
def counting_program(tmp_path_factory):
    if shutil.which(CXX) is None:
        pytest.skip("needs a C++ compiler")
    return costs.build(tmp_path_factory.mktemp("costs"))


def test_the_costs_of_a_kernel_are_counted(counting_program):
    _, found = costs.run(counting_program, "known")
    assert {cost[1:] for cost in found} == {
        # 32 neighbouring floats have 4 sectors of 32 bytes, and 32 floats in steps of 8 have 32.
        ("global", "floats", "r", 4, 2, 36, 8),
        ("global", "floats", "r", 16, 1, 16, 16),
        ("global", "floats", "w", 4, 1, 1, 1),
        ("shared", "neighbours", "w", 4, 1, 1, 1),
        ("shared", "neighbours", "r", 4, 1, 1, 1),
        ("shared", "one_bank", "w", 4, 1, 32, 1),
        ("shared", "vectors", "w", 16, 1, 4, 4),
    }


def test_the_other_kernel_whose_costs_are_counted_is_torchvisions(counting_program):
    boxes = torch.tensor([[0.0, 4, 5, 60, 70], [1, -9, 30, 90, 40], [0, 50, 50, 51, 52]])
    sizes = (3, 12, 11, len(boxes), 0, 0.125)
    line, _ = costs.run(counting_program, "theirs", *sizes, boxes=boxes.numpy().tobytes())
    map = torch.arange(2 * 3 * 12 * 11, dtype=torch.float32).sin().reshape(2, 3, 12, 11)
    bins = torchvision.ops.roi_align(map, boxes, 7, 0.125, 0, True).flatten()
    assert float(line.split()[1]) == pytest.approx(float(bins[len(bins) // 3]), abs=1e-5)
