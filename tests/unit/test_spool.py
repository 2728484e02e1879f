"""The spool: what is confirmed is read again, in order, through crashes, damage, limits and other processes."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sona_pg.config import StoreConfig
from sona_pg.errors import IoError
from sona_pg.store import spool as spool_module
from sona_pg.store.spool import Spool
from sona_pg.store.spool_record import Event, encode, read_from
from sona_pg.store.spool_usage import usage, waiting_spaces
from sona_pg.types import EMPTY, Answer, QueryTrajectory, Score, TrajectoryStep

KEY = uuid.UUID(int=5)


def _trajectory(number: int, dim: int = 4) -> QueryTrajectory:
    rng = np.random.default_rng(number)
    vectors = rng.standard_normal((2, dim)).astype(np.float32)
    steps = (
        TrajectoryStep(vectors[1], np.float32([0.5, -0.0]), 1.0, 0.0),
        TrajectoryStep(EMPTY, EMPTY, None, 0.0, "item é", 3),
        TrajectoryStep(EMPTY, np.float32([1e-42]), 0.0, 0.0, "b", None),
    )
    answer = Answer("control", 7, "frozen", 0.25)
    return QueryTrajectory(
        uuid.UUID(int=number), vectors[0], steps, 0.5, 12, "user", None, {"deep": [1, {"x": None}]}, answer
    )


def _score(number: int) -> Score:
    return Score(uuid.UUID(int=number), 0.1, None, "reward", f"s{number}")


def _ids(events: Sequence[Event]) -> list[int]:
    return [(event.id if isinstance(event, QueryTrajectory) else event.trajectory_id).int for event in events]


def _replay(spool: Spool, limit: int = 3) -> list[int]:
    found: list[int] = []
    while (batch := spool.take(limit)) is not None:
        assert len(batch.events) <= limit
        found += _ids(batch.events)
        spool.confirm(batch)
    return found


def _segments(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*.spool"))


def test_events_come_back_bit_for_bit() -> None:
    for event in (_trajectory(3), _score(4)):
        data = encode(event)
        (read,) = read_from(memoryview(data), 0)
        assert read.end == len(data)
        assert type(read.event) is type(event)
        assert read.event is not None
        assert encode(read.event) == data


def test_nothing_is_made_before_something_is_spooled(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spools", KEY)
    assert spool.take(10) is None
    spool.close()
    assert not (tmp_path / "spools").exists()


def test_what_was_appended_is_replayed_in_order_and_then_gone(tmp_path: Path) -> None:
    spool = Spool(tmp_path, KEY, StoreConfig(spool_segment_bytes=1000))
    for number in range(20):
        assert spool.append([_trajectory(number)]) == 1
    spool.append([_score(20)])
    assert len(_segments(tmp_path)) > 3
    assert usage(tmp_path, KEY).oldest is not None
    assert waiting_spaces(tmp_path) == [], "a living process replays its own"
    spool.close()
    assert waiting_spaces(tmp_path) == [KEY]
    assert _replay(spool) == list(range(21))
    assert spool.usage().bytes == 0
    assert waiting_spaces(tmp_path) == []
    spool.append([_score(1)])
    assert _replay(spool) == [1]
    spool.close()
    assert list(tmp_path.rglob("lock")) == []


def test_what_is_not_confirmed_is_taken_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path, KEY)
    spool.append([_trajectory(number) for number in range(5)])
    first = spool.take(2)
    assert first is not None
    assert _ids(first.events) == [0, 1]
    spool.confirm(first)
    for _ in range(2):
        again = spool.take(2)
        assert again is not None
        assert _ids(again.events) == [2, 3]
    spool.append([_score(9)])
    assert _replay(spool) == [2, 3, 4, 9]


def test_what_interrupts_a_replay_arrives_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class TooLate(Exception):
        pass

    def interrupted(data: memoryview, begin: int) -> list[object]:
        part = data[begin:]
        raise TooLate(len(part))

    spool = Spool(tmp_path, KEY)
    spool.append([_trajectory(number) for number in range(3)])
    with monkeypatch.context() as patch:
        patch.setattr(spool_module, "read_from", interrupted)
        with pytest.raises(TooLate):
            spool.take(2)
    assert _replay(spool) == [0, 1, 2]


def test_what_a_flush_held_comes_before_what_was_spilled_meanwhile(tmp_path: Path) -> None:
    spool = Spool(tmp_path, KEY)
    spool.append([_score(0)])
    spool.advance()
    spool.append_behind([_score(2)])
    spool.append_behind([_score(3)])
    spool.append([_score(1)])
    spool.advance()
    spool.append([_score(4)])
    spool.append_behind([_score(5)])
    assert _replay(spool) == [0, 1, 2, 3, 4, 5]


def test_it_is_bounded_and_says_how_much_fitted(tmp_path: Path) -> None:
    events = [_trajectory(number) for number in range(100)]
    spool = Spool(tmp_path, KEY, StoreConfig(spool_max_bytes=5000, spool_segment_bytes=2000))
    taken = spool.append(events)
    assert 0 < taken < 100
    assert spool.append(events[taken:]) == 0
    other = Spool(tmp_path, KEY, StoreConfig(spool_max_bytes=5000))
    assert other.append(events[taken:]) == 0, "the bound is for all processes together"
    assert spool.usage().bytes <= 5000
    assert _replay(spool) == list(range(taken))


def test_a_living_process_keeps_its_own_and_a_dead_ones_is_adopted(tmp_path: Path) -> None:
    living, other = Spool(tmp_path, KEY), Spool(tmp_path, KEY)
    living.append([_score(1)])
    assert other.take(10) is None
    living.close()
    other.append([_score(2)])
    assert _replay(other) == [1, 2], "what is older by far goes first"


def test_another_spaces_spool_is_left_alone(tmp_path: Path) -> None:
    first, second = Spool(tmp_path, KEY), Spool(tmp_path, uuid.UUID(int=6))
    first.append([_score(1)])
    first.close()
    assert second.take(10) is None


WRITER = """
import sys, uuid
from pathlib import Path
from tests.unit.test_spool import KEY, _trajectory
from sona_pg.store.spool import Spool
spool = Spool(Path(sys.argv[1]), KEY)
for number in range(1, 1_000_000):
    spool.append([_trajectory(number, 2000)])
    print(number, flush=True)
"""


def test_a_process_killed_in_mid_write_loses_nothing_that_was_confirmed(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    confirmed = [process.stdout.readline() for _ in range(50)]
    process.send_signal(signal.SIGKILL)
    confirmed += [line for line in process.stdout.readlines() if line.endswith("\n")]
    process.wait()
    process.stdout.close()
    last = int(confirmed[-1])
    found = _replay(Spool(tmp_path, KEY), 100)
    assert found[:last] == list(range(1, last + 1))
    assert len(found) <= last + 1


def test_a_forked_child_does_not_hold_the_lock_of_its_parent(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        spool = Spool(tmp_path, KEY)
        spool.append([_score(1)])
        child = os.fork()
        if child == 0:
            os.close(writing)
            signal.pause()
        os.write(writing, struct.pack("i", child))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    (child,) = struct.unpack("i", os.read(reading, 4))
    try:
        assert _replay(Spool(tmp_path, KEY)) == [1]
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(reading)
        os.close(writing)


def test_a_torn_end_is_reported_and_left_out(tmp_path: Path) -> None:
    spool = Spool(tmp_path, KEY)
    spool.append([_trajectory(1), _trajectory(2)])
    spool.close()
    (segment,) = _segments(tmp_path)
    data = segment.read_bytes()
    start = len(data) - len(encode(_trajectory(2)))
    for end in range(start + 1, len(data)):
        segment.write_bytes(data[:end])
        reader = Spool(tmp_path, KEY)
        batch = reader.take(10)
        assert batch is not None
        assert _ids(batch.events) == [1]
        assert "when the process died" in batch.problems[0]
        reader.close()
    assert list(tmp_path.rglob("damaged-*")) == []


def test_damage_in_the_middle_costs_only_what_it_hit(tmp_path: Path) -> None:
    sizes = [len(encode(_trajectory(number))) for number in range(4)]
    for place in range(0, sizes[1], 7):
        directory = tmp_path / str(place)
        spool = Spool(directory, KEY)
        spool.append([_trajectory(number) for number in range(4)])
        spool.close()
        (segment,) = _segments(directory)
        data = bytearray(segment.read_bytes())
        hit = len(data) - sum(sizes[1:]) + place
        data[hit] ^= 0xFF
        segment.write_bytes(data)
        reader = Spool(directory, KEY)
        batch = reader.take(10)
        assert batch is not None
        assert _ids(batch.events) == [0, 2, 3]
        assert "damaged" in batch.problems[0]
        reader.confirm(batch)
        (kept,) = directory.rglob("damaged-*")
        assert kept.read_bytes() == data, "people may still want to look at it"


@pytest.mark.parametrize(
    ("begin", "says"),
    [
        (b"sonaspol\x09\x00", "version 9, expected 1"),
        (b"no spool at all", "is no spool"),
    ],
)
def test_a_foreign_file_is_left_and_does_not_hold_up_the_others(tmp_path: Path, begin: bytes, says: str) -> None:
    spool = Spool(tmp_path, KEY, StoreConfig(spool_segment_bytes=1))
    spool.append([_score(1)])
    spool.append([_score(2)])
    spool.close()
    first, _ = _segments(tmp_path)
    foreign = begin + first.read_bytes()[len(begin) :]
    first.write_bytes(foreign)
    reader = Spool(tmp_path, KEY)
    batch = reader.take(10)
    assert batch is not None
    assert says in batch.problems[0]
    reader.confirm(batch)
    assert _replay(reader) == [2]
    assert reader.take(10) is None, "it is reported once"
    assert first.read_bytes() == foreign


@given(data=st.binary(max_size=400), at=st.integers(0, 3))
@settings(max_examples=300, deadline=None)
def test_random_bytes_never_break_the_reader(data: bytes, at: int) -> None:
    records = [encode(_score(number)) for number in range(3)]
    records.insert(at, data)
    mixed = b"".join(records)
    found = list(read_from(memoryview(mixed), 0))
    assert [event.event for event in found if event.event is not None] == [_score(number) for number in range(3)]
    assert sum(event.skipped for event in found) == len(data)


@given(header=st.binary(max_size=200) | st.text().map(lambda t: f'["trajectory",{t}]'.encode()), floats=st.binary())
@settings(max_examples=300, deadline=None)
def test_a_valid_frame_around_anything_is_skipped(header: bytes, floats: bytes) -> None:
    import zlib

    frame = struct.pack("<4sIII", b"\xf5SNr", len(header), len(floats), zlib.crc32(floats, zlib.crc32(header)))
    data = frame + header + floats + encode(_score(1))
    assert [read.event for read in read_from(memoryview(data), 0) if read.event is not None] == [_score(1)]


def test_a_full_disk_keeps_what_fitted(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the write fails in the middle of a record."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        spool = Spool(tmp_path, KEY)
        taken = spool.append([_trajectory(number) for number in range(100)])
        try:
            spool.append([_trajectory(number, 1000) for number in range(100, 200)])
        except IoError as error:
            os._exit(taken if "cannot be written" in str(error) else 101)
        os._exit(102)
    _, status = os.waitpid(child, 0)
    taken = os.waitstatus_to_exitcode(status)
    assert 0 < taken < 100
    reader = Spool(tmp_path, KEY)
    assert _replay(reader) == list(range(taken))


def test_a_folder_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(IoError, match="SONA_HOME"):
        Spool(tmp_path / "file", KEY).append([_score(1)])


def test_what_is_appended_while_a_segment_is_replayed_is_not_deleted_with_it(tmp_path: Path) -> None:
    spool = Spool(tmp_path, KEY)
    spool.append([_score(1)])
    spool.append_behind([_score(3)])
    batch = spool.take(500)
    assert batch is not None
    spool.append([_score(2)])
    spool.confirm(batch)
    assert sorted([*_ids(batch.events), *_replay(spool)]) == [1, 2, 3]


def test_a_folder_that_is_deleted_is_made_anew(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spools", KEY)
    spool.append([_score(1), _score(2)])
    assert spool.take(1) is not None
    shutil.rmtree(tmp_path / "spools")
    assert spool.take(1) is None
    assert spool.append([_score(3)]) == 1
    assert _replay(spool) == [3]


def test_what_many_dead_processes_left_is_adopted_one_after_the_other(tmp_path: Path) -> None:
    spools = [Spool(tmp_path, KEY) for _ in range(1100)]
    for number, spool in enumerate(spools):
        spool.append([_score(number)] if number % 10 == 0 else [])
        spool.close()
    folder = tmp_path / str(KEY)
    for number in range(1100):
        (folder / f"empty{number}").mkdir()
        (folder / f"empty{number}" / "lock").touch()
    assert sorted(_replay(Spool(tmp_path, KEY))) == list(range(0, 1100, 10))
    assert list(folder.iterdir()) == []


def test_another_users_folder_is_left_to_that_user(tmp_path: Path) -> None:
    other = Spool(tmp_path, KEY)
    other.append([_score(1)])
    other.close()
    (folder,) = (tmp_path / str(KEY)).iterdir()
    is_root = os.geteuid() == 0
    if is_root:
        os.chmod(tmp_path / str(KEY), 0o777)
        for closed in (tmp_path, *tmp_path.parents[:-1]):
            os.chmod(closed, closed.stat().st_mode | 0o055)
    else:
        os.chmod(folder, 0)  # nobody else to become: a folder that is closed to oneself is as good
    child = os.fork()
    if child == 0:
        if is_root:
            os.setuid(65534)
        mine = Spool(tmp_path, KEY)
        mine.append([_score(2)])
        found = (waiting_spaces(tmp_path), _replay(mine))
        os._exit(0 if found == ([], [2]) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.chmod(folder, 0o700)
    assert _replay(Spool(tmp_path, KEY)) == [1]
