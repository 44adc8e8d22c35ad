"""What the commands share: options that change what a mixture means, and how results and progress are shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from llava_arrow.mixture import Mixture

__all__ = [
    "clear_progress",
    "mixture_options",
    "overrides_of",
    "print_json",
    "print_notes",
    "print_report",
    "show_progress",
    "undeclared_keys",
]

Command = TypeVar("Command", bound=Callable[..., Any])


def mixture_options(command: Command) -> Command:
    """The builder arguments that change what a mixture means."""
    decorators = [
        click.argument("mixture", default="default"),
        click.option("--image-root", help="What relative image paths are joined to; wins over the entries."),
        click.option("--seed", type=int, help="Seed of sampling and of random preprocess functions."),
        click.option("--on-error", type=click.Choice(["raise", "skip"]), help="Wins over the entries."),
        click.option("--path-map", multiple=True, metavar="OLD=NEW", help="Replace a path prefix; may be repeated."),
        click.option("--trust-custom-code", is_flag=True, help="Allow preprocess_fn: package.module:function."),
    ]
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


def overrides_of(options: dict[str, Any]) -> dict[str, Any]:
    """Options of `mixture_options` as builder arguments."""
    pairs = [text.partition("=") for text in options.pop("path_map")]
    for old, equals, new in pairs:
        if not old or not equals:
            raise click.BadParameter(f"--path-map takes OLD=NEW, got {old + equals + new!r}")
    options["path_map"] = {old: new for old, _, new in pairs} or None
    options["trust_custom_code"] = options["trust_custom_code"] or None
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: the user's own preprocess functions are importable
    return options


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
cache_option = click.option("--cache-dir", help="Cache of datasets; default: HF_DATASETS_CACHE.")


def print_json(value: Any) -> None:
    """A result for machines."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_notes(mixture: Mixture) -> None:
    """What is odd about the file, but no mistake."""
    for note in mixture.notes:
        click.echo(f"note: {note}", err=True)


def print_report(report: Mapping[str, Mapping[str, Any]]) -> None:
    """A line per entry: what became of its rows."""
    for name, counts in report.items():
        filtered = "".join(f", {filter_name} −{n:,}" for filter_name, n in counts["filtered"].items())
        click.echo(
            f"  {name}: {counts['rows']:,} rows{filtered}, not sampled {counts['not_sampled']:,}, "
            f"delivered {counts['delivered']:,} as {counts['samples']:,} samples, "
            f"ledger {counts['ledger']:,}{undeclared_keys(counts)}"
        )


def undeclared_keys(report: Mapping[str, Any]) -> str:
    """The end of a report's line: keys that nobody asked for."""
    keys = ", ".join(f"{name} ({count:,})" for name, count in report["undeclared"].items())
    return f"; keys neither declared nor kept: {keys}" if keys else ""


def show_progress(verb: str) -> Callable[[str], None]:
    """Show what is being worked on, on a terminal."""

    def show(name: str) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r\x1b[K{verb} {name} …", nl=False, err=True)

    return show


def clear_progress() -> None:
    """Leave no trace of progress on the terminal."""
    if sys.stderr.isatty():
        click.echo("\r\x1b[K", nl=False, err=True)
