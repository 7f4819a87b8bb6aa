"""What requests have in common that come as JSON: they are looked through before anything is made of them.

Pydantic lists all that is wrong, and a body has room for a million mistakes, whose list would take the memory and the
time of everybody. So there is one mistake of each list (``Many``) and one unknown field of each object (``Fields``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, model_validator

from ..serving.limits import check_texts

T = TypeVar("T")


class First(FailFast):
    """Pydantic's own, which cannot stand in a union: it has no hash."""

    def __hash__(self) -> int:
        return hash(type(self))


Many = Annotated[list[T], First()]
"""A list of which the first wrong item is told, and no other is looked at."""


class Fields(BaseModel):
    """An object whose fields are known; of others the first is told."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _one_unknown(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        known = {field.alias or name for name, field in cls.model_fields.items()}
        unknown = next((name for name in value if name not in known), None)
        return {name: one for name, one in value.items() if name in known or name == unknown}


class Body(Fields):
    """A whole request: its texts are texts, and it is nested no deeper than anything needs."""

    @model_validator(mode="before")
    @classmethod
    def _is_sound(cls, value: Any) -> Any:
        check_texts(value)
        return value
