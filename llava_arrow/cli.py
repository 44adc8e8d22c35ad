"""The command line. Data goes to stdout (`--json` for machines), messages and progress to stderr; exit code 1 when
something is wrong.
"""

from __future__ import annotations

import io
import json
import os
from typing import Any, TypeVar

import click

from llava_arrow import __version__
from llava_arrow.cli_options import (
    cache_option,
    clear_progress,
    json_option,
    mixture_options,
    overrides_of,
    print_json,
    print_notes,
    print_report,
    show_progress,
    undeclared_keys,
)
from llava_arrow.cli_outputs import export, push
from llava_arrow.entry import Entry
from llava_arrow.errors import MixtureError
from llava_arrow.images import image_format
from llava_arrow.mixture import Mixture
from llava_arrow.overview import EntryCounts, count_entry, group_shares, preview_entry, validate_mixture
from llava_arrow.plan_cache import PlanCache

__all__ = ["main"]

Item = TypeVar("Item")
MAX_TEXT_CHARACTERS = 400


class _Commands(click.Group):
    """Errors of this package as one message, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except MixtureError as error:
            click.echo(f"{type(error).__name__}: {error.message}", err=True)
            ctx.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="llava-mixture")
def main() -> None:
    """Mixtures of LLaVA data: look at them, check them, build them.

    MIXTURE is a YAML file, or the name of one that comes with the package (default: default).
    """


@main.command()
@mixture_options
@json_option
def ls(mixture: str, as_json: bool, **options: Any) -> None:
    """List the configs of a mixture. Reads no data."""
    loaded = Mixture.load(mixture, **overrides_of(options))
    if as_json:
        print_json(loaded.config_names)
    else:
        click.echo("\n".join(loaded.config_names))


@main.command()
@mixture_options
@cache_option
@json_option
def validate(mixture: str, cache_dir: str | None, as_json: bool, **options: Any) -> None:
    """Check the file, all data files and their columns; say everything that is wrong at once."""
    cache = PlanCache(cache_dir)
    loaded = validate_mixture(mixture, cache=cache, progress=show_progress("checking"), **overrides_of(options))
    clear_progress()
    if as_json:
        print_json({"path": loaded.path, "entries": len(loaded.entries), "notes": loaded.notes})
        return
    print_notes(loaded)
    num_entries = "1 entry" if len(loaded.entries) == 1 else f"{len(loaded.entries)} entries"
    click.echo(f"{loaded.path}: {num_entries}, no mistakes")


@main.command()
@mixture_options
@cache_option
@json_option
def info(mixture: str, cache_dir: str | None, as_json: bool, **options: Any) -> None:
    """Show the tree: groups, entries, rows, rows after filters and sampling, share of the mixture, preprocess
    function.
    """
    overrides = overrides_of(options)
    loaded = Mixture.load(mixture, **overrides)
    cache = PlanCache(cache_dir)
    show = show_progress("counting")
    counts: dict[str, EntryCounts] = {}
    for entry in loaded.entries:
        show(entry.config_name)
        counts[entry.config_name] = count_entry(entry, cache=cache)
    clear_progress()
    shares = group_shares(loaded, counts)
    reports = {e.config_name: _report_if_built(loaded, e, cache_dir) for e in loaded.entries}
    if as_json:
        print_json({"path": loaded.path, "seed": loaded.seed, "entries": [
            _entry_as_json(loaded, counts[e.config_name], shares[e.config_name], reports[e.config_name])
            for e in loaded.entries
        ]})  # fmt: skip
        return
    print_notes(loaded)
    click.echo(render_tree(loaded, counts, shares, reports))


def render_tree(
    mixture: Mixture, counts: dict[str, EntryCounts], shares: dict[str, float], reports: dict[str, Any]
) -> str:
    """The tree that `info` prints."""
    lines = [f"{mixture.path or 'mixture'}: {len(mixture.entries)} entries, seed {mixture.seed}"]
    for is_last_group, (group, entries) in _with_last(list(mixture.groups.items())):
        share = sum(shares[entry.config_name] for entry in entries)
        factor = mixture.batch_sizes.get(group, 1)
        facts = f"weight {mixture.weight(group):g}, {share:.1%}, batch size factor {factor:g}"
        lines.append(f"{'└─' if is_last_group else '├─'} group {group}: {facts}")
        margin = "   " if is_last_group else "│  "
        for is_last, entry in _with_last(list(entries)):
            name = entry.config_name
            lines.append(f"{margin}{'└─' if is_last else '├─'} {name}  ({shares[name]:.1%})")
            facts_margin = margin + ("   " if is_last else "│  ")
            lines += [facts_margin + fact for fact in _entry_facts(counts[name], reports.get(name))]
    return "\n".join(lines)


def _with_last(items: list[Item]) -> list[tuple[bool, Item]]:
    return [(i == len(items) - 1, item) for i, item in enumerate(items)]


def _entry_facts(count: EntryCounts, report: dict[str, Any] | None) -> list[str]:
    entry = count.entry
    removed = ", ".join(f"{name} −{n:,}" for name, n in count.tally.filtered.items())
    facts = [
        f"files    {count.num_files}: {', '.join(entry.json_path)}",
        f"rows     {count.tally.rows:,} → {count.num_passed:,} after filters ({removed or 'no filter removed any'})",
        f"samples  {count.num_samples:,} ({entry.sampling_strategy})",
        f"becomes  {_describe_preprocess(entry)}",
    ]
    if report is not None:
        facts.append(
            f"built    {report['delivered']:,} rows delivered, {report['repaired']:,} samples repaired, "
            f"{report['trimmed']:,} turns trimmed, {report['ledger']:,} rows in the ledger{undeclared_keys(report)}"
        )
    return facts


def _describe_preprocess(entry: Entry) -> str:
    if entry.preprocess is None:
        return "a sample as it is"
    options = ", ".join(f"{name}={value!r}" for name, value in entry.preprocess.options.items())
    return f"{entry.preprocess.name}({options})"


def _entry_as_json(
    mixture: Mixture, count: EntryCounts, share: float, report: dict[str, Any] | None
) -> dict[str, Any]:
    entry = count.entry
    return {
        "config_name": entry.config_name,
        "data_source": entry.name,
        "group": entry.length_group,
        "weight": mixture.weight(entry.length_group),
        "share": share,
        "files": list(entry.json_path),
        "rows": count.tally.rows,
        "filtered": dict(count.tally.filtered),
        "after_filters": count.num_passed,
        "after_sampling": count.num_kept,
        "samples": count.num_samples,
        "sampling_strategy": str(entry.sampling_strategy),
        "preprocess_fn": None if entry.preprocess is None else entry.preprocess.name,
        "process_fn_kwargs": {} if entry.preprocess is None else entry.preprocess.options,
        "built": report,
    }


def _report_if_built(mixture: Mixture, entry: Entry, cache_dir: str | None) -> dict[str, Any] | None:
    builder = _builder(mixture, entry.config_name, cache_dir)
    if not os.path.exists(os.path.join(builder.cache_dir, "report.json")):
        return None
    report: dict[str, Any] = builder.report()[entry.config_name]
    return report


def _builder(mixture: Mixture, config_name: str, cache_dir: str | None, **arguments: Any) -> Any:
    import llava_mixture  # importing `datasets` takes a second, which `ls` and `validate` need not wait for

    return llava_mixture.LlavaMixture(config_name=config_name, mixture=mixture, cache_dir=cache_dir, **arguments)


@main.command()
@mixture_options
@click.argument("config_name", required=False)
@click.option("-n", "num_rows", default=1, show_default=True, type=click.IntRange(min=1), help="Rows per entry.")
@cache_option
@json_option
def preview(
    mixture: str, config_name: str | None, num_rows: int, cache_dir: str | None, as_json: bool, **options: Any
) -> None:
    """Show the first rows of a config (default: of each entry) and the samples they become."""
    loaded = Mixture.load(mixture, **overrides_of(options))
    entries = loaded.entries if config_name is None else loaded.select(config_name)
    cache = PlanCache(cache_dir)
    pairs = {e.config_name: preview_entry(loaded, e.config_name, num_rows, cache=cache) for e in entries}
    if as_json:
        print_json({
            name: [{"row": _shown(row), "samples": _shown(samples)} for row, samples in found]
            for name, found in pairs.items()
        })  # fmt: skip
        return
    for name, found in pairs.items():
        for row, samples in found:
            click.echo(f"── {name}: row")
            _print_mapping(row)
            for sample in samples:
                click.echo(f"── {name}: sample")
                _print_mapping(sample)
        click.echo()


def _print_mapping(values: dict[str, Any]) -> None:
    width = max(map(len, values), default=0)
    for key, value in values.items():
        shown = _shown(value)
        if key == "conversations" and isinstance(shown, list):
            click.echo(f"{key}:")
            for turn in shown:
                text = str(turn.get("value", turn.get("content"))).replace("\n", "\n    ")
                click.echo(f"  {turn.get('from', turn.get('role'))}: {text}")
        else:
            text = shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False)
            click.echo(f"{key:<{width}}  {text}")


def _shown(value: Any) -> Any:
    """A value as it is shown: images by name, size and format; long texts shortened."""
    if isinstance(value, dict) and set(value) == {"bytes", "path"}:
        return describe_image(value["bytes"], value["path"])
    if isinstance(value, dict):
        return {key: _shown(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shown(item) for item in value]
    if isinstance(value, (bytes, bytearray)):
        return describe_image(bytes(value), None)
    if isinstance(value, str) and len(value) > MAX_TEXT_CHARACTERS:
        return f"{value[:MAX_TEXT_CHARACTERS]}… ({len(value):,} characters)"
    return value


def describe_image(data: bytes | None, path: str | None) -> str:
    """`<photos/cat.jpg: JPEG, 451 × 300>`; what cannot be opened from here is named with its path only."""
    from PIL import Image

    name = path or "no path"
    if data is None:
        if path is None or not os.path.isabs(path):
            return f"<{name}>"
        if not os.path.isfile(path):
            return f"<{name}: does not exist>"
    try:
        with Image.open(io.BytesIO(data) if data is not None else str(path)) as image:
            return f"<{name}: {image.format}, {image.width} × {image.height}>"
    except (OSError, ValueError):
        return f"<{name}: {image_format(data or b'') or 'no image'}>"


@main.command()
@mixture_options
@click.argument("config_names", nargs=-1)
@click.option("--num-proc", type=click.IntRange(min=1), help="Processes.")
@click.option("--num-shards", type=click.IntRange(min=1), help="Into how many shards the data is cut.")
@click.option("--image-columns", type=click.Choice(["list"]), help="Make every image column a list.")
@click.option("--embed-images", is_flag=True, help="Put image bytes into the dataset.")
@cache_option
@json_option
def build(
    mixture: str,
    config_names: tuple[str, ...],
    num_proc: int | None,
    num_shards: int | None,
    image_columns: str | None,
    embed_images: bool,
    cache_dir: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Build configs (default: every entry) into the cache of `datasets`, and say what became of the rows."""
    loaded = Mixture.load(mixture, **overrides_of(options))
    print_notes(loaded)
    names = config_names or tuple(entry.config_name for entry in loaded.entries)
    for name in names:
        loaded.select(name)
    result = {}
    for name in names:
        arguments = {"num_shards": num_shards, "image_columns": image_columns, "embed_images": embed_images}
        builder = _builder(loaded, name, cache_dir, **arguments)
        builder.download_and_prepare(num_proc=num_proc)
        result[name] = {"cache_dir": builder.cache_dir, "report": builder.report()}
        if not as_json:
            click.echo(f"{name}: {builder.cache_dir}")
            print_report(builder.report())
    if as_json:
        print_json(result)


main.add_command(export)
main.add_command(push)
