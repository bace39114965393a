"""Real texts that come with Python: docstrings of modules, and a tokenizer trained on them."""

from __future__ import annotations

import csv
import importlib
import inspect
from pathlib import Path

MODULES = ("asyncio", "decimal", "logging", "numpy", "unittest")
"""Their names are the classes."""

MOST = 120
VOCABULARY = 400


def docstrings(module: str) -> list[str]:
    """First words of the docstrings in a module; equal for equal versions."""
    texts: set[str] = set()
    for name, offered in vars(importlib.import_module(module)).items():
        if name.startswith("_"):
            continue
        for member in (offered, *(vars(offered).values() if inspect.isclass(offered) else ())):
            words = (inspect.getdoc(member) or "").split() if callable(member) else []
            if len(words) > 4:
                texts.add(" ".join(words[:40]))
    return sorted(texts)[:MOST]


def write_table(file: Path) -> list[tuple[str, str]]:
    """A CSV table of docstrings and their modules."""
    rows = [(text, module) for module in MODULES for text in docstrings(module)]
    with open(file, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("text", "label"))
        writer.writerows(rows)
    return rows


def write_tokenizer(folder: Path, texts: list[str], vocabulary: int = VOCABULARY) -> None:
    """A tokenizer of word pieces, trained on these texts, in a folder as transformers reads it."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary, special_tokens=list(named.values()), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **named,
    ).save_pretrained(str(folder))


def write_corpus(folder: Path) -> Path:
    """`folder` with `table.csv` and `tokenizer/`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = write_table(folder / "table.csv")
    write_tokenizer(folder / "tokenizer", [text for text, _ in rows])
    return folder
