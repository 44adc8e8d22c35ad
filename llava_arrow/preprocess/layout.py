"""Caption → layout → image: the answer first says where things go, then comes the picture.

{"s3_path": "p/1.jpg", "caption": "A red chair.", "grounding_text": "chair [0.1,0.2,0.5,0.9]"}
    ↓
human  Generate an image with the caption: A red chair. State the layout, object by object with its box, before the
image.
gpt    The layout: chair [0.1,0.2,0.5,0.9] <image_gen>
"""

from __future__ import annotations

from typing import Any, Literal

from llava_arrow.errors import PreprocessError
from llava_arrow.preprocess.conversations import (
    Row,
    dialogue,
    fill,
    join_prefix,
    one_image,
    optional_score,
    shorten,
    template_complaint,
    text_of,
)
from llava_arrow.preprocess.registry import register_preprocess
from llava_arrow.preprocess.text_to_image import MAX_CAPTION_LENGTH, PROMPT
from llava_arrow.randomness import Draws

LAYOUT_REQUEST = " State the layout, object by object with its box, before the image."
DETAIL_REQUEST = " Describe what belongs in each box."
LAYOUT_ANSWER = "The layout: {layout} {image}"
FEEDBACK_REQUEST = " Earlier attempts and what was wrong with them; avoid the same mistakes:"
ATTEMPT = "\nAttempt {number}: <image>\nFeedback {number}: {feedback}"
DROPPED_CAPTION = "an image made of the described regions."
PROMPT_FIELDS = ("caption", "request", "feedback")


def _fills(options: dict[str, Any]) -> dict[str, str]:
    fills = {} if options["plan_only"] else {"image_gen": "one"}
    if options.get("add_feedback"):
        fills["image"] = "many"
    fills |= {"gen_score": "list<float32>", "hpsv2": "list<float32>"}
    if not options["plan_only"] and not options["no_plan"]:
        fills["do_not_mask_text"] = "bool"
    return fills


def _sam_fills(options: dict[str, Any]) -> dict[str, str]:
    return {**_fills(options), "crop_parms": "list<list<int32>>"}


def _check(options: dict[str, Any]) -> str | None:
    if options["plan_only"] and options["no_plan"]:
        return "plan_only and no_plan exclude each other"
    if options["max_caption_length"] < 1:
        return f"max_caption_length must be ≥ 1 (characters), got {options['max_caption_length']}"
    if options.get("max_reflection", 1) < 1:
        return f"max_reflection must be ≥ 1, got {options['max_reflection']}"
    if not 0 <= options.get("caption_drop", 0) <= 1:
        return f"caption_drop is a probability from 0 to 1, got {options['caption_drop']}"
    return template_complaint(options, prompt=PROMPT_FIELDS, answer=("layout", "image"))


def _loc_reads(options: dict[str, Any]) -> tuple[str, ...]:
    captions = options["random_caption_keys"] or [options["caption_key"]]
    image = () if options["plan_only"] else ("s3_path",)
    layout = () if options["no_plan"] else ("grounding_text",)
    feedback = ("negatives", "negative_reasons") if options["add_feedback"] else ()
    return (*image, *captions, *layout, *feedback, "fltLaionAesthScore?", "hpsv2?")


def _sam_reads(options: dict[str, Any]) -> tuple[str, ...]:
    image = () if options["plan_only"] else ("s3_path",)
    layout = () if options["no_plan"] else ("cap_short", "cap_detail")
    return (*image, options["caption_key"], *layout, "crop_parms", "fltLaionAesthScore?", "hpsv2?")


@register_preprocess("preproces_text_to_image_generation_s3_loc", fills=_fills, reads=_loc_reads, check=_check)
def text_to_image_with_layout(
    row: Row,
    *,
    rng: Draws,
    caption_key: str = "caption",
    random_caption_keys: list[str] | None = None,
    random_truncate: bool = True,
    no_drop_keys: list[str] | None = None,
    max_caption_length: int = MAX_CAPTION_LENGTH,
    plan_only: bool = False,
    no_plan: bool = False,
    add_feedback: bool = False,
    max_reflection: int = 5,
    s3_prefix_enc: str | Literal[False] | None = None,
    prompt: str = PROMPT + "{request}{feedback}",
    answer: str = LAYOUT_ANSWER,
) -> dict[str, Any]:
    r"""`s3_path`, caption and `grounding_text` → the layout, then `image_gen`.

    With `add_feedback` the human turn shows past attempts, which become the list `image`:

        {"negatives": "a.jpg;b.jpg", "negative_reasons": "No chair.;Two chairs."}  →  image ["b.jpg"], and in the human
        turn "… Attempt 1: <image>\nFeedback 1: Two chairs."

    Args:
        caption_key, random_caption_keys, random_truncate, no_drop_keys, max_caption_length: as in
            `preproces_text_to_image_generation_s3`.
        plan_only: the answer ends in `<image_gen_fake>`, and there is no image.
        no_plan: no layout, only the image.
        add_feedback: show 1 … `max_reflection` attempts of `negatives`, with their `negative_reasons` (both
            `;`-joined), drawn with replacement as LaViDa-O does.
        s3_prefix_enc: joined to the attempts' paths.
        prompt, answer: fields {caption}, {request}, {feedback}; {layout}, {image}.
    """
    keys = random_caption_keys or [caption_key]
    key = rng.choice(keys) if random_caption_keys else caption_key
    may_truncate = random_truncate if no_drop_keys is None else key not in no_drop_keys
    caption = shorten(text_of(row, key), rng, may_truncate=may_truncate, max_characters=max_caption_length)
    attempts, feedback = _feedback(row, rng, max_reflection, s3_prefix_enc or None) if add_feedback else ([], "")
    sample = _planned(
        row,
        layout="" if no_plan else text_of(row, "grounding_text"),
        human=fill(prompt, caption=caption, request="" if no_plan else LAYOUT_REQUEST, feedback=feedback),
        answer=answer,
        s3_prefix=None,
        plan_only=plan_only,
        no_plan=no_plan,
    )
    if add_feedback:
        sample["image"] = attempts
    return sample


@register_preprocess("preproces_text_to_image_generation_layout_sam", fills=_sam_fills, reads=_sam_reads, check=_check)
def text_to_image_sam_layout(
    row: Row,
    *,
    rng: Draws,
    caption_key: str = "caption",
    caption_drop: float = 0.1,
    max_caption_length: int = MAX_CAPTION_LENGTH,
    s3_prefix: str | None = None,
    plan_only: bool = False,
    no_plan: bool = False,
    random_truncate: bool = False,
    prompt: str = PROMPT + "{request}{feedback}",
    answer: str = LAYOUT_ANSWER,
) -> dict[str, Any]:
    """`s3_path`, `caption`, regions and `crop_parms` → the layout, then `image_gen`.

        {"caption": "A room.", "cap_short": "chair [..]", "cap_detail": "a red chair with arms [..]", "crop_parms": [0,
        0, 512, 512]}
            ↓  crop_parms [[0, 0, 512, 512]]; the layout is cap_short, or with p 0.4 cap_detail and a request for it

    Args:
        caption_drop: probability that the caption is replaced by a general one.
        s3_prefix: joined to `s3_path`.
        random_truncate: as in the other text-to-image functions, off by default.
        caption_key, max_caption_length, plan_only, no_plan, prompt, answer: as in
            `preproces_text_to_image_generation_s3_loc`.
    """
    caption = shorten(text_of(row, caption_key), rng, may_truncate=random_truncate, max_characters=max_caption_length)
    is_detailed = rng.random() < 0.4
    if rng.random() < caption_drop:
        caption = DROPPED_CAPTION
    request = "" if no_plan else LAYOUT_REQUEST
    sample = _planned(
        row,
        layout="" if no_plan else text_of(row, "cap_detail" if is_detailed else "cap_short"),
        human=fill(
            prompt, caption=caption, request=request, feedback=DETAIL_REQUEST if is_detailed and not no_plan else ""
        ),
        answer=answer,
        s3_prefix=s3_prefix,
        plan_only=plan_only,
        no_plan=no_plan,
    )
    crop = row.get("crop_parms")
    if not isinstance(crop, (list, tuple)) or not all(isinstance(number, int) for number in crop):
        raise PreprocessError(f"'crop_parms' must be a list of whole numbers, got {crop!r}", code="type_crop_parms")
    return {**sample, "crop_parms": [list(crop)]}


def _planned(
    row: Row, *, layout: str, human: str, answer: str, s3_prefix: str | None, plan_only: bool, no_plan: bool
) -> dict[str, Any]:
    sample: dict[str, Any] = {
        "gen_score": optional_score(row, "fltLaionAesthScore"),
        "hpsv2": optional_score(row, "hpsv2"),
    }
    if plan_only:
        return {**sample, "conversations": dialogue(human, fill(answer, layout=layout, image="<image_gen_fake>"))}
    sample["image_gen"] = one_image(row, "s3_path", s3_prefix, what="an image is")
    if no_plan:
        return {**sample, "conversations": dialogue(human, "<image_gen>")}
    return {
        **sample,
        "do_not_mask_text": True,
        "conversations": dialogue(human, fill(answer, layout=layout, image="<image_gen>")),
    }


def _feedback(row: Row, rng: Draws, max_reflection: int, prefix: str | None) -> tuple[list[str], str]:
    images, reasons = text_of(row, "negatives").split(";"), text_of(row, "negative_reasons").split(";")
    if len(images) != len(reasons):
        raise PreprocessError(
            f"'negatives' has {len(images)} parts and 'negative_reasons' {len(reasons)} (joined by ';'): a ';' "
            f"inside a reason?",
            code="negatives_mismatch",
        )
    num_shown = rng.integers(1, min(len(images), max_reflection) + 1)
    shown = [rng.integers(0, len(images)) for _ in range(num_shown)]
    attempts = [fill(ATTEMPT, number=str(i + 1), feedback=reasons[k]) for i, k in enumerate(shown)]
    return [join_prefix(prefix, images[k]) for k in shown], FEEDBACK_REQUEST + "".join(attempts)
