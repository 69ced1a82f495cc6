"""CARAFE is compared with the paper's equations in float64."""

import pytest
import torch
import torch.nn.functional as F

from mrcnn_plugin.layers import CARAFE, GatedCARAFE
from mrcnn_plugin.layers import carafe as carafe_module
from tests import oracles


def carafe(*args, **kwargs):
    """Returns a module in float64 whose weights are far from their initial values."""
    module = CARAFE(*args, **kwargs).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


@pytest.mark.parametrize("k_up, k_encoder", [(5, 3), (3, 1), (3, 5)])
def test_carafe_equals_the_equations_of_the_paper(k_up, k_encoder):
    module = carafe(3, k_up=k_up, k_encoder=k_encoder, compressed_channels=2)
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    parameters = [
        (conv.weight.detach().numpy(), conv.bias.detach().numpy())
        for conv in (module.compressor, module.encoder)
    ]
    expected = [torch.from_numpy(oracles.carafe(image.numpy(), *parameters)) for image in x]
    torch.testing.assert_close(module(x), torch.stack(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("block_bytes", [1, 5000, 2**30], ids=["a row", "some rows", "all rows"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_blocks_of_rows_give_the_sums_and_gradients_of_single_taps(
    k, memory_format, block_bytes, monkeypatch
):
    monkeypatch.setattr(carafe_module, "CPU_BLOCK_BYTES", block_bytes)
    x = torch.randn(2, 3, 7, 4, dtype=torch.float64).to(memory_format=memory_format)
    weights = torch.randn(2, 7, 4, 4, k * k, dtype=torch.float64)
    grad = torch.randn(2, 3, 14, 8, dtype=torch.float64)
    results = []
    for reassemble in (carafe_module.Reassemble.apply, carafe_module.reassemble_by_taps):
        inputs = [x.clone().requires_grad_(), weights.clone().requires_grad_()]
        output = reassemble(*inputs, k)
        results.append([output, *torch.autograd.grad(output, inputs, grad)])
    torch.testing.assert_close(*results, rtol=0, atol=1e-12, check_stride=False)


def test_a_batch_may_be_empty():
    x = torch.randn(0, 3, 4, 5, requires_grad=True)
    upsampled = CARAFE(3)(x)
    assert upsampled.shape == (0, 3, 8, 10)
    upsampled.sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("convert", ["compile", "trace", "script"])
@pytest.mark.filterwarnings("ignore:.*torch.jit:")
def test_graphs_give_the_same_output(convert):
    module, x = carafe(3, k_up=3, compressed_channels=2), torch.randn(1, 3, 4, 6).double()
    if convert == "compile":
        graph = torch.compile(module, fullgraph=True, backend="eager")
    elif convert == "trace":
        graph = torch.jit.trace(module, (x,))
    else:
        graph = torch.jit.script(module)
    torch.testing.assert_close(graph(x), module(x), rtol=0, atol=1e-12)


def test_away_from_the_border_a_constant_stays_the_same():
    upsampled = carafe(4, compressed_channels=2)(torch.full((1, 4, 7, 8), 3.0, dtype=torch.float64))
    inner, border = upsampled[:, :, 4:-4, 4:-4], upsampled[:, :, 0]
    torch.testing.assert_close(inner, torch.full_like(inner, 3.0), rtol=0, atol=1e-12)
    assert border.max() < 3.0  # the zeros beyond it also have weights


def test_at_first_it_averages_the_neighbourhood():
    x = torch.randn(1, 16, 8, 8)
    mean = F.interpolate(F.avg_pool2d(x, 5, stride=1, padding=2), scale_factor=2)
    torch.testing.assert_close(CARAFE(16)(x), mean, rtol=0, atol=0.05)


def test_the_defaults_are_those_of_the_paper():
    module = CARAFE(256)
    assert module.compressor.weight.shape == (64, 256, 1, 1)
    assert module.encoder.weight.shape == (4 * 25, 64, 3, 3)


def test_the_gradient_is_correct_and_reaches_every_parameter():
    module = carafe(2, k_up=3, compressed_channels=2)
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, [x])
    module(x).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in module.parameters())


def test_autocast_keeps_the_dtype_of_the_input():
    x = torch.randn(1, 8, 4, 4, dtype=torch.bfloat16)
    module = CARAFE(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        upsampled = module(x)
    assert upsampled.dtype == torch.bfloat16
    torch.testing.assert_close(upsampled.float(), module(x.float()), rtol=0, atol=0.05)


def test_autocast_does_not_round_the_sums():
    x, weights = torch.randn(1, 8, 4, 4), torch.rand(1, 4, 4, 4, 25)
    expected = carafe_module.Reassemble.apply(x, weights, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(carafe_module.Reassemble.apply(x, weights, 5), expected)


def test_gated_carafe_starts_as_nearest_upsampling_and_then_learns():
    x = torch.randn(2, 8, 5, 6)
    module = GatedCARAFE(8)
    assert torch.equal(module(x), F.interpolate(x, scale_factor=2, mode="nearest"))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    for _ in range(2):  # CARAFE gets a gradient once the gate has moved
        optimizer.zero_grad()
        module(x).square().sum().backward()
        optimizer.step()
    still = [name for name, value in module.named_parameters() if torch.equal(value, before[name])]
    assert still in ([], ["carafe.compressor.bias"])


@pytest.mark.parametrize("gate", [1.0, 0.25])
def test_the_gate_blends_nearest_upsampling_and_carafe(gate):
    x = torch.randn(2, 8, 5, 6, dtype=torch.float64)
    module = GatedCARAFE(8).double()
    torch.nn.init.constant_(module.gate, gate)
    nearest = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = (1 - gate) * nearest + gate * module.carafe(x)
    torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-12)
