"""What is sent to a store is what was written, in parts that the store takes."""

import pytest

from swavg.errors import InputError, OutputExistsError
from swavg.storage.stores import locate
from swavg.storage.uploads import Uploads, buffers, part_size

MIB = 1 << 20
PART = 8 * MIB


@pytest.mark.parametrize(
    ("size", "part", "held"),
    [
        (0, PART, 0),
        (PART, PART, PART),
        (PART + 1, PART, PART + 1),
        (72000 * MIB, PART, 6 * PART + MIB),
        (72000 * MIB + 1, 9 * MIB, 55 * MIB),
        # A terabyte: two such parts are all that there is room for.
        (10**12, 106 * MIB, 213 * MIB),
    ],
)
def test_parts_grow_where_a_store_would_not_take_so_many(size, part, held):
    assert part_size(size) == part
    assert size <= 10_000 * part
    assert buffers(size) == held


@pytest.mark.parametrize("size", [0, 1, PART, PART + 1, 2 * PART + 5])
@pytest.mark.parametrize("step", [MIB - 3, 3 * MIB])
def test_a_buffer_may_be_written_into_again_at_once(bucket, size, step):
    data = b"".join(number.to_bytes(4, "big") for number in range(size // 4 + 1))[:size]
    buffer = bytearray(step)
    with Uploads(locate(bucket.url("made")), force=False) as uploads:
        upload = uploads.create(size=size)
        for start in range(0, size, step):
            part = data[start : start + step]
            buffer[: len(part)] = part
            upload.write(memoryview(buffer)[: len(part)])
    uploads.verify()
    assert bucket.get("made") == data
    assert bucket.unfinished() == []


def test_the_last_object_appears_when_it_is_ended(bucket):
    with Uploads(locate(bucket.url("run")), force=False) as uploads:
        first, last = uploads.create("a", 2), uploads.create("b/c", 2, last=True)
        first.pwrite(0, b"12")
        last.pwrite(0, b"34")
        assert bucket.names() == ["run/a"]
        last.end()
        uploads.create("empty")
    assert {name: bucket.get(name) for name in bucket.names()} == {
        "run/a": b"12", "run/b/c": b"34", "run/empty": b""
    }  # fmt: skip


def test_the_last_object_may_be_complete_before_another_begins(bucket):
    """It waits for what comes of all others."""
    polls = iter(range(30))
    with Uploads(locate(bucket.url("run")), force=False) as uploads:
        first, last = uploads.create("a", 2), uploads.create("b", 2, last=True)
        last.write(b"34")
        first.write(b"12", lambda: next(polls))
        last.end()
    assert bucket.names() == ["run/a", "run/b"]


def test_one_object_is_sent_after_the_other(bucket):
    with Uploads(locate(bucket.url("run")), force=False) as uploads:
        first, other = uploads.create("a", 2), uploads.create("b", 2)
        other.write(b"3")
        polls = iter(range(3))
        with pytest.raises(StopIteration):
            first.write(b"12", lambda: next(polls))
        other.write(b"4")
        first.write(b"12")
    assert bucket.names() == ["run/a", "run/b"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("size", [1, PART + 1])
def test_a_failure_leaves_what_was_there(bucket, size, force):
    bucket.client.put_object(Bucket=bucket.name, Key="made", Body=b"old")

    def send():
        with Uploads(locate(bucket.url("made")), force=force) as uploads:
            uploads.create(size=size, last=True).write(bytes(size))
            raise InputError("a", "changed")

    with pytest.raises(InputError):
        send()
    assert bucket.get("made") == b"old"
    assert bucket.unfinished() == []


@pytest.mark.parametrize("size", [1, PART + 1])
def test_what_is_there_is_not_replaced(bucket, size):
    bucket.client.put_object(Bucket=bucket.name, Key="made", Body=b"old")
    with (
        pytest.raises(OutputExistsError, match="made: "),
        Uploads(locate(bucket.url("made")), force=False) as uploads,
    ):
        uploads.create(size=size).write(bytes(size))
    assert bucket.get("made") == b"old"
    assert bucket.unfinished() == []


def test_an_index_that_someone_else_puts_there_stays(bucket):
    bucket.client.put_object(Bucket=bucket.name, Key="run/index", Body=b"theirs")
    uploads = Uploads(locate(bucket.url("run")), force=False)
    uploads.remove(["index"])
    assert bucket.get("run/index") == b"theirs"
    Uploads(locate(bucket.url("run")), force=True).remove(["index", "absent"])
    assert bucket.names() == []


def test_a_request_whose_answer_is_lost_finds_what_it_made(bucket, proxy):
    answers = [
        lambda: bucket.client.put_object(Bucket=bucket.name, Key="made", Body=b"12") and None
    ]
    proxy.fault = lambda method, *_: answers.pop() if method == "PUT" and answers else None
    with Uploads(locate(bucket.url("made")), force=False) as uploads:
        uploads.create(size=2).write(b"12")
    assert bucket.get("made") == b"12"
