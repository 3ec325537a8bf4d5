# SPDX-License-Identifier: MIT
"""Describe the machine, so that a figure can be read by somebody who was not there."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import sysconfig
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pagepool._core import loops

__all__ = ["describe_machine"]

_ROOT = Path(__file__).resolve().parent.parent
_CPU = Path("/sys/devices/system/cpu")


def describe_machine() -> dict[str, Any]:
    """Return what the figures depend on; "unknown" where the machine does not say."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "transparent_huge_pages": _read(Path("/sys/kernel/mm/transparent_hugepage/enabled")),
        "load_average": list(os.getloadavg()),
        "python": _python(),
        "pagepool": _pagepool(),
        "numpy": metadata.version("numpy"),
    }


def _cpu() -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text()
    fields = dict(re.findall(r"^([^\t:]+?)\s*: (.*)$", info.split("\n\n")[0], re.MULTILINE))
    weaknesses = _CPU / "vulnerabilities"
    return {
        "model": fields.get("model name", platform.processor() or "unknown"),
        "family_model_stepping": [fields.get(key, "?") for key in ("cpu family", "model", "stepping")],
        "cores": os.cpu_count(),
        "usable": sorted(os.sched_getaffinity(0)),
        "virtual": "hypervisor" in fields.get("flags", "").split(),
        "governor": _read(_CPU / "cpu0/cpufreq/scaling_governor"),
        "mitigations": {
            path.name: text
            for path in (sorted(weaknesses.iterdir()) if weaknesses.is_dir() else [])
            if (text := _read(path)) != "Not affected"
        },
    }


def _python() -> dict[str, Any]:
    return {
        "version": platform.python_version(),
        "compiler": platform.python_compiler(),
        "build_flags": " ".join(
            filter(None, (str(sysconfig.get_config_var(key) or "") for key in ("OPT", "PGO_PROF_USE_FLAG")))
        ),
        "gil": getattr(sys, "_is_gil_enabled", lambda: True)(),
    }


def _pagepool() -> dict[str, Any]:
    return {
        "version": metadata.version("pagepool"),
        "commit": _git("rev-parse", "HEAD") or "unknown",
        "modified": bool(_git("status", "--porcelain", "--untracked-files=no", "--", "src", "CMakeLists.txt")),
        "compiler_flags": _compiler_flags(),
    }


def _compiler_flags() -> str:
    """Return what the core was compiled with, from the build that made it if it is still here."""
    built = Path(loops.__file__).stat().st_mtime
    for ninja in sorted(_ROOT.glob("build/**/build.ninja"), key=lambda path: abs(path.stat().st_mtime - built)):
        rule = re.search(r"^build [^\n]*loops\.c\.o:.*?\n\n", ninja.read_text(), re.MULTILINE | re.DOTALL)
        flags = re.search(r"^  FLAGS = (.*)$", rule[0], re.MULTILINE) if rule else None
        if flags:
            return flags[1].strip()
    return "unknown"


def _git(*args: str) -> str:
    try:
        done = subprocess.run(("git", *args), cwd=_ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return "unknown"
