"""The mixture file beside a raw export: it restores the entries, and the column types that JSON does not keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from llava_arrow.column_types import IMAGE_COLUMNS, Layout, parse_column_type
from llava_arrow.errors import ConfigError
from llava_arrow.ledger import Tally
from llava_arrow.mixture import MIXTURE_CONFIG
from llava_arrow.outputs.origins import Origin

__all__ = ["MAX_DATA_SOURCES", "PartSummary", "new_mixture"]

MAX_DATA_SOURCES = 1_000
"""More, and they are no names of datasets: one entry holds them all."""
MAX_LISTED = 100
"""Data sources that one entry of the new mixture names."""
MARK = "entry"
"""The key that says a record's entry, where its data source does not (with more letters, where that is a column)."""


@dataclass
class PartSummary:
    """What became of a part of an export: counts, and the data sources of its samples in order of appearance."""

    entry: str
    tally: Tally = field(default_factory=Tally)
    num_samples: int = 0
    num_images_written: int = 0
    sources: dict[str | None, None] = field(default_factory=dict)

    def note_source(self, data_source: str | None) -> None:
        """The data source of a sample; of more than `MAX_DATA_SOURCES`, no further ones are listed."""
        if len(self.sources) <= MAX_DATA_SOURCES:
            self.sources[data_source] = None


def new_mixture(
    origin: Origin, summaries: Sequence[PartSummary], *, json_name: str, image_dir: str
) -> tuple[str, str | None]:
    """The text of `mixture.yaml`, and the key under which each record must say its entry, None where it need not.

    Where every entry has a data source of its own, that tells its records from the others'.
    """
    common = {"json_path": json_name, "image_root": image_dir}
    entries: list[dict[str, Any]] = []
    mark: str | None = None
    if origin.entries:
        filled = [e for e in origin.entries if any(s.entry == e.name and s.num_samples for s in summaries)]
        owned = [dict.fromkeys(x for s in summaries if s.entry == e.name for x in s.sources) for e in filled]
        if len(filled) > 1 and not _tell_apart(owned):
            mark = MARK
            while any(mark in entry.layout.kinds for entry in filled):
                mark += "_"
        for entry, found in zip(filled, owned, strict=True):
            texts = list(found)
            where: dict[str, Any] = {"data_source": texts[0] if len(texts) == 1 else texts}
            if mark is not None:
                where = {mark: entry.name}
            item: dict[str, Any] = {"name": entry.name, **common, **({"where": where} if len(filled) > 1 else {})}
            entries.append({**item, "features": _features(entry.layout), **entry.settings})
    else:
        sources: dict[str | None, None] = {}
        for summary in summaries:
            sources.update(summary.sources)
        is_told = None not in sources and MIXTURE_CONFIG not in sources and 1 < len(sources) <= MAX_DATA_SOURCES
        only = next(iter(sources)) if len(sources) == 1 else None
        for source in sources if is_told else [only if only not in (None, MIXTURE_CONFIG) else "data"]:
            item = {"name": source or "data", **common, **({"where": {"data_source": source}} if is_told else {})}
            entries.append({**item, "features": _features(origin.layout), "placeholders": "off"})
    head = (
        f'# The samples of {json_name} as a mixture: load_dataset("llava_mixture", …, mixture="mixture.yaml").\n'
        "# `features` restores the column types that JSON does not keep.\n"
    )
    top = {key: value for key, value in origin.top.items() if value not in (None, {})}
    # Escaped: of some characters beyond ASCII, YAML would make line breaks.
    return head + yaml.safe_dump({**top, "datasets": entries}, sort_keys=False, width=1000), mark


def _tell_apart(owned: Sequence[Mapping[str | None, None]]) -> bool:
    """Whether no data source is that of two entries, and none of them has more than a file can list."""
    everything = [name for found in owned for name in found]
    return len(set(everything)) == len(everything) and all(len(found) <= MAX_LISTED for found in owned)


def _features(layout: Layout) -> dict[str, str]:
    """The declared columns, as far as a mixture can declare them."""
    declared = {} if "image" in layout.kinds else {"image": "none"}
    for column, kind in layout.declared.items():
        if column in IMAGE_COLUMNS:
            declared[column] = kind
        elif kind not in ("one", "many"):
            try:
                parse_column_type(kind)
                declared[column] = kind
            except ConfigError:
                continue  # its values are in the JSON all the same
    return declared
