"""What is left of memory: the machine's, or what a container's control groups leave, in a fake /proc and /sys."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgecompress.errors import HostError
from edgecompress.runtime import memory

UNLIMITED = 9223372036854771712  # version 1's way of saying so


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 1,000 kB available, whose control groups are still to be written."""
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemFree: 1 kB\nMemAvailable:   1000 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "groups")
    return tmp_path


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_without_control_groups_it_is_the_kernel_s(tree: Path) -> None:
    assert memory.available_bytes() == 1_024_000
    (tree / "meminfo").write_text("MemTotal: 9 kB\n")
    assert memory.available_bytes() is None
    (tree / "meminfo").unlink()
    assert memory.available_bytes() is None
    memory.check_available(10**15, "anything", "")  # where nobody says, nothing is refused


@pytest.mark.parametrize("root", ["groups", "groups/unified"])
def test_version_2_counts_limits_up_to_the_root(tree: Path, root: str) -> None:
    (tree / "cgroup").write_text("0::/pod/app\n")
    stat = "anon 300000\nfile 200000\ninactive_file 150000\nactive_file 50000"
    app = tree / root / "pod" / "app"
    group(app, memory__max="max", memory__high="max", memory__current=500_000, memory__stat=stat)
    assert memory.available_bytes() == 1_024_000
    group(app, memory__max=600_000)
    assert memory.available_bytes() == 600_000 - 500_000 + 150_000
    group(app, memory__high=550_000)
    assert memory.available_bytes() == 550_000 - 500_000 + 150_000
    group(app.parent, memory__max=900_000, memory__current=890_000, memory__stat="inactive_file 0")
    assert memory.available_bytes() == 10_000
    group(app.parent, memory__current=950_000)
    assert memory.available_bytes() == 0
    with pytest.raises(HostError, match="takes 5_000 bytes of memory, and 0 are available"):
        memory.check_available(5_000, "a cache", "Ask for less.")


def test_version_1_counts_too(tree: Path) -> None:
    (tree / "cgroup").write_text("5:cpu,cpuacct:/other\n4:memory:/app\n0::/\n")
    app = tree / "groups" / "memory" / "app"
    stat = "cache 9\ninactive_file 7\ntotal_inactive_file 30000"
    group(app, memory__limit_in_bytes=UNLIMITED, memory__usage_in_bytes=400_000, memory__stat=stat)
    assert memory.available_bytes() == 1_024_000
    group(app, memory__limit_in_bytes=500_000)
    assert memory.available_bytes() == 500_000 - 400_000 + 30_000
    group(tree / "groups" / "cpu" / "other", memory__limit_in_bytes=1, memory__usage_in_bytes=0)
    assert memory.available_bytes() == 130_000


@pytest.mark.parametrize("said", ["0::/host/path/of/docker\n", "0::/../../elsewhere\n", "0::/\n"])
def test_a_container_s_own_group_is_its_root(tree: Path, said: str) -> None:
    (tree / "cgroup").write_text(said)
    group(tree / "groups", memory__max=700_000, memory__current=100_000, memory__stat="inactive_file 0")
    group(tree / "elsewhere", memory__max=1, memory__current=1)
    assert memory.available_bytes() == 600_000


def test_files_that_make_no_sense_limit_nothing(tree: Path) -> None:
    (tree / "cgroup").write_text("nonsense\n\n0::/app\n")
    group(tree / "groups" / "app", memory__max="many", memory__current=5)
    assert memory.available_bytes() == 1_024_000
    group(tree / "groups" / "app", memory__max=300, memory__current="?")
    assert memory.available_bytes() == 1_024_000
    group(tree / "groups" / "app", memory__current=100)  # and no memory.stat
    assert memory.available_bytes() == 200
