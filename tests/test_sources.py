"""Every format: the same rows whole and in any number of shards, and text that stays text."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava_arrow.entry import Entry
from llava_arrow.errors import MixtureError
from llava_arrow.plan_cache import PlanCache
from llava_arrow.select import Sampling
from llava_arrow.shards import DataFile
from llava_arrow.sources import RECORD, ROW, delimited, json_array, json_lines
from llava_arrow.sources.files import data_files, detect_format
from llava_arrow.sources.formats import reader_of
from tests.conftest import MakeMixture, captions, chat, is_accounted_for, samples_of, write_json, write_table

PLAIN = {"id": "x", "conversations": chat("q", "a")}


def the_file(path: Path) -> DataFile:
    return data_files(Entry(name="a", json_path=(str(path),)))[0]


def fail(row: int, error: MixtureError) -> None:
    raise error


def read_all(file: DataFile, num_shards: int) -> list[dict[str, Any]]:
    """All rows of a file, shard by shard."""
    reader = reader_of(file)
    rows: list[dict[str, Any]] = []
    for part in reader.cut(file, num_shards):
        found = [
            row for t in reader.read(file, part, columns=None, filters=(), on_bad_row=fail) for row in t.to_pylist()
        ]
        assert [row[ROW] for row in found] == list(range(part.first_row, part.first_row + len(found)))
        assert part.num_rows in (None, len(found))
        rows += found
    return rows


@pytest.fixture(params=[64, 300, 1 << 22])
def piece_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How much of a file is read at once: small pieces put a border into every kind of place."""
    for module in (json_array, json_lines, delimited):
        monkeypatch.setattr(module, "PIECE_BYTES", request.param)
    return int(request.param)


RECORDS: list[Any] = [
    {"id": 1, "text": 'a quote " and a comma, and },{"id": 9'},
    {"id": "zwei", "text": "\\", "nested": [{"id": 3}, {"id": [4, {"id": 5}]}]},
    {"text": "no id first", "id": None},
    {"id": "ü", "text": "x" * 700},
    {"id": 6, "text": "[{]}\n\t"},
]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("escape", [True, False])
def test_a_json_array_is_split_at_records(indent: int | None, escape: bool, piece_bytes: int, tmp_path: Path) -> None:
    records = RECORDS * 5
    (tmp_path / "a.json").write_text(json.dumps(records, indent=indent, ensure_ascii=escape), encoding="utf-8")
    file = the_file(tmp_path / "a.json")
    for num_shards in (1, 2, 3, 8):
        assert [json.loads(row[RECORD]) for row in read_all(file, num_shards)] == records


def test_space_before_and_after_an_array(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + b" \n" * 500 + json.dumps(RECORDS).encode() + b"\n" * 500)
    for num_shards in (1, 3, 20):
        assert [json.loads(row[RECORD]) for row in read_all(the_file(tmp_path / "a.json"), num_shards)] == RECORDS


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    records=st.lists(
        st.dictionaries(st.text(max_size=8), st.text(max_size=30) | st.lists(st.none())), min_size=1, max_size=12
    )
)
def test_any_records_come_back_from_a_json_array(
    records: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_array, "PIECE_BYTES", 16)
    (tmp_path / "a.json").write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8", errors="surrogatepass")
    file = the_file(tmp_path / "a.json")
    assert [json.loads(row[RECORD]) for row in read_all(file, 3)] == records


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("last", ["", "\n"])
def test_json_lines_are_split_at_lines(newline: str, last: str, piece_bytes: int, tmp_path: Path) -> None:
    text = newline.join(json.dumps(record) for record in RECORDS * 5) + last
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    file = the_file(tmp_path / "a.jsonl")
    for num_shards in (1, 2, 3, 8):
        assert [json.loads(row[RECORD]) for row in read_all(file, num_shards)] == RECORDS * 5


CSV_ROWS = [
    ["007", "1e5", "NA", "True"],
    ["", "null", "a,b", 'say "hi"'],
    ["line\nbreak", "\r\n", "ü 漢", " spaces "],
    ["x" * 90, "-", "#", "\t"],
]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_csv_text_stays_text_and_is_split_between_records(
    name: str, newline: str, bom: bytes, piece_bytes: int, tmp_path: Path
) -> None:
    rows = CSV_ROWS * 6
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter="\t" if name.endswith("tsv") else ",", lineterminator=newline)
    writer.writerows([["one", "two", "drei ü", "four"], *rows])
    (tmp_path / name).write_bytes(bom + buffer.getvalue().encode())
    file = the_file(tmp_path / name)
    for num_shards in (1, 2, 3, 8):
        found = read_all(file, num_shards)
        assert [[row["one"], row["two"], row["drei ü"], row["four"]] for row in found] == rows


def test_a_csv_without_last_newline_and_with_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2\n\n3,4\r\n\r\n5,6")
    for num_shards in (1, 2, 3):
        assert [row["a"] for row in read_all(the_file(tmp_path / "a.csv"), num_shards)] == ["1", "3", "5"]


@pytest.mark.parametrize("row_group_size", [1, 3, 100])
def test_parquet_shards_are_ranges_of_rows(row_group_size: int, tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", {"n": range(25), "kind": pa.array(["x"] * 25).dictionary_encode()},
                row_group_size=row_group_size)  # fmt: skip
    for num_shards in (1, 2, 7, 25, 40):
        rows = read_all(the_file(tmp_path / "a.parquet"), num_shards)
        assert [(row["n"], row["kind"]) for row in rows] == [(n, "x") for n in range(25)]


def test_shards_of_a_parquet_file_end_at_row_groups_where_they_can(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", {"n": range(100)}, row_group_size=24)
    ranges = reader_of(the_file(tmp_path / "a.parquet")).cut(the_file(tmp_path / "a.parquet"), 4)
    assert [(part.start, part.stop) for part in ranges] == [(0, 24), (24, 48), (48, 72), (72, 100)]


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_arrow_files_and_streams(kind: str, tmp_path: Path) -> None:
    table = pa.table({"n": range(25)})
    make = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
    with make(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    for num_shards in (1, 3):
        assert [row["n"] for row in read_all(the_file(tmp_path / "a.arrow"), num_shards)] == list(range(25))


@pytest.mark.parametrize("compression", ["gz", "zst"])
@pytest.mark.parametrize("kind", ["json", "jsonl", "csv"])
def test_compressed_text(compression: str, kind: str, tmp_path: Path) -> None:
    write_json(tmp_path / "plain.json", RECORDS)
    write_json(tmp_path / "plain.jsonl", RECORDS, lines=True)
    (tmp_path / "plain.csv").write_text('a,b\n"x\ny",2\n3,4\n')
    data = (tmp_path / f"plain.{kind}").read_bytes()
    packed = gzip.compress(data) if compression == "gz" else pa.Codec("zstd").compress(data, asbytes=True)
    path = tmp_path / f"a.{kind}.{compression}"
    path.write_bytes(packed)
    assert read_all(the_file(path), 4) == read_all(the_file(tmp_path / f"plain.{kind}"), 1)


def test_a_json_file_with_one_record_per_line_is_read_as_such(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", RECORDS, lines=True)
    assert [json.loads(row[RECORD]) for row in read_all(the_file(tmp_path / "a.json"), 1)] == RECORDS


def test_a_directory_a_glob_a_list_and_names_beyond_ascii(
    folder: Path, make_mixture: MakeMixture, cache: PlanCache
) -> None:
    (folder / "d" / "e").mkdir(parents=True)
    for name in ("d/b ü.json", "d/a[1].json", "d/e/c.json", "d/_skipped.json", "d/.hidden.json"):
        write_json(folder / name, [{"id": name, "conversations": chat("q", "a")}])
    (folder / "d" / "readme.txt").write_text("no data")
    mixture = make_mixture(
        {"name": "directory", "json_path": "d"},
        {"name": "glob", "json_path": "d/*.json"},
        {"name": "deep", "json_path": "d/**/*.json"},
        {"name": "list", "json_path": ["d/e/c.json", "d/a[1].json"]},
    )
    ids = {name: [s["id"] for s in samples_of(mixture, name, cache)[0]] for name in mixture.config_names[1:]}
    everything = ["d/_skipped.json", "d/a[1].json", "d/b ü.json"]
    assert ids == {
        "directory": ["d/a[1].json", "d/b ü.json", "d/e/c.json"],
        "glob": everything,
        "deep": [*everything, "d/e/c.json"],
        "list": ["d/e/c.json", "d/a[1].json"],
    }


def test_any_fsspec_url(make_mixture: MakeMixture, cache: PlanCache) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe(
        "/data/a.jsonl",
        b'{"id": 1, "image": "x.jpg", "conversations": ' + json.dumps(chat("<image>q", "a")).encode() + b"}\n",
    )
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(captions(3)), sink)
    memory.pipe("/data/p/1.parquet", sink.getvalue().to_pybytes())
    memory.pipe("/data/p/2.parquet", sink.getvalue().to_pybytes())
    t2i = {"preprocess_fn": "preproces_text_to_image_generation_s3"}
    mixture = make_mixture(
        {"name": "lines", "json_path": "memory://data/a.jsonl"},
        {"name": "directory", "json_path": "memory://data/p", "sampling_strategy": "end:1", **t2i},
        {"name": "glob", "json_path": "memory://data/p/*.parquet", **t2i},
    )
    assert samples_of(mixture, "lines", cache)[0][0]["image"]["path"] == "memory://data/x.jpg"
    assert [s["id"] for s in samples_of(mixture, "directory", cache)[0]] == ["directory-2-000000002"]
    assert len(samples_of(mixture, "glob", cache, num_shards=4)[0]) == 6


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.parquet", ("parquet", None)),
        ("A.JSON", ("json", None)),
        ("a.b.csv.gz", ("csv", "gzip")),
        ("a.jsonl.zst", ("jsonl", "zstd")),
        ("a.parquet.gz", (None, "gzip")),  # Parquet compresses inside
        ("a.tar", (None, None)),
    ],
)
def test_the_format_follows_from_the_name(name: str, expected: tuple[str | None, str | None]) -> None:
    assert detect_format(name) == expected


def test_image_and_id_may_be_of_any_kind_in_one_file(
    folder: Path, make_mixture: MakeMixture, cache: PlanCache
) -> None:
    turns = chat("<image>q", "a")
    records = [
        {"id": 1, "image": "a.jpg", "conversations": turns},
        {"id": "two", "image": ["b.jpg"], "conversations": turns},
        {"image": None, "conversations": chat("q", "a")},
        {"id": 4.5, "conversations": chat("q", "a")},
        {"id": 5, "image": [], "conversations": chat("q", "a")},
    ]
    write_json(folder / "a.json", records)
    mixture = make_mixture(
        {"name": "single", "json_path": "a.json", "multi_image": False}, {"name": "many", "json_path": "a.json"}
    )
    single, _ = samples_of(mixture, "single", cache)
    assert [s["id"] for s in single] == ["1", "two", "single-a-000000002", "4.5", "5"]
    assert [s["image"] and s["image"]["path"] for s in single] == [
        f"{folder}/a.jpg",
        f"{folder}/b.jpg",
        None,
        None,
        None,
    ]
    many, _ = samples_of(mixture, "many", cache)  # a list occurs, so all are lists
    assert [[image["path"] for image in s["image"]] for s in many] == [
        [f"{folder}/a.jpg"],
        [f"{folder}/b.jpg"],
        [],
        [],
        [],
    ]


def test_the_scan_for_lists_is_remembered(
    folder: Path, make_mixture: MakeMixture, cache: PlanCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(folder / "a.json", [PLAIN])
    mixture = make_mixture(
        {"name": "a", "json_path": "a.json"}, {"name": "said", "json_path": "a.json", "multi_image": True}
    )
    samples_of(mixture, "a", cache)
    monkeypatch.setattr("llava_arrow.sources.columns._scan_file", lambda *a: pytest.fail("scanned again"))
    samples_of(mixture, "a", cache)
    samples_of(mixture, "said", cache)


def test_a_compared_csv_column_is_a_number_and_empty_is_null(
    folder: Path, make_mixture: MakeMixture, cache: PlanCache
) -> None:
    (folder / "a.csv").write_text(
        "s3_path,caption,fltLaionAesthScore\n1.jpg,001,6.5\n2.jpg,1e5,\n3.jpg,NA, 7 \n4.jpg,True,4\n"
    )
    entry = {
        "name": "a",
        "json_path": "a.csv",
        "aes_cutoff": 5,
        "preprocess_fn": "preproces_text_to_image_generation_s3",
    }
    mixture = make_mixture(entry | {"process_fn_kwargs": {"prompt": "{caption}"}})
    samples, tally = samples_of(mixture, "a", cache)
    assert [s["conversations"][0]["value"] for s in samples] == ["001", "NA"]
    assert tally.filtered == {"aes_cutoff": 2}


def test_undeclared_keys_are_named_and_counted_and_kept_ones_are_columns(
    folder: Path, make_mixture: MakeMixture, cache: PlanCache
) -> None:
    extra = [{"model": "", "score": 1}, {"score": 2.5, "tags": ["a"]}, {"other": {"x": 1}, "tags": []}]
    write_json(folder / "a.json", [{**PLAIN, **more} for more in extra])
    keep = ["score", "tags", "other"]
    mixture = make_mixture(
        {"name": "bare", "json_path": "a.json"}, {"name": "kept", "json_path": "a.json", "keep_columns": keep}
    )
    samples, tally = samples_of(mixture, "bare", cache)
    assert list(samples[0]) == ["id", "data_source", "image", "conversations"]
    assert tally.undeclared == {"model": 1, "score": 2, "tags": 2, "other": 1}
    samples, tally = samples_of(mixture, "kept", cache)
    assert [[s[column] for column in keep] for s in samples] == [
        [1.0, None, None],
        [2.5, ["a"], None],
        [None, [], '{"x":1}'],
    ]
    assert tally.undeclared == {"model": 1}


def test_undeclared_parquet_columns_are_named_and_not_read(
    folder: Path, make_mixture: MakeMixture, cache: PlanCache
) -> None:
    write_table(folder / "a.parquet", {"conversations": [chat("q", "a")] * 3, "blob": [b"x"] * 3, "n": [1, 2, 3]})
    mixture = make_mixture({"name": "a", "json_path": "a.parquet", "keep_columns": ["n"]})
    samples, tally = samples_of(mixture, "a", cache)
    assert [s["n"] for s in samples] == [1, 2, 3]
    assert tally.undeclared == {"blob": 3}


def test_a_strategy_has_one_spelling() -> None:
    assert [str(Sampling.parse(text)) for text in ("full", "dup:2", "first:10%")] == ["all", "dup:2", "first:10%"]


BARE = 's3_path,caption\na0.jpg,5" nail\na1.jpg,c1\n"a2.jpg",c2\na3.jpg,"first\nb.jpg,second\n""c"".jpg,third"\na4.jpg,"x"y"z"\n'


def test_a_bare_quote_is_text_and_moves_no_border(piece_bytes: int, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(BARE)
    expected = ['5" nail', "c1", "c2", 'first\nb.jpg,second\n"c".jpg,third', 'xy"z"']
    for num_shards in (1, 2, 3, 5, 9):
        assert [row["caption"] for row in read_all(the_file(tmp_path / "a.csv"), num_shards)] == expected


def test_blank_lines_at_every_place_are_no_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_bytes(b"a,b\r\n" + b"1,2\r\n\r\n\r\n3,4\r\n\n\n" * 9)
    for size in range(1, 40):
        monkeypatch.setattr(delimited, "PIECE_BYTES", size)
        for num_shards in (1, 2, 5):
            assert [row["a"] for row in read_all(the_file(tmp_path / "a.csv"), num_shards)] == ["1", "3"] * 9


@pytest.mark.parametrize("strategy", ["first:6", "end:2", "random:3", "all"])
def test_lines_of_another_width_are_no_rows_for_sampling(
    strategy: str, folder: Path, make_mixture: MakeMixture, cache: PlanCache
) -> None:
    lines = [f"a{i}.jpg" if i in (2, 4) else f"a{i}.jpg,c{i}" for i in range(8)]
    (folder / "a.csv").write_text("s3_path,caption\n" + "\n".join(lines) + "\n")
    entry = {"json_path": "a.csv", "name": "a", "on_error": "skip", "sampling_strategy": strategy}
    mixture = make_mixture(entry | {"preprocess_fn": "preproces_text_to_image_generation_s3"})
    good = [0, 1, 3, 5, 6, 7]
    kept = [good[k] for k in Sampling.parse(strategy).positions(6, seed=42)]
    for num_shards in (None, 2, 3, 8):
        samples, tally = samples_of(mixture, "a", cache, num_shards=num_shards)
        assert [s["id"] for s in samples] == [f"a-a-{i:09d}" for i in kept]
        assert sorted(line.row for line in tally.ledger) == [2, 4]
        assert is_accounted_for(tally)


def test_empty_cells_are_null_where_null_means_something(
    folder: Path, make_mixture: MakeMixture, cache: PlanCache
) -> None:
    talk = json.dumps(chat("q", "")).replace('"', '""')
    (folder / "a.csv").write_text(f'id,image,video,conversations\n,,,"{talk}"\nx,,,"{talk}"\n')
    samples, _ = samples_of(make_mixture({"name": "a", "json_path": "a.csv"}), "a", cache)
    assert [(s["id"], s["image"]) for s in samples] == [("a-a-000000000", None), ("x", None)]
    assert samples[0]["conversations"] == chat("q", "")


def test_columns_choose_the_keys_of_json_records(folder: Path, make_mixture: MakeMixture, cache: PlanCache) -> None:
    record = {**PLAIN, "image": "a.jpg", "model": "m"}
    write_json(folder / "a.json", [record])
    mixture = make_mixture({"name": "a", "json_path": "a.json", "columns": ["id", "conversations"]})
    (sample,), tally = samples_of(mixture, "a", cache)
    assert (sample["image"], sample["conversations"], tally.undeclared) == (None, PLAIN["conversations"], {})


def test_an_image_dictionary_beside_a_list(folder: Path, make_mixture: MakeMixture, cache: PlanCache) -> None:
    turns = chat("<image>q", "a")
    images: list[Any] = [{"bytes": None, "path": "abc.jpg"}, ["def.jpg"], "g/hij.jpg"]
    write_json(folder / "a.json", [{"image": image, "conversations": turns} for image in images])
    samples, tally = samples_of(make_mixture({"name": "a", "json_path": "a.json"}), "a", cache)
    paths = [[image["path"].removeprefix(f"{folder}/") for image in s["image"]] for s in samples]
    assert (paths, tally.repaired) == ([["abc.jpg"], ["def.jpg"], ["g/hij.jpg"]], 0)


def test_any_file_of_an_entry_may_say_that_images_are_lists(
    folder: Path, make_mixture: MakeMixture, cache: PlanCache
) -> None:
    write_table(folder / "0.parquet", {"conversations": [chat("q", "a")]})
    write_table(folder / "1.parquet", {"conversations": [chat("<image><image>q", "a")], "image": [["a.jpg", "b.jpg"]]})
    samples, _ = samples_of(make_mixture({"name": "a", "json_path": ["0.parquet", "1.parquet"]}), "a", cache)
    assert [len(s["image"]) for s in samples] == [0, 2]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.binary(), pa.string_view()])
def test_conversations_as_text_of_any_make(
    kind: pa.DataType, folder: Path, make_mixture: MakeMixture, cache: PlanCache
) -> None:
    texts = pa.array([json.dumps(chat("q", "a"))]).cast(kind)
    with pa.ipc.new_file(folder / "a.arrow", pa.schema([("conversations", kind)])) as writer:
        writer.write_table(pa.table({"conversations": texts}))
    samples, _ = samples_of(make_mixture({"name": "a", "json_path": "a.arrow"}), "a", cache)
    assert samples[0]["conversations"] == chat("q", "a")


def test_the_stem_of_a_file_keeps_its_dots(folder: Path, make_mixture: MakeMixture, cache: PlanCache) -> None:
    for name in ("d.v1.jsonl", "d.v2.jsonl"):
        write_json(folder / name, [{"conversations": chat("q", "a")}], lines=True)
    samples, _ = samples_of(make_mixture({"name": "a", "json_path": "*.jsonl"}), "a", cache)
    assert [s["id"] for s in samples] == ["a-d.v1-000000000", "a-d.v2-000000000"]


def test_a_long_string_with_escapes_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_array, "PIECE_BYTES", 1 << 12)
    records = [{"text": 'say \\"' * 60_000}, {"id": 1}]  # the second key differs, so that the exact scan decides
    write_json(tmp_path / "a.json", records)
    assert [json.loads(row[RECORD]) for row in read_all(the_file(tmp_path / "a.json"), 1)] == records
