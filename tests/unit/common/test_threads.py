"""How many threads may run, from quota files and the affinity mask as containers really show them."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from quantaudit.common import threads
from quantaudit.common.threads import COUNT, SPIN, affinity_cpus, granted_cpus, quota_cpus, set_up_threads


def machine(tmp: Path, cgroup: str, *mounts: tuple[str, str, str, str], files: dict[str, str] | None = None) -> Path:
    """A /proc/self of its own. mounts: (root, folder below tmp, file system, options); files: below tmp."""
    proc = tmp / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text(cgroup)
    lines = [
        f"{i} 25 0:{i} {root} {tmp / folder} rw,relatime shared:9 - {kind} {kind} {options}"
        for i, (root, folder, kind, options) in enumerate(mounts, start=30)
    ]
    (proc / "mountinfo").write_text("\n".join(["25 1 8:1 / / rw - ext4 /dev/sda rw", *lines]) + "\n")
    for name, text in (files or {}).items():
        (tmp / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp / name).write_text(text)
    return proc


V2 = ("/", "fs", "cgroup2", "rw,nsdelegate")
V1 = ("/", "fs/cpu", "cgroup", "rw,cpu,cpuacct")


def v1(quota: int, period: int = 100_000, at: str = "fs/cpu") -> dict[str, str]:
    return {f"{at}/cpu.cfs_quota_us": f"{quota}\n", f"{at}/cpu.cfs_period_us": f"{period}\n"}


@pytest.mark.parametrize(
    ("cgroup", "mounts", "files", "cpus"),
    [
        pytest.param("0::/\n", [V2], {"fs/cpu.max": "150000 100000\n"}, 1.5, id="v2, container with a namespace"),
        pytest.param("0::/\n", [V2], {"fs/cpu.max": "max 100000\n"}, math.inf, id="v2 without a quota"),
        pytest.param("0::/\n", [V2], {}, math.inf, id="v2, root group of a host"),
        pytest.param(
            "0::/a/b/c\n",
            [V2],
            {"fs/a/cpu.max": "200000 100000", "fs/a/b/cpu.max": "max 100000", "fs/a/b/c/cpu.max": "400000 100000"},
            2.0,
            id="v2, the outer group is narrower",
        ),
        pytest.param(
            "0::/a/b\n",
            [V2],
            {"fs/a/cpu.max": "800000 100000", "fs/a/b/cpu.max": "50000 100000"},
            0.5,
            id="v2, the inner group is narrower",
        ),
        pytest.param("4:cpu,cpuacct:/\n0::/\n", [V1], v1(300_000), 3.0, id="v1"),
        pytest.param("4:cpu,cpuacct:/\n", [V1], v1(-1), math.inf, id="v1 without a quota"),
        pytest.param(
            "4:cpu:/docker/7f\n1:name=systemd:/docker/7f\n",
            [("/docker/7f", "fs/cpu", "cgroup", "rw,cpu")],
            v1(250_000),
            2.5,
            id="v1, the mount shows the container's part of the host's tree",
        ),
        pytest.param(
            "4:cpu:/docker/7f\n", [("/../..", "fs/cpu", "cgroup", "rw,cpu")], v1(250_000), 2.5, id="a root out of view"
        ),
        pytest.param(
            "4:cpu:/kube/pod\n",
            [V1],
            v1(400_000, at="fs/cpu/kube") | v1(100_000, 50_000, at="fs/cpu/kube/pod"),
            2.0,
            id="v1, nested",
        ),
        pytest.param(
            "4:cpu:/x\n3:cpuset:/y\n0::/z\n",
            [V1, ("/", "unified", "cgroup2", "rw"), ("/", "fs/cpuset", "cgroup", "rw,cpuset")],
            v1(700_000, at="fs/cpu/x") | {"unified/z/cpu.max": "600000 100000"},
            6.0,
            id="both versions, the narrower",
        ),
        pytest.param("0::/\n", [V2], {"fs/cpu.max": "nonsense\n"}, math.inf, id="unreadable"),
        pytest.param("", [], {}, math.inf, id="no control groups"),
    ],
)
def test_the_quota_is_that_of_the_narrowest_group(
    tmp_path: Path, cgroup: str, mounts: list[tuple[str, str, str, str]], files: dict[str, str], cpus: float
) -> None:
    assert quota_cpus(machine(tmp_path, cgroup, *mounts, files=files)) == cpus


def test_without_proc_everything_is_granted(tmp_path: Path) -> None:
    assert quota_cpus(tmp_path / "nowhere") == math.inf


@pytest.mark.parametrize(
    ("affinity", "quota", "granted"),
    [(8, math.inf, 8), (8, 3.9, 3), (2, 16.0, 2), (4, 0.25, 1), (1, 1.0, 1), (64, 64.0, 64)],
)
def test_granted_is_the_least_rounded_down_and_at_least_one(
    monkeypatch: pytest.MonkeyPatch, affinity: int, quota: float, granted: int
) -> None:
    monkeypatch.setattr(threads, "affinity_cpus", lambda: affinity)
    monkeypatch.setattr(threads, "quota_cpus", lambda: quota)
    assert granted_cpus() == granted
    environ: dict[str, str] = {}
    set_up_threads(environ)
    assert environ.get(COUNT) == (str(granted) if granted < affinity else None)
    assert environ.get("NUMBA_NUM_THREADS") == environ.get(COUNT)


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "affinity_cpus", lambda: 8)
    monkeypatch.setattr(threads, "quota_cpus", lambda: 2.0)
    environ = {COUNT: "5", "OMP_WAIT_POLICY": "ACTIVE"}
    set_up_threads(environ)
    assert environ == {COUNT: "5", "NUMBA_NUM_THREADS": "5", "OMP_WAIT_POLICY": "ACTIVE"}
    for name in threads.WAITING:
        environ = {name: "x"}
        set_up_threads(environ)
        assert environ[name] == "x"
        assert (SPIN in environ) == (name == SPIN)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs affinity masks")
def test_the_affinity_mask_bounds_torch(tmp_path: Path) -> None:
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from quantaudit.common.threads import affinity_cpus, set_up_threads; set_up_threads();"
        "import torch; print(affinity_cpus(), torch.get_num_threads())"
    )
    environ = {name: value for name, value in os.environ.items() if name != COUNT}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environ)
    assert done.stdout.split() == ["1", "1"]


def test_affinity_is_at_least_one() -> None:
    assert affinity_cpus() >= 1
