"""The public surface is pinned: a change here is a change for users."""

from __future__ import annotations

import subprocess
import sys

import quantaudit


def test_the_exported_names() -> None:
    assert quantaudit.__all__ == [
        "Audit",
        "Card",
        "Observation",
        "Offers",
        "Profile",
        "QuantauditError",
        "__version__",
        "advise",
        "allocate",
        "atlas",
        "audit",
        "check_card",
        "compare",
        "compare_logits",
        "conform",
        "gate",
        "insert",
        "load_card",
        "load_profile",
        "measure",
        "merge",
        "observe",
        "render",
        "save_profile",
        "simulate",
        "verify",
    ]
    assert dir(quantaudit) == sorted(quantaudit.__all__)


def test_every_exported_name_loads() -> None:
    for name in quantaudit.__all__:
        assert getattr(quantaudit, name) is not None


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = "import sys, quantaudit; assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
