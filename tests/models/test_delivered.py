"""Networks with their preprocessing: accepted inputs, errors, metadata."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raykd.models import Resnet, Signature
from raykd.models.normalization import (
    NORMALIZATIONS,
    Normalization,
    adapt_normalization,
    copy_normalization,
    expected_normalization,
    from_metadata,
    to_metadata,
)
from raykd.models.preprocessing import (
    NormalizedInputModel,
    Preprocessing,
    RawInputModel,
    set_normalization,
    strip_preprocessing,
)

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
COLOR = Preprocessing("pictures", (3, 6, 4), dtype="uint8", mean=MEAN, std=STD)
LEVELS = Preprocessing(
    "pictures", (1, 2, 3), dtype="float64", raw_shape=(2, 3), maximum=16, mean=(0.5,), std=(0.25,)
)
TEXTS = Preprocessing("texts", (5,), dtype="int64", keys=("input_ids", "attention_mask"))


class Echo(nn.Module):
    """Return the flattened inputs."""

    def forward(self, inputs: Tensor | dict[str, Tensor]) -> Tensor:
        if isinstance(inputs, Tensor):
            return inputs.flatten(1)
        return torch.cat([inputs[key] for key in sorted(inputs)], dim=1)


def echo(preprocessing: Preprocessing) -> RawInputModel:
    return RawInputModel(Echo(), preprocessing, ["a", "b"])


def test_pixels_are_normalized_by_hand_computed_values() -> None:
    pictures = torch.randint(0, 256, (5, 3, 6, 4), dtype=torch.uint8)
    expected = (pictures.double() / 255 - torch.tensor(MEAN).double().view(3, 1, 1)) / torch.tensor(
        STD
    ).double().view(3, 1, 1)
    actual = echo(COLOR)(pictures).double()
    torch.testing.assert_close(actual, expected.flatten(1), rtol=1e-5, atol=1e-5)
    assert torch.equal(echo(COLOR)(pictures), echo(COLOR)(pictures.float()))
    assert torch.equal(echo(COLOR)(pictures), echo(COLOR)(pictures.double()))


def test_raw_levels_are_scaled_to_byte_first() -> None:
    levels = torch.tensor([[[0.0, 8, 16], [1, 3, 5]]], dtype=torch.float64)
    bytes_ = torch.tensor([0, 128, 255, 16, 48, 80])  # round(level * 255 / 16), halves to even
    expected = (bytes_ / 255 - 0.5) / 0.25
    for inputs in (levels, levels.unsqueeze(1), levels.flatten(1), levels.to(torch.uint8)):
        torch.testing.assert_close(echo(LEVELS)(inputs)[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("preprocessing", "inputs", "message"),
    [
        (COLOR, torch.rand(2, 3, 6, 4), "multiply by 255"),
        (COLOR, torch.randn(2, 3, 6, 4) * 3, "normalization is part of the network"),
        (COLOR, torch.full((2, 3, 6, 4), 300), "pixels of 0 to 255"),
        (COLOR, torch.zeros(2, 6, 4, 3, dtype=torch.uint8), "move the channels first"),
        (COLOR, torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "resize them to 6x4"),
        (COLOR, torch.zeros(2, 1, 6, 4, dtype=torch.uint8), r"got \(2, 1, 6, 4\)"),
        (LEVELS, torch.full((2, 2, 3), 255, dtype=torch.uint8), "pixels of 0 to 16"),
        (LEVELS, torch.zeros(2, 4, 3), r"\(batch, 1, 2, 3\)"),
        (TEXTS, torch.zeros(2, 5, dtype=torch.int64), "stacked"),
        (TEXTS, {"input_ids": torch.zeros(2, 5, dtype=torch.int64)}, "missing: attention_mask"),
    ],
)
def test_invalid_inputs_raise(
    preprocessing: Preprocessing, inputs: Tensor | dict[str, Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        echo(preprocessing)(inputs)


def test_mapping_for_images_raises() -> None:
    with pytest.raises(ValueError, match="takes a tensor"):
        echo(COLOR)({"input_ids": torch.zeros(2, 5)})


def test_black_images_are_accepted() -> None:
    assert torch.equal(
        echo(COLOR)(torch.zeros(2, 3, 6, 4)),
        echo(COLOR)(torch.zeros(2, 3, 6, 4, dtype=torch.uint8)),
    )


def test_texts_may_be_mapping_or_stack() -> None:
    ids, mask = torch.arange(10).view(2, 5), torch.ones(2, 5, dtype=torch.int64)
    inputs = {"attention_mask": mask, "input_ids": ids, "token_type_ids": ids}
    assert torch.equal(echo(TEXTS)(inputs), torch.cat([mask, ids], dim=1))
    assert torch.equal(echo(TEXTS)(torch.stack([ids, mask], dim=1)), echo(TEXTS)(inputs))


def test_other_tensors_are_passed_unchanged() -> None:
    vectors = torch.randn(3, 7)
    assert torch.equal(echo(Preprocessing("tensors", (7,)))(vectors), vectors)


@pytest.mark.parametrize("preprocessing", [COLOR, LEVELS])
def test_network_can_be_exported(preprocessing: Preprocessing) -> None:
    signature = Signature(input_shape=preprocessing.shape, classes=2)
    network = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(signature.input_shape).numel(), 2))
    delivered = RawInputModel(network, preprocessing, ["a", "b"]).eval()
    shape = preprocessing.signature_shape
    dtype = getattr(torch, preprocessing.dtype)
    some = torch.randint(0, int(preprocessing.maximum) + 1, (4, *shape)).to(dtype)
    exported = torch.export.export(
        delivered, (some[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
    )
    torch.testing.assert_close(exported.module()(some), delivered(some))


def test_onnx_accepts_raw_samples(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    delivered = RawInputModel(
        Resnet(depth=8, width=4).build(Signature((1, 2, 3), 2)), LEVELS, ["a", "b"]
    ).eval()
    some = torch.randint(0, 17, (3, 2, 3)).double()
    program = torch.onnx.export(
        delivered,
        (some,),
        dynamo=True,
        verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch", min=2)},),
    )
    assert program is not None
    program.save(tmp_path / "network.onnx")
    session = runtime.InferenceSession(
        str(tmp_path / "network.onnx"), providers=["CPUExecutionProvider"]
    )
    (actual,) = session.run(None, {session.get_inputs()[0].name: some.numpy()})
    torch.testing.assert_close(
        torch.from_numpy(actual), delivered(some).detach(), rtol=1e-4, atol=1e-4
    )


def test_facts_describe_input() -> None:
    facts: dict[str, Any] = RawInputModel(
        Echo(), COLOR, ["cat", "dog"], {"test_accuracy": 0.9}
    ).facts()
    assert facts["classes"] == ["cat", "dog"] and facts["metrics"] == {"test_accuracy": 0.9}
    assert "logits" in facts["output"]
    inputs = facts["input"]
    assert inputs["mean"] == list(MEAN) and inputs["std"] == list(STD)
    assert inputs["color"] == "RGB" and inputs["size"] == [6, 4] and inputs["maximum"] == 255
    texts: dict[str, Any] = echo(TEXTS).facts()
    assert texts["input"]["keys"] == ["input_ids", "attention_mask"]


def test_preprocessing_survives_saving() -> None:
    buffer = io.BytesIO()
    torch.save(echo(COLOR), buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    pictures = torch.randint(0, 256, (2, 3, 6, 4), dtype=torch.uint8)
    assert torch.equal(loaded(pictures), echo(COLOR)(pictures))


# The normalization of teachers


def test_model_describes_its_input() -> None:
    inner = Echo()
    assert strip_preprocessing(inner) == (inner, None)
    assert strip_preprocessing(RawInputModel(inner, COLOR, "ab")) == (
        inner,
        Normalization(mean=MEAN, std=STD),
    )
    assert strip_preprocessing(RawInputModel(inner, TEXTS, "ab")) == (inner, None)
    scaled = Preprocessing("pictures", (3, 6, 4), dtype="uint8")
    assert strip_preprocessing(RawInputModel(inner, scaled, "ab")) == (
        inner,
        NORMALIZATIONS["none"],
    )
    half = NORMALIZATIONS["half"]
    assert strip_preprocessing(NormalizedInputModel(inner, half)) == (inner, half)
    assert strip_preprocessing(set_normalization(RawInputModel(inner, COLOR, "ab"), half)) == (
        inner,
        half,
    )
    assert strip_preprocessing(
        set_normalization(RawInputModel(inner, COLOR, "ab"), "imagenet")
    ) == (
        inner,
        NORMALIZATIONS["imagenet"],
    )
    assert strip_preprocessing(set_normalization(RawInputModel(inner, COLOR, "ab"), "data")) == (
        inner,
        None,
    )


@pytest.mark.parametrize(
    "theirs",
    [
        Normalization(mean=(0.1, 0.2, 0.3), std=(0.3, 0.2, 0.1)),
        Normalization(mean=(0.5,), std=(0.5,)),
        Normalization(mean=(123.0, 117.0, 104.0), std=(58.0, 57.0, 57.5), maximum=255),
        Normalization(mean=(104.0, 117.0, 123.0), std=(1.0,), maximum=255, order="bgr"),
        NORMALIZATIONS["none"],
        NORMALIZATIONS["imagenet"],
    ],
)
def test_data_batches_are_renormalized_for_network(theirs: Normalization) -> None:
    pixels = torch.randint(0, 256, (2, 3, 4, 4)).double()
    ours = (pixels / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    if theirs.order == "bgr":
        pixels = pixels.flip(1)
    mean, std = (torch.tensor(v).double().view(-1, 1, 1) for v in (theirs.mean, theirs.std))
    expected = (pixels * theirs.maximum / 255 - mean) / std
    network = adapt_normalization(nn.Sequential(Echo()), theirs, MEAN, STD)
    actual = network(ours.float()).double()
    torch.testing.assert_close(actual, expected.flatten(1), rtol=1e-4, atol=1e-3)
    assert expected_normalization(network) == theirs and not network.state_dict()
    assert strip_preprocessing(network)[1] == theirs  # and takes it off again
    assert torch.equal(network(ours.float()), ours.float().flatten(1))


def test_equal_normalization_is_identity() -> None:
    network = adapt_normalization(Echo(), Normalization(mean=MEAN, std=STD), MEAN, STD)
    assert expected_normalization(network) is None and not network._forward_pre_hooks
    assert (
        adapt_normalization(network, None, MEAN, STD) is network and not network._forward_pre_hooks
    )


def test_copy_keeps_renormalization() -> None:
    trained = adapt_normalization(Echo(), NORMALIZATIONS["half"], MEAN, STD)
    inputs = torch.randn(2, 3, 4, 4)
    assert torch.equal(copy_normalization(Echo(), trained)(inputs), trained(inputs))
    assert not torch.equal(copy_normalization(Echo(), Echo())(inputs), trained(inputs))


def test_metadata_preserve_every_digit() -> None:
    inputs = Normalization(mean=(0.1234567890123456,), std=(0.3333333333333333,), order="bgr")
    assert from_metadata(to_metadata(inputs)) == inputs
    assert from_metadata({}) is None and from_metadata({"raykd.normalization": "x"}) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mean": (0.1, 0.2), "std": (0.1, 0.2, 0.3)}, "one per channel"),
        ({"mean": (123.0,), "std": (58.0,)}, "maximum: 255"),
        ({"mean": (float("inf"),), "std": (1.0,)}, "finite"),
        ({"mean": (0.1, 0.2), "std": (0.5,), "order": "bgr"}, "3 channels"),
    ],
)
def test_implausible_normalization_raises(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Normalization(**fields)


def test_other_channel_counts_raise() -> None:
    with pytest.raises(ValueError, match="3 channels and the images have 1"):
        adapt_normalization(Echo(), NORMALIZATIONS["imagenet"], (0.5,), (0.5,))
    with pytest.raises(ValueError, match="3 channels"):
        Normalization(mean=(0.5,), std=(0.5,), order="bgr").check(1)
