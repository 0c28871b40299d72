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


READ_ALL = """
import resource, sys
from pathlib import Path
from hebrew_asr.sources.parquet import parquet_units

def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

first, *others = parquet_units("x", 0, Path(sys.argv[1]), False)
count, before = len(list(first.rows())), peak_mib()
print(count + sum(len(list(unit.rows())) for unit in others), peak_mib() - before)
"""


def test_memory_does_not_grow_with_the_row_groups(tmp_path):
    """Reading the footer whole takes 25 kB of each of them; so did parts of it that wait for the garbage collector."""
    path = tmp_path / "a.parquet"
    pq.write_table(crowd_table(1200, long_at=2000), path, row_group_size=1)
    read = subprocess.run([sys.executable, "-c", READ_ALL, path], capture_output=True, text=True, check=True)
    rows, grown_mib = read.stdout.split()
    assert rows == "1200" and float(grown_mib) < 10


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
