"""Each kind of bad input, once: the whole message, or with `on_error: skip` the ledger line. Never a wrong dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from llava_arrow import MixtureError
from llava_arrow.plan_cache import PlanCache
from tests.conftest import MakeMixture, captions, chat, is_accounted_for, samples_of, write_json, write_table

GOOD = {"id": "good", "conversations": chat("q", "a")}


class Trouble:
    """Runs one entry and gives the message it fails with, the folder shortened to `.`."""

    def __init__(self, folder: Path, make_mixture: MakeMixture, cache: PlanCache) -> None:
        self.folder, self.make_mixture, self.cache = folder, make_mixture, cache

    def __call__(self, **entry: Any) -> str:
        with pytest.raises(MixtureError) as error:
            samples_of(self.make_mixture({"name": "a", **entry}), "a", self.cache)
        return error.value.message.replace(str(self.folder), ".")

    def skipped(self, **entry: Any) -> tuple[int, list[tuple[int, str]]]:
        """How many samples come with `on_error: skip`, and the ledger as (row, reason)."""
        mixture = self.make_mixture({"name": "a", "on_error": "skip", **entry})
        samples, tally = samples_of(mixture, "a", self.cache)
        assert is_accounted_for(tally)
        return len(samples), [(line.row, line.reason) for line in tally.ledger]


@pytest.fixture
def trouble(folder: Path, make_mixture: MakeMixture, cache: PlanCache) -> Trouble:
    return Trouble(folder, make_mixture, cache)


def test_a_missing_file(trouble: Trouble) -> None:
    assert (
        trouble(json_path="nope/a.json")
        == "entry 'a': the data file './nope/a.json' does not exist (the folder '.' does)"
    )


def test_a_missing_directory(trouble: Trouble) -> None:
    assert trouble(json_path="nope/") == "entry 'a': the data file './nope' does not exist (the folder '.' does)"


def test_a_glob_that_matches_nothing(trouble: Trouble) -> None:
    assert trouble(json_path="nope/*.json") == "entry 'a': json_path './nope/*.json' matches no file"


@pytest.mark.parametrize("name", ["a.json", "a.parquet", "a.csv", "a.jsonl", "a.arrow"])
def test_an_empty_file(name: str, folder: Path, trouble: Trouble) -> None:
    (folder / name).touch()
    assert trouble(json_path=name) == f"entry 'a': the data file './{name}' is empty (0 bytes)"


def test_a_directory_without_data(folder: Path, trouble: Trouble) -> None:
    (folder / "d").mkdir()
    (folder / "d" / "readme.txt").write_text("x")
    assert trouble(json_path="d") == (
        "entry 'a': the directory './d' holds no data file "
        "(.parquet, .csv, .tsv, .json, .jsonl, .ndjson, .arrow, .feather)"
    )


def test_a_directory_of_two_formats(folder: Path, trouble: Trouble) -> None:
    (folder / "d").mkdir()
    write_json(folder / "d" / "a.json", [GOOD])
    (folder / "d" / "a.csv").write_text("a\n1\n")
    assert trouble(json_path="d") == (
        "entry 'a': the directory './d' holds several formats (1 csv, 1 json): say which, as in *.parquet"
    )


def test_an_unknown_format(folder: Path, trouble: Trouble) -> None:
    (folder / "a.xlsx").write_text("x")
    assert trouble(json_path="a.xlsx") == (
        "entry 'a': './a.xlsx' is of no known format: .parquet, .csv, .tsv, .json, .jsonl, .ndjson, .arrow, .feather; "
        "csv, tsv, json, jsonl also with .gz or .zst"
    )


@pytest.mark.parametrize("keep", [0.3, 0.97])
def test_a_truncated_parquet_file(keep: float, folder: Path, trouble: Trouble) -> None:
    write_table(folder / "a.parquet", captions(1000))
    data = (folder / "a.parquet").read_bytes()
    (folder / "a.parquet").write_bytes(data[: int(len(data) * keep)])
    message = trouble(json_path="a.parquet", preprocess_fn="preproces_text_to_image_generation_s3")
    assert message.startswith("entry 'a': ./a.parquet: this is no readable Parquet file (truncated?): ")


def test_a_truncated_arrow_file(folder: Path, trouble: Trouble) -> None:
    table = pa.table(captions(1000))
    with pa.ipc.new_file(folder / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    data = (folder / "a.arrow").read_bytes()
    (folder / "a.arrow").write_bytes(data[: len(data) // 2])
    message = trouble(json_path="a.arrow", preprocess_fn="preproces_text_to_image_generation_s3")
    assert message.startswith("entry 'a': ./a.arrow: this is no readable Arrow file (truncated?): ")


def test_a_json_array_that_is_cut_in_the_middle(folder: Path, trouble: Trouble) -> None:
    text = json.dumps([GOOD] * 3)
    (folder / "a.json").write_text(text[:-30])
    assert trouble(json_path="a.json", multi_image=False) == (
        "entry 'a': ./a.json: the JSON array ends in the middle, after 2 whole records: the file is truncated"
    )


def test_a_json_file_that_is_no_array(folder: Path, trouble: Trouble) -> None:
    (folder / "a.json").write_text('"text"')
    assert trouble(json_path="a.json") == (
        "entry 'a': ./a.json: a JSON file must be an array of records or have one record per line, it starts with '\"text\"'"
    )


def test_text_after_the_array(folder: Path, trouble: Trouble) -> None:
    (folder / "a.json").write_text(json.dumps([GOOD]) + " and more")
    assert trouble(json_path="a.json", multi_image=False) == (
        "entry 'a': ./a.json: something follows the JSON array: 'and more'"
    )


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_record_of_an_array_that_is_broken_is_one_bad_row(number: int, folder: Path, trouble: Trouble) -> None:
    records = [json.dumps(GOOD)] * 2
    records.insert(number, '{"id": NaN, "b": 2}')
    (folder / "a.json").write_text(f"[{', '.join(records)}]")
    reason = 'a record is no valid JSON (JSON is malformed: invalid character (byte 7)): {"id": NaN, "b": 2}…'
    assert trouble(json_path="a.json", multi_image=False) == f"./a.json row {number} (entry 'a'): {reason}"
    assert trouble.skipped(json_path="a.json") == (2, [(number, reason)])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[{}, {} {}]", "the JSON array is broken after row 1: "),
        ("[{},, {}]", "the JSON array is broken after row 0: "),
        ("[{}, {},]", "the JSON array is broken after row 1: "),
        ("[{}, x, {}]", "the JSON array is broken after row 0: "),
    ],
)
def test_an_array_whose_records_are_not_apart(text: str, reason: str, folder: Path, trouble: Trouble) -> None:
    (folder / "a.json").write_text(text)
    assert trouble(json_path="a.json", on_error="skip").startswith(f"entry 'a': ./a.json: {reason}")


def test_a_comma_is_looked_for_between_pieces_too(
    folder: Path, trouble: Trouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llava_arrow.sources.json_array.PIECE_BYTES", 8)
    good = json.dumps(GOOD)
    for text, message in (
        (f"[{good} {good}]", "entry 'a': ./a.json: a comma must follow record 0, got "),
        (f"[{good},]", "entry 'a': ./a.json: the JSON array ends with a comma, after 1 records"),
        (f"[{good},,{good}]", "entry 'a': ./a.json: the JSON array is broken after row 0: "),
    ):
        (folder / "a.json").write_text(text)
        assert trouble(json_path="a.json", multi_image=False).startswith(message)


def test_nesting_without_end(folder: Path, trouble: Trouble) -> None:
    (folder / "a.jsonl").write_text('{"conversations": ' + "[" * 5000 + "]" * 5000 + "}\n" + json.dumps(GOOD) + "\n")
    number, ledger = trouble.skipped(json_path="a.jsonl")
    assert (number, [row for row, _ in ledger]) == (1, [0])


def test_a_number_beyond_all_bounds_is_compared_as_it_is(folder: Path, trouble: Trouble) -> None:
    scores = [10**24, -(10**24), 7]
    write_json(folder / "a.json", [{**GOOD, "fltLaionAesthScore": score} for score in scores])
    assert trouble.skipped(json_path="a.json", aes_cutoff=5) == (2, [])


@pytest.mark.parametrize("name", ["a.json.gz", "a.csv.gz", "a.jsonl.zst"])
def test_a_damaged_compressed_file(name: str, folder: Path, trouble: Trouble) -> None:
    (folder / name).write_bytes(b"\x1f\x8bnot really compressed")
    assert ": the file is truncated or damaged: " in trouble(json_path=name)


def test_a_quoted_field_that_is_never_closed(folder: Path, trouble: Trouble) -> None:
    (folder / "a.csv").write_text('s3_path,caption\n1.jpg,"one"\n2.jpg,"two\n3.jpg,three\n')
    entry = {"json_path": "a.csv", "preprocess_fn": "preproces_text_to_image_generation_s3"}
    assert trouble(**entry) == (
        "entry 'a': ./a.csv: the last quoted field is never closed: the file is truncated, or a quote is missing"
    )


def test_an_arrow_stream_without_its_end(folder: Path, trouble: Trouble) -> None:
    table = pa.table({"conversations": [chat("q", "a")] * 6})
    with pa.ipc.new_stream(folder / "a.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    data = (folder / "a.arrow").read_bytes()
    (folder / "a.arrow").write_bytes(data[:-8])  # the marker that nothing follows
    assert trouble(json_path="a.arrow") == (
        "entry 'a': ./a.arrow: the Arrow stream has no end mark: the file is truncated, or its writer was not closed"
    )


def test_rows_of_which_none_can_be_read(folder: Path, trouble: Trouble) -> None:
    (folder / "a.csv").write_text("s3_path,caption\none\ntwo\n")
    entry = {"json_path": "a.csv", "preprocess_fn": "preproces_text_to_image_generation_s3", "on_error": "skip"}
    reason = "none of its 2 rows can be read, the first: row 0: the line has 1 fields, but the header names 2: one"
    assert trouble(**entry) == f"entry 'a': {reason}"
    assert trouble(**entry, sampling_strategy="first:1") == f"entry 'a': {reason}"


def test_text_in_parquet_that_is_no_unicode(folder: Path, trouble: Trouble) -> None:
    bad = pa.array([b"good", b"\xff\xfe"], pa.binary()).view(pa.string())
    write_table(folder / "a.parquet", {"s3_path": ["1.jpg", "2.jpg"], "caption": bad})
    entry = {"json_path": "a.parquet", "preprocess_fn": "preproces_text_to_image_generation_s3"}
    assert trouble(**entry) == "./a.parquet row 1 (entry 'a'): the text is no valid UTF-8"
    assert trouble.skipped(**entry) == (1, [(1, "the text is no valid UTF-8")])


def test_one_odd_row_of_a_json_file_is_one_bad_row_for_a_batched_function(folder: Path, trouble: Trouble) -> None:
    rows: list[Any] = [{"s3_path": "1.jpg", "caption": caption} for caption in ("a", 5, ["x"], "d", None)]
    rows.append({"caption": "no path"})
    write_json(folder / "a.json", rows)
    entry = {"json_path": "a.json", "preprocess_fn": "preproces_text_to_image_generation_s3"}
    assert trouble.skipped(**entry) == (
        2,
        [
            (1, "'caption' must be text, but the column is int64"),
            (2, "'caption' must be text, but the column is list<item: string>"),
            (4, "'caption' is null, text is needed"),
            (5, "'s3_path' is null, text is needed"),
        ],
    )


def test_ids_that_are_no_ids(folder: Path, trouble: Trouble) -> None:
    write_json(folder / "a.json", [{**GOOD, "id": given} for given in (True, [1], {"a": 1}, 7, 7.0, "x")])
    number, ledger = trouble.skipped(json_path="a.json")
    assert (number, [row for row, _ in ledger]) == (3, [0, 1, 2])
    assert ledger[1][1] == "'id' must be text or a number, got [1]"


def test_columns_of_json_that_no_record_has(folder: Path, trouble: Trouble) -> None:
    write_json(folder / "a.json", [GOOD, GOOD | {"late": 1}])
    there = "but the records have only id, conversations, late"
    assert (
        trouble(json_path="a.json", columns=["id", "nope"])
        == f"./a.json (entry 'a'): `columns:` names 'nope', {there}"
    )
    assert trouble(json_path="a.json", id_column="key") == f"./a.json (entry 'a'): id_column names 'key', {there}"
    assert trouble(json_path="a.json", keep_columns=["x"]) == f"./a.json (entry 'a'): keep_columns names 'x', {there}"
    assert trouble.skipped(json_path="a.json", keep_columns=["late"]) == (2, [])


def test_a_line_that_is_broken(folder: Path, trouble: Trouble) -> None:
    (folder / "a.jsonl").write_text(json.dumps(GOOD) + '\n{"id": 3, "con\n' + json.dumps(GOOD) + "\n")
    reason = 'a record is no valid JSON (Input data was truncated): {"id": 3, "con…'
    assert trouble(json_path="a.jsonl") == f"./a.jsonl row 1 (entry 'a'): {reason}"
    assert trouble.skipped(json_path="a.jsonl") == (2, [(1, reason)])
    first = {"json_path": "a.jsonl", "sampling_strategy": "end:1"}
    assert trouble.skipped(**first) == (1, [])


def test_a_broken_line_under_a_filter_is_no_filtered_row(folder: Path, trouble: Trouble) -> None:
    lines = [json.dumps({**GOOD, "fltLaionAesthScore": score}) for score in (6, 4)]
    lines.insert(1, '{"fltLaionAesthScore": "high", "conversations": []}')
    (folder / "a.jsonl").write_text("\n".join(lines))
    reason = "'fltLaionAesthScore' is compared with a number, but it is 'high'"
    assert trouble(json_path="a.jsonl", aes_cutoff=5) == f"./a.jsonl row 1 (entry 'a'): {reason}"
    assert trouble.skipped(json_path="a.jsonl", aes_cutoff=5) == (1, [(1, reason)])
    assert trouble.skipped(json_path="a.jsonl", aes_cutoff=5, sampling_strategy="first:1") == (1, [(1, reason)])


def test_a_record_that_is_no_object(folder: Path, trouble: Trouble) -> None:
    write_json(folder / "a.json", [GOOD, [1, 2], 5])
    assert trouble(json_path="a.json") == "./a.json row 1 (entry 'a'): a record must be an object {…}, got [1, 2]"
    assert trouble.skipped(json_path="a.json") == (
        1,
        [(1, "a record must be an object {…}, got [1, 2]"), (2, "a record must be an object {…}, got 5")],
    )


def test_an_empty_array(folder: Path, trouble: Trouble) -> None:
    write_json(folder / "a.json", [])
    assert trouble(json_path="a.json") == "entry 'a': ./a.json: there are no rows"


def test_a_csv_of_only_a_header(folder: Path, trouble: Trouble) -> None:
    (folder / "a.csv").write_text("s3_path,caption\n")
    entry = {"json_path": "a.csv", "preprocess_fn": "preproces_text_to_image_generation_s3"}
    assert trouble(**entry) == "entry 'a': ./a.csv: there are no rows"


def test_csv_lines_of_another_width(folder: Path, trouble: Trouble) -> None:
    (folder / "a.csv").write_text("s3_path,caption\n1.jpg,one\n2.jpg\n3.jpg,three\n4.jpg,four,more\n5.jpg,five\n")
    entry = {"json_path": "a.csv", "preprocess_fn": "preproces_text_to_image_generation_s3"}
    reason = "the line has 1 fields, but the header names 2: 2.jpg"
    assert trouble(**entry) == f"./a.csv row 1 (entry 'a'): {reason}"
    assert trouble.skipped(**entry) == (
        3,
        [(1, reason), (3, "the line has 3 fields, but the header names 2: 4.jpg,four,more")],
    )


def test_a_csv_header_that_names_a_column_twice(folder: Path, trouble: Trouble) -> None:
    (folder / "a.csv").write_text("caption,caption\na,b\n")
    assert trouble(json_path="a.csv") == "entry 'a': ./a.csv: the header line names 'caption' twice"


def test_missing_columns(folder: Path, trouble: Trouble) -> None:
    write_table(folder / "a.parquet", captions(2))
    t2i = {"json_path": "a.parquet", "preprocess_fn": "preproces_text_to_image_generation_s3"}
    there = "but there are only s3_path, caption"
    assert trouble(json_path="a.parquet") == (
        "./a.parquet (entry 'a'): rows without preprocess_fn must have a column 'conversations'; there are s3_path, caption"
    )
    assert trouble(**t2i, columns=["s3_path", "capshun"]) == (
        f"./a.parquet (entry 'a'): `columns:` names the column 'capshun', {there}"
    )
    assert trouble(**t2i, process_fn_kwargs={"caption_key": "long"}) == (
        f"./a.parquet (entry 'a'): preproces_text_to_image_generation_s3 needs the column 'long', {there}"
    )
    assert trouble(**t2i, id_column="key") == f"./a.parquet (entry 'a'): id_column names the column 'key', {there}"
    write_table(folder / "b.parquet", {"conversations": [chat("q", "a")]})
    assert trouble(json_path="b.parquet", keep_columns=["score"]) == (
        "./b.parquet (entry 'a'): the entry declares the column 'score', but there are only conversations"
    )


def test_wrong_types(folder: Path, trouble: Trouble) -> None:
    write_table(folder / "a.parquet", {"s3_path": ["1.jpg"], "caption": [5], "intHeight": ["tall"], "intWidth": [1]})
    t2i = {"json_path": "a.parquet", "preprocess_fn": "preproces_text_to_image_generation_s3"}
    assert trouble(**t2i) == "./a.parquet row 0 (entry 'a'): 'caption' must be text, but the column is int64"
    assert trouble(**t2i, min_size=5) == (
        "./a.parquet (entry 'a'): column 'intHeight' is compared with a number, but it is string"
    )
    write_table(folder / "b.parquet", {"conversations": [1, 2]})
    assert (
        trouble(json_path="b.parquet")
        == "./b.parquet row 0 (entry 'a'): 'conversations' must be a list of turns, got 1"
    )


def test_more_rows_asked_for_than_there_are(folder: Path, trouble: Trouble) -> None:
    write_json(folder / "a.json", [GOOD] * 3)
    assert trouble(json_path="a.json", sampling_strategy="first:4") == (
        "entry 'a': sampling_strategy 'first:4' asks for 4 rows, but only 3 passed the filters: say at most first:3, or 'all'"
    )


def test_samples_that_are_wrong(folder: Path, trouble: Trouble) -> None:
    records = [
        GOOD,
        {"conversations": []},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "human", "value": "q"}]},
        {"conversations": chat("<image>q", "a")},
        {"conversations": chat("q", "a"), "image": "../../etc/passwd"},
    ]
    write_json(folder / "a.json", records)
    assert trouble(json_path="a.json") == (
        "./a.json row 1 (entry 'a'): the conversation is empty: it needs a human turn and an answer"
    )
    assert trouble.skipped(json_path="a.json") == (
        1,
        [
            (1, "the conversation is empty: it needs a human turn and an answer"),
            (2, "turn 1 is from human, gpt is next: turns must alternate"),
            (3, "<image> occurs 1 times, but 'image' holds 0 images: they must match"),
            (
                4,
                f"image reference '../../etc/passwd' leaves the image root {folder}: relative references must stay in it",
            ),
        ],
    )


def test_images_that_cannot_be_embedded(
    folder: Path, make_mixture: MakeMixture, cache: PlanCache, tmp_path: Path
) -> None:
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("<html>not found</html>")
    (folder / "folder.jpg").mkdir()
    (tmp_path / "secret.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "good.gif").write_bytes(b"GIF89a......")
    names = ["missing.jpg", "empty.jpg", "text.jpg", "folder.jpg", "link.png", "good.gif"]
    write_json(folder / "a.json", [{"image": name, "conversations": chat("<image>q", "a")} for name in names])
    mixture = make_mixture({"name": "a", "json_path": "a.json", "on_error": "skip"})
    samples, tally = samples_of(mixture, "a", cache, embed_images=True)
    assert [s["image"] for s in samples] == [{"bytes": b"GIF89a......", "path": f"{folder}/good.gif"}]
    assert [
        (line.code, line.reason.replace(str(folder), ".").replace(str(tmp_path), "..")) for line in tally.ledger
    ] == [
        ("image_missing", "./missing.jpg does not exist"),
        ("image_empty", "./empty.jpg is empty"),
        ("no_image", "./text.jpg is no image (it begins with b'<html>not fo')"),
        ("image_unreadable", "./folder.jpg is a directory"),
        ("image_outside_root", "./link.png is a link to ../secret.png, outside of the image root ."),
    ]


def test_a_copy_of_a_row_at_fault_takes_the_others_along(folder: Path, trouble: Trouble) -> None:
    write_json(folder / "a.json", [GOOD, {"conversations": []}])
    number, ledger = trouble.skipped(json_path="a.json", sampling_strategy="dup:3")
    assert (number, [row for row, _ in ledger]) == (3, [1])


def test_a_reserved_column_name(folder: Path, trouble: Trouble) -> None:
    write_table(folder / "a.parquet", {"__row__": [1], "conversations": [chat("q", "a")]})
    assert (
        trouble(json_path="a.parquet") == "./a.parquet (entry 'a'): a column must not be called '__row__': rename it"
    )
