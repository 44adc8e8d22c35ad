"""Image → answers.

image "a.jpg", conversations '[{"from": "human", …}, …]'  →  image "a.jpg", conversations [{"from": "human", …}, …]
"""

from __future__ import annotations

from typing import Any

from llava_arrow.errors import PreprocessError
from llava_arrow.preprocess.conversations import (
    Row,
    conversations_of,
    dialogue,
    fill,
    one_image,
    optional_images,
    template_complaint,
    text_of,
)
from llava_arrow.preprocess.registry import register_preprocess

LONG_ANSWER_WORDS = 150
REASONING_REQUEST = "\nExplain your reasoning in detail."
JUDGE_PROMPT = (
    "{image}Judge this generated image against its prompt: {prompt}\n"
    "Look at whether everything in the prompt is there, and arranged as it says."
)


def _reads(options: dict[str, Any]) -> tuple[str, ...]:
    return ("image", "conversations")


@register_preprocess("preproces_und_mammoth_si_10M", fills={"image": "one"}, reads=_reads)
def mammoth_single_image(row: Row, *, s3_prefix: str | None = None) -> dict[str, Any]:
    """`image` (null for text only) and `conversations` as JSON text → a LLaVA sample; `s3_prefix` is joined to the
    path.
    """
    image = None if row.get("image") is None else one_image(row, "image", s3_prefix, what="an image is")
    return {"image": image, "conversations": conversations_of(row)}


def _vw_check(options: dict[str, Any]) -> str | None:
    return template_complaint(options, reasoning_request=())


@register_preprocess("preproces_vw_instruct", fills={"image": "many"}, reads=_reads, check=_vw_check)
def visual_web_instruct(
    row: Row, *, s3_prefix: str | None = None, reasoning_request: str = REASONING_REQUEST
) -> dict[str, Any]:
    r"""`image` (list or null) and `conversations` → a LLaVA sample; a long answer was asked for.

        … {"from": "gpt", "value": <151 words>}  →  the first turn ends in "\nExplain your reasoning in detail."

    Args:
        s3_prefix: joined to the paths.
        reasoning_request: appended to the first turn where the first answer has over 150 words.
    """
    conversations = [dict(turn) for turn in conversations_of(row)]
    if len(conversations) < 2:
        raise PreprocessError(
            f"'conversations' has {len(conversations)} turns, 2 are needed", code="short_conversation"
        )
    question, answer = (conversations[i].get("value") for i in (0, 1))
    if isinstance(question, str) and isinstance(answer, str) and len(answer.split()) > LONG_ANSWER_WORDS:
        conversations[0]["value"] = question + reasoning_request
    return {"image": optional_images(row, "image", s3_prefix), "conversations": conversations}


def _judge_reads(options: dict[str, Any]) -> tuple[str, ...]:
    return ("image", "prompts", "results")


def _judge_check(options: dict[str, Any]) -> str | None:
    return template_complaint(options, prompt=("image", "prompt"), answer=("result",))


@register_preprocess("preprocess_reflection_und", fills={"image": "one"}, reads=_judge_reads, check=_judge_check)
def judge_generated_image(
    row: Row, *, s3_prefix: str | None = None, prompt: str = JUDGE_PROMPT, answer: str = "{result}"
) -> dict[str, Any]:
    r"""`image` (nullable), `prompts`, `results` → judge a generated image; without an image no `<image>` is written.

    {"image": "g.png", "prompts": "two dogs", "results": "Only one dog."}
        ↓  human "<image>\nJudge this generated image against its prompt: two dogs …", gpt "Only one dog."
    """
    has_image = row.get("image") is not None
    human = fill(prompt, image="<image>\n" if has_image else "", prompt=text_of(row, "prompts"))
    return {
        "image": one_image(row, "image", s3_prefix, what="an image is") if has_image else None,
        "conversations": dialogue(human, fill(answer, result=text_of(row, "results"))),
    }
