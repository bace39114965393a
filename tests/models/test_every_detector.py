"""Detectors: those of torchvision keep its losses and boxes; conformance of every family."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from raykd.compat.network_files import read_network
from raykd.models import FAMILIES, MODELS, LayerHooks, Signature, discover, profile_model
from raykd.models.adapters.torchvision import DETECTORS, Torchvision
from raykd.models.base import UnfitShape
from raykd.models.detector import Detector
from raykd.report.layers import ModelInputs, list_layers
from raykd.tasks.detection import Detector as DetectorProtocol

SMALL = Signature((3, 64, 64), 5, boxes=True)
NAMES = [cls.name for cls in FAMILIES if "anchor" in cls.gives]
BOXES = torch.tensor([[10.0, 10, 30, 40, 2], [1, 1, 60, 60, 4], [-1, -1, -1, -1, -1]])

ORIGINALS: dict[str, dict[str, object]] = {
    "retinanet_resnet50_fpn": {"min_size": 64, "max_size": 64},
    "fcos_resnet50_fpn": {"min_size": 64, "max_size": 64},
    "ssdlite320_mobilenet_v3_large": {},
}
"""Detectors whose resizing does nothing for images of the size of `side`."""


def side(name: str) -> int:
    return 320 if name.startswith("ssd") else 64


@pytest.fixture(scope="module", params=ORIGINALS)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, Detector, int]:
    """A network of torchvision, the detector of its parts, and the number of its first class."""
    name, torchvision_models = request.param, torchvision.models
    torch.manual_seed(0)
    first = int(name.startswith("ssd"))
    network = torchvision_models.get_model(
        name,
        weights=None,
        weights_backbone=None,
        num_classes=5 + first,
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        **ORIGINALS[name],
    )
    for place, parameter in network.named_parameters():
        if place.endswith("cls_logits.bias"):
            nn.init.constant_(parameter, -2.0)  # some scores are high enough for a box
    for module in network.modules():
        module.eval()  # batch norm and dropout give the same in both calls
    return network, Detector(network, (3, side(name), side(name))), first


def test_losses_equal_those_of_torchvision(pair: tuple[nn.Module, Detector, int]) -> None:
    network, detector, first = pair
    images = torch.rand(2, 3, *([320 if first else 64] * 2))
    network.training = True  # of the whole alone: it then returns losses
    expected = []
    for image, rows in zip(images, (BOXES[:2], BOXES[:0]), strict=True):
        truth = {"boxes": rows[:, :4], "labels": rows[:, 4].long() + first}
        expected.append(sum(network([image], [truth]).values()))
    network.training = False
    targets = torch.stack([BOXES, torch.full_like(BOXES, -1)])
    torch.testing.assert_close(
        detector.box_losses(detector(images), targets), torch.stack(expected)
    )


def test_boxes_equal_those_of_torchvision(pair: tuple[nn.Module, Detector, int]) -> None:
    network, detector, first = pair
    image = torch.rand(1, 3, *([320 if first else 64] * 2))
    with torch.no_grad():
        [expected] = network([image[0]])
        [ours] = detector.detections(detector(image))
    count = min(len(ours), len(expected["boxes"]))
    assert count > 5
    torch.testing.assert_close(ours[:count, :4], expected["boxes"][:count])
    torch.testing.assert_close(ours[:count, 4], expected["scores"][:count])
    assert torch.equal(ours[:count, 5].long(), expected["labels"][:count] - first)
    assert (ours[count:, 5] == -1).all()


def test_weights_have_names_of_torchvision(pair: tuple[nn.Module, Detector, int]) -> None:
    network, detector, _ = pair
    assert set(detector.state_dict()) == set(network.state_dict())


def test_saved_networks_are_read_without_their_code(
    pair: tuple[nn.Module, Detector, int], tmp_path: Path
) -> None:
    _, detector, first = pair
    torch.save(detector, tmp_path / "detector.pt")
    loaded = read_network(tmp_path / "detector.pt", "detector.pt")
    assert isinstance(loaded, Detector)
    image = torch.rand(1, 3, *([320 if first else 64] * 2))
    with torch.no_grad():
        response = detector(image)
        assert torch.equal(loaded(image), response)
    assert torch.equal(loaded.detections(response), detector.detections(response))


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_of_torchvision_is_profiled(name: str) -> None:
    size = 300 if name == "ssd300_vgg16" else 96
    signature = Signature((1, size, size), 4, boxes=True)
    profile = profile_model(Torchvision(name=f"torchvision/{name}"), signature)
    levels = [layer for layer in profile.layers if layer.startswith("level")]
    assert levels == [f"level{number}" for number in range(1, len(levels) + 1)]
    assert len(levels) >= 5
    stages = [alias for alias in profile.aliases if alias.startswith("stage")]
    assert len(stages) == (len(levels) if name.startswith("ssd") else 3)
    assert profile.macs > 0


@pytest.mark.parametrize("name", NAMES)
def test_family_gives_predictions_at_anchors(name: str) -> None:
    network = MODELS[name]().build(SMALL)
    assert isinstance(network, Detector) and isinstance(network, DetectorProtocol)
    images = torch.rand(2, 3, 64, 64)
    response = network(images)
    anchors, scores = network.anchor_scores(response)
    assert response.shape[:2] == scores.shape[:2] == (2, len(anchors))
    assert scores.shape[2] == 5
    loss = network.box_losses(response, BOXES.expand(2, 3, 5)).mean()
    loss.backward()
    for place, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), place


@pytest.mark.parametrize("name", NAMES)
def test_layer_shapes_equal_real_forward(name: str) -> None:
    network = MODELS[name](levels=2).build(SMALL)
    layers = discover(network, SMALL)
    _, outputs = LayerHooks(network, layers).run(torch.rand(3, 3, 64, 64))
    names = {layer.name for layer in layers}
    assert {"stage1", "stage2", "level1", "level2", "backbone.fpn"} <= names
    for layer in layers:
        assert tuple(outputs[layer.name].shape) == (3, *layer.shape), layer.name


def test_copies_are_independent() -> None:
    network = MODELS["retinanet"]().build(SMALL)
    copied = copy.deepcopy(network)
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(copied(images), network(images))
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert network(images).any()


def test_other_models_are_refused() -> None:
    with pytest.raises(ValueError, match=r"has two stages.*use fcos_resnet50_fpn"):
        Torchvision(name="torchvision/fasterrcnn_mobilenet_v3_large_fpn").build(SMALL)
    with pytest.raises(ValueError, match=r"each sample, and detection needs one for each anchor"):
        Torchvision(name="torchvision/resnet18").build(SMALL)
    with pytest.raises(ValueError, match=r"each anchor, which only the task detection uses"):
        Torchvision(name="torchvision/ssd300_vgg16").build(Signature((3, 64, 64), 5))
    with pytest.raises(UnfitShape, match=r"cannot take samples of shape"):
        Torchvision(name="torchvision/ssd300_vgg16").build(SMALL)
    with pytest.raises(ValueError, match=r"set `levels` to at most 2"):
        MODELS["retinanet"](levels=3).build(Signature((1, 8, 8), 2, boxes=True))
    with pytest.raises(ValueError, match=r"pretrained weights of detectors are not supported"):
        Torchvision(name="torchvision/fcos_resnet50_fpn", pretrained=True).build(SMALL)


def test_layers_of_a_detector_are_listed() -> None:
    listed = list_layers("retinanet", (), ModelInputs(shape="3,32,32"))
    assert listed.signature.boxes
    assert "level3" in listed.models[0].profile.layers
