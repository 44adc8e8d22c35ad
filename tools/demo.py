"""What `make demo` shows: the default mixture, built and streamed, its tree with counts, a sample of each entry."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import datasets

import llava_mixture
from llava_arrow.cli import main

SCRIPT = "./llava_mixture.py"


def show(*arguments: str) -> None:
    """Run a command of `llava-mixture` and say which."""
    print(f"\n$ llava-mixture {' '.join(arguments)}")
    main(list(arguments), standalone_mode=False)


def load(config_name: str | None) -> None:
    """Load a config built and streamed, and say that both give the same."""
    call = f'load_dataset("{SCRIPT}"' + (f', "{config_name}"' if config_name else "") + ', split="train")'
    built = datasets.load_dataset(SCRIPT, config_name, split="train")
    streamed = datasets.load_dataset(SCRIPT, config_name, split="train", streaming=True)
    ids = [sample["id"] for sample in streamed]
    print(f"\n>>> {call}")
    print(f"{len(built)} samples, columns {', '.join(built.column_names)}")
    print(f"streamed: {len(ids)} samples, {'the same' if ids == built['id'][:] else 'NOT THE SAME'}")
    first = built[0]
    image = next((first[c] for c in ("image_gen", "image") if first.get(c)), None)
    print(f"first sample: {first['id']}, {image}")


if __name__ == "__main__":
    datasets.disable_progress_bars()
    print(f"datasets {datasets.__version__}, configs: {', '.join(llava_mixture.LlavaMixture.builder_configs)}")
    load("our-dataset")
    load(None)
    show("build")
    show("info")
    show("preview")
