"""The footer of a parquet file is read in parts, and says of each part what pyarrow says of the whole."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hebrew_asr.sources.footer import row_groups
from tests.support import corpora
from tests.support.tiny_task import ROOT

WRITERS = {
    "plain": (1, 1, {}),
    "version 1.0, no dictionary": (7, 20, {"version": "1.0", "use_dictionary": False, "compression": "gzip"}),
    "no statistics": (1, 20, {"write_statistics": False, "compression": "zstd"}),
    "sorted": (1000, 20, {"sorting_columns": [pq.SortingColumn(0)]}),
    "page index": (1, 7, {"write_page_index": True, "data_page_version": "2.0", "write_page_checksum": True}),
}


def crowd_table(rows: int, long_at: int = 5) -> pa.Table:
    """Rows of 24 columns, some of whose texts, and so their statistics in the footer, are longer than 127 bytes."""
    made = [
        corpora.crowd_row(f"S/{i}", i, content=b"x" * 50, text=corpora.sentence(i, 90 if i % long_at == 0 else 3))
        for i in range(rows)
    ]
    return pa.Table.from_pylist(made, corpora.CROWD_TRANSCRIBE)


@pytest.mark.parametrize(("group", "at_once", "options"), WRITERS.values(), ids=WRITERS)
def test_parts_of_a_footer_say_what_the_whole_says(tmp_path, group, at_once, options):
    path, table = tmp_path / "a.parquet", crowd_table(40)
    pq.write_table(table, path, row_group_size=group, **options)
    whole = pq.read_metadata(path)
    number = 0
    for groups in pickle.loads(pickle.dumps(row_groups(path, at_once))):
        footer = groups.footer(path)
        assert footer.num_row_groups == groups.count and footer.schema == whole.schema
        assert (footer.metadata, footer.created_by) == (whole.metadata, whole.created_by)
        of_whole = [whole.row_group(number + index) for index in range(groups.count)]
        assert [footer.row_group(index).to_dict() for index in range(groups.count)] == [g.to_dict() for g in of_whole]
        assert groups.rows == sum(g.num_rows for g in of_whole)
        first = sum(whole.row_group(index).num_rows for index in range(number))
        assert pq.ParquetFile(path, metadata=footer).read() == table.slice(first, groups.rows)
        number += groups.count
    assert number == whole.num_row_groups


def test_a_footer_larger_than_the_window_in_memory(tmp_path, monkeypatch):
    """Wherever the window ends, within a field or between two."""
    path = tmp_path / "a.parquet"
    pq.write_table(crowd_table(30), path, row_group_size=1)
    expected = row_groups(path, 1)
    assert len(expected) == 30
    for size in (1, 2, 3, 97, 4096):
        monkeypatch.setattr("hebrew_asr.sources.footer._WINDOW_BYTES", size)
        assert row_groups(path, 1) == expected


def test_a_file_without_rows(tmp_path):
    pq.write_table(crowd_table(0), tmp_path / "a.parquet")
    (none,) = row_groups(tmp_path / "a.parquet", 100)
    assert none.rows == 0 and len(none.footer(tmp_path / "a.parquet").schema) == 24


def write_footer(path, footer: bytes) -> None:
    path.write_bytes(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")


def test_every_kind_of_field_is_walked_over(tmp_path):
    """Numbers of fields that follow their header, and kinds that no parquet file of today has where they stand."""
    unknown = bytes.fromhex("07 c801 0000000000000000 03 ca01 ff 0d cc01") + b"u" * 16 + bytes.fromhex("01ce01 02d001")
    group = b"\x19\x1c" + unknown + b"\x1a\x35\x01\x02\x03" + b"\x19\x22\x01\x02" + b"\x00" + b"\x06\x06\x0e" + b"\x00"
    path = tmp_path / "a.parquet"
    write_footer(path, b"\x15\x04" + b"\x39\x2c" + group + group + b"\x00")
    assert [(part.count, part.rows) for part in row_groups(path, 1)] == [(1, 7), (1, 7)]


@pytest.mark.parametrize(
    "footer", [b"\x18\xff\xff\xff\x7f", b"\x1b\x01\x55\x00\x00", b"\x15\x04\x00", b"\x39\xfc\xff\xff\x7f\x00\x00"]
)
def test_lengths_beyond_the_footer_and_unknown_kinds_are_damage(tmp_path, footer):
    write_footer(tmp_path / "a.parquet", footer)
    with pytest.raises(ValueError, match="damaged"):
        row_groups(tmp_path / "a.parquet", 1)


READ_ALL = """
import sys
from pathlib import Path
from hebrew_asr.sources.parquet import parquet_units

def read(path):
    rows = sum(len(list(unit.rows())) for unit in parquet_units("x", 0, Path(path), False))
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return rows, int(peak.split()[1]) / 1024  # getrusage would tell that of the process that started this one

(_, before_mib), (rows, after_mib) = map(read, sys.argv[1:])
print(rows, after_mib - before_mib)
"""


def test_memory_does_not_grow_with_the_row_groups(tmp_path):
    """Reading the footer whole takes 25 kB of each of them; so did parts of it that wait for the garbage collector."""
    small, large = tmp_path / "small.parquet", tmp_path / "large.parquet"
    table = crowd_table(1200, long_at=2000)
    pq.write_table(table.slice(0, 100), small, row_group_size=1)
    pq.write_table(table, large, row_group_size=1)
    done = subprocess.run([sys.executable, "-c", READ_ALL, small, large], cwd=ROOT, capture_output=True, check=True)
    rows, grown_mib = done.stdout.split()
    assert int(rows) == 1200 and float(grown_mib) < 12


def test_a_damaged_footer_is_an_error_that_says_so(tmp_path):
    path, damaged = tmp_path / "a.parquet", tmp_path / "b.parquet"
    pq.write_table(crowd_table(6), path, row_group_size=2)
    content = path.read_bytes()
    footer_bytes = int.from_bytes(content[-8:-4], "little")
    chance = random.Random(0)
    refused = 0
    for number in range(300):
        changed = bytearray(content)
        for _ in range(1 + number % 3):
            changed[-9 - chance.randrange(footer_bytes)] = chance.randrange(256)
        damaged.write_bytes(changed[: -chance.randrange(1, 4000)] if number % 5 == 0 else changed)
        try:
            for groups in row_groups(damaged, 1):
                groups.footer(damaged)
        except (ValueError, OSError, pa.ArrowException):
            refused += 1
    assert 30 < refused < 300
    for other in (b"", b"PAR1", b"\xff\xff\xff\x7fPAR1", content[:-4] + b"PARE"):
        damaged.write_bytes(other)
        with pytest.raises(ValueError, match=r"footer|end"):
            row_groups(damaged, 1)
