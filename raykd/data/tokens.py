"""Texts -> tokens, by a local tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raykd.data.table import counted

MAX_LENGTH = 1 << 17
"""Largest number of tokens of a text: all texts are padded to it, in memory."""

MAX_UNKNOWN = 0.1
"""Fraction of unknown tokens above which a tokenizer does not suit the texts."""


@dataclass(frozen=True)
class Encoding:
    """Conversion of the texts of a row to tokens.

    Attributes:
        columns: of the text, or of the two texts of a pair.
        tokenizer: folder of the tokenizer.
        length: tokens of a sample.
        place: part of a study that sets these, such as `data`.
    """

    columns: tuple[str, ...]
    tokenizer: str
    length: int
    place: str = "data"

    @property
    def folder(self) -> Path:
        """Absolute folder of the tokenizer."""
        return Path(self.tokenizer).expanduser().absolute()

    @property
    def preparation(self) -> str:
        """Description of the way from texts to tokens."""
        return (
            f"the tokenizer of {self.tokenizer} with truncation and padding to {self.length} tokens"
        )

    def check(self) -> None:
        """Check that there is a folder for the tokenizer.

        Raises:
            ValueError: there is none.
        """
        if not self.folder.is_dir():
            raise ValueError(
                f"text: there is no folder {self.folder} with a tokenizer; write it with "
                f"tokenizer.save_pretrained(folder), and set {self.place}.tokenizer to it"
            )


@dataclass(frozen=True)
class Tokens:
    """Tokens of all samples.

    Attributes:
        inputs: (N, length) int64 tensors by name.
        vocabulary: number of tokens of the tokenizer.
        padding: token that fills up short texts.
        notes, warnings: sentences on truncated texts and unknown tokens.
    """

    inputs: Mapping[str, Tensor]
    vocabulary: int
    padding: int
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def tokenize(columns: Mapping[str, list[str]], encoding: Encoding) -> Tokens:
    """Convert texts to tokens.

    Args:
        columns: (N,) texts of each column.
        encoding: of these columns, or of some of them.

    Raises:
        ValueError: the tokenizer cannot be used.
    """
    tokenizer = load_tokenizer(encoding.folder)
    texts = [columns[column] for column in encoding.columns]
    encoded = tokenizer(
        *texts,
        truncation=True,
        padding="max_length",
        max_length=encoding.length,
        return_attention_mask=True,
        return_tensors="np",
    )
    tokens = {
        key: torch.from_numpy(encoded[key].astype(np.int64))
        for key in encoded
        if key != "token_type_ids" or len(texts) > 1
    }
    return Tokens(
        tokens,
        len(tokenizer),
        int(tokenizer.pad_token_id),
        notes=tuple(_truncated(tokenizer, texts, tokens["attention_mask"], encoding)),
        warnings=tuple(_unknown(tokenizer, tokens)),
    )


def load_tokenizer(folder: Path) -> Any:
    """Load a tokenizer of transformers from its folder.

    Raises:
        ValueError: the folder holds no tokenizer, or it has no padding token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # a folder may hold anything
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"text: {folder} holds no tokenizer that transformers can read ({reason}); write one "
            "with tokenizer.save_pretrained(folder)"
        ) from error
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"text: the tokenizer of {folder} has no padding token; set one "
            "(tokenizer.pad_token = ...) and save it again"
        )
    return tokenizer


def _truncated(
    tokenizer: Any, texts: Sequence[list[str]], mask: Tensor, encoding: Encoding
) -> Iterator[str]:
    """Note texts that are longer than the tokens of a sample."""
    full = mask.all(dim=1).nonzero().flatten().tolist()
    if not full:
        return
    whole = tokenizer(*([column[row] for row in full] for column in texts), verbose=False)
    lengths = [len(ids) for ids in whole["input_ids"]]
    count = sum(size > encoding.length for size in lengths)
    if count:
        yield (
            f"{count:,} of {counted(len(mask), 'text')} truncated to {encoding.length} tokens "
            f"({encoding.place}.max_length); the longest has {max(lengths):,}"
        )


def _unknown(tokenizer: Any, tokens: Mapping[str, Tensor]) -> Iterator[str]:
    """Warn about a tokenizer that does not know the words of the texts."""
    if tokenizer.unk_token_id is None:
        return
    ids = tokens["input_ids"][tokens["attention_mask"].bool()]
    special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    words = ids[~torch.isin(ids, torch.tensor(sorted(special), dtype=torch.int64))]
    share = float((words == tokenizer.unk_token_id).float().mean()) if len(words) else 0.0
    if share > MAX_UNKNOWN:
        yield (
            f"{share:.0%} of the tokens are unknown to the tokenizer; use a tokenizer for "
            "the language and script of the texts"
        )
