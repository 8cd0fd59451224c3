"""What all types of the API share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DNS_SUBDOMAIN = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"


class ApiModel(BaseModel):
    """Base of all API types: camelCase in YAML, snake_case in Python, immutable, unknown fields ignored (pruned)."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, validate_default=True)


ShortText = Annotated[str, Field(max_length=1024)]
Fraction = Annotated[float, Field(ge=0, le=1)]
ProfileName = Annotated[str, Field(min_length=1, max_length=63, pattern=DNS_LABEL)]
