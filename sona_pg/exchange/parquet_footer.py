"""How many values a Parquet file claims to hold, read from its footer.

pyarrow gives it column by column, and ends the process where the statistics of one are damaged. The footer is a struct
of Thrift's compact protocol; its fields are those of parquet.thrift.
"""

from __future__ import annotations

import os
from typing import BinaryIO, cast

_MAGIC = b"PAR1"
_TAIL_BYTES = 8
_ROW_GROUPS, _COLUMNS, _META_DATA, _NUM_VALUES = 4, 1, 3, 5
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
_WHOLE = (4, 5, 6)

_Struct = dict[int, object]


def claimed_values(file: BinaryIO) -> int:
    """The sum over all columns of all row groups; the file is as far as it was, afterwards.

    Raises
    ------
    ValueError, RecursionError
        If it has no such footer.
    """
    at, size = file.tell(), file.seek(0, os.SEEK_END)
    try:
        file.seek(max(0, size - _TAIL_BYTES))
        tail = file.read()
        length = int.from_bytes(tail[:4], "little")
        if len(tail) < _TAIL_BYTES or tail[4:] != _MAGIC or not 0 < length <= size - _TAIL_BYTES:
            raise ValueError("it does not end as Parquet does")
        file.seek(size - _TAIL_BYTES - length)
        footer = _Compact(file.read(length)).struct()
    finally:
        file.seek(at)
    values = 0
    for group in _structs(footer, _ROW_GROUPS):
        for column in _structs(group, _COLUMNS):
            held = column.get(_META_DATA)
            count = held.get(_NUM_VALUES) if isinstance(held, dict) else None
            if not isinstance(count, int) or count < 0:
                raise ValueError("its footer does not say how many values a column has")
            values += count
    return values


def _structs(parent: _Struct, field: int) -> list[_Struct]:
    found = parent.get(field, [])
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise ValueError(f"field {field} of its footer is no list of structs")
    return cast(list[_Struct], found)


class _Compact:
    """Reads Thrift's compact protocol, from the beginning of some bytes."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def struct(self) -> _Struct:
        """Fields by id."""
        found: _Struct = {}
        id = 0
        while head := self._byte():
            step, kind = head >> 4, head & 15
            id = id + step if step else self._whole()
            found[id] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind)
        return found

    def _value(self, kind: int) -> object:
        if kind in _WHOLE:
            return self._whole()
        if kind == _BINARY:
            return self._take(self._varint())
        if kind == _STRUCT:
            return self.struct()
        if kind in (_LIST, _SET):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            return [self._value(head & 15) for _ in range(self._bounded(count))]
        if kind == _MAP:
            count = self._bounded(self._varint())
            kinds = self._byte() if count else 0
            return [(self._value(kinds >> 4), self._value(kinds & 15)) for _ in range(count)]
        if kind in (_TRUE, _FALSE, _BYTE):
            return self._byte()
        if kind == _DOUBLE:
            return self._take(8)
        raise ValueError(f"its footer holds a value of kind {kind}")

    def _whole(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
            if shift > 63:
                raise ValueError("its footer holds a number of more than 64 bits")
        return value | byte << shift

    def _bounded(self, count: int) -> int:
        """Each element takes a byte at least."""
        if count > len(self._data) - self._at:
            raise ValueError("its footer is cut off")
        return count

    def _byte(self) -> int:
        return self._take(1)[0]

    def _take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        if len(taken) < count:
            raise ValueError("its footer is cut off")
        self._at += count
        return taken
