"""YAML with line numbers, and with keys that are written twice reported instead of overwritten in silence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

__all__ = ["Document", "parse_yaml"]

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Document:
    """The values of a file, the line of each (counted from 1), and keys that a mapping holds twice: (place, same
    value).
    """

    data: Any
    lines: dict[Place, int] = field(default_factory=dict)
    repeated: list[tuple[Place, bool]] = field(default_factory=list)

    def line(self, place: Place) -> int:
        """The line of `place`, or of the nearest place around it."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)


def parse_yaml(text: str) -> Document:
    r"""Parse `text`; a `yaml.YAMLError` where it is no YAML.

    >>> parse_yaml("a: 1\nb: [x, y]").line(("b", 1))
    2
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return Document(None)
        lines: dict[Place, int] = {}
        repeated: list[tuple[Place, bool]] = []
        _walk(node, (), lines, repeated)  # before construction, which unfolds `<<` merges in place
        return Document(loader.construct_document(node), lines, repeated)
    finally:
        loader.dispose()


def _walk(node: yaml.Node, place: Place, lines: dict[Place, int], repeated: list[tuple[Place, bool]]) -> None:
    lines.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _walk(item, (*place, index), lines, repeated)
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = str(key.value)
            lines[(*place, name)] = key.start_mark.line + 1
            if name in seen:
                same = yaml.serialize(seen[name]) == yaml.serialize(value)
                repeated.append(((*place, name), bool(same)))
            seen[name] = value
            _walk(value, (*place, name), lines, repeated)
