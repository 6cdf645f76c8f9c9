"""Check JSON against a schema, without jsonschema as long as nothing is wrong.

Importing jsonschema and building a validator takes 60 ms, which each step would pay while it holds
a QPU. `matches` knows the keywords of this package's schemas. jsonschema judges all that it does
not accept, and finds the words for what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["UndecidedError", "matches"]


class UndecidedError(Exception):
    """Only jsonschema can tell: the schema has an unknown keyword, say."""


def matches(instance: Any, schema: Any) -> bool:
    """Return whether JSON matches a schema; an integer is never written `10.0`.

    Args:
        instance: The JSON.
        schema: A schema of draft 2020-12.

    Raises:
        UndecidedError: The schema has a keyword that this function does not know, or compares with
            what JSON Schema takes for equal, such as 1 and 1.0.
    """
    if schema is True:
        return True
    if not isinstance(schema, dict):
        raise UndecidedError(schema)
    return all(_check(keyword, instance, schema) for keyword in schema)


def _check(keyword: str, instance: Any, schema: Mapping[str, Any]) -> bool:
    if keyword not in _KEYWORDS:
        raise UndecidedError(keyword)
    return _KEYWORDS[keyword](instance, schema[keyword], schema)


def _is_of_type(instance: Any, wanted: Any, _schema: Any) -> bool:
    names = [wanted] if isinstance(wanted, str) else wanted
    return any(_TYPES[name](instance) for name in names)


def _is_number(instance: Any) -> bool:
    return isinstance(instance, int | float) and not isinstance(instance, bool)


def _is_equal(instance: Any, wanted: Any, _schema: Any = None) -> bool:
    if type(instance) is type(wanted) and isinstance(wanted, str | int | None):
        return bool(instance == wanted)
    if isinstance(instance, str) or isinstance(wanted, str):
        return False
    raise UndecidedError(wanted)


def _properties(instance: Any, properties: Any, _schema: Any) -> bool:
    return not isinstance(instance, dict) or all(
        matches(instance[name], each) for name, each in properties.items() if name in instance
    )


def _no_additional_properties(instance: Any, allowed: Any, schema: Mapping[str, Any]) -> bool:
    if allowed is not False or "patternProperties" in schema:
        raise UndecidedError(allowed)
    return not isinstance(instance, dict) or not instance.keys() - schema.get("properties", {})


def _items(instance: Any, item: Any, schema: Mapping[str, Any]) -> bool:
    first = len(schema.get("prefixItems", ()))
    return not isinstance(instance, list) or all(matches(each, item) for each in instance[first:])


def _prefix_items(instance: Any, items: Any, _schema: Any) -> bool:
    return not isinstance(instance, list) or all(
        matches(each, item) for each, item in zip(instance, items, strict=False)
    )


def _if(instance: Any, condition: Any, schema: Mapping[str, Any]) -> bool:
    return matches(instance, schema.get("then" if matches(instance, condition) else "else", True))


_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "array": lambda instance: isinstance(instance, list),
    "boolean": lambda instance: isinstance(instance, bool),
    "integer": lambda instance: type(instance) is int,
    "null": lambda instance: instance is None,
    "number": _is_number,
    "object": lambda instance: isinstance(instance, dict),
    "string": lambda instance: isinstance(instance, str),
}
_Keyword = Callable[[Any, Any, Mapping[str, Any]], bool]
_KEYWORDS: Mapping[str, _Keyword] = {
    "additionalProperties": _no_additional_properties,
    "allOf": lambda instance, parts, _: all(matches(instance, part) for part in parts),
    "anyOf": lambda instance, parts, _: any(matches(instance, part) for part in parts),
    "const": _is_equal,
    "else": lambda *_: True,  # see `_if`
    "enum": lambda instance, values, _: any(_is_equal(instance, value) for value in values),
    "exclusiveMinimum": lambda instance, least, _: not _is_number(instance) or instance > least,
    "if": _if,
    "items": _items,
    "maximum": lambda instance, most, _: not _is_number(instance) or instance <= most,
    "maxItems": lambda instance, most, _: not isinstance(instance, list) or len(instance) <= most,
    "maxLength": lambda instance, most, _: not isinstance(instance, str) or len(instance) <= most,
    "minimum": lambda instance, least, _: not _is_number(instance) or instance >= least,
    "minItems": lambda instance, least, _: not isinstance(instance, list) or len(instance) >= least,
    "minLength": lambda instance, least, _: not isinstance(instance, str) or len(instance) >= least,
    "prefixItems": _prefix_items,
    "properties": _properties,
    "required": lambda instance, names, _: (
        not isinstance(instance, dict) or all(name in instance for name in names)
    ),
    "then": lambda *_: True,  # see `_if`
    "type": _is_of_type,
}
