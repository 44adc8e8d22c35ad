"""The shape of the code: imports point upstream, public is what `__all__` says, the wheel holds what it must."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import llava_arrow
import llava_mixture
from llava_arrow.mixture import builder_configs_dir

ROOT = Path(llava_arrow.__file__).parent.parent
PACKAGE = ROOT / "llava_arrow"

# The order of a row's path; a module may import from those before it only.
ORDER = [
    "errors",
    "retries",
    "paths",
    "yaml_file",
    "randomness",
    "column_types",
    "select",
    "preprocess.provenance",
    "preprocess.registry",
    "preprocess.conversations",
    "preprocess.text_to_image",
    "preprocess.layout",
    "preprocess.editing",
    "preprocess.grounding",
    "preprocess.understanding",
    "entry",
    "mixture",
    "ledger",
    "shards",
    "plan_cache",
    "sources",
    "sources.files",
    "sources.records",
    "sources.parquet",
    "sources.arrow",
    "sources.delimited",
    "sources.json_array",
    "sources.json_lines",
    "sources.formats",
    "sources.columns",
    "plan",
    "conversation_checks",
    "preprocess.plain_records",
    "preprocess.apply",
    "image_columns",
    "image_roots",
    "images",
    "schema",
    "pipeline",
    "config_data",
    "registration",
    "overview",
    "outputs",
    "outputs.names",
    "outputs.target",
    "outputs.processes",
    "outputs.front_matter",
    "outputs.image_files",
    "outputs.origins",
    "outputs.stream_signature",
    "outputs.dataset_origin",
    "outputs.raw_mixture",
    "outputs.raw",
    "outputs.parquet",
    "outputs.units",
    "outputs.licenses",
    "outputs.card",
    "outputs.folder",
    "outputs.hub_client",
    "outputs.hub_merge",
    "outputs.hub_parts",
    "outputs.hub",
    "cli_options",
    "cli_outputs",
    "cli",
    "__main__",
]


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    """Modules of the package that `path` imports when it is imported (not those under TYPE_CHECKING)."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("llava_arrow"):
            found.add(node.module.removeprefix("llava_arrow").lstrip("."))
    return found - {""}


def test_imports_point_upstream() -> None:
    modules = {module_name(path): path for path in PACKAGE.rglob("*.py")}
    assert set(modules) - {"__init__", "preprocess"} == set(ORDER)
    for name in ORDER:
        later = [other for other in imports_of(modules[name]) if ORDER.index(other) >= ORDER.index(name)]
        assert not later, f"{name} imports {later}, which come after it"


def test_public_names() -> None:
    assert set(llava_mixture.__all__) == {"LlavaMixture", "LlavaMixtureConfig", "register"}
    for module in (llava_arrow, llava_mixture):
        assert all(hasattr(module, name) for name in module.__all__)
    for path in PACKAGE.rglob("*.py"):
        name = module_name(path)
        if name in ("__main__", "__init__"):
            continue
        module = importlib.import_module(f"llava_arrow.{name}")
        for public in getattr(module, "__all__", []):
            documented = getattr(module, public)
            if inspect.isfunction(documented) or inspect.isclass(documented):
                assert documented.__doc__, f"{name}.{public} has no docstring"


def test_no_file_is_long() -> None:
    lengths = {
        path.name: len(path.read_text().splitlines()) for path in [*PACKAGE.rglob("*.py"), ROOT / "llava_mixture.py"]
    }
    assert {name: n for name, n in lengths.items() if n >= 400} == {}


def test_the_script_can_be_scanned_by_datasets_2_and_3() -> None:
    """They read its imports as text: one per line, and the word at the start of no line of a docstring."""
    source = (ROOT / "llava_mixture.py").read_text()
    docstring = ast.get_docstring(ast.parse(source)) or ""
    assert not [line for line in docstring.splitlines() if line.startswith(("import ", "from "))]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            assert len(node.names) == 1


def test_the_script_alone_says_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "llava_mixture.py").write_text((ROOT / "llava_mixture.py").read_text())
    code = "import sys; sys.modules['llava_arrow'] = None; import llava_mixture"
    output = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert output.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: llava_mixture.py needs its package llava_arrow: `pip install llava-mixture`, or `pip install "
        "-e .` in the checkout"
    )


def test_the_default_data_is_what_its_tool_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    sys.path.insert(0, str(ROOT / "tools"))
    try:
        tool = importlib.import_module("make_default_mixture")
    finally:
        sys.path.pop(0)
    committed = builder_configs_dir() / "default"
    shutil.copytree(committed / "photos", tmp_path / "photos")
    monkeypatch.setattr(tool, "FOLDER", tmp_path)
    monkeypatch.setattr(tool, "PHOTOS", tmp_path / "photos")
    tool.write_conversations()
    tool.write_boxes()
    tool.write_csv()
    tool.write_text_to_image()
    for name in ("instruct.json", "boxes.jsonl", "captions.csv"):
        assert (tmp_path / name).read_bytes() == (committed / name).read_bytes()
    import pyarrow.parquet as pq

    assert pq.read_table(tmp_path / "our-dataset.parquet").equals(pq.read_table(committed / "our-dataset.parquet"))
    assert sum(path.stat().st_size for path in committed.rglob("*") if path.is_file()) < 3_000_000


def test_the_wheel_holds_the_script_the_package_and_the_mixtures(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert {"llava_mixture.py", "llava_arrow/py.typed", "llava_arrow/builder_configs/default.yaml"} <= names
        assert "llava_arrow/builder_configs/default/photos/astronaut.jpg" in names
        assert not [name for name in names if name.startswith(("tests", "benchmarks", "tools"))]
        archive.extractall(tmp_path / "site")
    code = (
        "import sys; sys.path.insert(0, 'site'); sys.path = [p for p in sys.path if 'editable' not in p]\n"
        "import llava_mixture, llava_arrow; assert 'site' in llava_arrow.__file__, llava_arrow.__file__\n"
        "import datasets; print(len(datasets.load_dataset('llava_mixture', 'our-dataset', split='train')))"
    )
    output = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert output.stdout == "11\n", output.stderr


def test_every_entry_of_the_default_mixture_says_licence_and_source() -> None:
    document = yaml.safe_load((builder_configs_dir() / "default.yaml").read_text())
    assert all(entry["license"] and entry["source"] for entry in document["datasets"])
