"""YAML with the line of each key, so that a mistake is told with its place."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from ..errors import VisionADError

_NOT_CONSTRUCTED = ("tag:yaml.org,2002:merge", "tag:yaml.org,2002:value")
"""Keys ``<<`` and ``=``, which are no values."""
_NOT_A_VALUE = (ValueError, ArithmeticError, LookupError, AttributeError)
"""What PyYAML's constructors raise for text that only looks like a date, a number or what its tag says."""


def read_yaml(path: Path, text: str) -> tuple[yaml.Node | None, Any]:
    """Return the node of a YAML document and its value; ``None`` and ``None`` of an empty one.

    Args:
        path: of the file, for messages.
        text: what it holds.

    Raises:
        VisionADError: It is not YAML, or a value in it cannot be read; one line, with file and line.
    """
    try:
        node = yaml.compose(text, Loader=Loader)
        return node, None if node is None else Loader.construct(node)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        where = f":{mark.line + 1}" if mark is not None else ""
        why = " ".join(str(exc.problem or exc.context).split())
    except yaml.reader.ReaderError as exc:
        where = f":{text.count(chr(10), 0, exc.position) + 1}"
        why = f"the character U+{ord(text[exc.position]):04X} is not allowed; delete it"
    except RecursionError:
        where, why = "", "lists and keys are nested too deeply"
    raise VisionADError(f"{path}{where}: not YAML: {why}")


def booleans_as_numbers(raw: Any, value: Any, where: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the place of each boolean that a model took for a number.

    Args:
        raw: what was given.
        value: what the model made of it.
        where: place of both.
    """
    if isinstance(raw, bool):
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield where
    elif isinstance(value, BaseModel) and isinstance(raw, dict):
        for name, field in type(value).model_fields.items():
            key = field.alias or name
            if key in raw:
                yield from booleans_as_numbers(raw[key], getattr(value, name), (*where, key))
    elif isinstance(value, dict) and isinstance(raw, dict):
        for (key, given), taken in zip(raw.items(), value.values(), strict=False):
            yield from booleans_as_numbers(given, taken, (*where, key))
    elif isinstance(value, list | tuple) and isinstance(raw, list | tuple):
        for index, (given, taken) in enumerate(zip(raw, value, strict=False)):
            yield from booleans_as_numbers(given, taken, (*where, index))


class Places:
    """Lines of a YAML document by the path of keys to them."""

    def __init__(self, path: Path, node: yaml.Node) -> None:
        self._path, self._node = path, node

    def at(self, where: Sequence[str | int]) -> str:
        """Return ``file:line`` of a key, or of the nearest one above that is there."""
        node, line = self._node, 1
        for key in where:
            found = _child(node, key)
            if found is None:
                break
            line, node = found
        return f"{self._path}:{line}"

    def numbers(self, raw: Any, value: BaseModel, base: tuple[str | int, ...] = ()) -> list[str]:
        """Return one line for each boolean that a model took for a number."""
        found = [(*base, *where) for where in booleans_as_numbers(raw, value)]
        return [
            f"{self.at(where)}: {'.'.join(map(str, where))}: expected a number, got true or false" for where in found
        ]

    def describe(self, error: Any, model: type[BaseModel], base: tuple[str | int, ...] = ()) -> str:
        """Return one line for a mistake."""
        where = (*base, *(key for key in error["loc"] if not (isinstance(key, str) and key == "[key]")))
        dotted = ".".join(map(str, where))
        if error["type"] == "extra_forbidden":
            known = _keys(model, error["loc"][:-1])
            close = difflib.get_close_matches(str(where[-1]), known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
            return f"{self.at(where)}: {dotted}: unknown key; {hint}"
        if error["type"] == "missing":
            return f"{self.at(where[:-1])}: {dotted}: missing; it is required"
        message = str(error["msg"]).removeprefix("Value error, ")
        return f"{self.at(where)}: {dotted + ': ' if dotted else ''}{message}"


def _child(node: yaml.Node, key: str | int) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if name.value == str(key) or (isinstance(key, int) and Loader.construct(name) == key):  # as 01 is 1
                return name.start_mark.line + 1, value
    elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        value = node.value[key]
        return value.start_mark.line + 1, value
    return None


def _keys(model: type[BaseModel], where: Iterable[str | int]) -> list[str]:
    """Return the known keys at a place below a model, for "did you mean"."""
    current: Any = model
    for key in where:
        field = getattr(current, "model_fields", {}).get(str(key)) if current is not None else None
        if field is None:  # a key of a mapping, or a place in a list
            continue
        kinds = _models(field.annotation)
        if kinds:
            current = kinds[0]
    return [field.alias or name for name, field in current.model_fields.items()] if current is not None else []


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models(part)]


class Loader(yaml.SafeLoader):
    """YAML with ``!env NAME``, without duplicate keys."""

    @classmethod
    def construct(cls, node: yaml.Node) -> Any:
        loader = cls("")
        try:
            return loader.construct_document(node)
        finally:
            loader.dispose()

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except _NOT_A_VALUE:
            given = node.value if isinstance(node.value, str) else node.tag
            shown = repr(given if len(given) <= 40 else f"{given[:37]}...")
            raise _mistake(f"{shown} is no number or date that can be read; put text in quotes", node) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _mistake("expected a key that is one word or number, got a list or a mapping", key)
            value = key.value if key.tag in _NOT_CONSTRUCTED else self.construct_object(key)
            if isinstance(value, bool):
                raise _mistake(f"key {key.value!r} means {str(value).lower()}; put a name in quotes", key)
            if key.value in seen or value in seen:
                raise _mistake(f"key {key.value!r} is given twice", key)
            seen |= {key.value, value}
        return super().construct_mapping(node, deep=deep)


def _mistake(text: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, text, node.start_mark)


def _environment(loader: Loader, node: yaml.ScalarNode) -> str:
    name = str(loader.construct_scalar(node))
    value = os.environ.get(name)
    if value is None:
        raise _mistake(f"environment variable {name} is not set; set it, or write the value", node)
    return value


Loader.add_constructor("!env", _environment)
