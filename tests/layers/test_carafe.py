"""CARAFE is compared with the paper's equations in float64."""

import pytest
import torch
import torch.nn.functional as F

from mrcnn_plugin.layers import CARAFE, GatedCARAFE
from mrcnn_plugin.layers import carafe as implementation
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


def assert_the_sums_and_gradients_are_those_of_single_taps(n, height, width, k, memory_format):
    x = torch.randn(n, 3, height, width, dtype=torch.float64).to(memory_format=memory_format)
    weights = torch.randn(n, height, width, 4, k * k, dtype=torch.float64)
    grad = torch.randn(n, 3, 2 * height, 2 * width, dtype=torch.float64)
    results = []
    for reassemble in (implementation._reassemble, implementation._sum_taps):
        inputs = [x.clone().requires_grad_(), weights.clone().requires_grad_()]
        output = reassemble(*inputs, k)
        results.append([output, *torch.autograd.grad(output, inputs, grad)])
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)
    assert results[0][0].is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("k", [1, 3, 5, 7])
@pytest.mark.parametrize("height, width", [(1, 1), (3, 8), (8, 4), (9, 6)])
def test_tiles_may_fit_the_map_or_not(height, width, k, memory_format):
    assert_the_sums_and_gradients_are_those_of_single_taps(2, height, width, k, memory_format)


@pytest.mark.parametrize("k, row_bytes", [(1, 20_224), (3, 41_856), (5, 71_680)])
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 7, 99])
def test_blocks_may_be_rows_of_tiles_or_images(rows, k, row_bytes, monkeypatch):
    monkeypatch.setattr(implementation, "_CPU_BLOCK_BYTES", rows * row_bytes)
    blocks = list(implementation._blocks(torch.empty(3, 12 + k - 1, 8 + k - 1, 3).double(), k))
    assert len(blocks) == {0: 9, 1: 9, 2: 6, 3: 3, 7: 2, 99: 1}[rows]
    assert_the_sums_and_gradients_are_those_of_single_taps(3, 11, 6, k, torch.contiguous_format)


@pytest.mark.parametrize("needs_gradient", [0, 1])
def test_one_of_the_two_gradients_can_be_computed_alone(needs_gradient):
    inputs = [torch.randn(1, 2, 3, 4).double(), torch.randn(1, 3, 4, 4, 9).double()]
    inputs[needs_gradient].requires_grad_()
    gradients = []
    for reassemble in (implementation._reassemble, implementation._sum_taps):
        output = reassemble(*inputs, 3)
        gradients.append(torch.autograd.grad(output.square().sum(), inputs[needs_gradient])[0])
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_gradients_can_be_differentiated():
    inputs = [torch.randn(1, 2, 3, 4).double(), torch.randn(1, 3, 4, 4, 9).double()]
    inputs = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradgradcheck(lambda *x: implementation._reassemble(*x, 3), inputs)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("height", [4, 5])
def test_the_output_can_be_changed_in_place(height, memory_format):
    x = torch.randn(1, 3, height, 8).to(memory_format=memory_format).requires_grad_()
    module = CARAFE(3)
    (expected,) = torch.autograd.grad(module(x).relu().sum(), x)
    (grad,) = torch.autograd.grad(module(x).relu_().sum(), x)
    assert torch.equal(grad, expected)


def test_an_infinite_pixel_changes_only_the_outputs_near_it():
    x = torch.randn(1, 3, 20, 20)
    module = CARAFE(3, k_encoder=1)
    expected = module(x)
    x[0, 0, 2, 2] = torch.inf
    changed = module(x)
    assert torch.equal(changed[:, :, 16:], expected[:, :, 16:])
    assert torch.equal(changed[..., 16:], expected[..., 16:])


@pytest.mark.parametrize("sides", [{"k_up": 4}, {"k_encoder": 2}])
def test_even_sides_are_refused(sides):
    with pytest.raises(ValueError, match="both must be odd"):
        CARAFE(3, **sides)


def test_shapes_can_be_computed_without_values():
    upsampled = CARAFE(3).to("meta")(torch.empty(1, 3, 4, 5, device="meta"))
    assert upsampled.shape == (1, 3, 8, 10)


def test_a_batch_may_be_empty():
    x = torch.randn(0, 3, 4, 5, requires_grad=True)
    upsampled = CARAFE(3)(x)
    assert upsampled.shape == (0, 3, 8, 10)
    upsampled.sum().backward()
    assert x.grad.shape == x.shape


def graph_of(module, x, kind, tmp_path):
    """Returns the graph as text, and a function that runs it."""
    if kind == "export":
        program = torch.export.export(module, (x,))
        return str(program.graph), program.module()
    if kind == "fx":
        if torch.__version__ < (2, 7):
            pytest.skip("torch.promote_types cannot be traced by torch.fx of this torch")
        traced = torch.fx.symbolic_trace(module)
        return str(traced.graph), traced
    script = torch.jit.trace(module, (x,)) if kind == "trace" else torch.jit.script(module)
    script.save(tmp_path / "script.pt")
    return str(script.inlined_graph), torch.jit.load(tmp_path / "script.pt")


@pytest.mark.parametrize(
    "kind, operator",
    [("export", "addcmul"), ("fx", "_reassemble"), ("trace", "addcmul"), ("script", "addcmul")],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_graphs_give_the_same_output(kind, operator, tmp_path):
    module, x = carafe(3, k_up=3, compressed_channels=2), torch.randn(1, 3, 4, 6).double()
    graph, run = graph_of(module, x, kind, tmp_path)
    assert operator in graph
    torch.testing.assert_close(run(x), module(x), rtol=0, atol=1e-12)


def test_it_compiles_without_a_break():
    module, x = carafe(3, k_up=3, compressed_channels=2), torch.randn(1, 3, 4, 6).double()
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), module(x), rtol=0, atol=1e-12)


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


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("block_bytes", [1, 2**28])
def test_a_gpu_gives_the_numbers_of_the_cpu_and_the_same_gradients_twice(block_bytes, monkeypatch):
    monkeypatch.setattr(implementation, "_GPU_BLOCK_BYTES", block_bytes)
    inputs = [torch.randn(2, 64, 25, 38), torch.randn(2, 25, 38, 4, 25).softmax(-1)]
    grad = torch.randn(2, 64, 50, 76)

    def results(device):
        x, weights = (t.to(device).requires_grad_() for t in inputs)
        output = implementation._reassemble(x, weights, 5)
        return [output, *torch.autograd.grad(output, [x, weights], grad.to(device))]

    first, second = results("cuda"), results("cuda")
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    torch.testing.assert_close([t.cpu() for t in first], results("cpu"), rtol=0, atol=1e-4)


def test_autocast_keeps_the_dtype_of_the_input():
    x = torch.randn(1, 8, 4, 4, dtype=torch.bfloat16)
    module = CARAFE(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        upsampled = module(x)
    assert upsampled.dtype == torch.bfloat16
    torch.testing.assert_close(upsampled.float(), module(x.float()), rtol=0, atol=0.05)


def test_autocast_does_not_round_the_sums_or_their_gradients():
    x, weights, grad = torch.randn(1, 8, 4, 4), torch.rand(1, 4, 4, 4, 25), torch.randn(1, 8, 8, 8)
    results = []
    for enabled in (False, True):
        inputs = [x.clone().requires_grad_(), weights.clone().requires_grad_()]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            output = implementation._reassemble(*inputs, 5)
            results.append([output, *torch.autograd.grad(output, inputs, grad)])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_half_precision_output_is_rounded_once(dtype):
    module, x = CARAFE(8).to(dtype), torch.randn(1, 8, 16, 16).to(dtype)
    weights = module.encoder(module.compressor(x)).double().view(1, 1, 25, 4, 16, 16).softmax(2)
    windows = F.unfold(x.double(), 5, padding=2).view(1, 8, 25, 1, 16, 16)
    expected = F.pixel_shuffle((windows * weights).sum(2).flatten(1, 2), 2)
    # A float32 sum that lies between two numbers of half precision may be rounded to the other.
    assert (module(x) == expected.to(dtype)).float().mean() > 0.99


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


def test_the_gradient_of_the_gate_may_be_larger_than_float16():
    # Mixed precision multiplies the loss by 65536 at first.
    module = GatedCARAFE(8)
    x = torch.randn(2, 8, 12, 14)
    gradients = []
    for dtype, scale in ((torch.float32, 1.0), (torch.float16, 65536.0)):
        module.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16, enabled=dtype == torch.float16):
            output = module(x.to(dtype))
        assert output.dtype == dtype
        (output.float().mean() * x.numel() * scale).backward()
        gradients.append(module.gate.grad / scale)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-2, atol=1e-2)
