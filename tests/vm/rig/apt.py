# SPDX-License-Identifier: MIT
"""A private apt: resolves and downloads Debian packages of any suite, without root, beside the machine's own.

It is not an installer: packages are fetched and unpacked, never configured. Its package lists, its (empty)
list of installed packages and its sources live in one folder; from the machine it takes only the mirror, the
archive keyring and the way to the network (proxy, certificates). Signatures are checked as always.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .unavailable import Unavailable

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


@dataclass(frozen=True)
class Mirror:
    """Where this machine gets Debian from: URIs of the main and the security archive, and the keyring."""

    main: str
    security: str
    keyring: str = KEYRING


@dataclass(frozen=True)
class Suite:
    """A suite of the main archive (``trixie-backports``) or of the security archive (``trixie-security``)."""

    name: str

    def source_line(self, mirror: Mirror) -> str:
        """Return the one-line form of apt's sources for this suite."""
        uri = mirror.security if self.name.endswith("-security") else mirror.main
        return f"deb [signed-by={mirror.keyring}] {uri} {self.name} main"


def machine_mirror(etc: Path = Path("/etc")) -> Mirror:
    """Read the machine's own Debian mirror from its apt sources.

    Parameters
    ----------
    etc : Path
        Folder that holds ``os-release`` and ``apt``.

    Raises
    ------
    Unavailable
        Not Debian, or no Debian source is configured.
    """
    release = dict(
        line.split("=", 1) for line in (etc / "os-release").read_text().splitlines() if "=" in line and line[0] != "#"
    )
    if release.get("ID", "").strip('"') != "debian":
        raise Unavailable(f"not Debian but {release.get('ID', 'unknown')}: packages for the guest come from apt")
    codename = release.get("VERSION_CODENAME", "").strip('"')
    main = security = keyring = ""
    for uri, suite, signed_by in _configured_sources(etc / "apt"):
        if suite in (codename, "sid", "unstable", "testing") and not main:
            main, keyring = uri, signed_by
        elif suite == f"{codename}-security" and not security:
            security = uri
    if not main:
        raise Unavailable(f"apt has no source for {codename or 'this Debian'}")
    return Mirror(main, security or main.rstrip("/") + "-security", keyring or KEYRING)


def _configured_sources(apt: Path) -> list[tuple[str, str, str]]:
    """Return (uri, suite, keyring file or '') of every enabled binary source, in both of apt's formats."""
    found = []
    folder = apt / "sources.list.d"
    one_line = [apt / "sources.list", *sorted(folder.glob("*.list"))]
    for line in (line for file in one_line if file.is_file() for line in file.read_text().splitlines()):
        entry = re.match(r"deb\s+(?:\[(?P<options>[^]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)", line)
        if entry:
            signed = re.search(r"signed-by=(\S+)", entry["options"] or "")
            found.append((entry["uri"], entry["suite"], signed[1] if signed else ""))
    for file in sorted(folder.glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", file.read_text()):
            fields = {m[1].lower(): m[2].strip() for m in re.finditer(r"^([\w-]+):(.*)$", stanza, re.MULTILINE)}
            if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes") == "no":
                continue
            signed_by = fields.get("signed-by", "")
            for uri in fields.get("uris", "").split():
                for suite in fields.get("suites", "").split():
                    found.append((uri, suite, signed_by if signed_by.startswith("/") else ""))
    return found


class PrivateApt:
    """apt with a state of its own under ``folder``; every call says which suites it may see.

    Context: one process at a time per folder.
    """

    def __init__(self, folder: Path, mirror: Mirror) -> None:
        if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
            raise Unavailable("no apt-get or dpkg-deb on this machine")
        self.folder = folder.resolve()
        self.mirror = mirror
        for name in ("lists/partial", "archives/partial", "parts", "sources"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "status").write_text("")  # nothing is installed: dependencies are resolved in full
        (self.folder / "apt.conf").write_text(self._config())

    def update(self, suites: list[Suite]) -> None:
        """Download the package lists of ``suites``.

        Raises
        ------
        Unavailable
            The mirror cannot be reached, or does not have one of the suites.
        """
        try:
            self._run(suites, "update", "-o", "APT::Update::Error-Mode=any")
        except subprocess.CalledProcessError as error:
            raise Unavailable(f"package lists cannot be had: {_first_error(error.stderr)}") from error

    def resolve(self, suites: list[Suite], packages: list[str], *, prefer: str = "") -> list[str]:
        """Return the file names of ``packages`` and of all they depend on, down to the C library.

        Parameters
        ----------
        prefer : str
            Suite to take the packages from although it is not apt's default, such as a backports suite.
        """
        target = ["-t", prefer] if prefer else []
        try:
            listing = self._run(suites, "install", "--print-uris", "--yes", "--quiet", "--quiet", *target, *packages)
        except subprocess.CalledProcessError as error:
            raise Unavailable(f"apt cannot resolve {' '.join(packages)}: {_first_error(error.stderr)}") from error
        return sorted(re.findall(r"^'\S+' (\S+\.deb) \d+", listing, re.MULTILINE))

    def fetch(self, suites: list[Suite], files: list[str], into: Path) -> None:
        """Download the packages ``files``, as `resolve` returned them, and unpack them into ``into``."""
        exact = ["{}={}".format(*name.split("_")[:2]).replace("%3a", ":") for name in files]
        into.mkdir(parents=True, exist_ok=True)
        try:
            self._run(suites, "download", *exact, cwd=self.folder / "archives")
        except subprocess.CalledProcessError as error:
            raise Unavailable(f"packages cannot be downloaded: {_first_error(error.stderr)}") from error
        for name in files:
            package = self.folder / "archives" / name
            subprocess.run(["dpkg-deb", "--extract", str(package), str(into)], check=True)
            package.unlink()

    def _run(self, suites: list[Suite], command: str, *arguments: str, cwd: Path | None = None) -> str:
        sources = self.folder / "sources" / ("+".join(suite.name for suite in suites) + ".list")
        sources.write_text("".join(suite.source_line(self.mirror) + "\n" for suite in suites))
        return subprocess.run(
            ["apt-get", "-o", f"Dir::Etc::sourcelist={sources}", command, *arguments],
            env={
                "APT_CONFIG": str(self.folder / "apt.conf"),
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "LC_ALL": "C",
            },
            cwd=cwd,
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def _config(self) -> str:
        """Return our apt.conf: own folders, none of the machine's hooks, the machine's way to the network."""
        folder = self.folder
        settings = {
            "Dir::State": folder,
            "Dir::State::lists": folder / "lists",
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder,
            "Dir::Cache::archives": folder / "archives",
            "Dir::Cache::pkgcache": "",
            "Dir::Cache::srcpkgcache": "",
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::parts": folder / "parts",
            "Dir::Etc::sourceparts": folder / "parts",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": folder / "parts",
            "APT::Architecture": "amd64",
            "APT::Install-Recommends": "false",
            "APT::Get::List-Cleanup": "false",  # other suites' lists stay
            "APT::Sandbox::User": "",  # as ourselves: the cache folder need not be readable by others
            "Acquire::Languages": "none",
            "Debug::NoLocking": "true",
        }
        own = "".join(f'{key} "{value}";\n' for key, value in settings.items())
        dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
        network = [
            line
            for line in dump.splitlines()
            if line.startswith("Acquire::") and not re.match(r"Acquire::(IndexTargets|Languages|cdrom)", line)
        ]
        return own + "\n".join(network) + "\n"


def _first_error(text: str) -> str:
    """Return apt's first error, which is the cause; those after it are what follows from it."""
    lines = text.strip().splitlines() or ["no message"]
    return next((line.removeprefix("E: ") for line in lines if line.startswith("E:")), lines[-1])
