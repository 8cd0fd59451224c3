"""The reference page of the policy, generated from the same schema that the API server gets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from specdecode.api.cel import RULES
from specdecode.api.crd import GENERATED, PRINTER_COLUMNS, custom_resource_definition
from specdecode.api.quantities import DURATION_PATTERN, PERCENT_PATTERN
from specdecode.api.v1alpha1 import API_VERSION, KIND

Json = dict[str, Any]
Places = Mapping[str, list[str]]
"""The paths of all objects of one shape; the first has the section."""

_QUANTITIES = {DURATION_PATTERN: "duration", PERCENT_PATTERN: "percentage"}
_INTRODUCTION = f"""\
<!-- {GENERATED} -->

# {KIND}

`apiVersion: {API_VERSION}`, `kind: {KIND}`, short name `sdp`. A policy belongs to one workload of its own namespace.

The API server fills in the defaults and holds every policy against the rules below when it is applied, so a policy
that was accepted can be read. What only the cluster knows (the workload exists, its command line can be read, its
vLLM version has what a profile needs) is reported in `status.conditions`.

`kubectl explain specdecodepolicy.spec --recursive` shows the same on the command line.
"""


def reference_markdown() -> str:
    """The page `docs/reference/specdecodepolicy.md`."""
    schema = custom_resource_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    places: dict[str, list[str]] = {}
    for part in ("spec", "status"):
        for path, node in _objects(part, schema[part]):
            places.setdefault(_shape(node), []).append(path)
    sections = [_INTRODUCTION, _columns()]
    for part in ("spec", "status"):
        sections += [_section(path, node, places) for path, node in _objects(part, schema[part])]
    return "\n".join(section for section in sections if section)


def _columns() -> str:
    lines = ["## Columns of `kubectl get sdp`", "", "| column | shows | from |", "| --- | --- | --- |"]
    for column in PRINTER_COLUMNS:
        wide = " (`-o wide`)" if column.get("priority") else ""
        lines.append(f"| {column['name']}{wide} | {column['description']} | `{column['jsonPath']}` |")
    return "\n".join([*lines, ""])


def _objects(path: str, node: Json) -> Iterator[tuple[str, Json]]:
    """This object and those inside it, in the order in which they are declared."""
    yield path, node
    for name, field in node["properties"].items():
        if "properties" in field:
            yield from _objects(f"{path}.{name}", field)
        elif "properties" in field.get("items", {}):
            yield from _objects(f"{path}.{name}[]", field["items"])


def _shape(node: Json) -> str:
    """What two objects have in common that one section explains."""
    return json.dumps(node["properties"])


def _section(path: str, node: Json, places: Places) -> str:
    """The section of an object; nothing for one that looks like an earlier one, which is linked instead."""
    first, *others = places[_shape(node)]
    if path != first:
        return ""
    about = f"The same for {', '.join(f'`{other}`' for other in others)}." if others else node["description"]
    lines = [f"{'##' if '.' not in path else '###'} `{path}`", "", about, ""]
    lines += ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in node["properties"].items():
        default = "required" if name in node.get("required", ()) else _default(field)
        lines.append(f"| `{name}` | {_type(field, places)} | {default} | {_cell(field['description'])} |")
    if messages := list(_messages(node)):
        lines += ["", "Refused with:", "", *(f"* {message}" for message in messages)]
    return "\n".join([*lines, ""])


def _messages(node: Json) -> Iterator[str]:
    """What the API server says of an object that breaks a rule; what the type says already is left out."""
    yield from (rule["message"] for rule in node.get(RULES, ()))
    for name, field in node["properties"].items():
        if "properties" not in field and field.get("pattern") not in _QUANTITIES:
            yield from (f"`{name}`: {rule['message']}" for rule in field.get(RULES, ()))


def _default(field: Json) -> str:
    value = field.get("default")
    if value is None or value == "" or isinstance(value, dict):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _type(field: Json, places: Places) -> str:
    """The type with its limits, as a person would say it."""
    if "enum" in field:
        return " \\| ".join(f"`{value}`" for value in field["enum"])
    if field.get("x-kubernetes-int-or-string"):
        return "number or string"
    match field["type"]:
        case "array":
            return f"list of {_type(field['items'], places)}, at most {field['maxItems']}"
        case "object" if "additionalProperties" in field:
            return f"map of {_type(field['additionalProperties'], places)}, at most {field['maxProperties']}"
        case "object" if "properties" in field:
            anchor = "".join(c for c in places[_shape(field)][0].lower() if c.isalnum())
            return f"[object](#{anchor})"
        case "integer" | "number":
            return _number(field)
        case "string":
            return _text(field)
        case other:
            return str(other)


def _text(field: Json) -> str:
    if field.get("format") == "date-time":
        return "time"
    return _QUANTITIES.get(field.get("pattern", ""), "string")


def _number(field: Json) -> str:
    low, high = field.get("minimum"), field.get("maximum")
    if low is not None and high is not None:
        return f"{field['type']}, {low:g} to {high}"
    return f"{field['type']}, at least {low:g}" if low is not None else str(field["type"])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
