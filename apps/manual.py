"""The OpenAPI page for people: every operation with its fields, as HTML that loads nothing else."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping
from typing import Any

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
summary { cursor: pointer; padding: 0.4rem 0; } code { font-family: ui-monospace, monospace; }
details { border-bottom: 1px solid #8884; } td, th { text-align: left; vertical-align: top; }
td, th { padding: 0.15rem 0.8rem 0.15rem 0; font-size: 0.9rem; } small { opacity: 0.75; }
"""


def page(schema: Mapping[str, Any]) -> str:
    """An OpenAPI description as one page."""
    operations = "".join(
        _operation(schema, method, path, told)
        for path, methods in schema["paths"].items()
        for method, told in methods.items()
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>lfm2-mm: HTTP</title>'
        f'<link rel="icon" href="data:,"><style>{STYLE}</style></head><body><h1>HTTP interface</h1>'
        f"<p>{html.escape(schema['info'].get('description', ''))} For programs: "
        f'<a href="/openapi.json">openapi.json</a>.</p>{operations}</body></html>'
    )


def _operation(schema: Mapping[str, Any], method: str, path: str, told: Mapping[str, Any]) -> str:
    about = html.escape(told.get("description", ""))
    statuses = ", ".join(told["responses"])
    content = told.get("requestBody", {}).get("content", {})
    tables = "".join(
        f"<p><small>{html.escape(kind)}</small></p>{_table(schema, given['schema'])}"
        for kind, given in content.items()
    )
    return (
        f"<details><summary><code>{method.upper()} {html.escape(path)}</code></summary>"
        f"<p>{about}</p>{tables}<p><small>answers with {statuses}</small></p></details>"
    )


def _table(schema: Mapping[str, Any], of: Mapping[str, Any]) -> str:
    found = _resolved(schema, of)
    needed = found.get("required", [])
    rows = "".join(
        f"<tr><td><code>{html.escape(name)}</code></td><td>{html.escape(_kind(field))}</td>"
        f"<td>{'needed' if name in needed else _default(field)}</td>"
        f"<td>{html.escape(field.get('description', ''))}</td></tr>"
        for name, field in found.get("properties", {}).items()
    )
    about = html.escape(found.get("description", ""))
    return f"<p>{about}</p><table>{rows}</table>"


def _resolved(schema: Mapping[str, Any], of: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a reference points at."""
    if "$ref" not in of:
        return of
    found: Mapping[str, Any] = schema["components"]["schemas"][of["$ref"].rpartition("/")[2]]
    return found


def _kind(field: Mapping[str, Any]) -> str:
    return " or ".join(dict.fromkeys(_kinds(field))) or "anything"


def _kinds(field: Mapping[str, Any]) -> Iterator[str]:
    """The kinds of value a field takes, in words."""
    for choice in field.get("anyOf", field.get("oneOf", [])):
        yield from _kinds(choice)
    if "$ref" in field:
        yield field["$ref"].rpartition("/")[2]
    elif "const" in field:
        yield json.dumps(field["const"])
    elif "enum" in field:
        yield from (json.dumps(value) for value in field["enum"])
    elif field.get("type") == "array":
        yield f"list of {_kind(field['items'])}"
    elif field.get("type") not in (None, "null"):
        yield str(field["type"])


def _default(field: Mapping[str, Any]) -> str:
    default = field.get("default")
    return "" if default is None else html.escape(json.dumps(default))
