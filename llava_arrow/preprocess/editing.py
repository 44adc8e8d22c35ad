"""Images and an instruction → image.

    {"input_image": ["a.png"], "input_prompt": "Make it blue.", "output_image": "b.png"}
        ↓
    {"image": ["a.png"], "image_gen_enc": ["a.png"], "image_gen": "b.png", "pad_image_gen": True,
     "conversations": [{"from": "human", "value": "<image> <image_gen_enc> Make it blue."}, {"from": "gpt", "value":
     "Sure <image_gen>"}]}

The sources are given twice: `image` for understanding, `image_gen_enc` for the generator's encoder.
"""

from __future__ import annotations

from typing import Any, Literal

from llava_arrow.errors import PreprocessError
from llava_arrow.preprocess.conversations import (
    Row,
    conversations_of,
    dialogue,
    fill,
    image_list,
    join_prefix,
    one_image,
    optional_images,
    optional_score,
    template_complaint,
    text_of,
)
from llava_arrow.preprocess.registry import register_preprocess

SOURCE = "<image> <image_gen_enc> "
PROMPT = "{sources}{instruction}{micro}"
ANSWER = "Sure <image_gen>"
PLAN_REQUEST = " State where the edit takes place, with its boxes, before the image."
PLAN_ANSWER = "{plan} {layout} {image}"
PLANS = {
    "add": "Objects to add, and where:",
    "remove": "Objects to remove, and where:",
    "swap": "Objects to replace, and where:",
    "replace": "Objects to replace, and where:",
    "adjust": "Objects to adjust, and where:",
}
OTHER_PLAN = "Objects to edit, and where:"

_EDIT = {"image": "many", "image_gen_enc": "many", "image_gen": "one", "pad_image_gen": "bool"}


_FLAGS = {**_EDIT, "reweight": "bool", "pixel_diff": "bool"}
_SCORED = {**_FLAGS, "hpsv2": "list<float32>"}


def _planned_fills(options: dict[str, Any]) -> dict[str, str]:
    fills = {**_SCORED, "do_not_mask_text": "bool"}
    if options["plan_only"]:
        del fills["image_gen"], fills["do_not_mask_text"]
    return fills


def _check(options: dict[str, Any]) -> str | None:
    return template_complaint(options, prompt=("sources", "instruction", "micro"), answer=())


def _check_planned(options: dict[str, Any]) -> str | None:
    return template_complaint(
        options, prompt=("sources", "instruction", "micro", "request"), answer=("plan", "layout", "image")
    )


def _uncounted(options: dict[str, Any]) -> tuple[str, ...]:
    return ("image", "image_gen_enc") if options["no_template"] else ()


def _edit(
    row: Row, sources: list[Any], human: str, answer: str, target: str | None, s3_prefix: str | None, **columns: Any
) -> dict[str, Any]:
    sample = {"image": sources, "image_gen_enc": sources, "pad_image_gen": True, **columns}
    if target is not None:
        sample["image_gen"] = one_image(row, target, s3_prefix, what="the edited image is")
    return {**sample, "conversations": dialogue(human, answer)}


def _human(
    prompt: str, sources: list[Any], instruction: str, *, no_template: bool, t2i: bool, micro: str, **more: str
) -> str:
    shown = "" if no_template else SOURCE * len(sources)
    return fill(prompt, sources=shown, instruction=instruction, micro=micro if t2i else "", **more)


def _reads_sharegpt(options: dict[str, Any]) -> tuple[str, ...]:
    return ("input_prompt", "input_image", "output_image")


@register_preprocess(
    "process_sharegpt_4o_edit", fills=_FLAGS, reads=_reads_sharegpt, check=_check, uncounted=_uncounted
)
def sharegpt_4o_edit(
    row: Row,
    *,
    s3_prefix: str | None = None,
    no_template: bool = False,
    reweight: bool = False,
    t2i: bool = False,
    pixel_diff: bool = False,
    micro: str = "",
    prompt: str = PROMPT,
    answer: str = ANSWER,
) -> dict[str, Any]:
    """`input_prompt`, `input_image` (one or a list), `output_image` → an edit.

    Args:
        s3_prefix: joined to every path.
        no_template: no `<image> <image_gen_enc> ` before the instruction; the sources' placeholders are then not
            counted.
        reweight, pixel_diff: values of the columns of that name.
        t2i: append the `micro` template (LaViDa-O's is ` [[micro_conds_texts]]`).
        prompt, answer: fields {sources}, {instruction}, {micro}; none.
    """
    sources = image_list(row, "input_image", s3_prefix, what="a source image is")
    instruction = text_of(row, "input_prompt")
    human = _human(prompt, sources, instruction, no_template=no_template, t2i=t2i, micro=micro)
    return _edit(row, sources, human, answer, "output_image", s3_prefix, reweight=reweight, pixel_diff=pixel_diff)


def _reads_gpt_edit(options: dict[str, Any]) -> tuple[str, ...]:
    return ("instruction", "input_paths", "output_paths", "hpsv2?")


@register_preprocess("process_gpt_edit", fills=_SCORED, reads=_reads_gpt_edit, check=_check, uncounted=_uncounted)
def gpt_edit(
    row: Row,
    *,
    s3_prefix: str | None = None,
    no_template: bool = False,
    reweight: bool = False,
    t2i: bool = False,
    pixel_diff: bool = False,
    micro: str = "",
    prompt: str = PROMPT,
    answer: str = ANSWER,
) -> dict[str, Any]:
    """`instruction`, `input_paths` (one or a list), `output_paths` → an edit; options as `process_sharegpt_4o_edit`,
    and:

    Args:
        pixel_diff: value of the column `pixel_diff`.
    """
    sources = image_list(row, "input_paths", s3_prefix, what="a source image is")
    human = _human(prompt, sources, text_of(row, "instruction"), no_template=no_template, t2i=t2i, micro=micro)
    flags = {"reweight": reweight, "pixel_diff": pixel_diff, "hpsv2": optional_score(row, "hpsv2")}
    return _edit(row, sources, human, answer, "output_paths", s3_prefix, **flags)


def _reads_pica(options: dict[str, Any]) -> tuple[str, ...]:
    return ("text", "local_input_image", "local_output_image", "hpsv2?")


@register_preprocess("process_pica_banana", fills=_SCORED, reads=_reads_pica, check=_check, uncounted=_uncounted)
def pica_banana(
    row: Row,
    *,
    s3_prefix: str | None = None,
    no_template: bool = False,
    reweight: bool = False,
    t2i: bool = False,
    pixel_diff: bool = False,
    micro: str = "",
    prompt: str = PROMPT,
    answer: str = ANSWER,
) -> dict[str, Any]:
    """`text`, `local_input_image`, `local_output_image` → an edit; options as `process_gpt_edit`."""
    sources = image_list(row, "local_input_image", s3_prefix, what="a source image is")
    human = _human(prompt, sources, text_of(row, "text"), no_template=no_template, t2i=t2i, micro=micro)
    flags = {"reweight": reweight, "pixel_diff": pixel_diff, "hpsv2": optional_score(row, "hpsv2")}
    return _edit(row, sources, human, answer, "local_output_image", s3_prefix, **flags)


def _reads_planned(options: dict[str, Any]) -> tuple[str, ...]:
    target = () if options["plan_only"] else ("output_paths",)
    return ("instruction", "input_paths", *target, "grounding_text", "edit_type?", "hpsv2?")


@register_preprocess(
    "process_gpt_edit_loc_gnd", fills=_planned_fills, reads=_reads_planned, check=_check_planned, uncounted=_uncounted
)
def gpt_edit_with_layout(
    row: Row,
    *,
    task: Literal["add", "remove", "swap", "replace", "adjust"] = "add",
    s3_prefix: str | None = None,
    no_template: bool = False,
    reweight: bool = False,
    t2i: bool = False,
    pixel_diff: bool = False,
    plan_only: bool = False,
    micro: str = "",
    prompt: str = "{sources}{instruction}{request}{micro}",
    answer: str = PLAN_ANSWER,
) -> dict[str, Any]:
    """As `process_gpt_edit`, and the answer first says where the edit takes place (`grounding_text`).

        {"instruction": "Add a hat.", "grounding_text": "hat [0.1,0.1,0.3,0.2]", …}
            ↓  gpt: "Objects to add, and where: hat [0.1,0.1,0.3,0.2] <image_gen>"

    Args:
        task: words the plan; a column `edit_type` overrides it per row.
        plan_only: the answer ends in `<image_gen_fake>`, and there is no target image.
        prompt, answer: fields {sources}, {instruction}, {request}, {micro}; {plan}, {layout}, {image}.
    """
    sources = image_list(row, "input_paths", s3_prefix, what="a source image is")
    instruction = text_of(row, "instruction")
    human = _human(prompt, sources, instruction, no_template=no_template, t2i=t2i, micro=micro, request=PLAN_REQUEST)
    gpt = fill(
        answer,
        plan=PLANS.get(row.get("edit_type") or task, OTHER_PLAN),
        layout=text_of(row, "grounding_text"),
        image="<image_gen_fake>" if plan_only else "<image_gen>",
    )
    columns = {"reweight": reweight, "pixel_diff": pixel_diff, "hpsv2": optional_score(row, "hpsv2")}
    if not plan_only:
        columns["do_not_mask_text"] = True
    return _edit(row, sources, human, gpt, None if plan_only else "output_paths", s3_prefix, **columns)


def _reads_metaquery(options: dict[str, Any]) -> tuple[str, ...]:
    return ("source_images_paths", "tgt_path", "dir_name", "prompt")


@register_preprocess("process_metaquery", fills=_FLAGS, reads=_reads_metaquery, check=_check, uncounted=_uncounted)
def metaquery(
    row: Row,
    *,
    s3_prefix: str | None = None,
    no_template: bool = False,
    reweight: bool = False,
    t2i: bool = False,
    pixel_diff: bool = False,
    micro: str = "",
    prompt: str = PROMPT,
    answer: str = ANSWER,
) -> dict[str, Any]:
    """`source_images_paths`, `tgt_path` (both below `dir_name`) and `prompt` → an edit; options as
    `process_sharegpt_4o_edit`.

    {"dir_name": "d1", "source_images_paths": ["a.png"], "tgt_path": "t.png", "prompt": "At night."}
        ↓  image ["d1/a.png"], image_gen "d1/t.png"
    """
    folder = join_prefix(s3_prefix, text_of(row, "dir_name"))
    sources = image_list(row, "source_images_paths", folder, what="a source image is")
    human = _human(prompt, sources, text_of(row, "prompt"), no_template=no_template, t2i=t2i, micro=micro)
    return _edit(row, sources, human, answer, "tgt_path", folder, reweight=reweight, pixel_diff=pixel_diff)


def _uniworld_fills(options: dict[str, Any]) -> dict[str, str]:
    images = {"image": "many", "image_gen": "many", "image_gen_enc": "many"}
    return {**images, "pad_image_gen": "bool", "reweight": "bool", "pixel_diff": "bool"}


def _reads_uniworld(options: dict[str, Any]) -> tuple[str, ...]:
    return ("folder", "image", "image_gen", "image_gen_enc", "conversations", "is_edit")


@register_preprocess("process_uniworld", fills=_uniworld_fills, reads=_reads_uniworld)
def uniworld(
    row: Row, *, s3_prefix: str | None = None, do_reweight: bool = False, pixel_diff: bool = False
) -> dict[str, Any]:
    """UniWorld's rows: conversations that already carry placeholders, and images below `folder`.

        {"folder": "f", "image": ["a.png"], "image_gen": ["b.png"], "image_gen_enc": ["a.png"], "is_edit": true,
        "conversations": […]}
            ↓  the same with "f/" before each path; pad_image_gen true

    Args:
        s3_prefix: joined to `folder`.
        do_reweight: `reweight` is true for edits with exactly two images (`image` and `image_gen` together).
        pixel_diff: value of the column `pixel_diff`.
    """
    folder = join_prefix(s3_prefix, text_of(row, "folder"))
    images = {column: optional_images(row, column, folder) for column in ("image", "image_gen", "image_gen_enc")}
    num_images = len(images["image"]) + len(images["image_gen"])
    is_edit = row.get("is_edit")
    if not isinstance(is_edit, (bool, int)):
        raise PreprocessError(f"'is_edit' must be true or false, got {is_edit!r}", code="type_is_edit")
    return {
        **images,
        "pad_image_gen": bool(is_edit) or num_images >= 2,
        "reweight": do_reweight and bool(is_edit) and num_images == 2,
        "pixel_diff": pixel_diff,
        "conversations": conversations_of(row),
    }
