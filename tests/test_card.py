"""README.md of an export: what the Hub reads of it, what a reader reads of it, and that data stays text in it."""

from __future__ import annotations

import inspect
import io
import json
import re
import shlex
import statistics
import warnings
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCard, DatasetCardData, metadata_load
from PIL import Image

import llava_arrow
from llava_arrow import Mixture, export_parquet
from llava_arrow.cli import main
from tests.conftest import MakeMixture, captions, chat, write_json, write_table

ROOT = Path(llava_arrow.__file__).parent.parent
PHOTOS = ROOT / "builder_configs" / "default" / "photos"
TEMPLATE = (ROOT / "dataset_card.md").read_text(encoding="utf-8")
TOKEN = "hf_" + "aB3x" * 9


class Card:
    """The card of an export, read by those who will read it."""

    def __init__(self, root: Path) -> None:
        self.root, self.path = root, root / "README.md"
        self.text = self.path.read_text(encoding="utf-8")
        self.metadata = metadata_load(self.path)
        self.card = DatasetCard.load(self.path)
        self.body = self.card.text

    def section(self, title: str) -> str:
        """What follows a heading, up to the next one of the same or a higher level."""
        found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,3}} |\Z)", self.body, re.DOTALL | re.MULTILINE)
        assert found is not None, title
        return found[2].strip()

    def tables(self) -> list[list[list[str]]]:
        """Every table of the text, as GitHub divides it into cells; lines of another width are an error."""
        tables: list[list[list[str]]] = []
        is_table = False
        for line in without_fences(self.body).splitlines():
            if not line.startswith("|"):
                is_table = False
                continue
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if not is_table:
                tables.append([])
            is_table = True
            tables[-1].append(cells)
        for table in tables:
            assert all(set(cell) == {"-"} for cell in table[1]), table
            assert {len(row) for row in table} == {len(table[0])}, table
        return [[table[0], *table[2:]] for table in tables]

    def table(self, first: str) -> list[dict[str, str]]:
        """The rows of the first table whose head begins so."""
        (table, *_) = [table for table in self.tables() if table[0][0] == first]
        return [dict(zip(table[0], row, strict=True)) for row in table[1:]]

    def block(self, language: str) -> str:
        """The first block of code in a language."""
        return re.findall(rf"^```{language}\n(.*?)^```$", self.body, re.DOTALL | re.MULTILINE)[0]


def without_fences(text: str) -> str:
    """The text outside of code blocks."""
    return re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def jpeg(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def export(tmp_path: Path) -> Any:
    def run(mixture: Any, **arguments: Any) -> Card:
        export_parquet(mixture, tmp_path / "out", cache_dir=str(tmp_path / "plans"), **arguments)
        return Card(tmp_path / "out")

    return run


@pytest.fixture(scope="module")
def default_card(tmp_path_factory: pytest.TempPathFactory) -> Card:
    folder = tmp_path_factory.mktemp("default card")
    export_parquet("default", folder / "out", cache_dir=str(folder / "plans"))
    return Card(folder / "out")


def text_entry(folder: Path, name: str = "chat", num_rows: int = 3, **more: Any) -> dict[str, Any]:
    rows = [{"id": f"{name}-{i}", "conversations": chat(f"question {i}", f"answer {i}")} for i in range(num_rows)]
    file = f"{len(list(folder.iterdir()))}.json"
    return {"name": name, "json_path": write_json(folder / file, rows), "features": {"image": "none"}, **more}


# ----------------------------------------------------------------------------------------------------- front matter


def test_the_front_matter_is_what_huggingface_hub_accepts(default_card: Card) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        data = DatasetCardData(**default_card.metadata)
    assert said == []
    assert data.to_dict() == default_card.metadata == default_card.card.data.to_dict()
    known = set(inspect.signature(DatasetCardData.__init__).parameters)
    further = {"tags", "dataset_info", "configs", "license_name", "license_link"}  # in the Hub's specification
    assert set(default_card.metadata) <= known | further
    assert data.pretty_name == "default (llava-mixture)"
    assert data.size_categories == ["n<1K"]
    assert data.task_categories == ["image-text-to-text", "text-to-image", "image-to-image"]
    assert default_card.metadata["license"] == "other"  # public domain and CC0 are two words, of which the Hub has one


def test_the_front_matter_names_configs_files_features_and_sizes(default_card: Card) -> None:
    names = Mixture.load("default").config_names[1:]
    assert default_card.metadata["configs"] == [
        {"config_name": name, "data_files": [{"split": "train", "path": f"{name}/train-*"}]} for name in names
    ]
    infos = DatasetInfosDict.from_directory(str(default_card.root))
    assert list(infos) == names
    for name in names:
        paths = list((default_card.root / name).iterdir())
        assert infos[name].splits["train"].num_examples == sum(pq.read_metadata(p).num_rows for p in paths)
        assert infos[name].download_size == sum(path.stat().st_size for path in paths)
        assert infos[name].dataset_size == infos[name].splits["train"].num_bytes
        built = datasets.load_dataset("parquet", data_files=[str(path) for path in paths], split="train")
        assert infos[name].features == built.features
        assert abs(infos[name].dataset_size - built.data.nbytes) < 0.02 * built.data.nbytes


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (["mit", "MIT"], {"license": "mit"}),
        (["CC-BY-4.0", "apache-2.0"], {"license": ["cc-by-4.0", "apache-2.0"]}),
        (["mit", None], {"license": "other", "license_name": "mixed", "license_link": "README.md"}),
        (["my own"], {"license": "other", "license_name": "mixed", "license_link": "README.md"}),
        ([None], {"license": "unknown"}),
    ],
)
def test_licences_in_the_words_of_the_hub(
    licences: list[str | None], expected: dict[str, Any], folder: Path, make_mixture: MakeMixture, export: Any
) -> None:
    entries = [
        text_entry(folder, f"e{i}", **({"license": licence} if licence else {})) for i, licence in enumerate(licences)
    ]
    card = export(make_mixture(*entries))
    assert {key: value for key, value in card.metadata.items() if key.startswith("license")} == expected


@pytest.mark.parametrize(("num_rows", "word"), [(999, "n<1K"), (1000, "1K<n<10K"), (10_000, "10K<n<100K")])
def test_the_word_for_the_size(num_rows: int, word: str, folder: Path, make_mixture: MakeMixture, export: Any) -> None:
    card = export(make_mixture(text_entry(folder, num_rows=num_rows)))
    assert card.metadata["size_categories"] == [word]
    assert card.metadata["task_categories"] == ["text-generation"]


def test_the_config_of_all_entries_is_not_counted_twice(folder: Path, make_mixture: MakeMixture, export: Any) -> None:
    entries = [text_entry(folder, "a", 400), text_entry(folder, "b", 400)]
    card = export(make_mixture(*entries), config_names=["mixture", "a", "b"])
    assert card.metadata["size_categories"] == ["n<1K"]
    assert "800 samples with 0 images in 3 configs" in card.body
    assert [row["config"] for row in card.table("config")] == ["`mixture`", "`a`", "`b`"]
    assert [row["entry"] for row in card.table("entry")] == ["`a`", "`b`"]


# ------------------------------------------------------------------------------------------------------ what it says


def test_every_place_of_the_template_is_filled(default_card: Card) -> None:
    places = re.findall(r"\{\{ (\w+) \}\}", TEMPLATE)
    assert len(places) == len(set(places)) + 1  # a fence has two ends
    assert "{{" not in default_card.body
    for line in TEMPLATE.splitlines():
        if line and "{{" not in line:
            assert line in default_card.body.splitlines()


def test_the_numbers_are_those_of_the_data(folder: Path, make_mixture: MakeMixture, export: Any) -> None:
    sides = [(20, 10), (40, 30), (60, 5), (80, 80), (10, 10)]
    (folder / "p").mkdir()
    for i, (width, height) in enumerate(sides):
        (folder / "p" / f"{i}.jpg").write_bytes(jpeg(width, height))
    Image.new("L", (7, 9)).save(folder / "p" / "5.png")
    names = [*(f"p/{i}.jpg" for i in range(5)), "p/5.png", "p/missing.jpg"]
    rows = [
        {"id": f"r{i}", "image": name, "conversations": chat("<image>\nWhat?", "That."), "intHeight": i, "intWidth": 9}
        for i, name in enumerate(names)
    ]
    rows.append({"id": "none", "conversations": chat("No image.", "None."), "intHeight": 9, "intWidth": 9})
    rows[2]["conversations"] = chat("What?", "That.")  # repaired
    write_json(folder / "a.json", rows)
    write_table(folder / "b.parquet", captions(10, s3_path=["p/1.jpg"] * 10))
    entries = [
        {
            "name": "seen", "json_path": "a.json", "multi_image": False, "min_size": 1, "on_error": "skip",
            "length_group": "see", "license": "mit", "source": "my camera",
        },
        {
            "name": "drawn", "json_path": "b.parquet", "sampling_strategy": "first:4", "length_group": "draw",
            "preprocess_fn": "preproces_text_to_image_generation_s3", "process_fn_kwargs": {"random_truncate": False},
        },
    ]  # fmt: skip
    card = export(make_mixture(*entries, weights={"see": 30}, batch_sizes={"draw": 0.5}))
    seen = [(folder / name).stat().st_size for name in names[1:6]]  # the first is filtered, the last is missing
    one = (folder / "p/1.jpg").stat().st_size
    assert "10 samples with 9 images in 2 configs" in card.body
    assert card.table("config") == [
        {
            "config": "`seen`", "samples": "6", "images": "5", "bytes of images": f"{sum(seen):,}", "group": "`see`",
            "licence": "mit", "source": "my camera",
        },
        {
            "config": "`drawn`", "samples": "4", "images": "4", "bytes of images": f"{4 * one:,}", "group": "`draw`",
            "licence": "not given", "source": "not given",
        },
    ]  # fmt: skip
    head = ("rows", "filtered", "not sampled", "delivered", "samples", "repaired", "trimmed", "ledger")
    account = {row["entry"]: [row[key] for key in head] for row in card.table("entry")}
    assert account == {
        "`seen`": ["8", "`min_size` 1", "0", "6", "6", "1", "0", "1"],
        "`drawn`": ["10", "0", "6", "4", "4", "0", "0", "0"],
    }
    assert ["`seen`", "`image_missing`", "1"] in [row for table in card.tables() for row in table]
    widths, heights = zip(*[*sides[1:], (7, 9)], strict=True)
    median = f"{statistics.median(widths)} × {statistics.median(heights)}"
    images = next(table for table in card.tables() if table[0][:2] == ["config", "column"])[1:]
    assert images == [
        [
            "`seen`", "`image`", "5", f"{sum(seen) // 5:,}", "JPEG 4, PNG 1",
            f"{min(widths)} – {max(widths)} × {min(heights)} – {max(heights)}, median {median} (of 5)",
        ],
        ["`drawn`", "`image_gen`", "4", f"{one:,}", "JPEG 4", "40 – 40 × 30 – 30, median 40 × 30 (of 4)"],
    ]  # fmt: skip
    assert card.table("group") == [
        {"group": "`see`", "weight": "30", "batch size factor": "1", "entries": "`seen`"},
        {"group": "`draw`", "weight": "100", "batch size factor": "0.5", "entries": "`drawn`"},
    ]
    entries_text = card.section("Where the samples come from")
    assert entries_text.splitlines() == [
        "- `seen`: sampling `all`, rows that are samples already, licence: mit, source: my camera",
        "- `drawn`: sampling `first:4`, made by `preproces_text_to_image_generation_s3(random_truncate=False)`",
    ]
    previews = [table for table in card.tables() if table[0][0] == "id"]
    assert previews[0] == [
        ["id", "image", "first turn", "answer"],
        ["r1", "p/1.jpg (JPEG, 40 × 30)", "&lt;image&gt; What?", "That."],
        ["r2", "p/2.jpg (JPEG, 60 × 5)", "&lt;image&gt; What?", "That."],
        ["r3", "p/3.jpg (JPEG, 80 × 80)", "&lt;image&gt; What?", "That."],
    ]
    assert yaml.safe_load(card.block("yaml")) == yaml.safe_load((folder / "x.yaml").read_text())


def test_where_no_row_is_wrong_the_card_says_so(default_card: Card) -> None:
    assert "No row was left out because something was wrong with it." in default_card.body
    assert "| reason |" not in default_card.body


def test_the_code_that_shows_how_to_load_it_runs(default_card: Card) -> None:
    code = default_card.block("python").replace("path/to/this/folder", str(default_card.root))
    space: dict[str, Any] = {}
    exec(code, space)
    assert space["dataset"][0]["conversations"][0]["from"] == "human"


NAMES = [
    "chat",
    "a b",
    'it\'s "x"',
    "$(touch pwned)",
    "`touch pwned`",
    "a; touch pwned",
    "-x",
    "a & b",
    "ü",
    "~",
    "#",
    "!",
]


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_that_show_how_to_use_it_say_what_they_mean(
    name: str, folder: Path, make_mixture: MakeMixture, export: Any, tmp_path: Path
) -> None:
    card = export(make_mixture(text_entry(folder, name, 2)))
    space: dict[str, Any] = {}
    code = (
        card.block("python")
        .replace("path/to/this/folder", str(card.root))
        .replace('split="train"', 'split="train[:1]"')
    )
    exec(code, space)
    assert [row["data_source"] for row in space["dataset"]] == [name]
    line = card.block("console").splitlines()[-1].removeprefix("$ ")
    for special in "$`;&|<>!~#*()":  # nothing that a shell would act upon stands outside of quotes
        assert special not in re.sub(r"'[^']*'|\\.", "", line), line
    arguments = shlex.split(line.replace("path/to/this/folder", str(card.root)))
    arguments[arguments.index("raw-folder")] = str(tmp_path / "raw")
    assert arguments.pop(0) == "llava-mixture"
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert [row["data_source"] for row in json.loads((tmp_path / "raw" / "data.json").read_text())] == [name] * 2


def test_a_mixture_with_many_configs_shows_some_of_each_and_lists_all(
    folder: Path, make_mixture: MakeMixture, export: Any
) -> None:
    card = export(make_mixture(*(text_entry(folder, f"e{i:02d}", 1) for i in range(30))))
    assert len(card.table("config")) == len(card.table("entry")) == len(card.metadata["configs"]) == 30
    assert 1 <= len([table for table in card.tables() if table[0][0] == "id"]) <= 30


# ------------------------------------------------------------------------------------------------- data stays text

EVILS = [
    "| a | b |\n---\n# title\n```\n~~~\n\\| \\",
    "<script>alert(1)</script> <img src=x onerror=alert(1)> &lt;b&gt; --> <!-- <b",
    "![x](http://evil/x.png) [x](javascript:alert(1)) [x]: http://evil `code` *b* _i_ ~~s~~ $x$",
    "{{ entries }} {{ mixture }} {{ title }} {entries} %(entries)s ${HOME} \\1 \\g<0>",
    "\u2028---\u2028 \x0b---\x0b \x85---\x85 \x1c---\x1c \r---\r \u202eevil \u200b \x07",
    "-----\n| --- |\n===\n- item\n1. item\n> quote\n\tcode\n    code",
    "``` `` ` ```` \\`",
]


@pytest.mark.parametrize("evil", EVILS)
def test_hostile_text_changes_neither_tables_nor_front_matter(
    evil: str, folder: Path, make_mixture: MakeMixture, export: Any
) -> None:
    rows = [{"id": evil, "image": "a.jpg", "conversations": chat(f"<image>{evil}", evil), "data_source": evil}] * 2
    (folder / "a.jpg").write_bytes(jpeg(5, 5))
    write_json(folder / "a.json", rows)
    entry = {
        "name": f"x {evil}", "json_path": "a.json", "license": evil, "source": evil, "length_group": evil,
        "multi_image": False,
    }  # fmt: skip
    write_table(folder / "b.parquet", captions(2, s3_path=["a.jpg"] * 2))
    options = {"prompt": evil.replace("{", "(").replace("}", ")") + " {caption}"}
    drawn = {
        "name": "drawn", "json_path": "b.parquet", "preprocess_fn": "preproces_text_to_image_generation_s3",
        "process_fn_kwargs": options,
    }  # fmt: skip
    card = export(make_mixture(entry, drawn, weights={evil: 3}))
    headings = re.findall(r"^#+ .*$", without_fences(TEMPLATE), re.MULTILINE)[1:]
    assert re.findall(r"^#+ .*$", without_fences(card.body), re.MULTILINE)[1:] == headings
    assert [len(table) for table in card.tables()] == [3, 3, 3, 3, 3, 3]
    assert card.body.count("\n```") == (TEMPLATE.count("\n```") + TEMPLATE.count("\n{{ fence }}"))
    outside = re.sub(r"`[^`\n]*`", "", without_fences(card.body))  # what is code stays as it is
    assert not re.search(r"<[a-zA-Z/!]", outside)
    assert not re.search(r"(?<!\\)\]\((?!https://pypi)", outside)
    assert not re.search(r"[\u202e\u2028\x07\x0b\x1c\x85]", outside)
    assert card.body.count("rows that are samples already") == 1
    names = Mixture.load(folder / "x.yaml").config_names[1:]
    assert [config["config_name"] for config in card.metadata["configs"]] == names
    if "```" not in evil:
        assert yaml.safe_load(card.block("yaml")) == yaml.safe_load((folder / "x.yaml").read_text())
    for name in names:
        loaded = datasets.load_dataset(str(card.root), name, split="train", streaming=True)
        assert [row["data_source"] for row in loaded] == [evil if name != "drawn" else "drawn"] * 2


STEMS = [
    "{{ entries }}", "a: b", "# x", "'\"", "---", "- x", "a | b", "<b>x", "true", "1", "a\n---\nb", "x\u2028---\u2028", "ü 😀",
    "a\\nb", "%", "&x", "*", "!x", "[a](b)", "x" * 200,
]  # fmt: skip


@pytest.mark.parametrize("stem", STEMS)
def test_a_mixture_file_may_be_called_anything(stem: str, folder: Path, export: Any) -> None:
    path = folder / f"{stem}.yaml"
    path.write_text(yaml.safe_dump({"datasets": [text_entry(folder)]}), encoding="utf-8")
    card = export(path)
    assert card.metadata["pretty_name"] == f"{stem} (llava-mixture)"
    assert [config["config_name"] for config in card.metadata["configs"]] == ["chat"]
    assert datasets.get_dataset_config_names(str(card.root)) == ["chat"]
    (title,) = re.findall(r"^# .*$", without_fences(card.body), re.MULTILINE)
    assert "<b>" not in title
    assert len(card.table("config")) == 1


# ------------------------------------------------------------------------------------------------- nobody's business


def test_tokens_and_passwords_are_left_out_wherever_they_stand(
    folder: Path, make_mixture: MakeMixture, export: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_PREFIX", "s3://key:swordfish9@bucket")
    (folder / "p").mkdir()
    (folder / "p" / "0.jpg").write_bytes(jpeg(5, 5))
    write_table(folder / "a.parquet", captions(1))
    entry = {
        "name": "a", "json_path": "a.parquet", "preprocess_fn": "preproces_text_to_image_generation_s3",
        "process_fn_kwargs": {"prompt": f"https://me:swordfish1@host/ {TOKEN} {{caption}}"},
        "license": f"see https://me:swordfish2@host/{TOKEN}", "source": f"https://me:sword@fish3@host/x {TOKEN}",
    }  # fmt: skip
    top = {
        "path_map": {"/nowhere": "s3://key:swordfish4@bucket"},
        "image_stores": {
            "piat": "${SECRET_PREFIX}/{key}",
            "other": f"https://host/{{key}}?token={TOKEN}",
            "signed": "https://blob/c/{key}?sv=1&sig=swordfish5",
        },
    }
    card = export(make_mixture(entry, **top))
    assert re.findall(r"sword\w*|fish\d", card.text) == []
    assert TOKEN not in card.text.replace("\\", "")
    assert "bucket" in card.text  # the rest stays


def test_paths_of_this_machine_are_left_out(folder: Path, make_mixture: MakeMixture, export: Any) -> None:
    (folder / "p").mkdir()
    (folder / "p" / "0.jpg").write_bytes(jpeg(5, 5))
    rows = [{"id": "r", "image": f"{folder}/p/0.jpg", "conversations": chat("<image>q", "a")}]
    rows.append({"id": "s", "image": "/etc/passwd", "conversations": chat("<image>q", "a")})
    write_json(folder / "a.json", rows)
    write_table(folder / "b.parquet", captions(1))
    entries = [
        {"name": "a", "json_path": "a.json", "multi_image": False, "on_error": "skip"},
        {"name": "b", "json_path": "b.parquet", "preprocess_fn": "preproces_text_to_image_generation_s3"},
    ]
    card = export(make_mixture(*entries))
    assert str(folder) not in card.text
    assert "/etc" not in card.text
    for path in card.root.glob("*/*.parquet"):
        assert str(folder).encode() not in path.read_bytes()


def test_absolute_paths_of_the_mixture_file_are_left_out(folder: Path, make_mixture: MakeMixture, export: Any) -> None:
    (folder / "p").mkdir()
    (folder / "p" / "0.jpg").write_bytes(jpeg(5, 5))
    write_table(folder / "a.parquet", {"s3_path": ["0.jpg"], "label": ["x"], "loc_string": ["[0, 0, 1, 1]"]})
    entry = {
        "name": "a", "json_path": f"{folder}/a.parquet", "image_root": f"{folder}/p", "source": f"{folder}/a.parquet",
        "preprocess_fn": "preproces_refcoco_rec", "process_fn_kwargs": {"s3_prefix": f"{folder}/p"},
    }  # fmt: skip
    card = export(make_mixture(entry, path_map={"/old": f"{folder}/new"}))
    assert str(folder) not in card.text
    assert "a.parquet" in card.block("yaml")


def test_what_only_looks_like_a_path_of_this_machine_stays(
    folder: Path, make_mixture: MakeMixture, export: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/data")
    source = f"s3://bucket{folder}/x and https://host/data/x and /database/x and a/data/x"
    card = export(make_mixture(text_entry(folder, source=source)))
    assert yaml.safe_load(card.block("yaml"))["datasets"][0]["source"] == source


def test_a_mixture_made_in_python_has_a_card_too(folder: Path, export: Any) -> None:
    entry = text_entry(folder, "chat", 2)
    card = export(Mixture.from_dict({"datasets": [entry]}, base_dir=str(folder)))
    assert card.metadata["pretty_name"] == "A mixture of LLaVA data"
    assert yaml.safe_load(card.block("yaml")) == {"datasets": [entry]}
    assert str(folder) not in card.text
