"""What the preprocess functions share: reading a field, filling a template, a conversation of two turns, shortening a
caption.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from llava_arrow.errors import PreprocessError
from llava_arrow.randomness import Draws

__all__ = ["dialogue", "fill", "join_prefix", "optional_score", "template_complaint", "text_of"]

Row = Mapping[str, Any]

TRUNCATE_PROBABILITY = 0.2
"""How often LaViDa-O shortens a caption …"""
TRUNCATE_OVER_CHARACTERS = 150
"""… that is longer than this."""

_FIELD = re.compile(r"\{(\w+)\}")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def text_of(row: Row, column: str) -> str:
    """The string in `column`; anything else there is a PreprocessError."""
    value = row.get(column)
    if isinstance(value, str):
        return value
    if column not in row:
        raise PreprocessError(f"there is no {column!r}; the row has {', '.join(row)}", code=f"missing_{column}")
    if value is None:
        raise PreprocessError(f"{column!r} is null, text is needed", code=f"null_{column}")
    raise PreprocessError(f"{column!r} must be text, got {value!r}", code=f"type_{column}")


def dialogue(human: str, gpt: str) -> list[dict[str, str]]:
    """One question and its answer as LLaVA turns."""
    return [{"from": "human", "value": human}, {"from": "gpt", "value": gpt}]


@cache
def template_parts(template: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Literal texts and, between them, field names.

    >>> template_parts("See {caption}.")
    (('See ', '.'), ('caption',))
    """
    pieces = _FIELD.split(template)
    return tuple(pieces[::2]), tuple(pieces[1::2])


def fill(template: str, **values: str) -> str:
    """The template with each `{name}` replaced, once: a caption that itself holds `{caption}` stays as it is.

    >>> fill("See {caption}.", caption="a {caption} sign")
    'See a {caption} sign.'
    """
    texts, fields = template_parts(template)
    out = [texts[0]]
    for field, text in zip(fields, texts[1:], strict=True):
        out += (values[field], text)
    return "".join(out)


def template_complaint(options: Mapping[str, Any], **allowed: Sequence[str]) -> str | None:
    """What is wrong with the templates among `options` (None: nothing); `allowed` maps an option to the fields it may
    use.
    """
    for option, fields in allowed.items():
        unknown = [name for name in template_parts(options[option])[1] if name not in fields]
        if unknown:
            known = ", ".join("{" + name + "}" for name in fields) or "none"
            return f"option {option!r} uses the field {{{unknown[0]}}}, but its fields are: {known}"
    return None


def shorten(caption: str, rng: Draws, *, may_truncate: bool, max_characters: int) -> str:
    """LaViDa-O's shortening: with p 0.2, a caption over 150 characters keeps its first k sentences, k uniform in 1 …
    all.
    """
    if may_truncate and rng.random() < TRUNCATE_PROBABILITY and len(caption) > TRUNCATE_OVER_CHARACTERS:
        caption = first_sentences(caption, rng)
    return caption[:max_characters]


def first_sentences(caption: str, rng: Draws) -> str:
    """The first k sentences, k drawn from 1 … all of them. A sentence ends in `.`, `!` or `?` before white space."""
    ends = [match.start() for match in _SENTENCE_END.finditer(caption)]
    k = rng.integers(1, len(ends) + 2)
    return caption if k > len(ends) else caption[: ends[k - 1]]


def join_prefix(prefix: str | None, path: str) -> str:
    """`prefix/path`, one slash between; an empty prefix or an absolute path or URL leaves `path` alone."""
    if not prefix or path.startswith("/") or "://" in path:
        return path
    return f"{prefix.rstrip('/')}/{path}"


def optional_score(row: Row, column: str) -> list[float] | None:
    """A score as the one-item list that the trainers expect, None where the row has none."""
    value = row.get(column)
    if value is None:
        return None
    try:
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):  # CSV holds numbers as text
            return [float(value)]
    except ValueError:
        pass
    raise PreprocessError(f"{column!r} must be a number, got {value!r}", code=f"type_{column}")


def image_list(row: Row, column: str, prefix: str | None, *, what: str) -> list[Any]:
    """The image or images in `column` as a list, `prefix` joined to paths; null or empty is a PreprocessError."""
    images = optional_images(row, column, prefix)
    if not images:
        raise PreprocessError(f"{column!r} is null or empty, {what} needed", code=f"null_{column}")
    return images


def optional_images(row: Row, column: str, prefix: str | None) -> list[Any]:
    """As `image_list`, but null is an empty list."""
    value = row.get(column)
    if value is None:
        return []
    images = list(value) if isinstance(value, (list, tuple)) else [value]
    return [join_prefix(prefix, image) if isinstance(image, str) else image for image in images]


def one_image(row: Row, column: str, prefix: str | None, *, what: str) -> Any:
    """The image in `column` (a list of one counts); none or several is a PreprocessError."""
    images = image_list(row, column, prefix, what=what)
    if len(images) > 1:
        raise PreprocessError(f"{column!r} has {len(images)} images, one is needed", code=f"many_{column}")
    return images[0]


def conversations_of(row: Row) -> list[dict[str, Any]]:
    """The column `conversations`, as a list or as the JSON text of one."""
    value = row.get("conversations")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise PreprocessError(f"'conversations' is no JSON: {error}", code="conversations_json") from error
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise PreprocessError(
            f"'conversations' must be a list of turns, got {value!r:.200}", code="type_conversations"
        )
    return value
