"""Samples that somebody has already: a built dataset, a stream, a folder of Parquet files."""

from __future__ import annotations

import io
import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llava_arrow.column_types import IMAGE_COLUMNS, IMAGE_TYPE, Layout, is_list_type, one_array
from llava_arrow.conversation_checks import with_plain_roles
from llava_arrow.errors import ConfigError, ImageError, MixtureError, SchemaError, SourceError
from llava_arrow.image_columns import flat_items, images_from_arrow
from llava_arrow.image_roots import ImageRoots
from llava_arrow.ledger import LedgerLine, Tally
from llava_arrow.mixture import builder_configs_dir
from llava_arrow.outputs.front_matter import config_files, read_front_matter
from llava_arrow.outputs.origins import Origin, Part
from llava_arrow.outputs.stream_signature import paths_of, signature_of
from llava_arrow.paths import ImageResolver, is_url
from llava_arrow.schema import not_unicode
from llava_arrow.sources import ROW
from llava_arrow.sources.files import filesystem, stat

__all__ = ["dataset_origin", "is_parquet_folder", "parquet_origin"]

BUILDER_NAME = "llava_mixture"
PART_ROWS = 4_096
TABLE_ROWS = 256
MAX_PIECES = 8


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """What all parts of such an origin have in common."""

    roots: ImageRoots
    resolve: ImageResolver
    skips: bool


def dataset_origin(dataset: Any, *, image_root: str | None, on_error: str) -> Origin:
    """The samples of a `datasets.Dataset` or `IterableDataset`.

    Args:
        image_root: below which images that are references may be read. Not needed for a dataset of our own builder.

    Raises:
        ConfigError: it is neither, or has no `conversations`.
    """
    import datasets

    if isinstance(dataset, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        if len(dataset) != 1:
            raise ConfigError(f"the dataset has the splits {', '.join(dataset)}: export one, as in dataset['train']")
        (dataset,) = dataset.values()
    if isinstance(dataset, datasets.Dataset):
        reading = _reading(_roots_of(dataset.info, image_root), image_root, on_error)
        rows = dataset.with_format("arrow")

        def tables(first: int) -> Iterator[pa.Table]:
            for start in range(first, min(first + PART_ROWS, len(rows)), TABLE_ROWS):
                yield rows[start : min(start + TABLE_ROWS, first + PART_ROWS, len(rows))]

        firsts = range(0, len(dataset), PART_ROWS)
        return Origin(
            identity={"dataset": dataset._fingerprint, "rows": len(dataset), "image_root": image_root},
            places=[*reading.roots.roots, *(file["filename"] for file in dataset.cache_files)],
            parts=[_part("dataset", first, lambda first=first: tables(first), reading) for first in firsts],  # type: ignore[misc]
            layout=_layout(dataset.features.arrow_schema),
        )
    if not isinstance(dataset, datasets.IterableDataset):
        raise ConfigError(f"an export takes a mixture, a dataset or a folder of Parquet files, got {dataset!r:.80}")
    return _stream_origin(dataset, image_root, on_error)


def _stream_origin(stream: Any, image_root: str | None, on_error: str) -> Origin:
    if stream.features is None:
        raise ConfigError(
            "the stream does not say which columns it has: give features= to its map(), or export it before that"
        )
    original, info, features = stream, stream.info, dict(stream.features)
    for column in features:
        without_decoding = _undecoded(features[column])
        if without_decoding is not None:
            stream = stream.cast_column(column, without_decoding)
    schema = stream.features.arrow_schema

    def tables() -> Iterator[pa.Table]:
        samples: list[dict[str, Any]] = []
        for sample in stream:
            samples.append({name: _as_stored(value) for name, value in sample.items()})
            if len(samples) == TABLE_ROWS // 4:
                yield pa.Table.from_pylist(samples, schema=schema)
                samples = []
        if samples:
            yield pa.Table.from_pylist(samples, schema=schema)

    reading = _reading(_roots_of(info, image_root), image_root, on_error)
    return Origin(
        places=[*reading.roots.roots, *paths_of(original)],
        identity={"stream": signature_of(original), "features": repr(features), "image_root": image_root},
        parts=[_part("stream", 0, tables, reading)],
        layout=_layout(schema),
        is_stream=True,
    )


def _undecoded(feature: Any) -> Any:
    """The same feature with images as `{bytes, path}`; None where it holds none."""
    import datasets

    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    inner = feature[0] if isinstance(feature, list) and len(feature) == 1 else getattr(feature, "feature", None)
    return [datasets.Image(decode=False)] if isinstance(inner, datasets.Image) else None


def _as_stored(value: Any) -> Any:
    """What a stream gives for an image, as it is stored."""
    if isinstance(value, list):
        return [_as_stored(item) for item in value]
    if not hasattr(value, "save") or not hasattr(value, "mode"):
        return value
    if getattr(value, "format", None) is not None:
        raise ConfigError(
            "the stream gives decoded images, and the bytes of their files are lost: call "
            "cast_column('image', datasets.Image(decode=False)) before map() or filter()"
        )
    return {"bytes": _png(value), "path": None}


def is_parquet_folder(path: str | os.PathLike[str]) -> bool:
    """Whether `path` means a folder of Parquet files rather than a mixture: a URL, or a folder; a name of one word is
    a mixture's where there is one.
    """
    name = os.fspath(path)
    if is_url(name) or not os.path.isdir(name):
        return is_url(name)
    return os.sep in name or not any((builder_configs_dir() / f"{name}{end}").is_file() for end in (".yaml", ".yml"))


def parquet_origin(
    folder: str, config_names: Sequence[str] | None, *, image_root: str | None, on_error: str
) -> Origin:
    """The samples of a folder of Parquet files, local or any fsspec URL: those of a config, where its README.md names
    configs, else of all files in it.

    Raises:
        ConfigError: there are none, or several configs and none is named. SourceError: a file cannot be read.
    """
    fs, inner = filesystem(folder if is_url(folder) else f"file://{os.path.abspath(folder)}")
    inner = inner.rstrip("/")
    found = sorted(name for name in fs.find(inner) if name.endswith(".parquet"))
    names = [name[len(inner) + 1 :] for name in found if name.startswith(inner + "/")]
    readme = f"{inner}/README.md"
    front = read_front_matter(fs.cat_file(readme)) if fs.exists(readme) else {}
    hidden = "." if front.get("configs") else (".", "_")
    names = [name for name in names if not any(part.startswith(hidden) for part in name.split("/"))]
    if not names:
        raise ConfigError(f"{folder}: there is no Parquet file in it")
    chosen = config_files(front, names, config_names, place=folder)
    reading = _reading(_roots_of(None, image_root), image_root, on_error)

    def tables(name: str) -> Iterator[pa.Table]:
        with (
            _naming(f"{folder}/{name}"),
            fs.open(f"{inner}/{name}", "rb") as file,
            pq.ParquetFile(pa.PythonFile(file, mode="r")) as parquet,
        ):
            for batch in parquet.iter_batches(TABLE_ROWS):
                yield pa.Table.from_batches([batch])

    schemas = []
    for name in chosen:
        with _naming(f"{folder}/{name}"), fs.open(f"{inner}/{name}", "rb") as file:
            schemas.append(pq.read_schema(pa.PythonFile(file, mode="r")))
    for name, schema in zip(chosen, schemas, strict=True):
        if not schema.equals(schemas[0]):
            raise ConfigError(f"{folder}: {name} has other columns than {chosen[0]}: say which config")
    return Origin(
        identity={
            "parquet": [[name, *stat(f"{fs.unstrip_protocol(inner)}/{name}")] for name in chosen],
            "image_root": image_root,
        },
        parts=[
            _part(posixpath.join(folder, name), 0, lambda name=name: tables(name), reading)  # type: ignore[misc]
            for name in chosen
        ],
        layout=_layout(schemas[0]),
        places=[folder, *reading.roots.roots],
    )


@contextmanager
def _naming(place: str) -> Iterator[None]:
    """Errors while a file is read, as a SourceError that names it."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{place} cannot be read: {error}") from error


def _roots_of(info: Any, image_root: str | None) -> ImageRoots:
    """Where references may lead: what the caller says, or what our own builder noted."""
    if image_root is not None:
        return ImageRoots.of([image_root], is_only=True)
    if info is not None and info.builder_name == BUILDER_NAME:
        return ImageRoots.of_description(info.description or "")
    return ImageRoots((), is_only=True)


def _reading(roots: ImageRoots, image_root: str | None, on_error: str) -> _Reading:
    resolve = ImageResolver(image_root=image_root or "/", path_map={}, image_stores={})
    return _Reading(roots=roots, resolve=resolve, skips=on_error == "skip")


def _part(label: str, first_row: int, tables: Callable[[], Iterator[pa.Table]], reading: _Reading) -> Part:
    def read(tally: Tally) -> Iterator[pa.Table]:
        row = first_row
        for table in _without_system_errors(tables(), label):
            tally.rows += table.num_rows
            for piece in _pieces(table):
                yield _samples(piece, row, label, reading, tally)
                row += piece.num_rows

    return Part(label=label, entry="", roots=reading.roots, skips=reading.skips, read=read)


def _without_system_errors(tables: Iterator[pa.Table], label: str) -> Iterator[pa.Table]:
    """Errors of the network or disk while samples are read are not those of writing them."""
    try:
        yield from tables
    except OSError as error:
        raise SourceError(f"{label}: the samples cannot be read: {error}") from error


def _pieces(table: pa.Table) -> list[pa.Table]:
    """Tables of one chunk each. Images are copied for that only where each row is a chunk: in a shuffled dataset."""
    batches = table.to_batches()
    if len(batches) > MAX_PIECES:
        batches = table.combine_chunks().to_batches()
    return [pa.Table.from_batches([batch]) for batch in batches]


def _samples(table: pa.Table, first_row: int, label: str, reading: _Reading, tally: Tally) -> pa.Table:
    """The samples of a table in the spelling of this package; rows that are none are errors, or ledger lines."""
    wrong: dict[int, MixtureError] = {}
    for position in not_unicode(table):
        raise SchemaError(f"{label} row {first_row + position}: the text is no valid UTF-8", code="unicode")
    for i, field in enumerate(table.schema):
        array = one_array(table.column(i), may_be_slice=True)
        if field.name == "conversations":
            array, errors = with_plain_roles(array)
            wrong.update(errors)
        elif _holds_images(field):
            array, more = _images(array, field.name, reading)
            wrong.update(more)
        elif pa.types.is_dictionary(array.type):
            array = array.cast(array.type.value_type)
        table = table.set_column(i, field.name, array)
    table = table.append_column(ROW, pa.array(np.arange(first_row, first_row + table.num_rows)))
    for position in sorted(wrong):
        error = wrong[position]
        if not reading.skips:
            raise error.at(f"{label} row {first_row + position}") from error.__cause__
        tally.ledger.append(LedgerLine(label, first_row + position, None, error.code, error.message))
    if wrong:
        good = np.ones(table.num_rows, dtype=np.bool_)
        good[list(wrong)] = False
        table = table.filter(pa.array(good))
    tally.delivered += table.num_rows
    tally.samples += table.num_rows
    return table


def _images(array: pa.Array, column: str, reading: _Reading) -> tuple[pa.Array, dict[int, MixtureError]]:
    if isinstance(array, pa.ExtensionArray) or _is_pixels(array.type):
        return _pixels_to_images(array, column)
    kind = "many" if is_list_type(array.type) else "one"
    if kind == "many" and not isinstance(array, pa.ListArray):
        array = array.cast(pa.list_(array.type.value_type))
    if not reading.roots.roots and _has_references(array):
        raise ConfigError(
            f"column {column!r} holds references, and nobody says where images may be read: give image_root= "
            "(--image-root), the folder or URL that they are in"
        )
    if array.type in (IMAGE_TYPE, pa.list_(IMAGE_TYPE)) and not _has_references(array):
        return array, {}
    return images_from_arrow(array, kind, column, reading.resolve)


def _has_references(array: pa.Array) -> bool:
    items = flat_items(array)
    if pa.types.is_string(items.type) or pa.types.is_large_string(items.type):
        return bool(items.null_count < len(items))
    if not pa.types.is_struct(items.type):
        return False
    return bool(pc.any(pc.and_(items.is_valid(), items.field("bytes").is_null())).as_py())


def _holds_images(field: pa.Field) -> bool:
    kind = field.type.value_type if is_list_type(field.type) else field.type
    return field.name in IMAGE_COLUMNS or _is_image_struct(kind)


def _is_image_struct(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and {kind.field(i).name for i in range(kind.num_fields)} == {"bytes", "path"}


def _is_pixels(kind: pa.DataType) -> bool:
    depth = 0
    while is_list_type(kind):
        kind, depth = kind.value_type, depth + 1
    return depth >= 2 and pa.types.is_integer(kind)


def _pixels_to_images(array: pa.Array, column: str) -> tuple[pa.Array, dict[int, MixtureError]]:
    """Arrays of pixels (height × width, or height × width × channels) as PNG."""
    from PIL import Image

    wrong: dict[int, MixtureError] = {}
    values: list[dict[str, Any] | None] = []
    for i, pixels in enumerate(array.to_pylist()):
        values.append(None)
        if pixels is None:
            continue
        try:
            shape = np.asarray(pixels)
            if shape.dtype.kind not in "iu":
                raise ValueError("its values are no whole numbers")
            kind = np.uint16 if shape.ndim == 2 and shape.size and shape.max() > 255 else np.uint8
            if shape.size and (shape.min() < 0 or shape.max() > np.iinfo(kind).max):
                raise ValueError("values are not those of pixels")
            exact = shape.astype(kind)
            values[-1] = {
                "bytes": _png(Image.fromarray(exact.squeeze(2) if exact.shape[2:] == (1,) else exact)),
                "path": None,
            }
        except (ValueError, TypeError) as error:
            wrong[i] = ImageError(f"column {column!r} holds an array that is no picture: {error}", code="no_image")
    return pa.array(values, IMAGE_TYPE), wrong


def _png(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _layout(schema: pa.Schema) -> Layout:
    """The columns as a layout; a ConfigError where there are no conversations. A type that no mixture can declare is
    spelt as Arrow does.
    """
    names = [field.name for field in schema]
    if "conversations" not in names:
        raise ConfigError(
            f"the data has no column 'conversations', only {', '.join(names)}: these are no LLaVA samples"
        )
    kinds: dict[str, str] = {}
    for field in schema:
        if field.name in ("id", "data_source", "conversations"):
            kinds[field.name] = "turns" if field.name == "conversations" else "text"
        elif _holds_images(field):
            is_many = is_list_type(field.type) and not _is_pixels(field.type)
            kinds[field.name] = "many" if is_many else "one"
        else:
            kinds[field.name] = _spelling(field.type)
    return Layout(kinds)


def _spelling(kind: pa.DataType) -> str:
    if is_list_type(kind):
        return f"list<{_spelling(kind.value_type)}>"
    return {"float": "float32", "double": "float64", "large_string": "string"}.get(str(kind), str(kind))
