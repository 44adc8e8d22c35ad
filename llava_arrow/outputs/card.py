"""README.md of a Parquet folder or a Hub repository, from the template `dataset_card.md`.

What entries, rows and files say is data: it is written so that it stays text, whatever it holds.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import statistics
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from llava_arrow.column_types import Layout
from llava_arrow.config_data import ConfigData
from llava_arrow.entry import Entry
from llava_arrow.ledger import Tally
from llava_arrow.mixture import MIXTURE_CONFIG, Mixture
from llava_arrow.outputs.front_matter import with_front_matter
from llava_arrow.outputs.licenses import hub_license
from llava_arrow.outputs.parquet import ImageStats, PartRecord, yaml_features

__all__ = ["CardConfig", "card_digest", "card_text", "front_matter_of", "template_path"]

MAX_TEXT = 160
MAX_PREVIEWED_CONFIGS = 12
MAX_LEDGER_CODES = 20
_PLACEHOLDER = re.compile(r"\{\{ (\w+) \}\}")
_SECRETS = re.compile(r"(?<=://)[^/\s\"']*@|hf_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16}")
_QUERY = re.compile(r"(://[^\s\"'?]*)\?[^\s\"',}\]]+")
"""Of a URL, which is where signed links carry their signature."""
_INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode categories of characters that break lines or turn their direction."""


def card_digest(mixture: Mixture, entries: Sequence[Entry]) -> str:
    """16 hex digits over what a card says beyond the samples."""
    said = [(e.license, e.source, e.length_group, mixture.weight(e.length_group)) for e in entries]
    template = template_path().read_text(encoding="utf-8")
    text = repr((said, dict(mixture.batch_sizes), mixture_yaml(mixture), template))
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def template_path() -> Path:
    """`dataset_card.md`: inside the package when installed, beside it in a checkout."""
    inside = Path(__file__).parent.parent / "dataset_card.md"
    return inside if inside.is_file() else Path(__file__).parent.parent.parent / "dataset_card.md"


@dataclass(frozen=True, kw_only=True)
class CardConfig:
    """What the card says of one config. `pattern` matches its files."""

    name: str
    entries: tuple[Entry, ...]
    layout: Layout
    tallies: Mapping[str, Tally]
    images: Mapping[str, ImageStats]
    preview: Sequence[Mapping[str, Any]]
    num_samples: int
    arrow_bytes: int
    file_bytes: int
    pattern: str

    @classmethod
    def of(
        cls, data: ConfigData, records: Sequence[PartRecord], tallies: Mapping[str, Tally], *, pattern: str
    ) -> CardConfig:
        """The sum of the records of a config's parts."""
        images = {column: ImageStats() for column in data.layout.image_columns}
        for record in records:
            for column, stats in record.images.items():
                images[column].add(stats)
        return cls(
            name=data.config_name,
            entries=data.entries,
            layout=data.layout,
            tallies=tallies,
            images=images,
            preview=next((record.preview for record in records if record.preview), []),
            num_samples=sum(file.num_rows for record in records for file in record.files),
            arrow_bytes=sum(record.arrow_bytes for record in records),
            file_bytes=sum(file.num_bytes for record in records for file in record.files),
            pattern=pattern,
        )


def front_matter_of(configs: Sequence[CardConfig], *, title: str) -> dict[str, Any]:
    """What the Hub and `datasets` read of the card: licence, tasks, size, configs and their features."""
    num_samples = sum(config.num_samples for config in _without_repeats(configs))
    entries = [entry for config in configs for entry in config.entries]
    return {
        **hub_license([entry.license for entry in entries]),
        "task_categories": _tasks(configs),
        "pretty_name": title,
        "size_categories": [_size_category(num_samples)],
        "tags": ["llava", "multimodal", "llava-mixture"],
        "configs": [
            {"config_name": config.name, "data_files": [{"split": "train", "path": config.pattern}]}
            for config in configs
        ],
        "dataset_info": [dataset_info(config) for config in configs],
    }


def _without_repeats(configs: Sequence[CardConfig]) -> Sequence[CardConfig]:
    """The configs that hold each sample once: all entries together, or each by itself."""
    return [config for config in configs if config.name == MIXTURE_CONFIG] or configs


def dataset_info(config: CardConfig) -> dict[str, Any]:
    """Features and sizes of a config; `datasets` compares `num_examples` with what it finds."""
    size = {"num_bytes": config.arrow_bytes, "num_examples": config.num_samples}
    return {
        "config_name": config.name,
        "features": yaml_features(config.layout),
        "splits": [{"name": "train", **size}],
        "download_size": config.file_bytes,
        "dataset_size": config.arrow_bytes,
    }


def _tasks(configs: Sequence[CardConfig]) -> list[str]:
    columns = {column for config in configs for column in config.layout.image_columns}
    by_column = {"image": "image-text-to-text", "image_gen": "text-to-image", "image_gen_enc": "image-to-image"}
    return [task for column, task in by_column.items() if column in columns] or ["text-generation"]


def _size_category(num_samples: int) -> str:
    """The Hub's word for a number of samples."""
    bounds = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M")]
    bounds += [(10**8, "10M<n<100M"), (10**9, "100M<n<1B"), (10**10, "1B<n<10B"), (10**11, "10B<n<100B")]
    return next((word for bound, word in bounds if num_samples < bound), "100B<n<1T")


def card_text(mixture: Mixture, configs: Sequence[CardConfig], *, location: str | None) -> str:
    """The whole README.md.

    Args:
        location: the repository's name; None for a folder.
    """
    title = f"{Path(mixture.path).stem} (llava-mixture)" if mixture.path else "A mixture of LLaVA data"
    counted = _without_repeats(configs)
    num_samples = sum(config.num_samples for config in counted)
    num_images = sum(stats.count for config in counted for stats in config.images.values())
    shown = _without_controls(mixture_yaml(mixture))
    values = {
        "title": _line(title),
        "summary": (
            f"{num_samples:,} samples with {num_images:,} images in {len(configs)} "
            f"{'config' if len(configs) == 1 else 'configs'}, made from one mixture file by "
            "[llava-mixture](https://pypi.org/project/llava-mixture)."
        ),
        "configs": "\n".join(_config_row(config, mixture) for config in configs),
        "location": _quoted(location or "path/to/this/folder"),
        "location_shell": shlex.quote(f"hf://datasets/{location}" if location else "path/to/this/folder"),
        "config_shell": _without_controls(shlex.quote(configs[0].name)).replace("```", ""),
        "first_config": _quoted(configs[0].name),
        "preview": "\n\n".join(_preview(config, mixture) for config in configs[:MAX_PREVIEWED_CONFIGS]),
        "entries": "\n".join(_entry_item(entry, mixture) for entry in _distinct_entries(configs)),
        "account": "\n".join(_account_rows(configs)),
        "ledger": _ledger(configs),
        "images": "\n".join(_image_rows(configs)) or "| none | | | | | |",
        "groups": _groups(mixture, configs),
        "mixture": shown,
        "fence": "`" * max(3, 1 + max((len(run) for run in re.findall("`+", shown)), default=0)),
    }
    template = template_path().read_text(encoding="utf-8")
    text = _PLACEHOLDER.sub(lambda match: values[match[1]], template)
    return with_front_matter(front_matter_of(configs, title=title), text)


def mixture_yaml(mixture: Mixture) -> str:
    """The mixture as its file has it, passwords and tokens left out."""
    text = ""
    if mixture.path:
        try:
            text = Path(mixture.path).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError):
            text = ""
    if not text and mixture.raw:
        text = yaml.safe_dump(dict(mixture.raw), sort_keys=False, allow_unicode=True, width=1000)
    return _public(text or "# made in Python, not from a file\n", mixture).rstrip()


def _public(text: str, mixture: Mixture) -> str:
    """Text without passwords, tokens, and the folders of whoever made this."""
    for folder, name in ((mixture.base_dir, "."), (os.path.expanduser("~"), "~")):
        if len(folder) > 1:  # as a path of its own, not as a part of another one
            text = re.sub(rf"(?<![\w/:.~-]){re.escape(folder)}(?=[/\s\"',;)\]}}]|$)", name, text)
    return _QUERY.sub(r"\1?…", _SECRETS.sub("…", text))


def _quoted(text: str) -> str:
    """Text between quotes that stand in the template."""
    return json.dumps(text, ensure_ascii=False)[1:-1].replace("```", "")


def _without_controls(text: str) -> str:
    """Text for a code block, without characters that only turn what is shown."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in _INVISIBLE)


def _line(value: Any, max_characters: int = MAX_TEXT) -> str:
    """One line of text in which nothing is markup, short enough for a table."""
    text = _visible(value)
    text = text if len(text) <= max_characters else text[:max_characters] + " …"
    for mark, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(mark, entity)
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", text)


def _code(value: Any) -> str:
    """A name as code, in a table too."""
    return "`" + _visible(value).replace("`", "'").replace("|", "\\|") + "`"


def _visible(value: Any) -> str:
    """A text on one line, each character of which can be seen."""
    text = " ".join(str(value).split())
    return "".join(c for c in text if unicodedata.category(c) not in _INVISIBLE)


def _distinct_entries(configs: Sequence[CardConfig]) -> list[Entry]:
    return list({entry.config_name: entry for config in configs for entry in config.entries}.values())


def _joined(values: Sequence[str | None], mixture: Mixture) -> str:
    return _line(_public(", ".join(dict.fromkeys(value for value in values if value)), mixture)) or "not given"


def _config_row(config: CardConfig, mixture: Mixture) -> str:
    num_images = sum(stats.count for stats in config.images.values())
    num_bytes = sum(stats.num_bytes for stats in config.images.values())
    groups = ", ".join(_code(group) for group in dict.fromkeys(entry.length_group for entry in config.entries))
    licences = _joined([entry.license for entry in config.entries], mixture)
    sources = _joined([entry.source for entry in config.entries], mixture)
    return (
        f"| {_code(config.name)} | {config.num_samples:,} | {num_images:,} | {num_bytes:,} | {groups} | {licences} "
        f"| {sources} |"
    )


def _entry_item(entry: Entry, mixture: Mixture) -> str:
    facts = [f"sampling {_code(entry.sampling_strategy)}"]
    if entry.preprocess is not None:
        options = ", ".join(f"{name}={value!r}" for name, value in entry.preprocess.options.items())
        facts.append(f"made by {_code(_public(f'{entry.preprocess.name}({options})', mixture))}")
    else:
        facts.append("rows that are samples already")
    facts += [f"licence: {_line(_public(entry.license, mixture))}"] if entry.license else []
    facts += [f"source: {_line(_public(entry.source, mixture))}"] if entry.source else []
    return f"- {_code(entry.config_name)}: {', '.join(facts)}"


def _account_rows(configs: Sequence[CardConfig]) -> list[str]:
    rows: dict[str, str] = {}
    for config in configs:
        for name, tally in config.tallies.items():
            filtered = ", ".join(f"{_code(key)} {count:,}" for key, count in sorted(tally.filtered.items())) or "0"
            counts = (
                tally.not_sampled,
                tally.delivered,
                tally.samples,
                tally.repaired,
                tally.trimmed,
                len(tally.ledger),
            )
            numbers = " | ".join(f"{count:,}" for count in counts)
            rows[name] = f"| {_code(name)} | {tally.rows:,} | {filtered} | {numbers} |"
    return list(rows.values())


def _ledger(configs: Sequence[CardConfig]) -> str:
    """Counts per reason; the lines themselves name files of whoever made this, and stay there."""
    by_entry = {name: tally.ledger for config in configs for name, tally in config.tallies.items()}
    counts = Counter((name, line.code) for name, lines in by_entry.items() for line in lines)
    if not counts:
        return "No row was left out because something was wrong with it."
    rows = [f"| {_code(name)} | {_code(code)} | {n:,} |" for (name, code), n in counts.most_common(MAX_LEDGER_CODES)]
    return "\n".join(["| entry | reason | rows left out |", "| --- | --- | --- |", *rows])


def _image_rows(configs: Sequence[CardConfig]) -> list[str]:
    rows = []
    for config in configs:
        for column, stats in config.images.items():
            formats = ", ".join(f"{name} {count:,}" for name, count in sorted(stats.formats.items())) or "none"
            mean = f"{stats.num_bytes // stats.count:,}" if stats.count else "0"
            rows.append(
                f"| {_code(config.name)} | {_code(column)} | {stats.count:,} | {mean} | {formats} | {_sides(stats)} |"
            )
    return rows


def _sides(stats: ImageStats) -> str:
    if not stats.sides:
        return "unknown"
    widths, heights = zip(*stats.sides, strict=True)
    median = f"{statistics.median_low(widths)} × {statistics.median_low(heights)}"
    span = f"{min(widths)} – {max(widths)} × {min(heights)} – {max(heights)}"
    return f"{span}, median {median} (of {len(widths):,})"


def _groups(mixture: Mixture, configs: Sequence[CardConfig]) -> str:
    present = {entry.length_group for config in configs for entry in config.entries}
    rows = ["| group | weight | batch size factor | entries |", "| --- | --- | --- | --- |"]
    for group, entries in mixture.groups.items():
        if group in present:
            names = ", ".join(_code(entry.config_name) for entry in entries)
            factor = mixture.batch_sizes.get(group, 1)
            rows.append(f"| {_code(group)} | {mixture.weight(group):g} | {factor:g} | {names} |")
    return "\n".join(rows)


def _preview(config: CardConfig, mixture: Mixture) -> str:
    columns = [
        column for column in config.layout.image_columns if any(sample.get(column) for sample in config.preview)
    ]
    head = ["id", *columns, "first turn", "answer"]
    lines = [f"{_code(config.name)}", "", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for sample in config.preview:
        turns = [turn for turn in sample["conversations"] if turn["from"] != "system"]
        cells = [_line(sample["id"], 60)]
        for column in columns:
            images = sample.get(column)
            cells.append(_line(", ".join(images) if isinstance(images, list) else images or ""))
        texts = [_line(_public(turn["value"], mixture)) for turn in turns[:2]]
        cells += [*texts, *[""] * (2 - len(texts))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
