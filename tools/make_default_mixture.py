"""Write the data files of the default mixture from the photos and the texts below.

    python tools/make_default_mixture.py

The photos themselves are committed; where they come from is listed in dataset_card.md. The scores in
`fltLaionAesthScore` are made up, so that some rows fail only the cutoff and some only the size.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

FOLDER = Path(__file__).parent.parent / "builder_configs" / "default"
PHOTOS = FOLDER / "photos"

# file, score, caption
CAPTIONS = [
    ("astronaut.jpg", 6.8, "A smiling astronaut in an orange pressure suit, beside a model of the Space Shuttle."),
    ("coffee.jpg", 6.4, "Espresso in a small red cup, on a red saucer with a spoon."),
    ("cat.jpg", 6.1, "The face of a tabby cat with yellow-green eyes, seen from very near."),
    ("hubble_deep_field.jpg", 6.9, "Thousands of small galaxies of many colours on a black sky."),
    ("retina.jpg", 5.9, "The inside of an eye: an orange-red disc with branching dark vessels and one bright spot."),
    ("camera.jpg", 6.2, "A man in a dark coat bends over a camera on a tripod, on a wide lawn."),
    ("clock.jpg", 4.4, "A round wall clock, blurred sideways because the camera moved."),
    ("brick.jpg", 4.9, "Long dark bricks with pale joints that spread towards the viewer."),
    ("grass.jpg", 5.1, "Blades of grass and small leaves, seen straight from above."),
    ("gravel.jpg", 5.67, "A layer of small broken stones, seen from above."),
    ("astronaut.jpg", 6.8, "Portrait of a woman in a space suit, with a flag and a shuttle model behind her."),
    ("astronaut.jpg", 6.8, "An official portrait, an open metal neck ring and a black-visored helmet in the corner."),
    (
        "hubble_deep_field.jpg",
        6.9,
        "A deep view into space: blue, white and red specks, a pale spiral near the left edge.",
    ),
    ("hubble_deep_field.jpg", 6.9, "Two stars with cross-shaped spikes among countless far galaxies."),
    ("retina.jpg", 5.9, "A fundus photograph: the optic disc is bright yellow, the macula a darker red."),
    ("camera.jpg", 6.2, "A photographer at work in grey tones, domed buildings and a tower on the horizon."),
    ("camera.jpg", 6.2, "Black-and-white photograph of a man who steadies a video camera with gloved hands."),
]

# file, label, box as x1, y1, x2, y2 in shares of width and height
BOXES = [
    ("astronaut.jpg", "the helmet", (0.54, 0.668, 1.0, 1.0)),
    ("astronaut.jpg", "the shuttle model", (0.69, 0.0, 0.926, 0.57)),
    ("coffee.jpg", "the spoon", (0.542, 0.165, 0.707, 0.815)),
    ("coffee.jpg", "the saucer", (0.127, 0.165, 0.8, 0.972)),
    ("cat.jpg", "the nose", (0.522, 0.752, 0.652, 0.887)),
    ("camera.jpg", "the tripod", (0.452, 0.362, 0.798, 1.0)),
    ("retina.jpg", "the optic disc", (0.095, 0.38, 0.24, 0.55)),
    ("clock.jpg", "the clock", (0.348, 0.303, 0.716, 0.722)),
]

LONG_CAPTIONS = [
    (
        "camera.jpg",
        "A young man in a dark coat bends forward and looks into a video camera. It stands on a metal tripod, and "
        'he steadies it with gloved hands. Behind him lies a wide lawn under a clear sky, as on a day for "long '
        'shots". Domed buildings, a tall tower and trees line the far edge.',
    ),
    (
        "coffee.jpg",
        "A small red cup with a white rim is partly filled with golden-brown espresso. It stands on a wide red "
        "saucer.\nA shiny teaspoon "
        "leans on its right side. The saucer lies on a worn wooden table whose grain runs diagonally. Warm light "
        "comes from the right.",
    ),
    ("grass.jpg", "NA"),  # a caption that must not become null
]

CONVERSATIONS: list[dict[str, Any]] = [
    {
        "id": "astronaut-talk",
        "image": "photos/astronaut.jpg",
        "conversations": [
            ("human", "<image>\nWhat is the person wearing?"),
            ("gpt", "An orange pressure suit with an open metal neck ring and a round mission patch on the chest."),
            ("human", "What stands behind her?"),
            ("gpt", "A flag of the United States and a model of the Space Shuttle with its boosters."),
        ],
    },
    {
        "id": "cat-talk",
        "image": "photos/cat.jpg",
        "conversations": [
            ("human", "What colour are the eyes of this animal?\n<image>"),
            ("gpt", "Yellow-green, with narrow dark pupils."),
        ],
    },
    {
        "id": 7,  # numbers occur as ids in the published files
        "conversations": [
            ("human", "Why does a moving camera blur a picture?"),
            (
                "gpt",
                "While the shutter is open, each point of the scene passes over several pixels, so it is recorded "
                "as a streak.",
            ),
        ],
    },
    {
        "id": "two-textures",
        "image": ["photos/grass.jpg", "photos/gravel.jpg"],
        "conversations": [
            ("human", "<image>\n<image>\nWhich of the two shows something that grows?"),
            ("gpt", "The first: it shows grass and small leaves. The second shows broken stones."),
        ],
    },
]


def main() -> None:
    """Write every data file; the result depends on nothing but this script and the photos."""
    write_text_to_image()
    write_conversations()
    write_edits()
    write_boxes()
    write_csv()
    write_embedded()


def write_text_to_image() -> None:
    """`our-dataset`: the columns that LaViDa-O's text-to-image entries read."""
    sizes = []
    for file, _, _ in CAPTIONS:
        with Image.open(PHOTOS / file) as photo:
            sizes.append(photo.size)
    table = pa.table(
        {
            "s3_path": [f"photos/{file}" for file, _, _ in CAPTIONS],
            "caption": [caption for _, _, caption in CAPTIONS],
            "fltLaionAesthScore": pa.array([score for _, score, _ in CAPTIONS], pa.float32()),
            "intHeight": pa.array([height for _, height in sizes], pa.int64()),
            "intWidth": pa.array([width for width, _ in sizes], pa.int64()),
        }
    )
    pq.write_table(table, FOLDER / "our-dataset.parquet", row_group_size=4)


def write_conversations() -> None:
    """A LLaVA instruct file: several turns, no image, two images, ids of two types."""
    records = [
        {**record, "conversations": [{"from": role, "value": text} for role, text in record["conversations"]]}
        for record in CONVERSATIONS
    ]
    (FOLDER / "instruct.json").write_text(json.dumps(records, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_edits() -> None:
    """Edits with targets that really are the edited photo."""
    with Image.open(PHOTOS / "coffee.jpg") as coffee:
        ImageOps.grayscale(coffee).save(PHOTOS / "coffee_gray.jpg", quality=80)
    with Image.open(PHOTOS / "cat.jpg") as cat:
        ImageOps.mirror(cat).save(PHOTOS / "cat_mirrored.jpg", quality=80)
    lines = [
        {
            "input_prompt": "Take all colour out of this photo.",
            "input_image": ["photos/coffee.jpg"],
            "output_image": "photos/coffee_gray.jpg",
        },
        {
            "input_prompt": "Mirror the photo, left to right.",
            "input_image": "photos/cat.jpg",
            "output_image": "photos/cat_mirrored.jpg",
        },
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (FOLDER / "edits.jsonl").write_text(text, encoding="utf-8")


def write_boxes() -> None:
    """Expressions and where they are, as one box in shares of width and height."""
    rows = [
        {"s3_path": f"photos/{file}", "label": label, "loc_string": "[" + ", ".join(f"{x:.3f}" for x in box) + "]"}
        for file, label, box in BOXES
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (FOLDER / "boxes.jsonl").write_text(text, encoding="utf-8")


def write_csv() -> None:
    """Captions with quotes, commas and a newline, as CSV."""
    with (FOLDER / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["s3_path", "caption"])
        writer.writerows([f"photos/{name}", caption] for name, caption in LONG_CAPTIONS)


def write_embedded() -> None:
    """Two samples with the columns of LLaVA-NeXT-Data, image bytes inside."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    names = ["clock.jpg", None, "retina.jpg"]
    talks = [
        [
            ("human", "<image>\nCan the time be read from this clock?"),
            ("gpt", "No, its face is smeared into streaks."),
        ],
        [
            ("human", "Name a part of the eye that has no light receptors."),
            ("gpt", "The optic disc, where the nerve leaves the eye."),
        ],
        [("human", "<image>\nWhat is the bright spot on the left?"), ("gpt", "The optic disc.")],
    ]
    images = [None if name is None else {"bytes": (PHOTOS / name).read_bytes(), "path": name} for name in names]
    table = pa.table(
        {
            "id": ["clock", "text-only", "retina"],
            "image": pa.array(images, kind),
            "conversations": [[{"from": role, "value": text} for role, text in talk] for talk in talks],
            "data_source": ["photos", "text", "photos"],
        }
    )
    pq.write_table(table, FOLDER / "embedded.parquet")


if __name__ == "__main__":
    main()
