"""Rules in the Common Expression Language that the API server checks when a policy is applied.

What such rules may say: https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#validation-rules
"""

from __future__ import annotations

from typing import Any

RULES = "x-kubernetes-validations"


def rule(expression: str, message: str) -> dict[str, str]:
    """One rule: what must hold, and what the user reads (what to do, not only what is wrong) when it does not."""
    return {"message": message, "rule": expression}


def rules(*entries: dict[str, str]) -> dict[str, Any]:
    """Schema extra of a type or field to which these rules apply."""
    return {RULES: list(entries)}
