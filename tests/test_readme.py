"""What the README and the card say is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import yaml

import llava_arrow
from llava_arrow.entry import ENTRY_KEYS
from llava_arrow.mixture import TOP_KEYS
from llava_arrow.preprocess.registry import _registry, preprocess_names
from llava_mixture import LlavaMixture, LlavaMixtureConfig
from tests.conftest import write_table

ROOT = Path(llava_arrow.__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_chapter_on_own_functions_works_as_it_stands(tmp_path: Path) -> None:
    (module,) = [block for block in blocks("python") if block.startswith("# my_functions.py")]
    (mixture,) = [block for block in blocks("yaml") if "my_functions:" in block]
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "my_functions.py").write_text(module)
    (folder / "my.yaml").write_text(mixture)
    write_table(folder / "captions.parquet", {"file": ["a.jpg", "b.jpg"], "text": ["a cat", ""]})
    command = [sys.executable, "-m", "llava_arrow", "preview", "my.yaml", "--trust-custom-code", "--cache-dir", "c"]
    shown = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert "gpt: a cat" in shown.stdout, shown.stderr
    assert "length         5" in shown.stdout
    code = "from datasets import load_dataset; import llava_mixture\n" + 'load_dataset("llava_mixture", "mine", '
    code += 'mixture="my.yaml", split="train", trust_custom_code=True, cache_dir="c")'
    built = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert built.stderr.splitlines()[-1] == (
        f"llava_arrow.errors.PreprocessError: {folder}/captions.parquet row 1 (entry 'mine'): 'text' is empty"
    )


def test_every_key_argument_and_function_is_in_the_reference() -> None:
    for name in (*ENTRY_KEYS, *TOP_KEYS):
        assert f"`{name}`" in README, name
    own = set(LlavaMixtureConfig.__dataclass_fields__) - {"name", "version", "data_dir", "data_files", "description"}
    for name in own:
        assert f"`{name}`" in README, name
    for name in preprocess_names():
        if _registry[name].is_builtin:
            assert f"`{name}`" in README, name


def test_the_description_of_the_default_data_counts_what_is_there() -> None:
    card = (ROOT / "builder_configs" / "default" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \| [^|]+ \| (\w+) \| (\d+) \| (\d+) \|", card, re.MULTILINE)
    assert [name for name, *_ in rows] == [name for name in LlavaMixture.builder_configs if name != "mixture"]
    groups = {
        entry["name"]: entry["length_group"]
        for entry in yaml.safe_load((ROOT / "builder_configs" / "default.yaml").read_text())["datasets"]
    }
    total = 0
    for name, group, num_rows, num_samples in rows:
        builder = LlavaMixture(config_name=name)
        builder.download_and_prepare()
        report = builder.report()[name]
        assert (groups[name], report["rows"], report["samples"]) == (group, int(num_rows), int(num_samples))
        total += report["samples"]
    assert f"{total} samples in six configs" in card
    photos = {path.name for path in (ROOT / "builder_configs" / "default" / "photos").iterdir()}
    assert all(f"`{name}`" in card for name in photos)
