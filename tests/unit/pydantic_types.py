"""Models for `test_codec`; imported only where pydantic is installed."""

from __future__ import annotations

from decimal import Decimal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, RootModel, field_validator


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


class Growing(BaseModel):
    """It changes itself each time that it is made, and has something private."""

    model_config = ConfigDict(extra="allow")

    count: int
    seen: int = 0
    _double: int = PrivateAttr(default=0)

    def model_post_init(self, context: object) -> None:
        self.count *= 2
        self.seen += 1
        self._double = 2 * self.count

    def double(self) -> int:
        return 2 * self.count

    def has_private(self) -> bool:
        return self._double > 0


class Swapped(BaseModel):
    """Each field has the other's name for an alias."""

    model_config = ConfigDict(populate_by_name=False)

    a: int = Field(alias="b")
    b: int = Field(alias="a")
