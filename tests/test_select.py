"""Filters and sampling: tables of input and expected rows, worked out by hand or by numpy and pandas."""

from __future__ import annotations

import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_arrow.errors import ConfigError, SourceError
from llava_arrow.plan_cache import PlanCache
from llava_arrow.select import AesCutoff, MaxEncImages, MinSize, Sampling, filter_mask
from tests.conftest import MakeMixture, captions, chat, is_accounted_for, samples_of, write_json, write_table


@pytest.mark.parametrize(
    ("text", "num_passed", "expected"),
    [
        ("all", 5, [0, 1, 2, 3, 4]),
        ("full", 3, [0, 1, 2]),
        ("first:2", 5, [0, 1]),
        ("end:2", 5, [3, 4]),
        ("first:10%", 15, [0, 1]),  # ceil(1.5)
        ("end:12.5%", 8, [7]),
        ("first:0.1%", 5, [0]),
        ("first:10%", 30, [0, 1, 2]),  # 30 × 0.1 in floating point is a little more than 3
        ("dup:3", 2, [0, 1]),
    ],
)
def test_which_positions_a_strategy_keeps(text: str, num_passed: int, expected: list[int]) -> None:
    assert list(Sampling.parse(text).positions(num_passed, seed=42)) == expected


@given(st.integers(1, 300), st.data())
def test_random_draws_the_set_that_numpy_draws(num_passed: int, data: st.DataObject) -> None:
    wanted = data.draw(st.integers(1, num_passed))
    chosen = np.random.RandomState(7).choice(num_passed, wanted, replace=False)
    assert list(Sampling.parse(f"random:{wanted}").positions(num_passed, seed=7)) == sorted(chosen)


@given(st.integers(1, 10**6), st.decimals(Decimal("0.001"), 100, places=3))
def test_a_percentage_is_rounded_up_in_decimal_arithmetic(num_passed: int, percent: Decimal) -> None:
    exact = Decimal(num_passed) * percent / 100
    assert Sampling.parse(f"first:{percent}%").num_kept(num_passed) == math.ceil(exact)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "frist:3",
            "unknown sampling_strategy 'frist:3': it must be one of all, full, first:N, end:N, random:N, dup:N",
        ),
        ("first", "unknown sampling_strategy 'first': it must be one of all, full, first:N, end:N, random:N, dup:N"),
        ("first:0", "sampling_strategy 'first:0': N must be a whole number ≥ 1 or a percentage up to 100%"),
        ("first:-1", "sampling_strategy 'first:-1': N must be a whole number ≥ 1 or a percentage up to 100%"),
        ("end:many", "sampling_strategy 'end:many': N must be a whole number ≥ 1 or a percentage up to 100%"),
        ("random:101%", "sampling_strategy 'random:101%': N must be a whole number ≥ 1 or a percentage up to 100%"),
        ("first:2.5", "sampling_strategy 'first:2.5': N must be a whole number ≥ 1, or say 2.5%"),
        ("dup:50%", "sampling_strategy 'dup:50%': dup takes a whole number of copies, as in dup:2"),
        (7, "unknown sampling_strategy 7: it must be one of all, full, first:N, end:N, random:N, dup:N"),
    ],
)
def test_a_wrong_strategy_says_what_is_right(text: object, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Sampling.parse(text)
    assert error.value.message == message


def test_more_rows_than_there_are_is_an_error_that_says_how_many_there_are() -> None:
    with pytest.raises(ConfigError) as error:
        Sampling.parse("random:7").positions(5, seed=1)
    assert error.value.message == (
        "sampling_strategy 'random:7' asks for 7 rows, but only 5 passed the filters: say at most random:5, or 'all'"
    )


def mask_of(row_filter: Any, **columns: Any) -> list[bool]:
    return list(row_filter.mask(pa.table(columns)))


def test_a_score_is_compared_in_its_own_precision() -> None:
    scores = [5.67, 5.68, None, math.nan, 5.0]
    cutoff = AesCutoff(cutoff=5.67)
    assert mask_of(cutoff, fltLaionAesthScore=pa.array(scores, pa.float32())) == [False, True, False, False, False]
    assert mask_of(cutoff, fltLaionAesthScore=pa.array([5.67, 5.6700001], pa.float64())) == [False, True]
    assert mask_of(cutoff, fltLaionAesthScore=pa.array([5, 6, None], pa.int64())) == [False, True, False]
    assert mask_of(cutoff, fltLaionAesthScore=pa.nulls(2)) == [False, False]


def test_a_size_filter_needs_both_sides() -> None:
    sides = {"intHeight": pa.array([512, 511, 600, None]), "intWidth": pa.array([512, 900, 511, 900])}
    assert mask_of(MinSize(size=512), **sides) == [True, False, False, False]
    big = 2**53 + 1  # float64 cannot hold it
    assert mask_of(MinSize(size=big), intHeight=pa.array([big - 1, big]), intWidth=pa.array([big, big])) == [
        False,
        True,
    ]


def test_max_enc_images_counts_list_items() -> None:
    lists = pa.array([["a"], ["a", "b", "c"], [], None], pa.list_(pa.string()))
    assert mask_of(MaxEncImages(column="images", value=2), images=lists) == [True, False, True, False]


def test_each_row_is_counted_under_the_first_filter_that_it_fails() -> None:
    table = pa.table(
        {
            "fltLaionAesthScore": pa.array([4.0, 6.0, 4.5, 6.0], pa.float32()),
            "intHeight": [100, 100, 900, 900],
            "intWidth": [900, 900, 900, 900],
        }
    )
    removed: dict[str, int] = {}
    best: dict[str, float] = {}
    keep = filter_mask(table, [AesCutoff(cutoff=5.0), MinSize(size=512)], removed, best)
    assert keep is not None
    assert list(keep) == [False, False, False, True]
    assert removed == {"aes_cutoff": 2, "min_size": 1}
    assert best == {"aes_cutoff": 4.5, "min_size": 100.0}


def scored(num_rows: int, scores: list[float | None]) -> dict[str, Any]:
    return captions(num_rows, fltLaionAesthScore=pa.array(scores, pa.float32()))


T2I = {"preprocess_fn": "preproces_text_to_image_generation_s3"}


def test_the_default_cutoff_of_five_applies_to_parquet_only_and_is_reported(
    folder: Path, make_mixture: MakeMixture, cache: PlanCache
) -> None:
    write_table(folder / "a.parquet", scored(4, [4.0, 5.0, 5.5, None]))
    write_json(folder / "a.json", [{"s3_path": "1.jpg", "caption": "c", "fltLaionAesthScore": 1.0}])
    mixture = make_mixture(
        {"json_path": "a.parquet", "name": "default", **T2I},
        {"json_path": "a.parquet", "name": "off", "aes_cutoff": None, **T2I},
        {"json_path": "a.parquet", "name": "unread", "columns": ["s3_path", "caption"], **T2I},
        {"json_path": "a.json", "name": "json", **T2I},
    )
    samples, tally = samples_of(mixture, "default", cache)
    assert [sample["gen_score"] for sample in samples] == [[5.5]]
    assert tally.filtered == {"aes_cutoff": 3}
    assert samples_of(mixture, "off", cache)[1].filtered == {}
    assert len(samples_of(mixture, "unread", cache)[0]) == 4
    assert len(samples_of(mixture, "json", cache)[0]) == 1


def test_row_groups_in_which_nothing_can_pass_are_not_read_but_counted(
    folder: Path, make_mixture: MakeMixture, cache: PlanCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llava_arrow.sources import parquet

    write_table(folder / "a.parquet", scored(9, [1, 2, 3, 6, 7, 1, 2, 3, 4]), row_group_size=3)
    read: list[list[str]] = []
    original = parquet._read_group
    monkeypatch.setattr(
        parquet,
        "_read_group",
        lambda *a: (read.append(a[3]), original(*a))[1],  # a[3]: the columns
    )
    mixture = make_mixture({"json_path": "a.parquet", "name": "a", "aes_cutoff": 5, **T2I})
    samples, tally = samples_of(mixture, "a", cache)
    assert [sample["gen_score"] for sample in samples] == [[6.0], [7.0]]
    assert (tally.rows, tally.filtered) == (9, {"aes_cutoff": 7})
    payload = [columns for columns in read if "caption" in columns]
    assert len(payload) == 1, "only the middle row group holds a row that passes"


def test_an_entry_from_which_nothing_is_left_says_what_would_keep_a_row(
    folder: Path, make_mixture: MakeMixture, cache: PlanCache
) -> None:
    sizes = {"intHeight": [100, 300, 200], "intWidth": [400, 250, 900]}
    write_table(folder / "a.parquet", scored(3, [4.0, 7.5, 6.0]) | sizes)
    mixture = make_mixture({"json_path": "a.parquet", "name": "a", "aes_cutoff": 5, "min_size": 512, **T2I})
    with pytest.raises(ConfigError) as error:
        samples_of(mixture, "a", cache)
    assert error.value.message == (
        "entry 'a': the filters leave none of its 3 rows: aes_cutoff removed 1 (the highest fltLaionAesthScore there is 4: "
        "a cutoff below that keeps a row); min_size removed 2 (the largest smaller side there is 250 px: min_size up to "
        "that keeps a row)"
    )


def test_a_filter_without_its_column_is_an_error(folder: Path, make_mixture: MakeMixture, cache: PlanCache) -> None:
    write_table(folder / "a.parquet", captions(2))
    mixture = make_mixture({"json_path": "a.parquet", "name": "a", "min_size": 512, **T2I})
    with pytest.raises(ConfigError) as error:
        samples_of(mixture, "a", cache)
    assert error.value.message == (
        f"{folder}/a.parquet (entry 'a'): min_size needs the column 'intHeight', which is not among those read "
        "(s3_path, caption): add it to `columns:` or remove min_size"
    )


STRATEGIES = ["all", "first:3", "end:3", "random:4", "random:30%", "dup:2", "first:1", "end:100%"]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", ["parquet", "json", "jsonl", "csv"])
def test_the_same_rows_for_any_number_of_shards(
    strategy: str, kind: str, folder: Path, make_mixture: MakeMixture, cache: PlanCache
) -> None:
    scores = [float(s) for s in np.random.default_rng(3).uniform(4, 7, 40)]
    columns = captions(40, fltLaionAesthScore=scores)
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if kind == "parquet":
        write_table(folder / "a.parquet", columns, row_group_size=7)
    elif kind == "csv":
        lines = [",".join(columns)] + [",".join(map(str, row.values())) for row in rows]
        (folder / "a.csv").write_text("\n".join(lines) + "\n")
    else:
        write_json(folder / f"a.{kind}", rows, lines=kind == "jsonl")
    entry = {"json_path": f"a.{kind}", "name": "a", "aes_cutoff": 5, "sampling_strategy": strategy, **T2I}
    mixture = make_mixture(entry, seed=5)
    passed = [i for i, score in enumerate(scores) if score > 5]
    kept = [passed[k] for k in Sampling.parse(strategy).positions(len(passed), seed=5)]
    copies = 2 if strategy == "dup:2" else 1
    for num_shards in (None, 1, 2, 5, 16):
        samples, tally = samples_of(mixture, "a", cache, num_shards=num_shards)
        paths = [sample["image_gen"]["path"].rsplit("/", 1)[1] for sample in samples]
        assert paths == [f"{i}.jpg" for i in kept for _ in range(copies)]
        assert is_accounted_for(tally)
        assert (tally.rows, tally.delivered, tally.samples) == (40, len(kept), len(kept) * copies)
        assert tally.not_sampled == len(passed) - len(kept)


def test_counts_are_remembered_and_a_changed_file_is_counted_anew(
    folder: Path, make_mixture: MakeMixture, cache: PlanCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(folder / "a.jsonl", [{"id": i, "conversations": chat("q", "a")} for i in range(4)], lines=True)
    mixture = make_mixture({"json_path": "a.jsonl", "name": "a", "sampling_strategy": "end:1"})
    assert samples_of(mixture, "a", cache)[0][0]["id"] == "3"
    with monkeypatch.context() as patch:
        patch.setattr("llava_arrow.plan.count_range", lambda *a, **k: pytest.fail("counted again"))
        assert samples_of(mixture, "a", cache)[0][0]["id"] == "3"
    write_json(folder / "a.jsonl", [{"id": i, "conversations": chat("q", "a")} for i in range(7)], lines=True)
    assert samples_of(mixture, "a", cache)[0][0]["id"] == "6"


@settings(deadline=None, max_examples=30)
@given(st.lists(st.one_of(st.none(), st.floats(0, 10, width=32)), min_size=1, max_size=30))
def test_statistics_never_prune_a_row_that_passes(scores: list[float | None]) -> None:
    present = [score for score in scores if score is not None]
    row_filter = AesCutoff(cutoff=5.0)
    mask = row_filter.mask(pa.table({"fltLaionAesthScore": pa.array(scores, pa.float32())}))
    if present:
        bounds = {"fltLaionAesthScore": (np.float32(min(present)), np.float32(max(present)))}
        assert row_filter.can_pass(bounds) == bool(mask.any())


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_where_keeps_rows_by_a_text(kind: str, folder: Path, make_mixture: MakeMixture, cache: PlanCache) -> None:
    sources = ["coco", "gqa", None, "ocr", "coco"]
    turns = [chat(f"q{i}", "a") for i in range(5)]
    if kind == "parquet":
        write_table(folder / "a.parquet", {"data_source": sources, "conversations": turns, "n": [1, 2, 3, 4, 5]})
    else:
        records = [{"data_source": s, "conversations": t, "n": 1} for s, t in zip(sources, turns, strict=True)]
        write_json(folder / "a.json", [*records, {"data_source": 7, "conversations": turns[0]}])
    entry = {"json_path": f"a.{kind}"}
    mixture = make_mixture(
        {**entry, "name": "one", "where": {"data_source": "coco"}},
        {**entry, "name": "two", "where": {"data_source": ["gqa", "ocr"]}},
        {**entry, "name": "first", "where": {"data_source": "coco"}, "sampling_strategy": "first:1"},
    )
    for name, rows in (("one", [0, 4]), ("two", [1, 3]), ("first", [0])):
        samples, tally = samples_of(mixture, name, cache, num_shards=2)
        assert [sample["conversations"][0]["value"] for sample in samples] == [f"q{i}" for i in rows]
        assert is_accounted_for(tally)
        assert tally.filtered["where"] == (3 if kind == "parquet" else 4)


def test_where_that_finds_nothing_says_so(folder: Path, make_mixture: MakeMixture, cache: PlanCache) -> None:
    write_json(folder / "a.json", [{"data_source": "coco", "conversations": chat("q", "a")}] * 2)
    mixture = make_mixture({"name": "x", "json_path": "a.json", "where": {"data_source": ["gqa", "ocr"]}})
    with pytest.raises(ConfigError) as error:
        samples_of(mixture, "x", cache)
    assert error.value.message == (
        "entry 'x': the filters leave none of its 2 rows: where removed 2 (no row has data_source 'gqa' or 'ocr')"
    )


def test_where_compares_texts_only(folder: Path, make_mixture: MakeMixture, cache: PlanCache) -> None:
    write_table(folder / "a.parquet", {"n": [1, 2], "conversations": [chat("q", "a")] * 2})
    mixture = make_mixture({"name": "x", "json_path": "a.parquet", "where": {"n": "1"}})
    with pytest.raises(SourceError) as error:
        samples_of(mixture, "x", cache)
    assert error.value.message == (
        f"{folder}/a.parquet (entry 'x'): where compares the column 'n' with a text, but it is int64"
    )
