"""Caption → image: the human turn is the caption, the answer is the picture.

    {"s3_path": "p/1.jpg", "caption": "A red chair."}
        ↓
    {"image_gen": "p/1.jpg",
     "conversations": [{"from": "human", "value": "Generate an image with the caption: A red chair."},
                       {"from": "gpt", "value": "Sure <image_gen>"}]}

Whole columns at a time: these are the largest sets of a mixture, and nothing here needs a row as a Python object
except a caption that is to be shortened.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llava_arrow.column_types import one_array
from llava_arrow.errors import PreprocessError
from llava_arrow.preprocess.conversations import (
    TRUNCATE_OVER_CHARACTERS,
    TRUNCATE_PROBABILITY,
    first_sentences,
    shorten,
    template_complaint,
    template_parts,
)
from llava_arrow.preprocess.registry import BatchDraws, register_preprocess

PROMPT = "Generate an image with the caption: {caption}"
ANSWER = "Sure <image_gen>"
MAX_CAPTION_LENGTH = 800
FILLS = {"image_gen": "one", "gen_score": "list<float32>", "hpsv2": "list<float32>"}


def _caption_keys(options: dict[str, Any]) -> tuple[str, ...]:
    return tuple(options.get("random_caption_keys") or (options["caption_key"],))


def _reads_s3(options: dict[str, Any]) -> tuple[str, ...]:
    return ("s3_path", *_caption_keys(options), "fltLaionAesthScore?", "hpsv2?")


def _reads_hash(options: dict[str, Any]) -> tuple[str, ...]:
    return ("strImagehash", *_caption_keys(options), "fltLaionAesthScore?", "hpsv2?")


def check_captions(options: dict[str, Any]) -> str | None:
    """What is wrong with the caption options, None for nothing."""
    if options["max_caption_length"] < 1:
        return f"max_caption_length must be ≥ 1 (characters), got {options['max_caption_length']}"
    if options.get("random_caption_keys") == []:
        return "random_caption_keys must name at least one column"
    return template_complaint(options, prompt=("caption",), answer=())


@register_preprocess(
    "preproces_text_to_image_generation_s3", fills=FILLS, reads=_reads_s3, check=check_captions, batched=True
)
def text_to_image_s3(
    table: pa.Table,
    *,
    rng: BatchDraws,
    caption_key: str = "caption",
    random_caption_keys: list[str] | None = None,
    random_truncate: bool = True,
    no_drop_keys: list[str] | None = None,
    max_caption_length: int = MAX_CAPTION_LENGTH,
    prompt: str = PROMPT,
    answer: str = ANSWER,
) -> pa.Table:
    """`s3_path` and a caption → `image_gen`, with `gen_score` and `hpsv2` where the row has scores.

    Args:
        caption_key: the column of the caption.
        random_caption_keys: choose one of these columns per row instead.
        random_truncate: with p 0.2, captions over 150 characters keep their first k ≥ 1 sentences.
        no_drop_keys: caption columns that are never shortened; where given, all others may be, whatever
            `random_truncate` says.
        max_caption_length: characters kept at most.
        prompt, answer: the turns; `{caption}` stands for the caption.
    """
    captions = _captions(
        table, rng, random_caption_keys or [caption_key], random_truncate, no_drop_keys, max_caption_length
    )
    return _samples(table, _texts(table, "s3_path"), captions, prompt, answer)


@register_preprocess(
    "preproces_text_to_image_generation_piat_hash", fills=FILLS, reads=_reads_hash, check=check_captions, batched=True
)
def text_to_image_piat_hash(
    table: pa.Table,
    *,
    rng: BatchDraws,
    caption_key: str = "longLLA_captions",
    random_caption_keys: list[str] | None = None,
    random_truncate: bool = True,
    no_drop_keys: list[str] | None = None,
    max_caption_length: int = MAX_CAPTION_LENGTH,
    prompt: str = PROMPT,
    answer: str = ANSWER,
) -> pa.Table:
    """As `preproces_text_to_image_generation_s3`, but the image is `piat://` + `strImagehash` (see `image_stores`)."""
    captions = _captions(
        table, rng, random_caption_keys or [caption_key], random_truncate, no_drop_keys, max_caption_length
    )
    images = pc.binary_join_element_wise("piat://", _texts(table, "strImagehash"), "")
    return _samples(table, images, captions, prompt, answer)


def _texts(table: pa.Table, column: str) -> pa.Array:
    """A column of strings without nulls, as one array."""
    array = table.column(column)
    if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
        if pa.types.is_null(array.type):
            raise PreprocessError(f"{column!r} is null, text is needed", code=f"null_{column}")
        raise PreprocessError(f"{column!r} must be text, but the column is {array.type}", code=f"type_{column}")
    if array.null_count:
        raise PreprocessError(f"{column!r} is null, text is needed", code=f"null_{column}")
    return one_array(array).cast(pa.string())


def _captions(
    table: pa.Table,
    rng: BatchDraws,
    keys: list[str],
    random_truncate: bool,
    no_drop_keys: list[str] | None,
    max_characters: int,
) -> pa.Array:
    may_truncate = {key: random_truncate if no_drop_keys is None else key not in no_drop_keys for key in keys}
    if len(keys) == 1:
        return _one_caption(_texts(table, keys[0]), rng, may_truncate[keys[0]], max_characters)
    columns = {key: table.column(key).to_pylist() for key in keys}
    captions = []
    for i in range(table.num_rows):
        draws = rng[i]
        key = draws.choice(keys)
        caption = columns[key][i]
        if not isinstance(caption, str):
            raise PreprocessError(f"{key!r} must be text, got {caption!r}", code=f"null_{key}")
        captions.append(shorten(caption, draws, may_truncate=may_truncate[key], max_characters=max_characters))
    return pa.array(captions, pa.string())


def _one_caption(captions: pa.Array, rng: BatchDraws, may_truncate: bool, max_characters: int) -> pa.Array:
    lengths = pc.utf8_length(captions).to_numpy(zero_copy_only=False)
    chosen = lengths > max_characters
    is_shortened = np.zeros(len(captions), dtype=np.bool_)
    if may_truncate:
        is_shortened = (lengths > TRUNCATE_OVER_CHARACTERS) & (rng.random() < TRUNCATE_PROBABILITY)
        chosen = chosen | is_shortened
    if not chosen.any():
        return captions
    texts = []
    for i in np.flatnonzero(chosen).tolist():
        caption = captions[i].as_py()
        if is_shortened[i]:
            draws = rng[i]
            draws.random()  # the draw that chose this row
            caption = first_sentences(caption, draws)
        texts.append(caption[:max_characters])
    return pc.replace_with_mask(captions, pa.array(chosen), pa.array(texts, pa.string()))


def _samples(table: pa.Table, images: pa.Array, captions: pa.Array, prompt: str, answer: str) -> pa.Table:
    n = table.num_rows
    texts, fields = template_parts(prompt)
    pieces: list[Any] = [texts[0]]
    for text in texts[1:]:
        pieces += [captions, text]
    human = pc.binary_join_element_wise(*pieces, "") if fields else pa.repeat(pa.scalar(prompt), n)
    both = pa.concat_arrays([human, pa.array([answer])])
    turns = np.full(2 * n, n, dtype=np.int32)
    turns[::2] = np.arange(n, dtype=np.int32)
    roles = pa.DictionaryArray.from_arrays(pa.array(np.tile(np.array([0, 1], np.int8), n)), ["human", "gpt"])
    conversation = pa.StructArray.from_arrays([roles.cast(pa.string()), both.take(pa.array(turns))], ["from", "value"])
    offsets = pa.array(np.arange(0, 2 * n + 1, 2, dtype=np.int32))
    return pa.table(
        {
            "image_gen": images,
            "conversations": pa.ListArray.from_arrays(offsets, conversation),
            "gen_score": _scores(table, "fltLaionAesthScore"),
            "hpsv2": _scores(table, "hpsv2"),
        }
    )


def _scores(table: pa.Table, column: str) -> pa.Array:
    """One-item lists of float32, null where the row has no score."""
    kind = pa.list_(pa.float32())
    if column not in table.column_names or pa.types.is_null(table.column(column).type):
        return pa.nulls(table.num_rows, kind)
    try:
        scores = one_array(table.column(column).cast(pa.float32(), safe=False))
    except pa.ArrowInvalid as error:
        raise PreprocessError(f"{column!r} must be a number: {error}", code=f"type_{column}") from error
    present = scores.is_valid().to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(present)]).astype(np.int32)
    # A null list is marked at its own offset; the last offset closes the array.
    marked = pa.array(offsets, mask=np.append(~present, False))
    return pa.ListArray.from_arrays(marked, scores.drop_null()).cast(kind)
