"""Configuration files as plain data, with the line of every key.

YAML is read by a subset that cannot surprise: one document, no anchors, aliases or tags
(so nothing can expand or construct), no key twice, at most `MAX_BYTES` and `MAX_DEPTH`.
Plain scalars follow the core schema of YAML 1.2: `no`, `on` and `12:30` are text, `1e-3`
is a number. Nothing is read from the environment. `dump_yaml` writes what `parse_yaml`
reads back equal. JSON, as peers send it, passes the same limits.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

import yaml

from common.errors import ConfigError
from common.text import escape

MAX_BYTES: Final = 512 * 1024
"""Size cap of a configuration file: a study of several thousand features fits."""

MAX_DEPTH: Final = 16
"""Nesting cap; our deepest schema has five levels."""

KeyPath = tuple[str | int, ...]
"""Where a value stands: `("features", 2, "range")`."""


# --- where things stand ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Source:
    """A file's name and the line of each of its keys and list items."""

    name: str
    lines: Mapping[KeyPath, int] = field(default_factory=dict)

    def line(self, *path: str | int) -> int | None:
        """Return the line of `path`, or of the nearest enclosing key that has one."""
        for end in range(len(path), -1, -1):
            if (found := self.lines.get(path[:end])) is not None:
                return found
        return None

    def where(self, *path: str | int) -> str:
        """Return `file:line` for a message."""
        line = self.line(*path)
        return self.name if line is None else f"{self.name}:{line}"


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file: plain data (dict, tuple, str, int, float, bool, None) and its lines."""

    data: Any
    source: Source


def dotted(path: Iterable[str | int]) -> str:
    """Return a key path for people: `features[2].range`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + escape(part[:80])
    return text


# --- YAML to data ---------------------------------------------------------------------

_INT: Final = re.compile(r"[-+]?[0-9]{1,40}")
_FLOAT: Final = re.compile(
    r"[-+]?(\.[0-9]{1,40}|[0-9]{1,40}(\.[0-9]{0,40})?)([eE][-+]?[0-9]{1,4})?"
)
_WORDS: Final[Mapping[str, object]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", "+.inf", ".Inf"), math.inf),
    **dict.fromkeys(("-.inf", "-.Inf"), -math.inf),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
}


def resolve_plain(text: str) -> object:
    """Return what an unquoted YAML scalar means (core schema of YAML 1.2, decimal only)."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


class _StrictLoader(yaml.BaseLoader):
    """Composes nodes and nothing else; refuses what could expand or construct."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Check one event before PyYAML turns it into a node."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        mark = event.start_mark
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.MarkedYAMLError(None, None, "anchors and aliases are not allowed", mark)
        if getattr(event, "tag", None):
            raise yaml.MarkedYAMLError(None, None, "tags (!...) are not allowed", mark)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(None, None, "nested too deeply", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def parse_yaml(text: str, name: str) -> Document:
    """Return the data and lines of one YAML document; `name` is how messages call it.

    Raises:
        ConfigError: FILE_SYNTAX or DUPLICATE_KEY, with the line.
    """
    name = escape(name)
    if len(text) > MAX_BYTES:
        raise ConfigError("FILE_SYNTAX", f"{name}: larger than {MAX_BYTES} bytes")
    lines: dict[KeyPath, int] = {}
    try:
        loader = _StrictLoader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = name if mark is None else f"{name}:{mark.line + 1}"
        problem = escape(", ".join(filter(None, (error.context, error.problem))))
        raise ConfigError("FILE_SYNTAX", f"{where}: not valid YAML: {problem}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            "FILE_SYNTAX", f"{name}:{line}: holds a character that YAML does not allow"
        ) from None
    if node is None:
        raise ConfigError("FILE_SYNTAX", f"{name}: is empty")
    return Document(_convert(node, (), name, lines), Source(name, lines))


def _convert(node: yaml.Node, path: KeyPath, name: str, lines: dict[KeyPath, int]) -> object:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        return tuple(
            _convert(item, (*path, index), name, lines) for index, item in enumerate(node.value)
        )
    if isinstance(node, yaml.ScalarNode):
        return node.value if node.style else resolve_plain(node.value)
    result: dict[str, object] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError("FILE_SYNTAX", f"{name}:{line}: a key must be a single word")
        key = key_node.value
        if key in result:
            at, first = dotted((*path, key)), lines[(*path, key)]
            raise ConfigError(
                "DUPLICATE_KEY", f"{name}:{line}: {at} stands on line {first} already"
            )
        lines[(*path, key)] = line
        result[key] = _convert(value_node, (*path, key), name, lines)
    return result


def parse_json(raw: bytes, name: str) -> Document:
    """Return the data of a JSON document, as peers send it; it has no lines to name.

    Raises:
        ConfigError: FILE_SYNTAX or DUPLICATE_KEY.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) != len(items):
            raise ConfigError("DUPLICATE_KEY", f"{name}: a key stands twice")
        return result

    def constant(word: str) -> NoReturn:
        raise ConfigError("FILE_SYNTAX", f"{name}: {word} is not JSON")

    if len(raw) > MAX_BYTES:
        raise ConfigError("FILE_SYNTAX", f"{name}: larger than {MAX_BYTES} bytes")
    try:
        data = json.loads(raw.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)
        return Document(_tuples(data, 0), Source(name))
    except (ValueError, RecursionError):
        raise ConfigError("FILE_SYNTAX", f"{name}: not valid JSON") from None


def _tuples(value: object, depth: int) -> object:
    if depth >= MAX_DEPTH:
        raise RecursionError
    if isinstance(value, list):
        return tuple(_tuples(item, depth + 1) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item, depth + 1) for key, item in value.items()}
    return value


def read_text(path: Path, name: str | None = None) -> str:
    """Return a configuration file's text.

    Raises:
        ConfigError: FILE_MISSING if it cannot be read, FILE_SYNTAX if it is too large or
            not UTF-8.
    """
    shown = escape(name or str(path))
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError("FILE_MISSING", f"{shown}: {reason}") from None
    if len(raw) > MAX_BYTES:
        raise ConfigError("FILE_SYNTAX", f"{shown}: larger than {MAX_BYTES} bytes")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError("FILE_SYNTAX", f"{shown}:{line}: not UTF-8 text") from None


# --- data to YAML ---------------------------------------------------------------------


_WIDTH: Final = 120
"""Longest list or section, in characters, that is written on one line."""


class _Dumper(yaml.SafeDumper):
    """Quotes every text that our reader would take for something else; writes no aliases."""

    def ignore_aliases(self, data: object) -> bool:
        """Write equal lists twice rather than once with an anchor, which we refuse to read."""
        del data
        return True


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = None if isinstance(resolve_plain(value), str) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _represent_list(dumper: yaml.SafeDumper, value: Iterable[object]) -> yaml.SequenceNode:
    items = list(value)
    flow = not any(isinstance(item, (dict, list, tuple)) for item in items) and _short(items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=flow)


def _represent_dict(dumper: yaml.SafeDumper, value: Mapping[str, object]) -> yaml.MappingNode:
    flow = not any(_holds_mapping(item) for item in value.values()) and _short(value)
    return dumper.represent_mapping("tag:yaml.org,2002:map", value, flow_style=flow)


def _short(value: object) -> bool:
    return len(repr(value)) <= _WIDTH


def _holds_mapping(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_holds_mapping(item) for item in value)
    return isinstance(value, dict)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(tuple, _represent_list)
_Dumper.add_representer(dict, _represent_dict)


def dump_yaml(data: Mapping[str, object]) -> str:
    """Return plain data as YAML that `parse_yaml` reads back equal; keys keep their order."""
    return str(
        yaml.dump(
            dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_WIDTH + 20
        )
    )
