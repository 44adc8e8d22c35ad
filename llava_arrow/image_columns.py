"""Image references of samples as Arrow columns: `{bytes, path}`, one or a list of them, paths resolved, no image
touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llava_arrow.column_types import IMAGE_TYPE, is_list_type
from llava_arrow.errors import MixtureError, SchemaError
from llava_arrow.paths import ImageResolver

__all__ = [
    "flat_items",
    "image_counts",
    "item_owners",
    "images_from_arrow",
    "images_to_arrow",
    "widen_images",
    "with_images",
]


def images_to_arrow(
    values: Sequence[Any], kind: str, column: str, resolve: ImageResolver
) -> tuple[pa.Array, dict[int, MixtureError]]:
    """References (text, `{bytes, path}`, bytes, lists of these, None) as a column of `kind` `one` or `many`.

    What cannot be an image reference is null, with its error under its position.
    """
    try:
        return _all_paths(values, kind, resolve), {}
    except (MixtureError, TypeError, AttributeError):
        pass  # not all of them are plain paths: look at each
    wrong: dict[int, MixtureError] = {}
    paths: list[str | None] = []
    data: list[bytes | None] = []
    lengths = np.zeros(len(values), dtype=np.int32)
    for i, value in enumerate(values):
        before = len(paths)
        try:
            items = value if isinstance(value, (list, tuple)) else () if value is None else (value,)
            for item in items:
                path, content = _reference(item, column, resolve)
                paths.append(path)
                data.append(content)
            if kind == "one" and len(items) > 1:
                raise SchemaError(
                    f"{column!r} holds {len(items)} images, but this config has one per sample: say `multi_image: "
                    f"true` in the entry",
                    code=f"many_{column}",
                )
        except MixtureError as error:
            wrong[i] = error
            del paths[before:], data[before:]
        lengths[i] = len(paths) - before
    return _column(pa.array(data, pa.binary()), paths, lengths, kind), wrong


def _all_paths(values: Sequence[Any], kind: str, resolve: ImageResolver) -> pa.Array:
    """The common case, all references text; a TypeError or AttributeError where one is not."""
    if not all(v is None or type(v) in (str, list) for v in values):
        raise TypeError("something else than text")
    lengths = np.array([1 if type(v) is str else 0 if v is None else len(v) for v in values], dtype=np.int32)
    if kind == "one" and len(lengths) and lengths.max() > 1:
        raise TypeError("a list where one image is expected")
    flat = [v for v in values if v is not None] if all(type(v) is not list for v in values) else [
        item for v in values if v is not None for item in ((v,) if type(v) is str else v)
    ]  # fmt: skip
    return _column(pa.nulls(len(flat), pa.binary()), resolve.many(flat), lengths, kind)


def _column(data: pa.Array, paths: Sequence[str | None], lengths: npt.NDArray[np.int32], kind: str) -> pa.Array:
    items = pa.StructArray.from_arrays([data, pa.array(paths, pa.string())], fields=list(IMAGE_TYPE))
    return _in_lists(items, lengths) if kind == "many" else _one_each(items, lengths)


def _reference(item: Any, column: str, resolve: ImageResolver) -> tuple[str | None, bytes | None]:
    if isinstance(item, str):
        return resolve(item), None
    if isinstance(item, (bytes, bytearray)):
        return None, bytes(item)
    if isinstance(item, dict) and set(item) <= {"bytes", "path"}:
        content, path = item.get("bytes"), item.get("path")
        if isinstance(content, (bytes, bytearray)) and content and (path is None or isinstance(path, str)):
            return path, bytes(content)
        if content is None and isinstance(path, str):
            return resolve(path), None
    raise SchemaError(f"{column!r} must hold paths, URLs or {{bytes, path}}, got {item!r:.80}", code=f"type_{column}")


def _in_lists(items: pa.StructArray, lengths: npt.NDArray[np.int32]) -> pa.ListArray:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), items)


def _one_each(items: pa.StructArray, lengths: npt.NDArray[np.int32]) -> pa.StructArray:
    if len(items) == len(lengths):
        return items
    positions = np.cumsum(lengths) - 1
    return items.take(pa.array(positions, mask=lengths == 0))


def images_from_arrow(
    array: pa.Array, kind: str, column: str, resolve: ImageResolver
) -> tuple[pa.Array, dict[int, MixtureError]]:
    """As `images_to_arrow`, from a column of a data file. Embedded bytes of
    single images are passed on without becoming Python objects.
    """
    if pa.types.is_null(array.type):
        return images_to_arrow([None] * len(array), kind, column, resolve)
    is_list, items = is_list_type(array.type), flat_items(array)
    if pa.types.is_binary(items.type) or pa.types.is_large_binary(items.type):
        names = pa.nulls(len(items), pa.string())
        items = pa.StructArray.from_arrays(
            [items.cast(pa.binary()), names], fields=list(IMAGE_TYPE), mask=items.is_null()
        )
    if not (
        pa.types.is_struct(items.type)
        and {"bytes", "path"} <= {items.type.field(i).name for i in range(items.type.num_fields)}
    ):
        return images_to_arrow(array.to_pylist(), kind, column, resolve)
    data = items.field("bytes").cast(pa.binary())
    # Every image that is there brings its bytes; what a null struct holds does not count.
    is_embedded = not pc.any(pc.and_(items.is_valid(), data.is_null())).as_py()
    if is_embedded and pc.any(pc.equal(pc.binary_length(data), 0)).as_py():
        return images_to_arrow(array.to_pylist(), kind, column, resolve)
    if not is_embedded or is_list or kind == "many":
        return images_to_arrow(array.to_pylist(), kind, column, resolve)
    paths = items.field("path").cast(pa.string())
    return pa.StructArray.from_arrays([data, paths], fields=list(IMAGE_TYPE), mask=items.is_null()), {}


def flat_items(array: pa.Array) -> pa.Array:
    """All items of a column of lists, one after the other; a column with one item each is itself."""
    return array.flatten() if is_list_type(array.type) else array


def item_owners(array: pa.Array) -> npt.NDArray[np.int64]:
    """Per item of `flat_items(array)` the position of its sample."""
    if not is_list_type(array.type):
        return np.arange(len(array))
    return np.repeat(np.arange(len(array)), np.diff(array.offsets.to_numpy()))


def with_images(array: pa.Array, data: pa.Array, paths: pa.Array) -> pa.Array:
    """The column `array` with other bytes and paths in place of its `flat_items`; what is null stays null."""
    items = pa.StructArray.from_arrays([data, paths], fields=list(IMAGE_TYPE), mask=flat_items(array).is_null())
    if not is_list_type(array.type):
        return items
    offsets = array.offsets.to_numpy()  # of a slice, they begin anywhere
    return pa.ListArray.from_arrays(pa.array(offsets - offsets[0], pa.int32()), items)


def image_counts(array: pa.Array, kind: str) -> npt.NDArray[np.int64]:
    """How many images each sample has in a column."""
    if kind == "many":
        return np.diff(array.offsets.to_numpy()).astype(np.int64)
    return np.asarray(array.is_valid().to_numpy(zero_copy_only=False)).astype(np.int64)


def widen_images(array: pa.Array) -> pa.ListArray:
    """A single-image column as lists: null becomes an empty list."""
    present = array.is_valid().to_numpy(zero_copy_only=False)
    return _in_lists(array.drop_null(), present.astype(np.int32))
