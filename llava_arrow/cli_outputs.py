"""The commands that write a mixture somewhere else: `export` and `push`."""

from __future__ import annotations

import os
import re
import shlex
from typing import Any

import click

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
)
from llava_arrow.mixture import Mixture
from llava_arrow.outputs.dataset_origin import is_parquet_folder
from llava_arrow.outputs.folder import export_parquet
from llava_arrow.outputs.hub import push_to_hub
from llava_arrow.outputs.raw import export_raw

__all__ = ["export", "push"]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class _Bytes(click.ParamType):  # type: ignore[type-arg] # generic in new versions of click only
    """A number of bytes: `500MB`, `1GiB`, `250000000`."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(value).strip())
        if found is None or found[2].upper() not in _UNITS:
            self.fail(f"{value!r} is no size: say 500MB, 1GiB or a number of bytes", param, ctx)
        return int(float(found[1]) * _UNITS[found[2].upper()])


_size_option = click.option(
    "--max-shard-bytes", type=_Bytes(), default="500MB", show_default=True, help="Largest Parquet file."
)
_list_option = click.option("--image-columns", type=click.Choice(["list"]), help="Make every image column a list.")
_processes_option = click.option("--num-proc", type=click.IntRange(min=1), help="Processes.")


@click.command()
@mixture_options
@click.argument("out_dir")
@click.argument("config_names", nargs=-1)
@click.option("--format", "layout", type=click.Choice(["raw", "parquet"]), required=True, help="What to write.")
@_processes_option
@click.option("--overwrite", is_flag=True, help="Replace what an earlier export wrote into OUT_DIR.")
@_size_option
@_list_option
@click.option("--json-name", default="data.json", show_default=True, help="raw: the file of records.")
@click.option("--jsonl", is_flag=True, help="raw: one record per line.")
@click.option("--image-dir", default="images", show_default=True, help="raw: the folder of images.")
@click.option("--by-bytes", is_flag=True, help="raw: images with equal bytes become one file.")
@cache_option
@json_option
def export(
    mixture: str,
    out_dir: str,
    config_names: tuple[str, ...],
    layout: str,
    num_proc: int | None,
    overwrite: bool,
    max_shard_bytes: int,
    image_columns: str | None,
    json_name: str,
    jsonl: bool,
    image_dir: str,
    by_bytes: bool,
    cache_dir: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Write configs (default: every entry) to OUT_DIR: the raw LLaVA json and image folder, or Parquet with a card.

    With --format raw, MIXTURE may also be a folder or URL of Parquet files (hf://datasets/user/repo).
    """
    names = list(config_names) or None
    common: dict[str, Any] = {
        "config_names": names, "num_proc": num_proc, "overwrite": overwrite, "cache_dir": cache_dir,
        "progress": show_progress("writing"),
    }  # fmt: skip
    _refuse(("json_name", "jsonl", "image_dir", "by_bytes"), layout == "parquet", "is for --format raw")
    _refuse(("max_shard_bytes", "image_columns"), layout == "raw", "is for --format parquet")
    if layout == "raw":
        is_folder = is_parquet_folder(mixture)
        _refuse(
            ("seed", "path_map", "trust_custom_code"), is_folder, "is for mixtures, and this is a folder of samples"
        )
        source = mixture if is_folder else _load(mixture, options)
        image_root = options["image_root"] if is_folder else None
        on_error = options["on_error"] or "raise"
        done = export_raw(
            source, out_dir, json_name=json_name, jsonl=jsonl, image_dir=image_dir, by_bytes=by_bytes,
            image_root=image_root, on_error=on_error, **common,
        )  # fmt: skip
        clear_progress()
        if as_json:
            counts = {"num_samples": done.num_samples, "num_images_written": done.num_images_written}
            print_json({"json_path": done.json_path, **counts, "report": done.report})
            return
        click.echo(
            f"{done.json_path}: {done.num_samples:,} samples{' (complete already)' if done.was_complete else ''}"
        )
        print_report(done.report)
        _hint(f"llava-mixture build {shlex.quote(os.path.join(done.out_dir, 'mixture.yaml'))}")
        return
    loaded = _load(mixture, options)
    written = export_parquet(loaded, out_dir, max_shard_bytes=max_shard_bytes, image_columns=image_columns, **common)
    clear_progress()
    if as_json:
        print_json({"out_dir": written.out_dir, "files": written.files, "report": written.report})
        return
    for name, files in written.files.items():
        count = "1 file" if len(files) == 1 else f"{len(files):,} files"
        click.echo(f"{name}: {count} in {written.out_dir}{' (complete already)' if written.was_complete else ''}")
        print_report(written.report[name])
    first = next(iter(written.files))
    _hint(f'datasets.load_dataset("{written.out_dir}", "{first}", split="train")')


def _refuse(options: tuple[str, ...], is_out_of_place: bool, reason: str) -> None:
    """A usage error for an option that somebody gave and that would do nothing."""
    context = click.get_current_context()
    for option in options if is_out_of_place else ():
        if context.get_parameter_source(option) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{option.replace('_', '-')} {reason}")


def _load(mixture: str, options: dict[str, Any]) -> Mixture:
    loaded = Mixture.load(mixture, **overrides_of(options))
    print_notes(loaded)
    return loaded


def _hint(command: str) -> None:
    """What to do next."""
    click.echo(f"next: {command}", err=True)


@click.command()
@mixture_options
@click.argument("repo_id")
@click.argument("config_names", nargs=-1)
@click.option("--private", is_flag=True, help="Make a new repository private; refuse one that is public.")
@click.option("--revision", help="A branch; made where it does not exist.")
@click.option("--create-pr", is_flag=True, help="Open a pull request.")
@click.option("--message", help="Of the commit.")
@click.option("--dry-run", is_flag=True, help="Say what would be sent, and send nothing.")
@click.option("--force", is_flag=True, help="Send everything anew: images have changed.")
@_processes_option
@_size_option
@_list_option
@cache_option
@json_option
def push(
    mixture: str,
    repo_id: str,
    config_names: tuple[str, ...],
    private: bool,
    revision: str | None,
    create_pr: bool,
    message: str | None,
    dry_run: bool,
    force: bool,
    num_proc: int | None,
    max_shard_bytes: int,
    image_columns: str | None,
    cache_dir: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Send configs (default: every entry) to the dataset repository REPO_ID of the Hugging Face Hub, in one commit.

    The token is HF_TOKEN, or that of `hf auth login`.
    """
    loaded = _load(mixture, options)
    done = push_to_hub(
        loaded, repo_id, config_names=list(config_names) or None, private=private or None,
        revision=revision, create_pr=create_pr, commit_message=message, dry_run=dry_run, force=force,
        num_proc=num_proc, max_shard_bytes=max_shard_bytes, image_columns=image_columns, cache_dir=cache_dir,
        progress=show_progress("sending"),
    )  # fmt: skip
    clear_progress()
    if as_json:
        print_json(vars(done))
        return
    verb = "holds already" if done.was_complete else "would send" if dry_run else "sent"
    about = "about " if done.is_dry_run else ""
    click.echo(f"{done.url}: {verb} {done.num_samples:,} samples")
    for path, num_bytes in done.files.items():
        click.echo(f"  {path}" + (f"  {about}{num_bytes:,} bytes" if num_bytes else ""))
    for path in done.deleted:
        click.echo(f"  {path}  {'would be deleted' if dry_run else 'deleted'}")
    if not dry_run:
        first = config_names[0] if config_names else loaded.entries[0].config_name
        _hint(f'datasets.load_dataset("{repo_id}", "{first}", split="train")')
