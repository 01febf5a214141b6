"""Models for `test_codec`; imported only where pydantic is installed."""

from __future__ import annotations

from decimal import Decimal

from pydantic import BaseModel, ConfigDict, RootModel, field_validator


class Item(BaseModel):
    name: str
    price: Decimal


class Fancy(Item):
    note: str


class Order(BaseModel):
    model_config = ConfigDict(extra="allow")

    item: Item
    count: int = 1

    @field_validator("count")
    @classmethod
    def times_ten(cls, value: int) -> int:
        return value * 10


class Numbers(RootModel[list[int]]):
    pass
