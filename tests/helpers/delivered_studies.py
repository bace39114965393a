"""Small studies of digits, pictures and texts whose students are saved and loaded elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

DIGITS = """\
name: numbers
data: {name: digits, limit: 400, val_limit: 60}
student: {model: {name: resnet, depth: 8, width: 4}}
scheme: alone
train: {epochs: 3, batch_size: 32}
"""

PICTURES = """\
name: pictures
data: {name: image_folder, root: FOLDER/data, size: 8}
student: {model: {name: quantized, base: {name: mlp, depth: 2, width: 16}}}
scheme: alone
train: {epochs: 4, batch_size: 16}
"""

TEXTS = """\
name: texts
data: {name: text, file: FOLDER/table.csv, tokenizer: FOLDER/tokenizer, max_length: 12}
student:
  model:
    name: hf/bert
    config:
      {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 16}
scheme: alone
train: {epochs: 16, batch_size: 32, optimizer: {name: adamw, lr: 0.01}}
"""


def write_pictures(folder: Path, brightness: int, count: int = 30) -> None:
    """Colored noise of the given brightness; the class is in one channel."""
    generator = np.random.default_rng(0)
    for label, name in enumerate(("blue", "green", "red")):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.normal(brightness, 30, (8, 8, 3))
            pixels[..., 2 - label] += 18
            picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
            picture.save(folder / name / f"{number:02}.png")
