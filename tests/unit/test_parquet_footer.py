"""What a Parquet file claims to hold is read without trusting it."""

from __future__ import annotations

import io

import pyarrow
import pyarrow.parquet
import pytest

from sona_pg.exchange.parquet_footer import claimed_values


def parquet(**how: object) -> bytes:
    lists = [[1.0] * 7] * 999 + [None]
    table = pyarrow.table({"whole": range(1000), "lists": lists, "true": [True] * 1000}, metadata={"a": "b"})
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file, row_group_size=300, **how)
    return file.getvalue()


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"use_dictionary": False, "write_statistics": False},
        {"data_page_version": "2.0", "write_page_index": True, "sorting_columns": [pyarrow.parquet.SortingColumn(0)]},
    ],
    ids=str,
)
def test_it_counts_what_pyarrow_counts(how: dict[str, object]) -> None:
    data = io.BytesIO(parquet(**how))
    data.seek(3)
    found = claimed_values(data)
    assert data.tell() == 3
    held = pyarrow.parquet.ParquetFile(data).metadata
    groups = [held.row_group(group) for group in range(held.num_row_groups)]
    assert found == sum(group.column(column).num_values for group in groups for column in range(3)) == 8994


def test_what_is_damaged_is_an_error() -> None:
    data = parquet()
    length = int.from_bytes(data[-8:-4], "little")
    start = len(data) - 8 - length

    def footer(held: bytes) -> bytes:
        return b"PAR1" + held + len(held).to_bytes(4, "little") + b"PAR1"

    bad = [b"", b"PAR1", data[:-1], data[: len(data) // 2], footer(b""), footer(data[start : start + length // 2])]
    # Lists in lists without end, a list of 2^63, a number without end, a map of nothing, a kind that there is not.
    bad += [
        footer(b"\x19" + b"\x19" * 100_000),
        footer(b"\x49\xf3" + b"\xff" * 8 + b"\x7f"),
        footer(b"\x46" + b"\xff" * 99),
    ]
    bad += [footer(b"\x1b\xff\xff\x7f"), footer(b"\x1d\x01"), footer(b"\x49\x1c\x19\x1c\x00\x00\x00")]
    for each in bad:
        with pytest.raises((ValueError, RecursionError)):
            claimed_values(io.BytesIO(each))
