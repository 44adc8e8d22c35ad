r"""Image → boxes.

{"s3_path": "a.jpg", "label": "the left dog", "loc_string": "[0.1,0.2,0.4,0.8]"}
    ↓
{"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\nWhere is the left dog? Answer with its
box."},
                                     {"from": "gpt", "value": "[0.1,0.2,0.4,0.8]"}]}
"""

from __future__ import annotations

from typing import Any

from llava_arrow.preprocess.conversations import Row, dialogue, fill, one_image, template_complaint, text_of
from llava_arrow.preprocess.registry import register_preprocess

CAPTION_PROMPT = "<image>\nDescribe this image in full, and give the box of everything that you name."
LOCATE_PROMPT = "<image>\nWhere is {label}? Answer with its box."


def _grandf_reads(options: dict[str, Any]) -> tuple[str, ...]:
    return ("s3_path", "loc_caption")


def _grandf_check(options: dict[str, Any]) -> str | None:
    return template_complaint(options, prompt=(), answer=("loc_caption",))


@register_preprocess("preproces_grandf", fills={"image": "one"}, reads=_grandf_reads, check=_grandf_check)
def dense_caption_with_boxes(
    row: Row,
    *,
    s3_prefix: str | None = None,
    prompt: str = CAPTION_PROMPT,
    answer: str = "{loc_caption}",
) -> dict[str, Any]:
    """`s3_path`, `loc_caption` → a dense caption with boxes; `s3_prefix` is joined to the path."""
    gpt = fill(answer, loc_caption=text_of(row, "loc_caption"))
    return {"image": one_image(row, "s3_path", s3_prefix, what="an image is"), "conversations": dialogue(prompt, gpt)}


def _refcoco_reads(options: dict[str, Any]) -> tuple[str, ...]:
    return ("s3_path", "label", "loc_string")


def _refcoco_check(options: dict[str, Any]) -> str | None:
    return template_complaint(options, prompt=("label",), answer=("loc_string",))


@register_preprocess("preproces_refcoco_rec", fills={"image": "one"}, reads=_refcoco_reads, check=_refcoco_check)
def locate_expression(
    row: Row, *, s3_prefix: str | None = None, prompt: str = LOCATE_PROMPT, answer: str = "{loc_string}"
) -> dict[str, Any]:
    """`s3_path`, `label`, `loc_string` → locate the expression; `s3_prefix` is joined to the path."""
    human = fill(prompt, label=text_of(row, "label"))
    gpt = fill(answer, loc_string=text_of(row, "loc_string"))
    return {"image": one_image(row, "s3_path", s3_prefix, what="an image is"), "conversations": dialogue(human, gpt)}
