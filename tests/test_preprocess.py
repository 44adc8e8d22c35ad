"""The fifteen functions as (row, sample) pairs, draws, and functions of a user's own."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from llava_arrow import ConfigError, PreprocessError, SourceError, register_preprocess
from llava_arrow.config_data import ConfigData
from llava_arrow.plan_cache import PlanCache
from llava_arrow.preprocess.registry import BatchDraws, accepts, find_preprocess, preprocess_names, spell
from llava_arrow.randomness import Draws, file_key, first_uniforms, row_keys
from tests.conftest import MakeMixture, captions, chat, samples_of, write_json, write_table

NAMES = [
    "preproces_grandf",
    "preproces_refcoco_rec",
    "preproces_text_to_image_generation_layout_sam",
    "preproces_text_to_image_generation_piat_hash",
    "preproces_text_to_image_generation_s3",
    "preproces_text_to_image_generation_s3_loc",
    "preproces_und_mammoth_si_10M",
    "preproces_vw_instruct",
    "preprocess_reflection_und",
    "process_gpt_edit",
    "process_gpt_edit_loc_gnd",
    "process_metaquery",
    "process_pica_banana",
    "process_sharegpt_4o_edit",
    "process_uniworld",
]


def test_all_names_of_existing_mixtures_are_there() -> None:
    assert set(NAMES) <= set(preprocess_names())


class One:
    """Runs one row through an entry, from a JSON file, and gives the sample with images as paths below the root."""

    def __init__(self, folder: Path, make_mixture: MakeMixture, cache: PlanCache) -> None:
        self.folder, self.make_mixture, self.cache = folder, make_mixture, cache

    def __call__(self, name: str, row: dict[str, Any], **options: Any) -> dict[str, Any]:
        write_json(self.folder / "a.json", [row])
        entry = {"name": "a", "json_path": "a.json", "preprocess_fn": name, "process_fn_kwargs": options}
        sample = samples_of(self.make_mixture(entry), "a", self.cache)[0][0]
        return {k: self.shown(v) for k, v in sample.items() if k not in ("id", "data_source")}

    def shown(self, value: Any) -> Any:
        if isinstance(value, dict) and set(value) == {"bytes", "path"}:
            return value["path"].removeprefix(f"{self.folder}/")
        if isinstance(value, list) and value and isinstance(value[0], dict) and "path" in value[0]:
            return [self.shown(item) for item in value]
        return value


@pytest.fixture
def one(folder: Path, make_mixture: MakeMixture, cache: PlanCache) -> One:
    return One(folder, make_mixture, cache)


def test_text_to_image_s3(one: One) -> None:
    row = {"s3_path": "p/1.jpg", "caption": "A red chair.", "fltLaionAesthScore": 6.5, "hpsv2": 0.25, "other": 1}
    assert one("preproces_text_to_image_generation_s3", row) == {
        "image_gen": "p/1.jpg",
        "conversations": chat("Generate an image with the caption: A red chair.", "Sure <image_gen>"),
        "gen_score": [6.5],
        "hpsv2": [0.25],
    }


def test_text_to_image_options(one: One) -> None:
    row = {"s3_path": "1.jpg", "short": "S", "long": "x" * 900}
    name = "preproces_text_to_image_generation_s3"
    sample = one(name, row, caption_key="long", prompt="Draw {caption}{caption}!", answer="Here: <image_gen>")
    assert sample["conversations"] == chat("Draw " + "x" * 1600 + "!", "Here: <image_gen>")
    assert (sample["gen_score"], sample["hpsv2"]) == (None, None)
    assert (
        one(name, row, caption_key="long", max_caption_length=3, prompt="{caption}")["conversations"][0]["value"]
        == "xxx"
    )
    chosen = one(name, row, random_caption_keys=["short"], prompt="{caption}")
    assert chosen["conversations"][0]["value"] == "S"


def test_text_to_image_piat_hash(one: One) -> None:
    row = {"strImagehash": "ab12", "longLLA_captions": "Long."}
    sample = one("preproces_text_to_image_generation_piat_hash", row)
    assert sample["image_gen"] == "piat://ab12"
    assert sample["conversations"][0]["value"] == "Generate an image with the caption: Long."


LAYOUT = {"s3_path": "1.jpg", "caption": "C", "grounding_text": "chair [0.1,0.2,0.3,0.4]"}
LOC = "preproces_text_to_image_generation_s3_loc"


def test_layout_first(one: One) -> None:
    request = " State the layout, object by object with its box, before the image."
    assert one(LOC, LAYOUT) == {
        "image_gen": "1.jpg",
        "conversations": chat(
            "Generate an image with the caption: C" + request, "The layout: chair [0.1,0.2,0.3,0.4] <image_gen>"
        ),
        "gen_score": None,
        "hpsv2": None,
        "do_not_mask_text": True,
    }
    planned = one(LOC, LAYOUT, plan_only=True)
    assert planned["conversations"][1]["value"] == "The layout: chair [0.1,0.2,0.3,0.4] <image_gen_fake>"
    assert set(planned) == {"conversations", "gen_score", "hpsv2"}
    bare = one(LOC, LAYOUT, no_plan=True)
    assert bare["conversations"] == chat("Generate an image with the caption: C", "<image_gen>")
    assert set(bare) == {"image_gen", "conversations", "gen_score", "hpsv2"}


def test_layout_with_feedback(one: One) -> None:
    row = LAYOUT | {"negatives": "a.jpg;b.jpg;c.jpg", "negative_reasons": "A is bad.;B is bad.;C is bad."}
    sample = one(LOC, row, add_feedback=True, max_reflection=2, s3_prefix_enc="neg")
    value = sample["conversations"][0]["value"]
    shown = re.findall(r"Attempt (\d): <image>\nFeedback \d: (\w) is bad\.", value)
    assert 1 <= len(shown) <= 2
    assert [number for number, _ in shown] == [str(i + 1) for i in range(len(shown))]
    assert sample["image"] == [f"neg/{letter.lower()}.jpg" for _, letter in shown]
    assert value.count("<image>") == len(sample["image"])


def test_layout_sam(one: One) -> None:
    row = {
        "s3_path": "1.jpg",
        "caption": "C",
        "cap_short": "short [..]",
        "cap_detail": "detail [..]",
        "crop_parms": [0, 0, 5, 5],
    }
    name = "preproces_text_to_image_generation_layout_sam"
    sample = one(name, row, caption_drop=0, s3_prefix="sam")
    assert (sample["image_gen"], sample["crop_parms"], sample["do_not_mask_text"]) == (
        "sam/1.jpg",
        [[0, 0, 5, 5]],
        True,
    )
    is_detailed = "Describe what belongs in each box." in sample["conversations"][0]["value"]
    assert (
        sample["conversations"][1]["value"] == f"The layout: {'detail' if is_detailed else 'short'} [..] <image_gen>"
    )
    dropped = one(name, row, caption_drop=1)
    assert "an image made of the described regions." in dropped["conversations"][0]["value"]


def test_mammoth(one: One) -> None:
    text = '[{"from": "human", "value": "<image>\\nq"}, {"from": "gpt", "value": "a"}]'
    name = "preproces_und_mammoth_si_10M"
    assert one(name, {"image": "x.png", "conversations": text}, s3_prefix="m") == {
        "image": "m/x.png",
        "conversations": chat("<image>\nq", "a"),
    }
    assert one(name, {"image": None, "conversations": text.replace("<image>\\n", "")})["image"] is None


def test_visual_web_instruct(one: One) -> None:
    long_answer = " ".join(["word"] * 151)
    row = {"image": ["a.png", "b.png"], "conversations": chat("<image><image>q", long_answer)}
    sample = one("preproces_vw_instruct", row, s3_prefix="s3://v")
    assert sample["image"] == ["s3://v/a.png", "s3://v/b.png"]
    assert sample["conversations"][0]["value"] == "<image><image>q\nExplain your reasoning in detail."
    row = {"image": None, "conversations": chat("q", " ".join(["word"] * 150))}
    assert one("preproces_vw_instruct", row) == {"image": [], "conversations": row["conversations"]}


def test_grounding(one: One) -> None:
    assert one("preproces_grandf", {"s3_path": "a.jpg", "loc_caption": "A dog [..]."}, s3_prefix="g") == {
        "image": "g/a.jpg",
        "conversations": chat(
            "<image>\nDescribe this image in full, and give the box of everything that you name.", "A dog [..]."
        ),
    }
    assert one("preproces_refcoco_rec", {"s3_path": "a.jpg", "label": "the dog", "loc_string": "[..]"}) == {
        "image": "a.jpg",
        "conversations": chat("<image>\nWhere is the dog? Answer with its box.", "[..]"),
    }


def test_judging_a_generated_image(one: One) -> None:
    sample = one("preprocess_reflection_und", {"image": "g.png", "prompts": "two dogs", "results": "One dog."})
    assert sample["image"] == "g.png"
    assert sample["conversations"][0]["value"].startswith(
        "<image>\nJudge this generated image against its prompt: two dogs\n"
    )
    assert sample["conversations"][1]["value"] == "One dog."
    without = one("preprocess_reflection_und", {"image": None, "prompts": "p", "results": "r"})
    assert without["image"] is None
    assert "<image>" not in without["conversations"][0]["value"]


EDIT = {
    "image": ["a.png"],
    "image_gen": "b.png",
    "image_gen_enc": ["a.png"],
    "conversations": chat("<image> <image_gen_enc> Make it blue.", "Sure <image_gen>"),
    "pad_image_gen": True,
    "reweight": False,
}


@pytest.mark.parametrize("source", ["a.png", ["a.png"]])
def test_edits(source: Any, one: One) -> None:
    row = {"input_prompt": "Make it blue.", "input_image": source, "output_image": "b.png"}
    assert one("process_sharegpt_4o_edit", row) == EDIT | {"pixel_diff": False}
    row = {"instruction": "Make it blue.", "input_paths": source, "output_paths": "b.png", "hpsv2": 0.5}
    assert one("process_gpt_edit", row) == EDIT | {"pixel_diff": False, "hpsv2": [0.5]}
    row = {"text": "Make it blue.", "local_input_image": source, "local_output_image": "b.png"}
    assert one("process_pica_banana", row, pixel_diff=True, reweight=True) == EDIT | {
        "pixel_diff": True,
        "reweight": True,
        "hpsv2": None,
    }


def test_edit_options(one: One) -> None:
    row = {"input_prompt": "P", "input_image": ["a.png", "c.png"], "output_image": "b.png"}
    name = "process_sharegpt_4o_edit"
    sample = one(name, row, s3_prefix="s3://e/", t2i=True, micro=" [[micro_conds_texts]]")
    human = "<image> <image_gen_enc> <image> <image_gen_enc> P [[micro_conds_texts]]"
    assert sample["conversations"][0]["value"] == human
    assert sample["image_gen_enc"] == ["s3://e/a.png", "s3://e/c.png"]
    plain = one(name, row, no_template=True)
    assert (plain["conversations"][0]["value"], len(plain["image"])) == ("P", 2)


@pytest.mark.parametrize(
    ("task", "edit_type", "plan"),
    [
        ("add", None, "Objects to add, and where:"),
        ("swap", None, "Objects to replace, and where:"),
        ("add", "remove", "Objects to remove, and where:"),
        ("add", "style", "Objects to edit, and where:"),
    ],
)
def test_edit_with_layout(task: str, edit_type: str | None, plan: str, one: One) -> None:
    row = {"instruction": "P.", "input_paths": "a.png", "output_paths": "b.png", "grounding_text": "hat [..]"}
    sample = one("process_gpt_edit_loc_gnd", row | {"edit_type": edit_type}, task=task)
    assert sample["conversations"][1]["value"] == f"{plan} hat [..] <image_gen>"
    assert sample["do_not_mask_text"] is True
    planned = one("process_gpt_edit_loc_gnd", row, plan_only=True)
    assert planned["conversations"][1]["value"].endswith("<image_gen_fake>")
    assert not {"image_gen", "do_not_mask_text"} & set(planned)


def test_metaquery(one: One) -> None:
    row = {"source_images_paths": ["a.png", "c.png"], "tgt_path": "t.png", "dir_name": "d", "prompt": "At night."}
    sample = one("process_metaquery", row, s3_prefix="m")
    assert (sample["image"], sample["image_gen"]) == (["m/d/a.png", "m/d/c.png"], "m/d/t.png")
    assert sample["conversations"][0]["value"] == "<image> <image_gen_enc> " * 2 + "At night."


@pytest.mark.parametrize(
    ("is_edit", "sources", "targets", "pad", "reweight"),
    [(True, 1, 1, True, True), (True, 2, 1, True, False), (False, 1, 1, True, False), (False, 0, 1, False, False)],
)
def test_uniworld(is_edit: bool, sources: int, targets: int, pad: bool, reweight: bool, one: One) -> None:
    row = {
        "folder": "f",
        "image": [f"s{i}.png" for i in range(sources)],
        "image_gen": [f"t{i}.png" for i in range(targets)],
        "image_gen_enc": [],
        "is_edit": is_edit,
        "conversations": chat("<image>" * sources + "q", "<image_gen>" * targets),
    }
    sample = one("process_uniworld", row, do_reweight=True, pixel_diff=True)
    assert (sample["pad_image_gen"], sample["reweight"], sample["pixel_diff"]) == (pad, reweight, True)
    assert sample["image_gen"] == [f"f/t{i}.png" for i in range(targets)]
    assert sample["image_gen_enc"] == []


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        (LOC, {"s3_path": "1.jpg", "caption": None, "grounding_text": "x"}, "'caption' is null, text is needed"),
        (LOC, {"s3_path": "1.jpg", "caption": "c"}, "there is no 'grounding_text'; the row has s3_path, caption"),
        (LOC, {"s3_path": "1.jpg", "caption": 5, "grounding_text": "x"}, "'caption' must be text, got 5"),
        ("preproces_grandf", {"s3_path": None, "loc_caption": "c"}, "'s3_path' is null or empty, an image is needed"),
        (
            "preproces_und_mammoth_si_10M",
            {"image": None, "conversations": "[{"},
            "'conversations' is no JSON: Expecting property name enclosed in double quotes: line 1 column 3 (char 2)",
        ),
        (
            "preproces_vw_instruct",
            {"image": None, "conversations": chat("q")},
            "'conversations' has 1 turns, 2 are needed",
        ),
        (
            "process_sharegpt_4o_edit",
            {"input_prompt": "p", "input_image": "a.png", "output_image": ["b.png", "c.png"]},
            "'output_image' has 2 images, one is needed",
        ),
        (
            "process_gpt_edit",
            {"instruction": "p", "input_paths": "a", "output_paths": "b", "hpsv2": "high"},
            "'hpsv2' must be a number, got 'high'",
        ),
        ("process_uniworld", {"folder": "f", "is_edit": None}, "'is_edit' must be true or false, got None"),
        (
            "preproces_text_to_image_generation_layout_sam",
            {"s3_path": "1", "caption": "c", "cap_short": "s", "cap_detail": "d", "crop_parms": "0,0"},
            "'crop_parms' must be a list of whole numbers, got '0,0'",
        ),
        (
            "preproces_text_to_image_generation_s3",
            {"s3_path": "1.jpg", "caption": None},
            "'caption' is null, text is needed",
        ),
    ],
)
def test_a_row_that_does_not_fit_is_named(name: str, row: dict[str, Any], reason: str, one: One) -> None:
    with pytest.raises(PreprocessError) as error:
        one(name, row)
    assert error.value.message == f"{one.folder}/a.json row 0 (entry 'a'): {reason}"


def test_feedback_whose_parts_do_not_match_is_refused(one: One) -> None:
    with pytest.raises(PreprocessError) as error:
        one(LOC, LAYOUT | {"negatives": "a;b", "negative_reasons": "one"}, add_feedback=True)
    assert error.value.message.endswith(
        "'negatives' has 2 parts and 'negative_reasons' 1 (joined by ';'): a ';' inside a reason?"
    )


# Draws


def test_scalar_and_vector_draws_are_the_same() -> None:
    keys = row_keys(file_key(seed=1, config_name="c", file="f"), np.arange(1000), None)
    assert [Draws(int(key)).random() for key in keys] == list(first_uniforms(keys))
    assert abs(first_uniforms(keys).mean() - 0.5) < 0.03
    assert len(set(keys.tolist())) == 1000


def test_splitmix64_gives_the_published_numbers() -> None:
    # The first outputs for the seed 1234567, as in the reference implementations' test vectors.
    draws = Draws(1234567)
    assert [draws._next() for _ in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_draws_depend_on_seed_config_file_row_and_copy() -> None:
    keys = {
        int(row_keys(file_key(seed=seed, config_name=name, file=file), np.array([row]), np.array([copy]))[0])
        for seed in (1, 2)
        for name in ("a", "b")
        for file in ("x", "y")
        for row in (0, 1)
        for copy in (0, 1)
    }
    assert len(keys) == 32


def test_integers_stay_in_range_and_reach_both_ends() -> None:
    draws = Draws(5)
    seen = {draws.integers(3, 7) for _ in range(200)}
    assert seen == {3, 4, 5, 6}
    assert {draws.choice("ab") for _ in range(50)} == {"a", "b"}
    with pytest.raises(ValueError, match="high must be greater than low"):
        draws.integers(3, 3)


LONG = "One sentence of some length stands here at first. " * 4 + "The end."


def test_a_fifth_of_long_captions_is_shortened_to_whole_sentences(
    folder: Path, make_mixture: MakeMixture, cache: PlanCache
) -> None:
    n = 2000
    write_table(folder / "a.parquet", {"s3_path": [f"{i}.jpg" for i in range(n)], "caption": [LONG] * n})
    entry = {"name": "a", "json_path": "a.parquet", "preprocess_fn": "preproces_text_to_image_generation_s3"}
    mixture = make_mixture(entry | {"process_fn_kwargs": {"prompt": "{caption}"}})
    texts = [s["conversations"][0]["value"] for s in samples_of(mixture, "a", cache)[0]]
    sentences = [text.count(".") for text in texts]
    assert all(LONG.startswith(text) and text.endswith(".") for text in texts)
    counts = {k: sentences.count(k) for k in set(sentences)}
    # With p 0.2 one of 1 … 5 sentences is kept, so 4 % for each k < 5, and the rest whole; bounds are 5 standard deviations.
    assert set(counts) == {1, 2, 3, 4, 5}
    assert all(80 - 45 < counts[k] < 80 + 45 for k in (1, 2, 3, 4))
    again = [s["conversations"][0]["value"] for s in samples_of(mixture, "a", cache, num_shards=7)[0]]
    assert again == texts
    no_drop = make_mixture(entry | {"process_fn_kwargs": {"prompt": "{caption}", "no_drop_keys": ["caption"]}})
    assert {s["conversations"][0]["value"] for s in samples_of(no_drop, "a", cache)[0]} == {LONG}


def test_copies_are_drawn_anew(folder: Path, make_mixture: MakeMixture, cache: PlanCache) -> None:
    write_json(folder / "a.json", [{"s3_path": "1.jpg", "caption": LONG}])
    entry = {"name": "a", "json_path": "a.json", "sampling_strategy": "dup:60"}
    mixture = make_mixture(entry | {"preprocess_fn": "preproces_text_to_image_generation_s3"})
    samples, tally = samples_of(mixture, "a", cache)
    assert len({s["conversations"][0]["value"] for s in samples}) > 1
    assert [s["id"] for s in samples[:3]] == ["a-a-000000000", "a-a-000000000-dup1", "a-a-000000000-dup2"]
    assert (tally.delivered, tally.samples) == (1, 60)


# Functions of a user's own


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "own" / "my_functions.py"
    path.parent.mkdir()
    monkeypatch.syspath_prepend(path.parent)
    yield path
    sys.modules.pop("my_functions", None)


SOURCE = """
from llava_arrow import register_preprocess

@register_preprocess("my_captions", fills={{"image": "one", "length": "int64"}})
def my_captions(row, *, rng, question="Describe."):
    return {{
        "image": row["file"], "length": len(row["text"]),
        "conversations": [{{"from": "human", "value": "<image>" + question}}, {{"from": "gpt", "value": {answer}}}],
    }}
"""


def test_custom_code_by_reference_when_trusted(
    own_module: Path, folder: Path, make_mixture: MakeMixture, cache: PlanCache
) -> None:
    own_module.write_text(SOURCE.format(answer='row["text"]'))
    write_table(folder / "a.parquet", {"file": ["1.jpg"], "text": ["abc"]})
    entry = {"name": "a", "json_path": "a.parquet", "preprocess_fn": "my_functions:my_captions"}
    trusted = {"trust_custom_code": True}
    mixture = make_mixture(entry | {"process_fn_kwargs": {"question": "What?"}}, overrides=trusted)
    sample = samples_of(mixture, "a", cache)[0][0]
    assert (sample["length"], sample["conversations"]) == (3, chat("<image>What?", "abc"))
    with pytest.raises(ConfigError, match="my_captions has no option 'answer': it takes question"):
        make_mixture(entry | {"process_fn_kwargs": {"answer": "x"}}, overrides=trusted)
    with pytest.raises(
        ConfigError, match="'my_functions:absent' cannot be imported: module 'my_functions' has no attribute"
    ):
        make_mixture(entry | {"preprocess_fn": "my_functions:absent"}, overrides=trusted)


def test_a_change_of_the_function_changes_the_fingerprint(
    own_module: Path, folder: Path, make_mixture: MakeMixture, cache: PlanCache
) -> None:
    write_table(folder / "a.parquet", {"file": ["1.jpg"], "text": ["abc"]})
    entry = {"name": "a", "json_path": "a.parquet", "preprocess_fn": "my_functions:my_captions"}

    def fingerprint(answer: str) -> str:
        own_module.write_text(SOURCE.format(answer=answer))
        sys.modules.pop("my_functions", None)
        mixture = make_mixture(entry, overrides={"trust_custom_code": True})
        return ConfigData.open(mixture, "a", cache=cache).fingerprint

    first = fingerprint('row["text"]')
    assert fingerprint('row["text"].upper()') != first
    assert fingerprint('row["text"]') == first


MAIN = """
import sys
from llava_arrow import register_preprocess
from prompts import WORDS
import prompts_of

PREFIX = {prefix!r}
SET = frozenset({{"a", "b", "c"}})

def helper(text):
    return PREFIX + text{suffix}

@register_preprocess("main_function", fills={{}})
def main_function(row):
    assert "aa" not in {{"x", "y", "z"}} and "q" not in SET
    return {{"conversations": [{{"from": "human", "value": helper("q") + WORDS["w"]}}, {{"from": "gpt", "value": prompts_of.answer()}}]}}

from llava_arrow.preprocess.provenance import code_fingerprint
print(code_fingerprint(main_function))
"""


def test_what_a_function_of_the_main_program_uses_counts(tmp_path: Path) -> None:
    def fingerprint(
        prefix: str = "p", suffix: str = "", words: str = "{'w': 1}", answer: str = "'a'", seed: str = "1"
    ) -> str:
        (tmp_path / "prompts.py").write_text(f"WORDS = {words}\n")
        (tmp_path / "prompts_of.py").write_text(f"from prompts import WORDS\ndef answer(): return {answer}\n")
        (tmp_path / "main.py").write_text(MAIN.format(prefix=prefix, suffix=suffix))
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, str(tmp_path / "main.py")]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    first = fingerprint()
    assert first == fingerprint(seed="2"), "another process, another digest"
    changed = [
        fingerprint(prefix="r"),
        fingerprint(suffix=" + 'x'"),
        fingerprint(words="{'w': 2}"),
        fingerprint(answer="'b'"),
    ]
    assert len({first, *changed}) == 5


def test_a_constant_imported_into_the_functions_module_counts(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("from prompts import WORD\ndef function(row): return WORD\n")

    def fingerprint(word: str) -> str:
        (tmp_path / "prompts.py").write_text(f"WORD = {word!r}\n")
        code = "import own; from llava_arrow.preprocess.provenance import code_fingerprint; print(code_fingerprint(own.function))"
        command = [sys.executable, "-B", "-c", code]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert fingerprint("one") != fingerprint("two")


@register_preprocess("test_lambda", fills=lambda options: {"image": "one"}, reads=lambda options: ("file",))
def with_lambdas(row: Any) -> Any:
    return {"id": "own", "image": row["file"], "conversations": chat("<image>q", "a")}


@pytest.mark.parametrize("kind", ["parquet", "json"])
def test_shards_pickle_and_a_function_may_give_the_id(
    kind: str, folder: Path, make_mixture: MakeMixture, cache: PlanCache
) -> None:
    write_table(folder / "a.parquet", {"id": ["row"], "file": ["1.jpg"]})
    write_json(folder / "a.json", [{"id": "row", "file": "1.jpg"}])
    entry = {"name": "a", "json_path": f"a.{kind}", "preprocess_fn": "test_lambda"}
    data = ConfigData.open(make_mixture(entry), "a", cache=cache)
    shards = pickle.loads(pickle.dumps(data.plan(num_shards=1, cache=cache)[0]))
    (table,) = data.tables(shards[0])
    assert table.column("id").to_pylist() == ["own"]


@register_preprocess("test_reads_nothing", fills={}, reads=lambda options: ())
def reads_nothing(row: Any) -> Any:
    return {"conversations": chat("q", "a")}


def test_a_function_may_read_nothing(folder: Path, make_mixture: MakeMixture, cache: PlanCache) -> None:
    write_table(folder / "a.parquet", {"n": [1, 2, 3]})
    mixture = make_mixture({"name": "a", "json_path": "a.parquet", "preprocess_fn": "test_reads_nothing"})
    assert len(samples_of(mixture, "a", cache)[0]) == 3


def test_scores_in_csv_are_numbers(folder: Path, make_mixture: MakeMixture, cache: PlanCache) -> None:
    (folder / "a.csv").write_text(
        "s3_path,caption,grounding_text,fltLaionAesthScore,hpsv2\n1.jpg,c,g,5.5,\n2.jpg,c,g,high,1\n"
    )
    for name in (LOC, "preproces_text_to_image_generation_s3"):
        mixture = make_mixture({"name": "a", "json_path": "a.csv", "preprocess_fn": name, "on_error": "skip"})
        (sample,), tally = samples_of(mixture, "a", cache)
        assert (sample["gen_score"], sample["hpsv2"], [line.row for line in tally.ledger]) == ([5.5], None, [1])


def test_a_module_imported_inside_the_function_counts_loaded_or_not(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def function(row):\n    import inner\n    return inner.WORD\n")

    def fingerprints(word: str) -> list[str]:
        (tmp_path / "inner.py").write_text(f"WORD = {word!r}\n")
        code = (
            "import own; from llava_arrow.preprocess.provenance import code_fingerprint as f\n"
            "print(f(own.function)); own.function(0); print(f(own.function))"
        )
        command = [sys.executable, "-B", "-c", code]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()

    (one, again), (two, _) = fingerprints("one"), fingerprints("two")
    assert one == again != two


def test_a_function_with_open_ended_options_is_refused() -> None:
    def greedy(row: Any, **options: Any) -> None: ...

    with pytest.raises(ConfigError) as error:
        register_preprocess("greedy", fills={})(greedy)
    assert error.value.message == (
        "preprocess function 'greedy' takes **options: 'Any': name its options, so that a misspelt one is an error"
    )


def test_a_built_in_name_cannot_be_taken() -> None:
    with pytest.raises(ConfigError) as error:
        register_preprocess("preproces_grandf", fills={})(lambda row: row)
    assert (
        error.value.message == "preprocess function 'preproces_grandf' is built in: register yours under another name"
    )


@register_preprocess("test_upper", fills={"image": "one"}, batched=True)
def upper(table: pa.Table, *, rng: BatchDraws, fail_on: str = "") -> pa.Table:
    if fail_on and fail_on in table.column("text").to_pylist():
        raise PreprocessError("a forbidden text", code="forbidden")
    texts = pc.utf8_upper(table.column("text")).to_pylist()
    assert len(rng) == len(rng.random()) == table.num_rows
    return pa.table({"image": table.column("file"), "conversations": [chat("<image>", text) for text in texts]})


@register_preprocess("test_too_few", fills={}, batched=True)
def too_few(table: pa.Table) -> pa.Table:
    return pa.table({"conversations": [chat("q", "a")]})


@pytest.mark.parametrize("kind", ["parquet", "json"])
def test_batched_functions_map_tables_and_rows_at_fault_are_found(
    kind: str, folder: Path, make_mixture: MakeMixture, cache: PlanCache
) -> None:
    texts = [f"text {i}" for i in range(20)]
    columns = {"file": [f"{i}.jpg" for i in range(20)], "text": texts}
    write_table(folder / "a.parquet", columns)
    write_json(folder / "a.json", [{"file": f, "text": t} for f, t in zip(*columns.values(), strict=True)])
    entry = {"name": "a", "json_path": f"a.{kind}", "preprocess_fn": "test_upper"}
    samples, _ = samples_of(make_mixture(entry), "a", cache)
    assert [s["conversations"][1]["value"] for s in samples] == [text.upper() for text in texts]
    failing = entry | {"process_fn_kwargs": {"fail_on": "text 7"}, "on_error": "skip"}
    samples, tally = samples_of(make_mixture(failing), "a", cache)
    assert len(samples) == 19
    assert [(line.row, line.code, line.reason) for line in tally.ledger] == [(7, "forbidden", "a forbidden text")]


def test_a_batched_function_must_return_as_many_rows(
    folder: Path, make_mixture: MakeMixture, cache: PlanCache
) -> None:
    write_table(folder / "a.parquet", captions(3))
    mixture = make_mixture({"name": "a", "json_path": "a.parquet", "preprocess_fn": "test_too_few"})
    with pytest.raises(SourceError) as error:
        samples_of(mixture, "a", cache)
    assert error.value.message == (
        f"{folder}/a.parquet (entry 'a'): test_too_few is batched: for 3 rows it must return a table of as many, got 1 rows"
    )


@register_preprocess("test_raises", fills={})
def raises(row: Any) -> Any:
    return {"undeclared": 1, "conversations": []} if row["caption"] == "caption 1" else row["nothing"]


def test_what_a_custom_function_raises_names_the_row(
    folder: Path, make_mixture: MakeMixture, cache: PlanCache
) -> None:
    write_table(folder / "a.parquet", captions(2))
    entry = {"name": "a", "json_path": "a.parquet", "preprocess_fn": "test_raises"}
    with pytest.raises(PreprocessError) as error:
        samples_of(make_mixture(entry), "a", cache)
    assert error.value.message == f"{folder}/a.parquet row 0 (entry 'a'): test_raises raised KeyError: 'nothing'"
    assert isinstance(error.value.__cause__, KeyError)
    _, tally = samples_of(make_mixture(entry | {"on_error": "skip"}), "a", cache)
    assert [line.reason for line in tally.ledger] == [
        "test_raises raised KeyError: 'nothing'",
        "test_raises fills 'undeclared', which it does not declare in `fills`",
    ]


def test_annotations_are_checked_and_spelt() -> None:
    assert accepts(float, 1)
    assert not accepts(list[str] | None, [1])
    assert spell(list[str] | None) == "a list of a string or null"
    assert find_preprocess("process_gpt_edit_loc_gnd").parameters["task"].default == "add"


def test_an_installed_package_brings_functions_by_entry_point(own_module: Path, folder: Path) -> None:
    own_module.write_text(SOURCE.format(answer='row["text"]'))
    metadata = own_module.parent / "mine-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[llava_mixture.preprocess]\nmy_captions = my_functions\nabsent = my_functions\n"
    )
    write_table(folder / "a.parquet", {"file": ["1.jpg"], "text": ["abc"]})
    mixture = "datasets:\n  - {{name: a, json_path: a.parquet, preprocess_fn: {name}}}\n"
    (folder / "x.yaml").write_text(mixture.format(name="my_captions"))
    (folder / "y.yaml").write_text(mixture.format(name="absent"))
    command = [sys.executable, "-m", "llava_arrow", "preview", "--cache-dir", str(folder / "c")]
    environment = {**os.environ, "PYTHONPATH": str(own_module.parent)}
    shown = subprocess.run([*command, str(folder / "x.yaml")], capture_output=True, text=True, env=environment)
    assert "gpt: abc" in shown.stdout, shown.stderr
    refused = subprocess.run([*command, str(folder / "y.yaml")], capture_output=True, text=True, env=environment)
    assert (
        "the entry point 'absent' of group llava_mixture.preprocess registers no function of that name"
        in refused.stderr
    )
