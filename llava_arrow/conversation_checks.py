"""What makes a conversation valid: roles, their order, and placeholders that match the images.

A batch is looked at by columns first; only the conversations that need a repair, or are wrong, become Python objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llava_arrow.column_types import PLACEHOLDERS, TURN_TYPE
from llava_arrow.errors import SchemaError

__all__ = ["Checked", "check_conversations", "plain_turns", "turn_array", "turns_to_arrow", "with_plain_roles"]

ROLES = {"human": "human", "gpt": "gpt", "system": "system", "user": "human", "assistant": "gpt"}
_CODES = {"human": 0, "user": 0, "gpt": 1, "assistant": 1, "system": 2}
_UNKNOWN = 3


@dataclass
class Checked:
    """Conversations as they leave, the samples that were wrong, and how many turns and samples were mended."""

    conversations: pa.ListArray
    wrong: dict[int, SchemaError] = field(default_factory=dict)
    num_repaired: int = 0
    num_trimmed: int = 0


def turns_to_arrow(conversations: Sequence[Any]) -> tuple[pa.ListArray, dict[int, SchemaError]]:
    """Lists of `{from, value}` (or `{role, content}`) as one Arrow array; what is no such list is null, with its
    error.
    """
    try:
        roles = [turn["from"] for turns in conversations for turn in turns]
        values = [turn["value"] for turns in conversations for turn in turns]
        lengths = [len(turns) for turns in conversations]
        return turn_array(pa.array(roles, pa.string()), pa.array(values, pa.string()), lengths), {}
    except (TypeError, KeyError, pa.ArrowException, UnicodeEncodeError):
        pass  # something is not as usual: look at each
    wrong: dict[int, SchemaError] = {}
    cleaned: list[list[dict[str, str]]] = []
    for i, turns in enumerate(conversations):
        try:
            cleaned.append(plain_turns(turns))
        except SchemaError as error:
            wrong[i] = error
            cleaned.append([])
    flat = [turn for turns in cleaned for turn in turns]
    roles_array = pa.array([turn["from"] for turn in flat], pa.string())
    values_array = pa.array([turn["value"] for turn in flat], pa.string())
    return turn_array(roles_array, values_array, [len(turns) for turns in cleaned]), wrong


def plain_turns(turns: Any) -> list[dict[str, str]]:
    """One conversation with the keys `from` and `value`; a SchemaError where it is none."""
    if not isinstance(turns, (list, tuple)):
        raise SchemaError(f"'conversations' must be a list of turns, got {turns!r:.80}", code="type_conversations")
    plain = []
    for number, turn in enumerate(turns):
        if not isinstance(turn, Mapping):
            raise SchemaError(f"turn {number} must be {{from, value}}, got {turn!r:.80}", code="type_turn")
        role, value = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        if not isinstance(role, str) or not isinstance(value, str):
            raise SchemaError(
                f"turn {number} needs 'from' and 'value' as text, got {dict(turn)!r:.80}", code="type_turn"
            )
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise SchemaError(f"turn {number} is no valid Unicode: {error.reason}", code="unicode") from error
        plain.append({"from": role, "value": value})
    return plain


def turn_array(roles: pa.Array, values: pa.Array, lengths: Sequence[int]) -> pa.ListArray:
    """Conversations from the roles and values of all their turns, in order, and the number of turns of each."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.StructArray.from_arrays([roles, values], fields=list(TURN_TYPE))
    )


def check_conversations(
    conversations: pa.ListArray, num_images: Mapping[str, npt.NDArray[np.int64]], *, turns: str, placeholders: str
) -> Checked:
    """Check each conversation, and mend what the entry lets be mended.

    Args:
        conversations: list<struct<from, value>>, one per sample.
        num_images: column → number of its images per sample; columns that are not in it are not counted.
        turns: `trim` (turns before the first human one go) or `strict`.
        placeholders: `repair` (missing `<image>` go to the front of the first human turn), `strict` or `off`.
    """
    offsets = conversations.offsets.to_numpy().astype(np.int64)
    flat = conversations.values
    codes = _role_codes(flat.field(0))
    is_odd = _order_is_unusual(codes, offsets)
    values = flat.field(1)
    if values.null_count:
        is_odd |= _sums(values.is_null().to_numpy(zero_copy_only=False).astype(np.int64), offsets) > 0
    if placeholders != "off":
        found = _count_placeholders(values, offsets)
        for column, counts in num_images.items():
            is_odd |= found[column] != counts
    canonical = _with_canonical_roles(conversations, codes)
    odd = np.flatnonzero(is_odd)
    checked = Checked(canonical)
    if len(odd):
        _mend(checked, odd, num_images, turns=turns, placeholders=placeholders)
    return checked


def _count_placeholders(values: pa.StringArray, offsets: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.int64]]:
    """How often each placeholder occurs in each conversation.

    All texts lie one after the other in one buffer, which is searched as a whole; the byte offsets of the texts say
    whose a placeholder is. (`pyarrow.compute.count_substring` takes ten times as long.)
    """
    starts = np.frombuffer(values.buffers()[1], dtype=np.int32)[values.offset : values.offset + len(values) + 1]
    data = values.buffers()[2]
    counts = {column: np.zeros(len(offsets) - 1, dtype=np.int64) for column in PLACEHOLDERS}
    if data is None or not len(values):
        return counts
    text = np.frombuffer(data, dtype=np.uint8)[starts[0] : starts[-1]]
    for column, placeholder in PLACEHOLDERS.items():
        marks = np.frombuffer(placeholder.encode(), dtype=np.uint8)
        found = np.flatnonzero(text[: max(0, len(text) - len(marks) + 1)] == marks[0])
        for i in range(1, len(marks)):
            found = found[text[found + i] == marks[i]]
        found = found + starts[0]
        turns = np.searchsorted(starts, found, side="right") - 1
        whole = turns[found + len(marks) <= starts[turns + 1]]  # not across the border of two texts
        owners = np.searchsorted(offsets, whole, side="right") - 1
        counts[column] = np.bincount(owners, minlength=len(offsets) - 1)
    return counts


def _role_codes(roles: pa.Array) -> npt.NDArray[np.int8]:
    encoded = roles.dictionary_encode()
    table = np.array(
        [_CODES.get(name, _UNKNOWN) for name in encoded.dictionary.to_pylist()] + [_UNKNOWN], dtype=np.int8
    )
    indices = encoded.indices.fill_null(len(table) - 1).to_numpy(zero_copy_only=False)
    return table[indices]


def _order_is_unusual(codes: npt.NDArray[np.int8], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Per conversation whether it is anything but [system,] human, gpt, human, gpt …"""
    lengths = np.diff(offsets)
    starts_with_system = np.zeros(len(lengths), dtype=np.int64)
    filled = lengths > 0
    starts_with_system[filled] = codes[offsets[:-1][filled]] == _CODES["system"]
    position = np.arange(len(codes)) - np.repeat(offsets[:-1], lengths) - np.repeat(starts_with_system, lengths)
    differs = (codes != position % 2) & (position >= 0)
    spoken = lengths - starts_with_system
    return np.asarray((spoken <= 0) | (spoken % 2 == 1) | (_sums(differs.astype(np.int64), offsets) > 0))


def _sums(values: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    total = np.concatenate([[0], np.cumsum(values)])
    return total[offsets[1:]] - total[offsets[:-1]]


def _with_canonical_roles(conversations: pa.ListArray, codes: npt.NDArray[np.int8]) -> pa.ListArray:
    names = pa.array(["human", "gpt", "system", None], pa.string())
    flat = pa.StructArray.from_arrays(
        [names.take(pa.array(codes)), conversations.values.field(1)], fields=list(TURN_TYPE)
    )
    original = conversations.values.field(0)
    if bool((codes == _UNKNOWN).any()):  # keep what an unknown role says, for the message
        roles = pc.if_else(pa.array(codes == _UNKNOWN), original, flat.field(0))
        flat = pa.StructArray.from_arrays([roles, flat.field(1)], fields=list(TURN_TYPE))
    return pa.ListArray.from_arrays(conversations.offsets, flat)


def _mend(
    checked: Checked,
    odd: npt.NDArray[np.int64],
    num_images: Mapping[str, npt.NDArray[np.int64]],
    *,
    turns: str,
    placeholders: str,
) -> None:
    order = np.arange(len(checked.conversations))
    replaced: list[list[dict[str, str]]] = []
    for i, conversation in zip(odd.tolist(), checked.conversations.take(pa.array(odd)).to_pylist(), strict=True):
        try:
            mended, num_trimmed = _in_order(conversation, turns)
            counts = {column: int(counts[i]) for column, counts in num_images.items()}
            is_repaired = placeholders != "off" and _match_placeholders(mended, counts, placeholders)
        except SchemaError as error:
            checked.wrong[i] = error
            continue
        checked.num_trimmed += num_trimmed
        checked.num_repaired += is_repaired
        if num_trimmed or is_repaired:
            order[i] = len(order) + len(replaced)
            replaced.append(mended)
    if replaced:
        both = pa.concat_arrays([checked.conversations, pa.array(replaced, checked.conversations.type)])
        checked.conversations = both.take(pa.array(order))


def _in_order(turns: list[dict[str, str]], mode: str) -> tuple[list[dict[str, str]], int]:
    """The turns as they should be and how many were dropped; a SchemaError where their order cannot be right."""
    if not turns:
        raise SchemaError("the conversation is empty: it needs a human turn and an answer", code="empty_conversation")
    for number, turn in enumerate(turns):
        if turn["from"] not in ROLES:
            raise SchemaError(
                f"turn {number} is from {turn['from']!r}: a role is one of {', '.join(ROLES)}", code="unknown_role"
            )
        if turn["value"] is None:
            raise SchemaError(f"turn {number} has no value: it needs text", code="null_turn")
    head = [turn for turn in turns if turn["from"] == "system"][:1] if turns[0]["from"] == "system" else []
    spoken = [dict(turn) for turn in turns[len(head) :]]
    num_dropped = next((i for i, turn in enumerate(spoken) if turn["from"] == "human"), None)
    if num_dropped is None:
        raise SchemaError("no turn is from human: there is nothing to answer", code="no_human_turn")
    if num_dropped and mode == "strict":
        raise SchemaError(
            f"the first turn is from {spoken[0]['from']}, not human: `turns: trim` would drop {num_dropped}",
            code="first_turn",
        )
    spoken = spoken[num_dropped:]
    for number, turn in enumerate(spoken):
        wanted = ("human", "gpt")[number % 2]
        if turn["from"] != wanted:
            place = len(head) + num_dropped + number
            raise SchemaError(
                f"turn {place} is from {turn['from']}, {wanted} is next: turns must alternate", code="turn_order"
            )
    if len(spoken) % 2:
        raise SchemaError("the last turn is from human: it must be an answer from gpt", code="last_turn")
    return head + spoken, num_dropped


def _match_placeholders(turns: list[dict[str, str]], num_images: Mapping[str, int], mode: str) -> bool:
    """Put missing `<image>` in front of the first human turn, in place; True where that was needed."""
    is_repaired = False
    for column, count in num_images.items():
        placeholder = PLACEHOLDERS[column]
        found = sum(turn["value"].count(placeholder) for turn in turns)
        missing = count - found
        if not missing:
            continue
        if mode == "repair" and column == "image" and missing > 0:
            first = next(turn for turn in turns if turn["from"] == "human")
            first["value"] = (placeholder + "\n") * missing + first["value"]
            is_repaired = True
            continue
        raise SchemaError(
            f"{placeholder} occurs {found} times, but {column!r} holds {count} images: they must match",
            code="placeholders",
        )
    return is_repaired


def with_plain_roles(array: pa.Array) -> tuple[pa.ListArray, Mapping[int, SchemaError]]:
    """Conversations of a finished dataset as list<struct<from, value>> with the roles human, gpt and system; nothing
    else of them changes.
    """
    if isinstance(array, pa.ListArray) and array.type == pa.list_(TURN_TYPE) and not array.null_count:
        turns = array.flatten()
        roles, texts = turns.field("from"), turns.field("value")
        is_plain = pc.all(pc.is_in(roles, pa.array(["human", "gpt", "system"]))).as_py() is not False
        if is_plain and not (turns.null_count or texts.null_count):
            return array, {}
    values = array.to_pylist()
    if pa.types.is_struct(array.type):
        values = [_one_by_one(value) for value in values]
    plain, wrong = turns_to_arrow(values)
    codes = _role_codes(plain.values.field(0))
    offsets = plain.offsets.to_numpy().astype(np.int64)
    unknown = _sums((codes == _UNKNOWN).astype(np.int64), offsets) > 0
    for i in np.flatnonzero(unknown).tolist():
        wrong.setdefault(i, SchemaError("a turn is of neither human, gpt nor system", code="role"))
    is_null = plain.values.field(1).is_null().to_numpy(zero_copy_only=False)
    for i in np.flatnonzero(_sums(is_null.astype(np.int64), offsets) > 0).tolist():
        wrong.setdefault(i, SchemaError("a turn has no 'value'", code="type_turn"))
    return _with_canonical_roles(plain, codes), wrong


def _one_by_one(turns: Any) -> Any:
    """`Sequence` of a dictionary keeps lists of roles and of values; of different lengths they are no conversation."""
    if not isinstance(turns, dict) or len({len(column or ()) for column in turns.values()}) > 1:
        return turns
    return [dict(zip(turns, turn, strict=True)) for turn in zip(*turns.values(), strict=True)]
