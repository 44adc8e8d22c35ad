"""Write the inputs of the benchmarks: deterministic, made of seeded draws, with the column names of the LaViDa-O
mixtures.

python benchmarks/data.py out_dir [--rows 3000000] [--records 665000] [--images 4000]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

WORDS = [
    "a",
    "the",
    "red",
    "blue",
    "small",
    "large",
    "wooden",
    "bright",
    "old",
    "new",
    "photo",
    "painting",
    "cat",
    "dog",
    "street",
    "lake",
    "mountain",
    "window",
    "chair",
    "table",
    "lamp",
    "river",
    "bridge",
    "child",
    "woman",
    "man",
    "crowd",
    "market",
    "evening",
    "morning",
    "light",
    "shadow",
    "glass",
    "stone",
    "metal",
    "cloth",
    "paper",
    "sky",
    "cloud",
    "rain",
    "snow",
    "fire",
    "garden",
    "tree",
    "flower",
    "bird",
    "horse",
    "boat",
    "train",
    "car",
    "road",
    "field",
]


def sentences(rng: np.random.Generator, num_texts: int, num_words: int) -> list[str]:
    """`num_texts` texts of exactly `num_words` words, a full stop after every twelfth word and at the end."""
    draws = rng.integers(0, len(WORDS), size=(num_texts, num_words))
    texts = []
    for draw in draws.tolist():
        words = [WORDS[i] for i in draw]
        for stop in range(11, num_words, 12):
            words[stop] += "."
        text = " ".join(words)
        texts.append(text if text.endswith(".") else text + ".")
    return texts


def write_captions(path: Path, num_rows: int, *, seed: int = 7, chunk_rows: int = 250_000) -> None:
    """A text-to-image table of seven columns; about 9 % of its rows pass `aes_cutoff: 5.67` and `min_size: 512`.

    Row groups are those that `DataFrame.to_parquet` and `pyarrow.parquet.write_table` write when not told otherwise
    (1,048,576 rows), which is the hardest case for a stream that starts in the middle.
    """
    rng = np.random.default_rng(seed)
    tables = []
    for start in range(0, num_rows, chunk_rows):
        n = min(chunk_rows, num_rows - start)
        tables.append(
            pa.table(
                {
                    "s3_path": [f"s3://photos/part-{i // 10_000:05d}/{i:09d}.jpg" for i in range(start, start + n)],
                    "caption": sentences(rng, n, 18),
                    "long_caption": sentences(rng, n, 60),
                    "fltLaionAesthScore": rng.normal(5.07, 0.65, n).astype(np.float32),
                    "intHeight": rng.integers(200, 1200, n),
                    "intWidth": rng.integers(200, 1400, n),
                    "strImagehash": [f"{h:016x}" for h in rng.integers(0, 2**63, n).tolist()],
                }
            )
        )
    pq.write_table(pa.concat_tables(tables), path)


def write_llava_json(path: Path, num_records: int, *, seed: int = 11) -> None:
    """A LLaVA JSON array: about 1 kB a record; 6 % of the records have no image, 4 % a list, the others a string."""
    rng = np.random.default_rng(seed)
    pool = sentences(rng, 4096, 16) + sentences(rng, 4096, 40)
    with path.open("w", encoding="utf-8") as file:
        file.write("[")
        for i in range(num_records):
            num_rounds, kind, *picks = rng.integers(0, 1 << 30, 14).tolist()
            num_rounds = 1 + num_rounds % 5
            record: dict[str, Any] = {"id": f"{i:012d}"}
            prefix = ""
            if kind % 100 < 4:
                record["image"] = [f"coco/train2017/{i:012d}.jpg", f"coco/train2017/{i + 1:012d}.jpg"]
                prefix = "<image>\n<image>\n"
            elif kind % 100 < 94:
                record["image"] = f"coco/train2017/{i:012d}.jpg"
                prefix = "<image>\n"
            turns = []
            for turn in range(num_rounds):
                question, answer = pool[picks[2 * turn] % 4096], pool[picks[2 * turn + 1] % 8192]
                turns.append({"from": "human", "value": (prefix if turn == 0 else "") + question})
                turns.append({"from": "gpt", "value": answer})
            record["conversations"] = turns
            file.write((", " if i else "") + json.dumps(record))
        file.write("]")


def write_images(folder: Path, num_images: int, *, seed: int = 13) -> None:
    """JPEGs of about 100 kB, 640 × 480: smooth colours under noise; a hundred to a folder, and their LLaVA JSON."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    temporary = folder.with_suffix(".unfinished")
    pool = sentences(rng, 512, 16)
    records = []
    for i in range(num_images):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((640, 480), Image.BICUBIC)
        noisy = np.asarray(coarse, dtype=np.int16) + rng.integers(-24, 25, (480, 640, 3), dtype=np.int16)
        name = f"{i // 100:03d}/{i:06d}.jpg"
        path = temporary / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(path, quality=85)
        turns = [
            {"from": "human", "value": "<image>\n" + pool[i % 512]},
            {"from": "gpt", "value": pool[(i + 1) % 512]},
        ]
        records.append({"id": f"{i:06d}", "image": name, "conversations": turns})
    folder.with_suffix(".json").write_text(json.dumps(records))
    temporary.rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--rows", type=int, default=3_000_000)
    parser.add_argument("--records", type=int, default=665_000)
    parser.add_argument("--images", type=int, default=0)
    args = parser.parse_args()
    args.out_dir.mkdir(parents=True, exist_ok=True)
    captions, conversations = (
        args.out_dir / f"captions-{args.rows}.parquet",
        args.out_dir / f"llava-{args.records}.json",
    )
    if args.rows and not captions.exists():
        write_captions(captions, args.rows)
    if args.records and not conversations.exists():
        write_llava_json(conversations, args.records)
    images = args.out_dir / f"images-{args.images}"
    if args.images and not images.exists():
        write_images(images, args.images)


if __name__ == "__main__":
    main()
