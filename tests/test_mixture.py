"""The mixture file: what loads, what is refused, and how all mistakes are said at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llava_arrow import ConfigError, Entry, Mixture
from llava_arrow.mixture import builder_configs_dir, find_mixture
from llava_arrow.paths import ImageResolver, map_prefix
from tests.conftest import MakeMixture

LAVIDA = """\
datasets:
  - json_path: /mnt/localssd/grandf_train.parquet
    name: grand-f
    sampling_strategy: all
    preprocess_fn: preproces_grandf
    length_group: und
  - json_path: /mnt/localssd/grandf_openpsg.parquet
    name: grand-f
    sampling_strategy: random:20%
    preprocess_fn: preproces_grandf
    length_group: und
  - json_path: s3://bucket/reflect.parquet
    name: reflect-dit-reason-judge
    sampling_strategy: dup:2
    sampling_strategy: dup:2
    preprocess_fn: preprocess_reflection_und
    process_fn_kwargs: {do_print: false, s3_prefix: s3://bucket/images}
    length_group: und
  - json_path: /mnt/localssd/laion.parquet
    name: laion
    columns: [s3_path, caption, fltLaionAesthScore, intHeight, intWidth]
    sampling_strategy: all
    aes_cutoff: 5.67
    min_size: 512
    preprocess_fn: preproces_text_to_image_generation_s3
    length_group: t2i
weights: {und: 30, t2i: 100, edit: 100}
batch_sizes: {und: 0.5}
"""

LLAVA_NEXT = """\
datasets:
  - json_path: /mnt/llava/llava_instruct.json
    sampling_strategy: "first:1000"
  - json_path: /mnt/llava/ureader_cap.json
    sampling_strategy: "end:10%"
"""


def test_a_lavida_o_file_loads_unchanged(tmp_path: Path) -> None:
    (tmp_path / "s3.yaml").write_text(LAVIDA)
    mixture = Mixture.load(tmp_path / "s3.yaml", path_map={"/mnt/localssd": "/data/local"})
    assert mixture.config_names == ["mixture", "grand-f", "grand-f-2", "reflect-dit-reason-judge", "laion"]
    assert [entry.name for entry in mixture.entries] == ["grand-f", "grand-f", "reflect-dit-reason-judge", "laion"]
    assert mixture.entries[0].json_path == ("/data/local/grandf_train.parquet",)
    assert mixture.entries[2].json_path == ("s3://bucket/reflect.parquet",)
    assert (mixture.weight("und"), mixture.weight("t2i"), mixture.weight("new")) == (30, 100, 100)
    assert mixture.notes == (
        "line 15: datasets[2].sampling_strategy is written twice, with the same value",
        "datasets[2] 'reflect-dit-reason-judge': option do_print does nothing here",
        "name 'grand-f' is given 2 times: config names get -2, -3 …; data_source stays 'grand-f'",
        "weights for groups that no entry has: 'edit'",
    )


def test_a_llava_next_file_loads_unchanged(tmp_path: Path) -> None:
    (tmp_path / "next.yaml").write_text(LLAVA_NEXT)
    mixture = Mixture.load(tmp_path / "next.yaml", image_root="/images")
    assert mixture.config_names == ["mixture", "llava_instruct", "ureader_cap"]
    assert [str(entry.sampling_strategy) for entry in mixture.entries] == ["first:1000", "end:10%"]
    assert {entry.image_root for entry in mixture.entries} == {"/images"}
    assert {entry.length_group for entry in mixture.entries} == {"default"}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a", "a", "a"], ["a", "a-2", "a-3"]),
        (["a", "a", "a-2"], ["a", "a-3", "a-2"]),  # a written name wins over a generated one
        (["a-2", "a", "a"], ["a-2", "a", "a-3"]),
        (["x/y", "x_y"], ["x_y", "x_y-2"]),
        (["a[1]", "b{2}", "c:d"], ["a_1_", "b_2_", "c_d"]),
    ],
)
def test_config_names_are_unique_and_safe(names: list[str], expected: list[str], make_mixture: MakeMixture) -> None:
    mixture = make_mixture(*({"name": name, "json_path": f"{i}.json"} for i, name in enumerate(names)))
    assert mixture.config_names[1:] == expected


BROKEN = """\
datasets:
  - name: one
    json_path: a.json
    sampling_strategy: frist:3
    min_sise: 3
  - name: two
    json_path: b.parquet
    aes_cutoff: high
    min_size: -1
    preprocess_fn: preproces_text_to_image_generation_s3
    process_fn_kwargs: {caption_kay: c, random_truncate: 1}
  - name: mixture
    json_path: c.json
    on_error: ignore
    on_error: raise
  - just text
weights: {default: 0}
sed: 3
path_map: [a]
image_stores: {piat: nowhere}
"""


def test_all_mistakes_of_a_file_are_said_at_once_with_their_lines(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(BROKEN)
    with pytest.raises(ConfigError) as error:
        Mixture.load(tmp_path / "x.yaml")
    place = str(tmp_path / "x.yaml")
    assert error.value.message.splitlines() == [
        f"{place}: 13 mistakes",
        f"{place}:4: datasets[0] 'one': unknown sampling_strategy 'frist:3': it must be one of all, full, first:N, end:N, "
        "random:N, dup:N",
        f"{place}:5: datasets[0] 'one': unknown key 'min_sise': did you mean 'min_size'?",
        f"{place}:8: datasets[1] 'two': aes_cutoff must be a number or null (off), got 'high'",
        f"{place}:9: datasets[1] 'two': min_size must be a whole number ≥ 1 (pixels), got -1",
        f"{place}:11: datasets[1] 'two': preproces_text_to_image_generation_s3 has no option 'caption_kay': did you mean "
        "'caption_key'?",
        f"{place}:11: datasets[1] 'two': option 'random_truncate' of preproces_text_to_image_generation_s3 must be true or "
        "false, got 1",
        f"{place}:12: datasets[2] 'mixture': the name 'mixture' is reserved for all entries together",
        f"{place}:15: datasets[2].on_error is written twice, with different values: delete one",
        f"{place}:16: datasets[3] must be a mapping with at least `json_path:`, got 'just text'",
        f"{place}:17: weights.default must be a number greater than 0, got 0",
        f"{place}:18: unknown key 'sed': did you mean 'seed'?",
        f"{place}:19: path_map must map texts to texts, got ['a']",
        f"{place}:20: image_stores.piat must be a URL with {{key}} in it, got 'nowhere'",
    ]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "json_path is missing: the data file of the entry"),
        ({"json_path": []}, "json_path must be a path or a list of paths, got []"),
        ({"json_path": "${NOWHERE_SET}/a.json"}, "environment variable NOWHERE_SET in '${NOWHERE_SET}/a.json' is not set: export NOWHERE_SET=…"),
        ({"json_path": "a", "columns": "s3_path"}, "columns must be a list of texts, got 's3_path'"),
        ({"json_path": "a", "max_enc_images": {"column": "x"}}, "max_enc_images must be a mapping {column: name, value: N}, got {'column': 'x'}"),
        ({"json_path": "a", "where": {"a": "x", "b": "y"}}, "where must be a mapping {column: text} of one column and one or several texts, got {'a': 'x', 'b': 'y'}"),
        ({"json_path": "a", "where": {"a": 5}}, "where must be a mapping {column: text} of one column and one or several texts, got {'a': 5}"),
        ({"json_path": "a", "where": {"a": []}}, "where must be a mapping {column: text} of one column and one or several texts, got {'a': []}"),
        ({"json_path": "a", "multi_image": "yes"}, "multi_image must be true or false, got 'yes'"),
        ({"json_path": "a", "turns": "loose"}, "turns must be one of trim, strict, got 'loose'"),
        ({"json_path": "a", "placeholders": True}, "placeholders must be one of repair, strict, off, got True"),
        ({"json_path": "a", "features": {"image": "several"}}, "features.image must be one or many, got 'several'"),
        ({"json_path": "a", "features": {"id": "int64"}}, "features.id is always there: its type is fixed"),
        (
            {"json_path": "a", "features": {"score": "list<float>"}},
            "features.score must be one of string, bool, int8, int16, int32, int64, uint8, uint16, uint32, uint64, float32, "
            "float64 or list<…> of one, got 'float'",
        ),
        ({"json_path": "a", "process_fn_kwargs": {"x": 1}}, "process_fn_kwargs without preprocess_fn: name the function they are for"),
        ({"json_path": "a", "preprocess_fn": "preproces_granf"}, "unknown preprocess_fn 'preproces_granf': did you mean 'preproces_grandf'?"),
        (
            {"json_path": "a", "preprocess_fn": "my.module:function"},
            "preprocess_fn 'my.module:function' is code of the mixture's own: pass trust_custom_code=True (--trust-custom-code) "
            "if you trust it",
        ),
        (
            {"json_path": "a", "preprocess_fn": "preproces_grandf", "multi_image": True},
            "multi_image is for entries without preprocess_fn, whose function says it",
        ),
        (
            {"json_path": "a", "preprocess_fn": "preproces_grandf", "process_fn_kwargs": {"prompt": "Look at {image}"}},
            "preproces_grandf: option 'prompt' uses the field {image}, but its fields are: none",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_entry(
    entry: dict[str, Any], message: str, make_mixture: MakeMixture, folder: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        make_mixture({"name": "a", **entry})
    place, _, rest = error.value.message.partition(": datasets[0] 'a': ")
    assert rest == message
    assert place.rpartition(":")[0] == f"{folder}/x.yaml"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "{path}: a mixture is a mapping with a list `datasets:` of at least one entry"),
        ("datasets: []", "{path}:1: a mixture is a mapping with a list `datasets:` of at least one entry"),
        ("- a", "{path}:1: a mixture is a mapping with a list `datasets:` of at least one entry"),
    ],
)
def test_a_file_that_is_no_mixture(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        Mixture.load(path)
    assert error.value.message == message.format(path=path)


def test_a_file_that_is_no_yaml(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("datasets: [")
    with pytest.raises(ConfigError, match=r"(?s)x.yaml: this is no YAML: .*line 1, column 12"):
        Mixture.load(tmp_path / "x.yaml")


def test_a_mixture_is_found_as_a_path_or_by_name() -> None:
    default = builder_configs_dir() / "default.yaml"
    assert find_mixture("default") == find_mixture("default.yaml") == str(default)
    loaded = Mixture.load(default)
    assert Mixture.load(loaded) is loaded
    with pytest.raises(ConfigError) as error:
        Mixture.load("defolt")
    assert error.value.message == (
        "no mixture 'defolt': neither a file nor one of the names in builder_configs (default)"
    )


def test_builder_arguments_win_over_the_entry_and_are_kept_when_more_are_given(make_mixture: MakeMixture) -> None:
    entry = {"name": "a", "json_path": "/mnt/d/a.json", "image_root": "imgs", "on_error": "raise"}
    mixture = make_mixture(entry, path_map={"/mnt/d": "/one"}, seed=3)
    assert mixture.entries[0].json_path == ("/one/a.json",)
    changed = Mixture.load(mixture, image_root="/root", path_map={"/mnt/d": "/two"}, on_error="skip")
    assert (changed.entries[0].json_path, changed.entries[0].image_root) == (("/two/a.json",), "/root")
    again = Mixture.load(changed, seed=9)
    assert (again.entries[0].on_error, again.entries[0].seed, again.entries[0].image_root) == ("skip", 9, "/root")


def test_parsing_touches_no_data_file(make_mixture: MakeMixture) -> None:
    mixture = make_mixture({"name": "a", "json_path": "/nowhere/at/all.parquet"})
    assert mixture.config_names == ["mixture", "a"]


def test_an_unknown_config_names_the_nearest(make_mixture: MakeMixture, folder: Path) -> None:
    mixture = make_mixture({"name": "chat", "json_path": "a.json"})
    with pytest.raises(ConfigError) as error:
        mixture.select("chad")
    assert error.value.message == f"{folder}/x.yaml: no config 'chad': did you mean 'chat'?"


def test_an_entry_is_checked_when_it_is_made_by_hand() -> None:
    with pytest.raises(ConfigError) as error:
        Entry(name="a", json_path=())
    assert error.value.message == "entry 'a': json_path must name at least one file"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/mnt/data/x", "/new/x"),
        ("/mnt/data2/x", "/other/data2/x"),  # whole components only
        ("/mnt/data", "/new"),
        ("/elsewhere/mnt/data", "/elsewhere/mnt/data"),
        ("/new/x", "/new/x"),  # once: the result is not mapped again
    ],
)
def test_path_map_replaces_the_longest_prefix_of_whole_components_once(path: str, expected: str) -> None:
    assert map_prefix(path, {"/mnt": "/other", "/mnt/data": "/new/", "/new/y": "/no"}) == expected


def test_environment_variables_are_expanded_when_the_file_is_read(
    make_mixture: MakeMixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA_ROOT", "/data/root")
    mixture = make_mixture({"name": "a", "json_path": "${DATA_ROOT}/a.json", "image_root": "${DATA_ROOT}/i"})
    assert (mixture.entries[0].json_path, mixture.entries[0].image_root) == (("/data/root/a.json",), "/data/root/i")


def test_image_references_are_resolved() -> None:
    resolve = ImageResolver(
        image_root="/root",
        path_map={"/root/old": "s3://bucket/new", "/root/one/file.jpg": "/moved.jpg"},
        image_stores={"piat": "https://store.example/{key}.png"},
    )
    assert resolve.many(["a/b.jpg", "old/c.jpg", "/abs/d.jpg", "s3://x/e.jpg", "piat://hash", "one/file.jpg"]) == [
        "/root/a/b.jpg",
        "s3://bucket/new/c.jpg",
        "/abs/d.jpg",
        "s3://x/e.jpg",
        "https://store.example/hash.png",
        "/moved.jpg",
    ]
    plain = ImageResolver(image_root="/root", path_map={}, image_stores={})
    assert plain.many(["a/b.jpg", "a/c.jpg", "./d.jpg", "piat://hash", "/x.jpg", "x.jpg"]) == [
        "/root/a/b.jpg",
        "/root/a/c.jpg",
        "/root/d.jpg",
        "piat://hash",
        "/x.jpg",
        "/root/x.jpg",
    ]


def test_a_path_is_mapped_once() -> None:
    under = {"/data": "/data/v2"}
    mapped_root = map_prefix("/data/images", under)
    resolve = ImageResolver(image_root=mapped_root, path_map=under, image_stores={})
    assert resolve.many(["x.jpg", "/data/y.jpg"]) == ["/data/v2/images/x.jpg", "/data/v2/y.jpg"]


def test_a_mixture_made_by_hand_is_numbered_and_checked() -> None:
    entries = (Entry(name="a", json_path=("a.json",)), Entry(name="b", json_path=("b.json",)))
    assert [entry.index for entry in Mixture(entries=entries).entries] == [0, 1]
    for names, message in (
        (("a", "a"), "mixture: the config name 'a' is given twice"),
        (("a", "mixture"), "mixture: the config name 'mixture' is reserved for all entries together"),
    ):
        with pytest.raises(ConfigError) as error:
            Mixture(entries=tuple(Entry(name=name, json_path=("a.json",)) for name in names))
        assert error.value.message == message


def test_a_merge_key_is_no_repeated_key(tmp_path: Path) -> None:
    text = "datasets:\n  - &one {name: a, json_path: a.json}\n  - {<<: *one, name: b}\n"
    (tmp_path / "x.yaml").write_text(text)
    mixture = Mixture.load(tmp_path / "x.yaml")
    assert (mixture.config_names, mixture.notes) == (["mixture", "a", "b"], ())
