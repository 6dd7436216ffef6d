"""Types of a scenario's keys whose models are made when such a key is first given: most scenarios use a few of them."""

from __future__ import annotations

from functools import cached_property
from importlib import import_module
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

_MARK = "later"


class Later:
    """Stands in an annotation for the type that `module` names `name`."""

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name

    @cached_property
    def meant(self) -> Any:
        """The type itself."""
        return getattr(import_module(self.module), self.name)

    @cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.meant)

    def _checked(self, value: object) -> Any:
        return self._adapter.validate_python(value)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._checked, metadata={_MARK: self})

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        several: Any = list.__class_getitem__(self.meant)  # inside of a list it is referred to, alone it is written out
        items: JsonSchemaValue = handler(TypeAdapter(several).core_schema)["items"]
        return items


class WholeSchema(GenerateJsonSchema):
    """Writes a JSON Schema as if all types stood in their places."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """See the base."""
        mark = schema.get("metadata", {}).get(_MARK)
        return super().field_title_should_be_set(mark._adapter.core_schema if mark is not None else schema)


def later(module: str, *names: str) -> tuple[Any, ...]:
    """Annotations for the types that `module` has by these names; to type checkers these are imported from there."""
    return tuple(Annotated[Any, Later(module, name)] for name in names)
