from __future__ import annotations

import pytest
import torch
from monai.networks.nets.basic_unet import Down, TwoConv, UpCat
from torch import nn

from fcl.networks import SegmentationUNet, UNetEncoder
from fcl.networks.unet import layer_spec


@pytest.mark.parametrize(
    ("channels", "size"),
    [
        ((4, 8), (6, 9)),
        ((4, 8, 16), (16, 16)),
        ((4, 8, 16), (17, 31)),
        ((4, 8, 16, 32, 32), (32, 23)),
        ((4, 8), (7, 6, 5)),
        ((4, 8, 12), (9, 8, 5)),
    ],
)
@pytest.mark.parametrize(
    "norm", ["batch", ["instance", {"affine": True}], ["group", {"num_groups": 4}], ("GROUP", {"num_groups": 2})]
)
def test_shapes_for_any_depth_size_and_norm(channels, size, norm):
    network = SegmentationUNet(len(size), 2, 3, channels, norm)
    image = torch.rand(2, 2, *size)
    maps = network.encoder(image)
    assert [tuple(each.shape) for each in maps] == [
        (2, width, *(length // 2**level for length in size)) for level, width in enumerate(channels)
    ]
    assert network(image).shape == (2, 3, *size)


@pytest.mark.parametrize(
    ("strides", "size", "sides"),
    [
        ([[2, 2, 1], [2, 2, 1]], (9, 8, 5), [(9, 8, 5), (4, 4, 5), (2, 2, 5)]),
        ([[2, 2, 1], [2, 2, 2]], (9, 8, 5), [(9, 8, 5), (4, 4, 5), (2, 2, 2)]),
        ([[2, 2, 1], 2], (8, 8, 7), [(8, 8, 7), (4, 4, 7), (2, 2, 3)]),
        ([[1, 2], [2, 1]], (7, 9), [(7, 9), (7, 4), (3, 4)]),
    ],
)
def test_strides_pool_and_enlarge_axis_by_axis(strides, size, sides):
    network = SegmentationUNet(len(size), 1, 3, (4, 8, 12), "batch", strides=strides)
    image = torch.rand(2, 1, *size)
    assert [tuple(each.shape[2:]) for each in network.encoder(image)] == sides
    assert network(image).shape == (2, 3, *size)
    kernels = [tuple(up.upsample.deconv.weight.shape[2:]) for up in network.decoder.ups]
    assert kernels == [(each,) * len(size) if isinstance(each, int) else tuple(each) for each in reversed(strides)]


def test_a_slab_that_is_not_pooled_along_its_slices_may_have_any_depth():
    network = SegmentationUNet(3, channels=(4, 8, 16), strides=[[2, 2, 1]] * 2).eval()
    for depth in (1, 2, 5):
        assert network(torch.rand(1, 1, 8, 8, depth)).shape == (1, 4, 8, 8, depth)
    with pytest.raises(ValueError, match=r"\(8, 3, 5\) voxels is too small.*at least \(4, 4, 1\).*slab_depth"):
        network(torch.rand(1, 1, 8, 3, 5))


@pytest.mark.parametrize("strides", [None, [2, 2], [[2, 2], 2]])
def test_without_strides_it_is_monais_unet_weight_by_weight(strides):
    common = {"act": "LEAKYRELU", "norm": ("instance", {"affine": True}), "bias": False, "dropout": 0.0}
    stem, downs = TwoConv(2, 1, 4, **common), [Down(2, 4, 8, **common), Down(2, 8, 16, **common)]
    ups = [UpCat(2, 16, 8, 8, **common), UpCat(2, 8, 4, 4, **common)]
    logits = nn.Conv2d(4, 3, 1)
    parts = {"encoder.stem": stem, "decoder.logits": logits}
    parts |= {f"encoder.downs.{i}": down for i, down in enumerate(downs)}
    parts |= {f"decoder.ups.{i}": up for i, up in enumerate(ups)}
    expected = {f"{at}.{key}": value for at, part in parts.items() for key, value in part.state_dict().items()}

    network = SegmentationUNet(2, 1, 3, (4, 8, 16), ["instance", {"affine": True}], strides=strides)
    network.load_state_dict(expected)
    image = torch.rand(2, 1, 16, 13)
    first = stem(image)
    second = downs[0](first)
    assert torch.equal(network(image), logits(ups[1](ups[0](downs[1](second), second), first)))


def test_every_parameter_receives_a_gradient():
    network = SegmentationUNet(channels=(4, 8, 16))
    network(torch.rand(2, 1, 12, 12)).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_encoder_is_a_module_of_its_own_with_the_same_keys():
    settings = {"spatial_dims": 2, "in_channels": 1, "channels": (4, 8, 16), "norm": "batch", "dropout": 0.1}
    encoder, network = UNetEncoder(**settings), SegmentationUNet(out_channels=4, **settings)
    inside = {key.removeprefix("encoder.") for key in network.state_dict() if key.startswith("encoder.")}
    assert set(encoder.state_dict()) == inside
    assert encoder.channels == (4, 8, 16)


def test_equal_seeds_give_equal_weights():
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        states.append(SegmentationUNet(channels=(4, 8)).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("strides", [None, [[2, 1]]])
def test_initial_weights_have_the_variance_of_he(strides):
    """2 / ((1 + slope^2) n) for n inputs: their sum then is as large in a wide layer as in a narrow one."""
    torch.manual_seed(0)
    network = SegmentationUNet(in_channels=32, out_channels=32, channels=(32, 64), strides=strides)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]
    assert len(convolutions) == 8
    for module in convolutions:
        inputs = module.weight[0].numel()  # as PyTorch counts them, of a transposed convolution too
        assert module.weight.square().mean().item() == pytest.approx(2 / 1.0001 / inputs, rel=0.1)
        assert module.bias is None or not module.bias.any()


def test_convolutions_before_a_norm_have_no_bias():
    encoder = UNetEncoder(channels=(4, 8))
    assert all(module.bias is None for module in encoder.modules() if isinstance(module, nn.Conv2d))


def test_activation_and_dropout_come_from_the_arguments():
    encoder = UNetEncoder(channels=(4, 8), act=["leakyrelu", {"negative_slope": 0.2}], dropout=0.3)
    slopes = {module.negative_slope for module in encoder.modules() if isinstance(module, nn.LeakyReLU)}
    rates = {module.p for module in encoder.modules() if isinstance(module, nn.Dropout2d | nn.Dropout)}
    assert (slopes, rates) == ({0.2}, {0.3})


def test_it_learns_to_copy_its_input():
    torch.manual_seed(0)
    network = SegmentationUNet(channels=(4, 8), out_channels=2)
    image = torch.rand(4, 1, 12, 12)
    target = (image[:, 0] > 0.5).long()
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    losses = []
    for _ in range(25):
        loss = nn.functional.cross_entropy(network(image), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spatial_dims": 1}, "spatial_dims must be 2 or 3, got 1"),
        ({"channels": (8,)}, r"two or more positive widths.*got \[8\]"),
        ({"channels": (8, 0)}, r"got \[8, 0\]"),
        ({"channels": (4, 8, 16), "strides": [2]}, r"strides must be 2 entries.*the 3 channels.*got \[2\]"),
        ({"channels": (4, 8), "strides": [[2, 2, 1]]}, r"2 numbers \(spatial_dims\).*got \[\[2, 2, 1\]\]"),
        ({"channels": (4, 8), "strides": [3]}, r"1 or 2 and not all 1; got \[3\]"),
        ({"channels": (4, 8), "strides": [[1, 1]]}, r"not all 1; got \[\[1, 1\]\]"),
        ({"norm": ["group", 8]}, r"a layer is a name or \[name, \{arguments\}\].*got \['group', 8\]"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        UNetEncoder(**arguments)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 8), r"expected 4 axes \(batch, 1 channel\(s\), 2 spatial\), got shape \(1, 1, 8\)"),
        ((1, 3, 8, 8), r"got shape \(1, 3, 8, 8\)"),
        ((1, 1, 8, 3), r"an image of \(8, 3\) voxels is too small for 2 poolings: it needs at least \(4, 4\)"),
    ],
)
def test_bad_images_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        UNetEncoder(channels=(2, 4, 8))(torch.rand(shape))


INSTANCE = ["instance", {"affine": True}]


@pytest.mark.parametrize(
    ("norm", "train", "size", "strides"),
    [
        (INSTANCE, True, (4, 4), None),
        (INSTANCE, False, (7, 7), None),
        ("INSTANCE", True, (4, 4, 1), [[2, 2, 1]] * 2),
        (["instance", {"track_running_stats": True}], True, (4, 4), None),
    ],
)
def test_one_voxel_at_the_coarsest_resolution_is_too_few_for_instance_normalisation(norm, train, size, strides):
    network = SegmentationUNet(len(size), channels=(2, 4, 8), norm=norm, strides=strides).train(train)
    with pytest.raises(ValueError, match=r"too small for 2 poolings.*\(4, 4(, 1)?\), and one side twice.*norm batch"):
        network(torch.rand(2, 1, *size))
    with pytest.raises(ValueError, match="one side twice that"):
        network(torch.rand(2, 1, 3, *size[1:]))
    larger = (2 * 4, *size[1:])
    assert network(torch.rand(1, 1, *larger)).shape == (1, 4, *larger)


@pytest.mark.parametrize(
    ("norm", "train", "batch"),
    [
        ("batch", True, 2),
        ("batch", False, 1),
        (["batch", {"track_running_stats": False}], False, 2),
        (["group", {"num_groups": 2}], True, 1),
        (["instance", {"track_running_stats": True}], False, 1),
    ],
)
def test_one_voxel_at_the_coarsest_resolution_is_enough_for_other_norms(norm, train, batch):
    network = SegmentationUNet(channels=(4, 8, 16), norm=norm).train(train)
    assert network(torch.rand(batch, 1, 4, 4)).shape == (batch, 4, 4, 4)


def test_layer_spec_reads_json():
    assert layer_spec("batch") == "batch"
    assert layer_spec(["group", {"num_groups": 8}]) == ("group", {"num_groups": 8})
