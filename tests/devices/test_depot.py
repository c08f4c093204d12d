"""What lies on a device is what was sent, or it is sent again."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from edgecompress.devices import depot

CONTENT = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "edgecompress" / "device"


def file(path: str = "bundles/a/model.onnx", content: bytes = CONTENT) -> depot.File:
    return depot.File(path=path, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def test_a_part_is_continued_and_then_in_its_place(cache: Path) -> None:
    assert depot.missing([file()]) == [{"index": 0, "offset": 0}]
    depot.write(file(), 0, CONTENT[:1000])
    assert not (cache / "bundles").exists(), "nothing is in its place before it is whole"
    need = depot.missing([file()])
    assert need == [{"index": 0, "offset": 1000}]
    assert depot.needed_bytes([file()], need) == len(CONTENT) - 1000
    depot.write(file(), 1000, CONTENT[1000:])
    assert depot.settle(file())
    assert (cache / "bundles/a/model.onnx").read_bytes() == CONTENT
    assert depot.missing([file()]) == []
    assert list((cache / "incoming").iterdir()) == []


@pytest.mark.parametrize("part", [b"x" * 1000, b"x" * len(CONTENT), b"x" * (len(CONTENT) + 1)])
def test_a_part_that_is_wrong_is_thrown_away(cache: Path, part: bytes) -> None:
    (cache / "incoming").mkdir(parents=True)
    (cache / "incoming" / f"{file()['sha256']}.part").write_bytes(part)
    (need,) = depot.missing([file()])
    depot.write(file(), need["offset"], CONTENT[need["offset"] :])
    settled = depot.settle(file())
    assert settled == (need["offset"] == 0), "one that is too long is begun anew, the others are continued"
    if not settled:
        assert depot.missing([file()]) == [{"index": 0, "offset": 0}]
        assert not (cache / "bundles/a/model.onnx").exists()


def test_what_was_altered_in_its_place_is_missing(cache: Path) -> None:
    depot.write(file(), 0, CONTENT)
    depot.settle(file())
    there = cache / "bundles/a/model.onnx"
    there.write_bytes(b"x" + CONTENT[1:])
    assert depot.missing([file()]) == [{"index": 0, "offset": 0}]
    there.unlink()
    there.symlink_to("/etc/hostname")
    assert depot.missing([file()]) == [{"index": 0, "offset": 0}]
    depot.write(file(), 0, CONTENT)
    assert depot.settle(file())
    assert not there.is_symlink()


def test_two_that_send_the_same_do_no_harm(cache: Path) -> None:
    """Both write it; the second finds its part gone, and the file there."""
    depot.write(file(), 0, CONTENT)
    depot.write(file(), 0, CONTENT)
    assert depot.settle(file())
    assert depot.settle(file())
    depot.write(file(), 5000, CONTENT[5000:])
    assert depot.settle(file()), "its part has a hole, but the file is whole"
    assert (cache / "bundles/a/model.onnx").read_bytes() == CONTENT


def test_the_same_content_in_two_places_and_an_empty_file(cache: Path) -> None:
    files = [file("a/1"), file("a/2"), file("a/empty", b"")]
    for each, content in zip(files, (CONTENT, CONTENT, b""), strict=True):
        depot.write(each, 0, content)
        assert depot.settle(each)
    assert depot.missing(files) == []
    assert (cache / "a/empty").read_bytes() == b""


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "bundles/../../x", ""])
def test_nothing_is_written_elsewhere(path: str) -> None:
    with pytest.raises(ValueError, match="outside the device's folder"):
        depot.settle(file(path))
