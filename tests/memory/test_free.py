"""What this machine and its control groups leave free."""

import torch

from stormfast.memory.free import _cgroup_memory, _system_memory, available_memory


def group(path, limit, used, cached=0):
    path.mkdir(parents=True, exist_ok=True)
    for name, text in (("max", limit), ("current", used), ("stat", f"anon 5\ninactive_file {cached}\nactive_file 7\n")):
        (path / f"memory.{name}").write_text(f"{text}\n")


def membership(tmp_path, text):
    (tmp_path / "cgroup").write_text(text)
    return tmp_path / "cgroup"


def test_available_is_read_and_not_free(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal:  24684092 kB\nMemFree:  111 kB\nMemAvailable:   222 kB\n")
    assert _system_memory(tmp_path / "meminfo") == 222 * 1024


def test_what_is_not_told_is_none(tmp_path):
    assert _system_memory(tmp_path / "missing") is None
    (tmp_path / "meminfo").write_text("MemTotal: 5 kB\n")
    assert _system_memory(tmp_path / "meminfo") is None
    assert _cgroup_memory(tmp_path / "missing", tmp_path) is None
    group(tmp_path / "a", "max", 100)
    assert _cgroup_memory(membership(tmp_path, "0::/a\n"), tmp_path) is None
    assert _cgroup_memory(membership(tmp_path, "4:memory:/a\n"), tmp_path) is None  # version 1


def test_the_tightest_limit_above_counts_and_its_cache_does_not(tmp_path):
    group(tmp_path, 10_000, 9_000)  # 1,000 left
    group(tmp_path / "a", 5_000, 4_900, cached=400)  # 500 left
    group(tmp_path / "a" / "b", "max", 100)
    group(tmp_path / "c", 700, 800)  # over its limit
    assert _cgroup_memory(membership(tmp_path, "1:cpu:/x\n0::/a/b\n"), tmp_path) == 500
    assert _cgroup_memory(membership(tmp_path, "0::/c\n"), tmp_path) == 0
    assert _cgroup_memory(membership(tmp_path, "0::/\n"), tmp_path) == 1_000


def test_this_machine_says_something_plausible():
    free = available_memory(torch.device("cpu"))
    assert free is None or 10**7 < free < 10**14
