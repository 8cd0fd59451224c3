"""The CustomResourceDefinition keeps the rules of structural schemas, and our own."""

import json
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel, Field

from specdecode.api.crd import chart_template, crd_yaml, custom_resource_definition, structural_schema
from specdecode.api.v1alpha1 import SpecDecodePolicySpec

CRD = custom_resource_definition()
VERSION = CRD["spec"]["versions"][0]
ROOT = VERSION["schema"]["openAPIV3Schema"]

# Keywords of OpenAPI 3.0 that a structural schema may hold outside of anyOf and its kin.
ALLOWED = {
    *("type", "format", "enum", "default", "description", "required", "properties", "items", "additionalProperties"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "pattern", "nullable"),
    *("minLength", "maxLength", "minItems", "maxItems", "maxProperties"),
    *("x-kubernetes-validations", "x-kubernetes-list-type", "x-kubernetes-list-map-keys"),
    *("x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields"),
}

Node = tuple[str, dict[str, Any]]


def nodes(path: str, schema: dict[str, Any]) -> Iterator[Node]:
    yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from nodes(f"{path}.{name}", field)
    for inner in ("items", "additionalProperties"):
        if isinstance(schema.get(inner), dict):
            yield from nodes(f"{path}[]", schema[inner])


NODES = [node for part in ("spec", "status") for node in nodes(part, ROOT["properties"][part])]


def offenders(wrong: Any) -> list[str]:
    return [path for path, schema in NODES if wrong(schema)]


def test_only_keywords_of_structural_schemas_are_used():
    assert {key for _, schema in NODES for key in schema} <= ALLOWED


def test_every_field_has_one_type():
    assert offenders(lambda schema: "type" not in schema and "x-kubernetes-int-or-string" not in schema) == []


def test_every_text_list_and_map_has_a_limit():
    limits = {"string": ("maxLength", "enum", "x-kubernetes-int-or-string"), "array": ("maxItems",)}
    assert (
        offenders(lambda schema: schema.get("type") in limits and not any(k in schema for k in limits[schema["type"]]))
        == []
    )
    assert offenders(lambda schema: "additionalProperties" in schema and "maxProperties" not in schema) == []


def test_every_named_field_is_explained_in_a_sentence():
    silent = [p for p, schema in NODES if not p.endswith("[]") and not schema.get("description", "").endswith(".")]
    assert silent == []


def test_every_list_says_how_it_is_merged():
    assert offenders(lambda schema: schema.get("type") == "array" and "x-kubernetes-list-type" not in schema) == []


def test_no_field_is_both_required_and_defaulted():
    assert [
        f"{path}.{name}"
        for path, schema in NODES
        for name in schema.get("required", ())
        if "default" in schema["properties"][name]
    ] == []


def test_enumerations_are_camel_case_words():
    words = {value for path, schema in NODES if path != "spec.targetRef.apiVersion" for value in schema.get("enum", ())}
    assert [word for word in words if not (word[0].isupper() and word.isalnum())] == []


def test_rules_have_messages_that_the_api_server_takes():
    messages = [rule["message"] for _, schema in NODES for rule in schema.get("x-kubernetes-validations", ())]
    assert messages
    assert [message for message in messages if len(message) > 2048 or "\n" in message] == []


def test_conditions_are_the_first_status_field():
    assert next(iter(ROOT["properties"]["status"]["properties"])) == "conditions"


def defaulted(value: Any, schema: dict[str, Any]) -> Any:
    """What the API server makes of a value: absent fields get their defaults, outer ones first."""
    if isinstance(value, dict):
        fields = schema.get("properties", {})
        missing = {name: field["default"] for name, field in fields.items() if name not in value and "default" in field}
        return {name: defaulted(inner, fields.get(name, {})) for name, inner in (value | missing).items()}
    if isinstance(value, list):
        return [defaulted(item, schema.get("items", {})) for item in value]
    return value


def test_published_defaults_are_those_of_the_types():
    minimal = {
        "targetRef": {"name": "chat"},
        "profiles": [{"name": "ngram", "method": "NGram", "numSpeculativeTokens": 5}],
    }
    stored = defaulted(minimal, ROOT["properties"]["spec"])
    assert stored["metrics"] == {"path": "/metrics", "interval": "15s", "window": "5m"}
    assert SpecDecodePolicySpec.model_validate(stored) == SpecDecodePolicySpec.model_validate(minimal)


def test_the_api_server_adds_nothing_to_a_status():
    assert [path for path, schema in NODES if path.startswith("status") and "default" in schema] == []


def test_optional_fields_are_plain_fields_that_may_be_absent():
    profile = ROOT["properties"]["spec"]["properties"]["profiles"]["items"]
    k = profile["properties"]["numSpeculativeTokens"]
    assert (k["type"], k["format"], k["minimum"], k["maximum"]) == ("integer", "int32", 1, 128)
    assert "default" not in k
    assert profile["required"] == ["name", "method"]


def test_free_form_objects_are_kept_as_they_are():
    original = ROOT["properties"]["status"]["properties"]["original"]["properties"]
    assert original["env"]["items"] == {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


class Sample(BaseModel):
    ratio: float = Field(gt=0, lt=1)


def test_exclusive_bounds_become_flags():
    ratio = structural_schema(Sample)["properties"]["ratio"]
    assert ratio == {"type": "number", "minimum": 0, "exclusiveMinimum": True, "maximum": 1, "exclusiveMaximum": True}


def test_the_definition_is_small_enough_for_client_side_apply():
    assert len(json.dumps(CRD)) < 262_144 // 2


def test_printer_columns_read_fields_that_exist():
    for column in VERSION["additionalPrinterColumns"]:
        path = column["jsonPath"].split("[")[0].strip(".").split(".")
        node = ROOT
        for name in path if path[0] != "metadata" else []:
            assert name in node["properties"], column["jsonPath"]
            node = node["properties"][name]


def test_the_yaml_is_the_definition():
    assert yaml.safe_load(crd_yaml()) == CRD


def test_the_chart_keeps_the_definition_when_it_is_uninstalled():
    text = chart_template()
    assert text.count("{{- if .Values.crds.enabled }}") == 1
    assert "helm.sh/resource-policy: keep" in text
