"""The command line: what goes to stdout and stderr, exit codes, and what the tree says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from llava_arrow.cli import describe_image, main
from tests.conftest import MakeMixture, captions, chat, write_json, write_table


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_ls() -> None:
    result = run("ls")
    expected = ["mixture", "our-dataset", "instruct", "edits", "boxes", "long-captions", "embedded"]
    assert (result.stdout.split(), result.stderr, result.exit_code) == (expected, "", 0)
    assert json.loads(run("ls", "default", "--json").stdout) == expected


def test_validate_says_all_mistakes_of_the_file_and_of_the_data_at_once(folder: Path) -> None:
    write_table(folder / "a.parquet", captions(3))
    write_json(folder / "c.json", [{"conversations": chat("q", "a")}])
    (folder / "x.yaml").write_text(
        "datasets:\n"
        "  - {name: one, json_path: a.parquet, preprocess_fn: preproces_grandf}\n"
        "  - {name: two, json_path: gone.json}\n"
        "  - {name: three, json_path: c.json, sampling_strategy: 'first:9'}\n"
        "  - {name: four, json_path: c.json, min_sise: 5}\n"
    )
    result = run("validate", folder / "x.yaml", "--cache-dir", folder / "cache")
    lines = result.stderr.replace(str(folder), ".").splitlines()
    assert lines == [
        "ConfigError: ./x.yaml: 4 mistakes",
        "./x.yaml:2: datasets[0] 'one': ./a.parquet (entry 'one'): preproces_grandf needs the column 'loc_caption', but there "
        "are only s3_path, caption",
        "./x.yaml:3: datasets[1] 'two': entry 'two': the data file './gone.json' does not exist (the folder '.' does)",
        "./x.yaml:4: datasets[2] 'three': entry 'three': sampling_strategy 'first:9' asks for 9 rows, but only 1 passed the "
        "filters: say at most first:1, or 'all'",
        "./x.yaml:5: datasets[3] 'four': unknown key 'min_sise': did you mean 'min_size'?",
    ]
    assert (result.stdout, result.exit_code) == ("", 1)


def test_validate_for_machines() -> None:
    shown = json.loads(run("validate", "default", "--json").stdout)
    assert (shown["entries"], shown["notes"]) == (6, [])


def test_validate_of_what_is_right(folder: Path, make_mixture: MakeMixture) -> None:
    write_json(folder / "c.json", [{"conversations": chat("q", "a")}])
    make_mixture({"name": "a", "json_path": "c.json"}, weights={"gone": 3})
    result = run("validate", folder / "x.yaml", "--cache-dir", folder / "cache")
    assert result.stdout == f"{folder}/x.yaml: 1 entry, no mistakes\n"
    assert result.stderr == "note: weights for groups that no entry has: 'gone'\n"
    assert result.exit_code == 0


def test_info_draws_the_tree(folder: Path, make_mixture: MakeMixture) -> None:
    write_table(folder / "a.parquet", captions(10, fltLaionAesthScore=[float(i) for i in range(10)]))
    write_json(folder / "c.json", [{"conversations": chat("q", "a"), "model": ""}] * 4)
    t2i = {"preprocess_fn": "preproces_text_to_image_generation_s3", "process_fn_kwargs": {"random_truncate": False}}
    make_mixture(
        {"name": "pictures", "json_path": "a.parquet", "length_group": "t2i", "sampling_strategy": "first:50%", **t2i},
        {"name": "chat", "json_path": "c.json"},
        {"name": "again", "json_path": "c.json", "sampling_strategy": "dup:3"},
        weights={"t2i": 300},
        batch_sizes={"t2i": 0.5},
    )
    assert run("build", folder / "x.yaml", "chat", "--cache-dir", folder / "cache").exit_code == 0
    result = run("info", folder / "x.yaml", "--cache-dir", folder / "cache")
    assert result.stdout.replace(str(folder), ".").splitlines() == [
        "./x.yaml: 3 entries, seed 42",
        "├─ group t2i: weight 300, 75.0%, batch size factor 0.5",
        "│  └─ pictures  (75.0%)",
        "│     files    1: ./a.parquet",
        "│     rows     10 → 4 after filters (aes_cutoff −6)",
        "│     samples  2 (first:50%)",
        "│     becomes  preproces_text_to_image_generation_s3(random_truncate=False)",
        "└─ group default: weight 100, 25.0%, batch size factor 1",
        "   ├─ chat  (6.2%)",
        "   │  files    1: ./c.json",
        "   │  rows     4 → 4 after filters (no filter removed any)",
        "   │  samples  4 (all)",
        "   │  becomes  a sample as it is",
        "   │  built    4 rows delivered, 0 samples repaired, 0 turns trimmed, 0 rows in the ledger; keys neither declared "
        "nor kept: model (4)",
        "   └─ again  (18.8%)",
        "      files    1: ./c.json",
        "      rows     4 → 4 after filters (no filter removed any)",
        "      samples  12 (dup:3)",
        "      becomes  a sample as it is",
    ]
    entries = json.loads(run("info", folder / "x.yaml", "--cache-dir", folder / "cache", "--json").stdout)["entries"]
    assert [(e["rows"], e["after_filters"], e["after_sampling"], e["samples"], e["share"]) for e in entries] == [
        (10, 4, 2, 2, 0.75), (4, 4, 4, 4, 0.0625), (4, 4, 4, 12, 0.1875),
    ]  # fmt: skip


def test_preview_shows_the_row_before_and_the_sample_after() -> None:
    result = run("preview", "default", "edits")
    shown = re.sub(r"</\S*/photos/", "<", result.stdout)
    assert shown.splitlines() == [
        "── edits: row",
        "input_prompt  Take all colour out of this photo.",
        'input_image   ["photos/coffee.jpg"]',
        "output_image  photos/coffee_gray.jpg",
        "── edits: sample",
        "id             edits-edits-000000000",
        "data_source    edits",
        'image          ["<coffee.jpg: JPEG, 600 × 400>"]',
        "image_gen      <coffee_gray.jpg: JPEG, 600 × 400>",
        'image_gen_enc  ["<coffee.jpg: JPEG, 600 × 400>"]',
        "conversations:",
        "  human: <image> <image_gen_enc> Take all colour out of this photo.",
        "  gpt: Sure <image_gen>",
        "pad_image_gen  true",
        "reweight       false",
        "pixel_diff     false",
        "",
    ]


def test_preview_of_every_entry_and_more_rows() -> None:
    pairs = json.loads(run("preview", "default", "-n", 2, "--json").stdout)
    assert {name: len(found) for name, found in pairs.items()} == {
        "our-dataset": 2, "instruct": 2, "edits": 2, "boxes": 2, "long-captions": 2, "embedded": 2,
    }  # fmt: skip
    assert [sample["id"] for sample in pairs["long-captions"][1]["samples"]] == [
        "long-captions-captions-000000001", "long-captions-captions-000000001-dup1",
    ]  # fmt: skip
    assert pairs["embedded"][0]["samples"][0]["image"] == "<clock.jpg: JPEG, 400 × 300>"


def test_preview_of_a_record_that_is_none(folder: Path, make_mixture: MakeMixture) -> None:
    write_json(folder / "c.json", [5, {"conversations": chat("q", "a")}])
    make_mixture({"name": "a", "json_path": "c.json", "on_error": "skip"})
    result = run("preview", folder / "x.yaml", "--cache-dir", folder / "c", "--json")
    assert json.loads(result.stdout)["a"] == [{"row": {"text": "5"}, "samples": []}]


def test_images_are_described_whatever_they_are(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    assert describe_image(None, str(tmp_path / "text.jpg")) == f"<{tmp_path}/text.jpg: no image>"
    assert describe_image(None, str(tmp_path / "gone.jpg")) == f"<{tmp_path}/gone.jpg: does not exist>"
    assert describe_image(None, "s3://bucket/a.jpg") == "<s3://bucket/a.jpg>"
    assert describe_image(b"GIF89a", None) == "<no path: GIF>"


def test_build_says_what_became_of_the_rows(folder: Path, make_mixture: MakeMixture) -> None:
    sizes = {"intHeight": [600, 100, 600], "intWidth": [600, 600, 600]}
    write_table(folder / "a.parquet", captions(3, **sizes))
    make_mixture(
        {
            "name": "a",
            "json_path": "a.parquet",
            "min_size": 512,
            "preprocess_fn": "preproces_text_to_image_generation_s3",
        }
    )
    result = run("build", folder / "x.yaml", "--cache-dir", folder / "c", "--num-proc", 1)
    first, second = result.stdout.splitlines()
    assert first.startswith(f"a: {folder}/c/llava_mixture/a-")
    assert second == "  a: 3 rows, min_size −1, not sampled 0, delivered 2 as 2 samples, ledger 0"
    built = json.loads(run("build", folder / "x.yaml", "a", "--cache-dir", folder / "c", "--json").stdout)
    assert built["a"]["report"]["a"]["delivered"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ls", "nowhere"], "ConfigError: no mixture 'nowhere': neither a file nor one of the names in builder_configs (default)\n"),
        (["preview", "default", "boxs"], "no config 'boxs': did you mean 'boxes'?\n"),
        (["build", "default", "boxs"], "no config 'boxs': did you mean 'boxes'?\n"),
    ],
)  # fmt: skip
def test_errors_are_one_message_on_stderr_and_exit_code_one(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.stderr.endswith(message)
    assert "Traceback" not in result.stderr
    assert (result.stdout, result.exit_code) == ("", 1)


def test_options_change_the_mixture(folder: Path, make_mixture: MakeMixture) -> None:
    write_json(
        folder / "c.json",
        [{"conversations": [], "image": "a.jpg"}, {"conversations": chat("q", "a"), "image": "a.jpg"}],
    )
    make_mixture({"name": "a", "json_path": "/mnt/old/c.json"})
    options = ["--path-map", f"/mnt/old={folder}", "--image-root", "/pictures", "--on-error", "skip"]
    result = run("preview", folder / "x.yaml", *options, "-n", 2, "--cache-dir", folder / "cache", "--json")
    pairs = json.loads(result.stdout)["a"]
    assert pairs[0]["samples"] == []
    assert pairs[1]["samples"][0]["image"] == "</pictures/a.jpg: does not exist>"
    assert run("ls", folder / "x.yaml", "--path-map", "nonsense").exit_code == 2


def test_the_module_runs_as_a_command() -> None:
    output = subprocess.run(
        [sys.executable, "-W", "error", "-m", "llava_arrow", "--version"], capture_output=True, text=True
    )
    assert output.stdout.startswith("llava-mixture, version 0.1.0"), output.stderr


def test_export_raw_says_what_became_of_the_rows_and_what_to_do_next(folder: Path, make_mixture: MakeMixture) -> None:
    write_json(folder / "c.json", [{"id": "a", "conversations": chat("q", "a"), "model": "x"}] * 3)
    make_mixture({"name": "chat", "json_path": "c.json", "sampling_strategy": "first:2"})
    arguments = ("export", folder / "x.yaml", folder / "out", "--format", "raw", "--cache-dir", folder / "cache")
    expected = [
        "./out/data.json: 2 samples",
        "  chat: 3 rows, not sampled 1, delivered 2 as 2 samples, ledger 0; keys neither declared nor kept: model (2)",
    ]
    for state in ("", " (complete already)"):
        result = run(*arguments)
        assert result.stdout.replace(str(folder), ".").splitlines() == [expected[0] + state, expected[1]]
        assert result.stderr.replace(str(folder), ".") == "next: llava-mixture build './out/mixture.yaml'\n"
    records = json.loads((folder / "out" / "data.json").read_text())
    assert [record["id"] for record in records] == ["a", "a"]
    other = run(*arguments, "--jsonl")
    assert (other.exit_code, other.stdout) == (1, "")
    assert other.stderr.replace(str(folder), ".") == (
        "OutputError: ./out holds a finished export of something else (another mixture, other data or options): choose "
        "another folder, or replace it with overwrite=True (--overwrite)\n"
    )
    assert run(*arguments, "--jsonl", "--overwrite").exit_code == 0
    assert sorted(path.name for path in (folder / "out").iterdir() if path.name[0] != ".") == [
        "data.jsonl", "ledger.jsonl", "mixture.yaml", "report.json",
    ]  # fmt: skip


def test_export_parquet_lists_files_per_config(folder: Path) -> None:
    result = run("export", "default", folder / "out", "boxes", "instruct", "--format", "parquet")
    assert result.stdout.replace(str(folder), ".").splitlines() == [
        "boxes: 1 file in ./out",
        "  boxes: 8 rows, not sampled 0, delivered 8 as 8 samples, ledger 0",
        "instruct: 1 file in ./out",
        "  instruct: 4 rows, not sampled 0, delivered 4 as 4 samples, ledger 0",
    ]
    assert result.stderr.replace(str(folder), ".") == 'next: datasets.load_dataset("./out", "boxes", split="train")\n'
    back = run("export", folder / "out", folder / "raw", "boxes", "--format", "raw", "--json")
    assert json.loads(back.stdout)["num_samples"] == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--format", "parquet", "--max-shard-bytes", "5 apples"), "'5 apples' is no size: say 500MB, 1GiB or a number of bytes"),
        (("--format", "parquet", "bxoes"), "no config 'bxoes': did you mean 'boxes'?"),
        (("--format", "raw", "--json-name", "../x.json"), "json_name must be a plain name and none of mixture.yaml, report.json, ledger.jsonl, .llava-mixture, got '../x.json'"),
        (("--format", "raw", "--image-dir", "data.json"), "json_name and image_dir must differ, both are 'data.json'"),
        (("--format", "json"), "'json' is not one of 'raw', 'parquet'."),
        (("--format", "raw", "--max-shard-bytes", "1GB"), "--max-shard-bytes is for --format parquet"),
        (("--format", "parquet", "--jsonl"), "--jsonl is for --format raw"),
    ],
)  # fmt: skip
def test_a_wrong_export_says_what_is_right(folder: Path, options: tuple[str, ...], message: str) -> None:
    result = run("export", "default", folder / "out", *options)
    assert result.stderr.rstrip().endswith(message)
    assert result.exit_code != 0
    assert not (folder / "out").exists()
