"""Samples: roles, order of turns, placeholders against images, one image or many, and types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_arrow import ConfigError, SchemaError
from llava_arrow.column_types import IMAGE_TYPE, PLACEHOLDERS, Layout, parse_column_type
from llava_arrow.config_data import ConfigData
from llava_arrow.conversation_checks import check_conversations, turns_to_arrow
from llava_arrow.plan_cache import PlanCache
from llava_arrow.schema import widen
from tests.conftest import MakeMixture, chat, samples_of, write_json, write_table


def checked(
    turns: list[Any], num_images: int = 0, *, mode: str = "trim", placeholders: str = "repair", **more: int
) -> Any:
    """The conversation as it leaves, or the message why it does not."""
    array, wrong = turns_to_arrow([turns])
    counts = {column: np.array([more.get(column, num_images if column == "image" else 0)]) for column in PLACEHOLDERS}
    result = check_conversations(array, counts, turns=mode, placeholders=placeholders)
    errors = {**result.wrong, **wrong}
    return errors[0].message if errors else result.conversations.to_pylist()[0]


def said(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": role, "value": value} for role, value in turns]


@pytest.mark.parametrize(
    ("turns", "num_images", "expected"),
    [
        (chat("q", "a"), 0, chat("q", "a")),
        (chat("<image>q", "a", "q", "a"), 1, chat("<image>q", "a", "q", "a")),
        (said(("system", "s"), ("human", "q"), ("gpt", "a")), 0, said(("system", "s"), ("human", "q"), ("gpt", "a"))),
        (said(("user", "q"), ("assistant", "a")), 0, chat("q", "a")),
        ([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], 0, chat("q", "a")),
        (said(("gpt", "hello"), ("human", "q"), ("gpt", "a")), 0, chat("q", "a")),
        (said(("system", "s"), ("gpt", "x"), ("human", "q"), ("gpt", "a")), 0, said(("system", "s"), ("human", "q"), ("gpt", "a"))),
        (chat("q", "a"), 2, chat("<image>\n<image>\nq", "a")),
        (chat("q <image>", "a"), 2, chat("<image>\nq <image>", "a")),
        (said(("system", "s"), ("human", "q"), ("gpt", "a")), 1, said(("system", "s"), ("human", "<image>\nq"), ("gpt", "a"))),
        (chat("q <image_gen_fake>", "a"), 0, chat("q <image_gen_fake>", "a")),
        ([], 0, "the conversation is empty: it needs a human turn and an answer"),
        (said(("gpt", "a")), 0, "no turn is from human: there is nothing to answer"),
        (chat("q"), 0, "the last turn is from human: it must be an answer from gpt"),
        (said(("human", "q"), ("human", "q"), ("gpt", "a")), 0, "turn 1 is from human, gpt is next: turns must alternate"),
        (said(("human", "q"), ("gpt", "a"), ("system", "s"), ("gpt", "a")), 0, "turn 2 is from system, human is next: turns must alternate"),
        (said(("human", "q"), ("bot", "a")), 0, "turn 1 is from 'bot': a role is one of human, gpt, system, user, assistant"),
        (chat("<image> <image> q", "a"), 1, "<image> occurs 2 times, but 'image' holds 1 images: they must match"),
        (chat("<image>q", "a"), 0, "<image> occurs 1 times, but 'image' holds 0 images: they must match"),
        (chat("q", "<image_gen>"), 0, "<image_gen> occurs 1 times, but 'image_gen' holds 0 images: they must match"),
        ([{"from": "human"}], 0, "turn 0 needs 'from' and 'value' as text, got {'from': 'human'}"),
        (["q"], 0, "turn 0 must be {from, value}, got 'q'"),
        (None, 0, "'conversations' must be a list of turns, got None"),
        ("q", 0, "turn 0 must be {from, value}, got 'q'"),
        (said(("human", "\ud800"), ("gpt", "a")), 0, "turn 0 is no valid Unicode: surrogates not allowed"),
    ],
)  # fmt: skip
def test_conversations(turns: Any, num_images: int, expected: Any) -> None:
    found = checked(turns, num_images)
    if turns == "q":
        assert found == "'conversations' must be a list of turns, got 'q'"
    else:
        assert found == expected


def test_strict_repairs_nothing_and_off_counts_nothing() -> None:
    late = said(("gpt", "hello"), ("human", "q"), ("gpt", "a"))
    assert checked(late, mode="strict") == "the first turn is from gpt, not human: `turns: trim` would drop 1"
    missing = "<image> occurs 0 times, but 'image' holds 1 images: they must match"
    assert checked(chat("q", "a"), 1, placeholders="strict") == missing
    assert checked(chat("q", "a"), 1, placeholders="off") == chat("q", "a")
    wrong = "<image_gen> occurs 0 times, but 'image_gen' holds 1 images: they must match"
    assert checked(chat("q", "a"), image_gen=1) == wrong  # only <image> has a place where it can go


WORDS = ["<image>", "<image_gen>", "<image_gen_enc>", "<image", "_gen>", "é", "x ", ""]


@given(st.lists(st.tuples(st.lists(st.sampled_from(WORDS)), st.lists(st.sampled_from(WORDS))), min_size=1, max_size=8))
def test_placeholders_are_counted_as_python_counts_them(pairs: list[tuple[list[str], list[str]]]) -> None:
    conversations = [chat("".join(q), "".join(a)) for q, a in pairs]
    array, _ = turns_to_arrow(conversations)
    counts = {
        column: np.array([sum(turn["value"].count(mark) for turn in turns) for turns in conversations])
        for column, mark in PLACEHOLDERS.items()
    }
    assert check_conversations(array, counts, turns="strict", placeholders="strict").wrong == {}
    for column in PLACEHOLDERS:
        more = {**counts, column: counts[column] + 1}
        found = check_conversations(array, more, turns="strict", placeholders="strict")
        assert sorted(found.wrong) == list(range(len(pairs)))


def test_a_batch_keeps_its_order_around_mended_samples(
    folder: Path, make_mixture: MakeMixture, cache: PlanCache
) -> None:
    records = [
        {"id": 0, "image": "0.jpg", "conversations": chat("q0", "a")},
        {"id": 1, "conversations": chat("q1", "a")},
        {"id": 2, "conversations": said(("gpt", "x"), ("human", "q2"), ("gpt", "a"))},
        {"id": 3, "conversations": []},
        {"id": 4, "conversations": chat("q4", "a")},
    ]
    write_json(folder / "a.json", records)
    mixture = make_mixture({"name": "a", "json_path": "a.json", "on_error": "skip"})
    samples, tally = samples_of(mixture, "a", cache)
    assert [(s["id"], s["conversations"][0]["value"]) for s in samples] == [
        ("0", "<image>\nq0"), ("1", "q1"), ("2", "q2"), ("4", "q4"),
    ]  # fmt: skip
    assert (tally.repaired, tally.trimmed, tally.delivered) == (1, 1, 4)
    assert [(line.row, line.id, line.code) for line in tally.ledger] == [(3, "3", "empty_conversation")]


def test_several_images_in_a_single_image_config_name_the_way_out(
    folder: Path, make_mixture: MakeMixture, cache: PlanCache
) -> None:
    write_json(
        folder / "a.json", [{"id": 0, "image": ["a.jpg", "b.jpg"], "conversations": chat("<image><image>q", "a")}]
    )
    mixture = make_mixture({"name": "a", "json_path": "a.json", "multi_image": False})
    with pytest.raises(SchemaError) as error:
        samples_of(mixture, "a", cache)
    assert error.value.message == (
        f"{folder}/a.json row 0 (entry 'a'): 'image' holds 2 images, but this config has one per sample: say "
        "`multi_image: true` in the entry"
    )


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("../up.jpg", "image reference '../up.jpg' leaves the image root {root}: relative references must stay in it"),
        (
            "a/../../up.jpg",
            "image reference 'a/../../up.jpg' leaves the image root {root}: relative references must stay in it",
        ),
        ("", "image reference '' names no file"),
        ("folder/", "image reference 'folder/' names no file"),
        ("a/..", "image reference 'a/..' names no file"),
        (5, "'image' must hold paths, URLs or {{bytes, path}}, got 5"),
        ({"url": "x"}, "'image' must hold paths, URLs or {{bytes, path}}, got {{'url': 'x'}}"),
        (["a.jpg", None], "'image' must hold paths, URLs or {{bytes, path}}, got None"),
    ],
)
def test_image_references_that_cannot_be(
    image: Any, reason: str, folder: Path, make_mixture: MakeMixture, cache: PlanCache
) -> None:
    write_json(folder / "a.json", [{"image": image, "conversations": chat("q", "a")}])
    mixture = make_mixture(
        {"name": "a", "json_path": "a.json", "multi_image": True, "on_error": "skip"},
        {"name": "b", "json_path": "a.json", "multi_image": True},
    )
    _, tally = samples_of(mixture, "a", cache)
    assert [line.reason for line in tally.ledger] == [reason.format(root=folder)]
    with pytest.raises(Exception) as error:
        samples_of(mixture, "b", cache)
    assert str(error.value) == f"{folder}/a.json row 0 (entry 'b'): {reason.format(root=folder)}"


def test_parquet_images_of_every_published_kind(folder: Path, make_mixture: MakeMixture, cache: PlanCache) -> None:
    turns = [chat("<image>q", "a"), chat("q", "a")]
    embedded = pa.array([{"bytes": b"x", "path": "n.jpg"}, None], IMAGE_TYPE)
    referenced = pa.array([{"bytes": None, "path": "n.jpg"}, None], IMAGE_TYPE)
    columns: dict[str, pa.Array] = {
        "embedded": embedded,
        "referenced": referenced,
        "bytes": pa.array([b"x", None]),
        "path": pa.array(["n.jpg", None]),
        "null": pa.nulls(2),
        "list": pa.array([[{"bytes": b"x", "path": None}], None], pa.list_(IMAGE_TYPE)),
    }
    for name, images in columns.items():
        talk = [chat("q", "a"), chat("q", "a")] if name == "null" else turns
        write_table(folder / f"{name}.parquet", {"image": images, "conversations": talk})
    mixture = make_mixture(*({"name": name, "json_path": f"{name}.parquet"} for name in columns))
    found = {name: [s["image"] for s in samples_of(mixture, name, cache)[0]] for name in columns}
    path = f"{folder}/n.jpg"
    assert found == {
        "embedded": [{"bytes": b"x", "path": "n.jpg"}, None],
        "referenced": [{"bytes": None, "path": path}, None],
        "bytes": [{"bytes": b"x", "path": None}, None],
        "path": [{"bytes": None, "path": path}, None],
        "null": [None, None],
        "list": [[{"bytes": b"x", "path": None}], []],
    }


def test_declared_features_have_their_types(folder: Path, make_mixture: MakeMixture, cache: PlanCache) -> None:
    features = {"image": "many", "image_gen": "one", "gen_score": "list<float32>", "pad_image_gen": "bool"}
    records = [
        {"image": "a.jpg", "image_gen": "b.jpg", "gen_score": [1, 2.5], "pad_image_gen": True,
         "conversations": chat("<image>q", "<image_gen>")},
        {"conversations": chat("q", "a"), "gen_score": "high"},
    ]  # fmt: skip
    write_json(folder / "a.json", records)
    mixture = make_mixture({"name": "a", "json_path": "a.json", "features": features, "on_error": "skip"})
    (sample,), tally = samples_of(mixture, "a", cache)
    assert list(sample) == ["id", "data_source", "image", "image_gen", "conversations", "gen_score", "pad_image_gen"]
    assert (sample["gen_score"], sample["pad_image_gen"]) == ([1.0, 2.5], True)
    assert [line.reason for line in tally.ledger] == ["column 'gen_score' must be list<float32>, got 'high'"]


def test_data_source_is_the_rows_own_or_the_name(folder: Path, make_mixture: MakeMixture, cache: PlanCache) -> None:
    records = [{"data_source": "row", "conversations": chat("q", "a")}, {"conversations": chat("q", "a")}]
    write_json(folder / "a.json", records)
    mixture = make_mixture({"name": "n", "json_path": "a.json"}, {"name": "n", "json_path": "a.json"})
    assert [s["data_source"] for s in samples_of(mixture, "n-2", cache)[0]] == ["row", "n"]
    assert [s["id"] for s in samples_of(mixture, "n-2", cache)[0]] == ["n-2-a-000000000", "n-2-a-000000001"]


def test_the_mixture_has_the_widest_columns(folder: Path, make_mixture: MakeMixture, cache: PlanCache) -> None:
    write_json(
        folder / "one.json",
        [{"image": "1.jpg", "conversations": chat("<image>q", "a")}, {"conversations": chat("q", "a")}],
    )
    write_json(folder / "many.json", [{"image": ["1.jpg", "2.jpg"], "conversations": chat("<image><image>q", "a")}])
    write_table(folder / "t2i.parquet", {"s3_path": ["3.jpg"], "caption": ["c"]})
    mixture = make_mixture(
        {"name": "one", "json_path": "one.json"},
        {"name": "many", "json_path": "many.json"},
        {"name": "t2i", "json_path": "t2i.parquet", "preprocess_fn": "preproces_text_to_image_generation_s3"},
    )
    samples, _ = samples_of(mixture, "mixture", cache)
    assert list(samples[0]) == ["id", "data_source", "image", "image_gen", "conversations", "gen_score", "hpsv2"]
    assert [len(s["image"]) for s in samples] == [1, 0, 2, 0]
    assert [s["image_gen"] is None for s in samples] == [True, True, True, False]
    assert ConfigData.open(mixture, "one", cache=cache).layout.kinds["image"] == "one"
    listed = ConfigData.open(mixture, "t2i", cache=cache, image_columns="list").layout
    assert listed.kinds["image_gen"] == "many"


def test_columns_of_two_types_do_not_go_together(folder: Path, make_mixture: MakeMixture, cache: PlanCache) -> None:
    write_json(folder / "a.json", [{"conversations": chat("q", "a")}])
    mixture = make_mixture(
        {"name": "a", "json_path": "a.json", "features": {"score": "float32"}},
        {"name": "b", "json_path": "a.json", "features": {"score": "string"}},
    )
    with pytest.raises(ConfigError) as error:
        ConfigData.open(mixture, "mixture", cache=cache)
    assert error.value.message == (
        "column 'score' is float32 in entry 'a' but string in entry 'b': give it one type, or load the entries one by one"
    )


def test_widening_keeps_images_and_nulls() -> None:
    narrow = Layout.of({"image": "one"})
    table = pa.table(
        [["a", "b"], ["s", "s"], pa.array([{"bytes": None, "path": "x"}, None], IMAGE_TYPE), [chat("q", "a")] * 2],
        schema=narrow.arrow_schema,
    )
    wide = Layout.of({"image": "many", "image_gen": "many", "image_gen_enc": "one", "flag": "bool"})
    assert widen(table, wide).drop_columns(["conversations"]).to_pylist() == [
        {"id": "a", "data_source": "s", "image": [{"bytes": None, "path": "x"}], "image_gen": [], "image_gen_enc": None, "flag": None},
        {"id": "b", "data_source": "s", "image": [], "image_gen": [], "image_gen_enc": None, "flag": None},
    ]  # fmt: skip


def test_the_arrow_schema_and_the_features_are_the_same() -> None:
    layout = Layout.of({"image": "one", "image_gen": "many", "s": "list<list<int32>>", "f": "float32", "b": "bool"})
    features = layout.features()
    assert features.arrow_schema.remove_metadata() == layout.arrow_schema
    assert parse_column_type("list<string>") == pa.list_(pa.string())


def test_rows_with_a_video_are_refused_by_name(folder: Path, make_mixture: MakeMixture, cache: PlanCache) -> None:
    records = [{"video": "v.mp4", "conversations": []}, {"video": None, "conversations": chat("q", "a")}]
    write_json(folder / "a.json", records)
    write_table(folder / "a.parquet", {"video": ["v", None], "conversations": [chat("q", "a")] * 2})
    write_json(
        folder / "b.json",
        [{"video": "v", "s3_path": "1.jpg", "loc_caption": "c"}, {"s3_path": "1.jpg", "loc_caption": "c"}],
    )
    mixture = make_mixture(
        {"name": "json", "json_path": "a.json", "on_error": "skip"},
        {"name": "parquet", "json_path": "a.parquet", "on_error": "skip"},
        {"name": "function", "json_path": "b.json", "on_error": "skip", "preprocess_fn": "preproces_grandf"},
    )
    for name in mixture.config_names[1:]:
        samples, tally = samples_of(mixture, name, cache)
        assert len(samples) == 1
        lines = [(line.row, line.code, line.reason) for line in tally.ledger]
        assert lines == [(0, "video", "the row has a 'video': only images are supported")]
