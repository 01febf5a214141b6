"""Values as JSON trees and back, with the types that workflows pass around kept exact.

`decode(encode(value))` equals `value` and has its type, for JSON values, datetimes, UUIDs, decimals, bytes,
sets, tuples, enums, dataclasses, classes of attrs, namedtuples, pydantic models and registered classes; anything else is
refused with the path of the value and a hint. What JSON cannot say is tagged: `{"$": "<type>", "v": ...}`. A
dict of the user's that would look like a tag is stored as pairs, so no data can be mistaken for one.

The trees of equal values are equal in every process (sets are sorted), so that digests can be compared; object
identity is not kept: a list passed twice comes back as two.

Not here: where trees are stored, and what a `ref` stands for (`ckworkflow.tracing`).
"""

from ckworkflow.codec.classes import register_type, trust
from ckworkflow.codec.decoding import decode
from ckworkflow.codec.encoding import dumps, encode
from ckworkflow.codec.large import Packed, loads, pack, parts_of, size_of

__all__ = [
    "Packed",
    "decode",
    "dumps",
    "encode",
    "loads",
    "pack",
    "parts_of",
    "register_type",
    "size_of",
    "trust",
]
