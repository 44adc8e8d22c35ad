"""The account of every row: delivered, filtered, not sampled, or in the ledger with its reason.

    rows in the files = delivered + filtered + not_sampled + ledger        samples = delivered × copies

Each shard keeps a `Tally`; tallies add up. The builder writes the sum as `report.json` and the lines as `ledger.jsonl`
beside the Arrow files.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = ["LedgerLine", "Tally", "read_tallies", "sum_by_place", "sum_tallies", "write_ledger", "write_tally"]


@dataclass(frozen=True)
class LedgerLine:
    """One row that was not delivered: where it is and why it was left out."""

    file: str
    row: int
    id: str | None
    code: str
    reason: str


@dataclass
class Tally:
    """Counts of one config, or of a part of it. `best` holds, per filter, the value nearest to passing among the rows
    it removed.
    """

    rows: int = 0
    filtered: Counter[str] = field(default_factory=Counter)
    not_sampled: int = 0
    delivered: int = 0
    samples: int = 0
    repaired: int = 0
    trimmed: int = 0
    undeclared: Counter[str] = field(default_factory=Counter)
    ledger: list[LedgerLine] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        """Add the counts and lines of `other`, in place."""
        self.rows += other.rows
        self.filtered += other.filtered
        self.not_sampled += other.not_sampled
        self.delivered += other.delivered
        self.samples += other.samples
        self.repaired += other.repaired
        self.trimmed += other.trimmed
        self.undeclared += other.undeclared
        self.ledger += other.ledger
        for name, value in other.best.items():
            self.best[name] = max(value, self.best.get(name, value))

    def to_report(self) -> dict[str, Any]:
        """The counts as plain JSON: what `builder.report()` shows for one config.

        >>> Tally(rows=3, delivered=2, samples=2, filtered=Counter(aes_cutoff=1)).to_report()["filtered"]
        {'aes_cutoff': 1}
        """
        return {
            "rows": self.rows,
            "filtered": dict(sorted(self.filtered.items())),
            "not_sampled": self.not_sampled,
            "delivered": self.delivered,
            "samples": self.samples,
            "repaired": self.repaired,
            "trimmed": self.trimmed,
            "undeclared": dict(sorted(self.undeclared.items())),
            "ledger": len(self.ledger),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Tally:
        """The tally that `to_json` wrote."""
        lines = [LedgerLine(**line) for line in data.pop("lines")]
        data.pop("ledger")
        return cls(
            **{**data, "filtered": Counter(data["filtered"]), "undeclared": Counter(data["undeclared"])}, ledger=lines
        )

    def to_json(self) -> dict[str, Any]:
        """The whole tally, ledger lines included, for the way between processes."""
        return {**self.to_report(), "lines": [vars(line) for line in self.ledger]}


def sum_tallies(tallies: Iterable[Tally]) -> Tally:
    """All of `tallies` in one; ledger lines in the order given, of `best` the greatest."""
    total = Tally()
    for tally in tallies:
        total.add(tally)
    return total


def sum_by_place(tallies: Iterable[Tally]) -> Tally:
    """All of `tallies` in one; ledger lines by file and row."""
    total = sum_tallies(tallies)
    total.ledger.sort(key=lambda line: (line.file, line.row))
    return total


def write_tally(tally: Tally, folder: str, config_name: str, position: tuple[int, int]) -> None:
    """Keep the tally of a shard, at `position` (entry, shard), until all are there: processes share only files."""
    name = "-".join(f"{number:09d}" for number in position) + ".json"
    content = {"config_name": config_name, **tally.to_json()}
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        json.dump(content, file)


def read_tallies(folder: str, unread: Mapping[str, Tally]) -> dict[str, Tally]:
    """Config name → sum of the tallies in `folder`, in file order, and of `unread`."""
    parts = {name: [tally] for name, tally in unread.items()}
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            content = json.load(file)
        parts[content.pop("config_name")].append(Tally.from_json(content))
    return {name: sum_by_place(tallies) for name, tallies in parts.items()}


class TextSink(Protocol):
    """What takes text."""

    def write(self, text: str, /) -> Any:
        """Take some more."""
        ...


def write_ledger(tallies: Mapping[str, Tally], file: TextSink) -> None:
    """One line of JSON per row that was not delivered."""
    for name, tally in tallies.items():
        for line in tally.ledger:
            file.write(json.dumps({"config": name, **vars(line)}, ensure_ascii=False) + "\n")
