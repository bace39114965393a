"""Networks that require special tokens are profiled with a text of the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from raykd.models import AnyModel, Signature, Text, profile_model
from raykd.models.introspection.layers import blank_inputs, random_inputs
from raykd.models.weights.class_order import reorder_classes

ROW = (2, 7, 8, 9, 3, 0, 0, 0)
MASK = (1, 1, 1, 1, 1, 0, 0, 0)
SAMPLE = (("input_ids", ROW), ("attention_mask", MASK))
TASK = Signature((8,), 3, Text(30, sample=SAMPLE))
SIZES: dict[str, dict[str, Any]] = {
    "bart": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16}
    | {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 16},
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2},
}


def model(name: str, **fields: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(AnyModel).validate_python({"name": f"hf/{name}", **fields})


@pytest.mark.parametrize("name", SIZES)
def test_encoders_with_decoders(name: str, tmp_path: Path) -> None:
    reader = model(name, config=SIZES[name])
    assert profile_model(reader, TASK).params > 0
    network = reader.build(TASK)
    assert network.config.eos_token_id == 3
    inputs = blank_inputs(TASK, 2, torch.device("cpu"))
    drawn = random_inputs(TASK, 64, torch.device("cpu"))
    assert network.eval()(drawn).shape == (64, 3)
    before = network.eval()(inputs)
    assert before.shape == (2, 3)
    reorder_classes(network, (2, 0, 1), TASK, name)
    assert torch.allclose(network(inputs), before[:, [2, 0, 1]], atol=1e-5)
    network.save_pretrained(tmp_path)
    loaded = model(str(tmp_path), pretrained=True)
    assert profile_model(loaded, TASK).params == profile_model(reader, TASK).params


def test_probe_is_text_of_data() -> None:
    inputs = blank_inputs(TASK, 2, torch.device("cpu"))
    assert isinstance(inputs, dict)
    assert inputs["input_ids"].tolist() == [list(ROW)] * 2
    assert inputs["attention_mask"].tolist() == [list(MASK)] * 2
    assert TASK.text is not None and TASK.text.last == 3
    assert Signature((8,), 3, Text(30)) == TASK, "it makes no other task"
    drawn = random_inputs(TASK, 2, torch.device("cpu"))
    assert isinstance(drawn, dict) and bool(drawn["attention_mask"].all())
    other = blank_inputs(Signature((4,), 3, Text(30, sample=SAMPLE)), 2, torch.device("cpu"))
    assert isinstance(other, dict) and other["input_ids"].shape == (2, 4)


@pytest.mark.parametrize(("name", "reserved"), [("roberta", 1), ("mpnet", 2), ("bert", 0)])
def test_maximum_text_length(name: str, reserved: int) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    fields = {**sizes, "intermediate_size": 16, "max_position_embeddings": 8 + reserved}
    reader = model(name, config=fields)
    signature = Signature((8,), 3, Text(30))
    inputs = random_inputs(signature, 2, torch.device("cpu"))
    assert isinstance(inputs, dict)
    inputs["input_ids"].clamp_(min=2)  # no padding
    assert reader.build(signature)(inputs).shape == (2, 3)
    more = f" to {9 + reserved}" if reserved else ""
    message = "at most 8 tokens, the data have 9; decrease"
    with pytest.raises(ValueError, match=rf"{message} .* `config: {{max_pos.*`{more}$"):
        reader.build(Signature((9,), 3, Text(30)))
