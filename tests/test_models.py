import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from eigendamage_ext.models.preresnet import PreResNet
from eigendamage_ext.models.resnet import PadShortcut, ResNet
from eigendamage_ext.models.vgg import VGG


def totals(make, side):
    """Parameters, and the FLOPs of one image ``side × side``."""
    with torch.device("meta"):
        model, x = make(), torch.empty(1, 3, side, side)
    with FlopCounterMode(display=False) as counter:
        model(x)
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops()


@pytest.mark.parametrize(
    ("classes", "params", "flops"), [(10, 7_427_914, 2_201_359_360), (100, 7_451_044, 2_201_405_440)]
)
def test_wide_resnet32_has_the_totals_of_the_paper(classes, params, flops):
    assert totals(lambda: ResNet(32, (64, 128, 256), classes, shortcut="B"), 32) == (params, flops)


@pytest.mark.parametrize(
    ("classes", "side", "params", "flops"),
    [
        (10, 32, 20_035_018, 796_272_640),
        (100, 32, 20_081_188, 796_364_800),
        (200, 64, 20_132_488, 3_185_254_400),
    ],
)
def test_vgg19_has_the_totals_of_the_paper(classes, side, params, flops):
    assert totals(lambda: VGG(num_classes=classes), side) == (params, flops)


@pytest.mark.parametrize(
    ("classes", "params", "flops"), [(10, 2_235_850, 720_770_048), (100, 2_258_980, 720_816_128)]
)
def test_preresnet29_has_the_totals_of_the_paper(classes, params, flops):
    assert totals(lambda: PreResNet(num_classes=classes), 32) == (params, flops)


@pytest.mark.parametrize(
    ("make", "side", "relu", "pooled", "flops"),
    [
        (lambda: VGG(num_classes=10), 32, 1, 4 * 30_720, 797_304_842),
        (lambda: VGG(num_classes=100), 32, 1, 4 * 30_720, 797_397_092),
        (lambda: VGG(num_classes=200), 64, 1, 4 * 122_880, 3_189_383_368),
        (lambda: ResNet(num_classes=10), 32, 0, 0, 2_203_882_506),
        (lambda: ResNet(num_classes=100), 32, 0, 0, 2_203_928_676),
        (lambda: PreResNet(num_classes=10), 32, 1, 64 * 256, 724_153_354),
        (lambda: PreResNet(num_classes=100), 32, 1, 64 * 256, 724_199_524),
    ],
)
def test_flops_as_the_paper_counts_them(make, side, relu, pooled, flops):
    """It adds the bias, 2 for each number that BN reads, 1 for ReLU's and the pixels pooled by modules."""
    normalised = []
    with torch.device("meta"):
        model, x = make(), torch.empty(1, 3, side, side)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda module, args, output: normalised.append(output.numel()))
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert (
        counter.get_total_flops() + model.linear.out_features + (2 + relu) * sum(normalised) + pooled == flops
    )


def test_vgg_equals_the_formula_by_hand_in_train_mode():
    model = VGG(11, (2, 3, 4, 5, 6), num_classes=3, in_channels=1).double()
    x = torch.randn(3, 1, 34, 36, dtype=torch.float64)
    weights = [m.weight for m in model.features if isinstance(m, nn.Conv2d)]
    assert [w.shape[:2] for w in weights] == [(2, 1), (3, 2), (4, 3), (4, 4), (5, 4), (5, 5), (6, 5), (6, 6)]
    y = x
    for layer, weight in enumerate(weights):
        y = F.conv2d(y, weight, padding=1)
        mean, var = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), correction=0, keepdim=True)
        y = ((y - mean) / (var + 1e-5).sqrt()).clamp(min=0)
        if layer in (0, 1, 3, 5):  # the last of every stage but the fifth
            h, w = y.shape[2] // 2 * 2, y.shape[3] // 2 * 2
            quarters = [y[:, :, i:h:2, j:w:2] for i in (0, 1) for j in (0, 1)]
            y = torch.stack(quarters).amax(0)
    assert y.shape == (3, 6, 2, 2)
    expected = y.mean((2, 3)) @ model.linear.weight.T + model.linear.bias
    assert (model(x) - expected).abs().max() < 1e-12


def test_pad_shortcut_puts_strided_pixels_between_zero_channels():
    x = torch.arange(1.0, 1 + 2 * 2 * 3 * 5).reshape(2, 2, 3, 5)
    y = PadShortcut(2, 7, stride=2)(x)
    expected = torch.zeros(2, 7, 2, 3)
    for n in range(2):
        for c in range(2):
            for i in range(2):
                for j in range(3):
                    expected[n, 2 + c, i, j] = x[n, c, 2 * i, 2 * j]  # 5 new channels: 2 before, 3 after
    assert torch.equal(y, expected)


def test_shortcut_a_block_equals_the_formula_by_hand():
    torch.manual_seed(0)
    model = ResNet(8, (2, 4, 8), shortcut="A").double().eval()
    block = model.layer2[0]
    for bn in (block.bn1, block.bn2):
        nn.init.uniform_(bn.weight, 0.5, 2)
        nn.init.normal_(bn.bias)
        bn.running_mean.normal_()
        bn.running_var.uniform_(0.5, 2)
    x = torch.randn(3, 2, 6, 6, dtype=torch.float64)

    def norm(y, bn):
        mean, var, weight, bias = (
            v[:, None, None] for v in (bn.running_mean, bn.running_var, bn.weight, bn.bias)
        )
        return (y - mean) / (var + 1e-5).sqrt() * weight + bias

    y = norm(F.conv2d(x, block.conv1.weight, stride=2, padding=1), block.bn1).clamp(min=0)
    y = norm(F.conv2d(y, block.conv2.weight, padding=1), block.bn2)
    y[:, 1:3] += x[:, :, ::2, ::2]
    assert (block(x) - y.clamp(min=0)).abs().max() < 1e-12


def test_shortcut_b_block_equals_the_formula_by_hand():
    torch.manual_seed(0)
    block = ResNet(8, (2, 4, 8), shortcut="B").double().eval().layer3[0]
    block.shortcut[1].running_mean.normal_()
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    bn = 1 / (1 + 1e-5) ** 0.5
    y = F.conv2d(
        (F.conv2d(x, block.conv1.weight, stride=2, padding=1) * bn).clamp(min=0),
        block.conv2.weight,
        padding=1,
    )
    mean = block.shortcut[1].running_mean[:, None, None]
    y = y * bn + (F.conv2d(x, block.shortcut[0].weight, stride=2) - mean) * bn
    assert (block(x) - y.clamp(min=0)).abs().max() < 1e-12


def test_logits_are_the_linear_of_mean_features_at_any_size():
    torch.manual_seed(0)
    model = ResNet(14, (4, 6, 9), num_classes=5, in_channels=1, shortcut="A").double().eval()
    x = torch.randn(2, 1, 13, 9, dtype=torch.float64)
    features = []
    model.layer3.register_forward_hook(lambda module, args, output: features.append(output))
    logits = model(x)
    assert features[0].shape == (2, 9, 4, 3)
    expected = features[0].mean((2, 3)) @ model.linear.weight.T + model.linear.bias
    assert (logits - expected).abs().max() < 1e-12


def test_preresnet_equals_the_formula_by_hand():
    torch.manual_seed(0)
    model = PreResNet(11, (2, 3, 4), num_classes=5, in_channels=1).double().eval()
    for bn in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(bn.weight, 0.5, 2)
        nn.init.normal_(bn.bias)
        bn.running_mean.normal_()
        bn.running_var.uniform_(0.5, 2)

    def rectified(y, bn):
        mean, var, weight, bias = (
            v[:, None, None] for v in (bn.running_mean, bn.running_var, bn.weight, bn.bias)
        )
        return ((y - mean) / (var + 1e-5).sqrt() * weight + bias).clamp(min=0)

    x = torch.randn(2, 1, 9, 6, dtype=torch.float64)
    y = F.conv2d(x, model.conv1.weight, padding=1)
    for stage, (inner, outer) in enumerate([(2, 2), (2, 3), (3, 4)]):
        (block,) = (model.layer1, model.layer2, model.layer3)[stage]
        stride = 2 if stage else 1
        assert block.conv2.weight.shape == (inner, inner, 3, 3)
        z = F.conv2d(rectified(y, block.bn1), block.conv1.weight)
        z = F.conv2d(rectified(z, block.bn2), block.conv2.weight, stride=stride, padding=1)
        z = F.conv2d(rectified(z, block.bn3), block.conv3.weight)
        if stage:
            y = torch.einsum("oi,nihw->nohw", block.shortcut.weight[:, :, 0, 0], y[:, :, ::2, ::2])
        y = y + z
        assert y.shape[1] == outer
    assert y.shape == (2, 4, 3, 2)
    expected = rectified(y, model.bn).mean((2, 3)) @ model.linear.weight.T + model.linear.bias
    assert (model(x) - expected).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        (lambda: ResNet(8, (3, 4, 8), shortcut="A"), (8, 11)),
        (lambda: ResNet(8, (3, 4, 8), shortcut="B"), (8, 11)),
        (lambda: VGG(13, (3, 4, 5, 6, 7)), (16, 19)),
        (lambda: PreResNet(11, (3, 4, 8)), (8, 11)),
    ],
)
def test_fx_trace_computes_the_same(model, sizes):
    model = model().eval()
    traced = torch.fx.symbolic_trace(model)
    for size in sizes:
        x = torch.randn(2, 3, size, size)
        assert torch.equal(traced(x), model(x))


def test_names_are_those_of_the_public_weights():
    names = set(ResNet(20, (16, 32, 64), shortcut="A").state_dict())
    bn = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {"conv1.weight", "linear.weight", "linear.bias"} | {f"bn1.{b}" for b in bn}
    for block in (f"layer{i}.{j}" for i in (1, 2, 3) for j in range(3)):
        expected |= {f"{block}.conv{k}.weight" for k in (1, 2)} | {
            f"{block}.bn{k}.{b}" for k in (1, 2) for b in bn
        }
    assert names == expected


@pytest.mark.parametrize(
    ("network", "kwargs", "message"),
    [
        (ResNet, {"depth": 9}, r"depth must be 6n \+ 2 with n >= 1, got 9"),
        (ResNet, {"depth": 2}, "got 2"),
        (ResNet, {"widths": (16, 32)}, "widths must be three"),
        (ResNet, {"widths": (16, 0, 64)}, "positive"),
        (ResNet, {"shortcut": "C"}, "shortcut must be"),
        (ResNet, {"widths": (16, 8, 64), "shortcut": "A"}, "out_channels must be at least in_channels"),
        (VGG, {"depth": 12}, "VGG: depth must be 11, 13, 16, 19, got 12"),
        (VGG, {"widths": (1, 2, 3, 4)}, r"widths must be five .* got \(1, 2, 3, 4\)"),
        (VGG, {"widths": (1, 2, 3, 4, 0)}, "positive"),
        (PreResNet, {"depth": 26}, r"PreResNet: depth must be 9n \+ 2 with n >= 1, got 26"),
        (PreResNet, {"depth": 2}, "got 2"),
        (PreResNet, {"widths": (16, 32)}, r"PreResNet: widths must be three .* got \(16, 32\)"),
        (PreResNet, {"widths": (16, 32, 0)}, "positive"),
    ],
)
def test_bad_arguments_are_refused(network, kwargs, message):
    with pytest.raises(ValueError, match=message):
        network(**kwargs)
