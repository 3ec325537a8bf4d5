#!/bin/sh
# SPDX-License-Identifier: MIT
# Build and test pagepool on another Python: 3.11 to 3.14, or 3.13t and 3.14t, which run without a GIL.
#
# An interpreter that this machine has not is built once from a distribution's source, verified by apt, and kept under
# build/pythons. Nothing outside build/ is written; the machine's apt configuration is read (for the mirror), not changed.
#
#   tests/on_python.sh VERSION [pytest arguments]      without arguments: tests/unit and tests/kernel
#
#   INTERPRETER=...  one to use instead of what is found or built
#   PYTHONS=...      where to keep what is built (default build/pythons)
#   PYTHON=...       the ordinary Python whose pip fills the new environment (default python3)
#
# It exits 77, with the reason, where no such interpreter can be had.
set -eu

cd "$(dirname "$0")/.."
here=$PWD
version=${1:?which Python: 3.11, 3.12, 3.13, 3.13t, 3.14 or 3.14t}
shift
number=${version%t}
python=$(command -v "${PYTHON:-python3}")
mkdir -p "${PYTHONS:-build/pythons}/$version" "build/pythons/$version"
kept=$(cd "${PYTHONS:-build/pythons}/$version" && pwd)
work=$here/build/pythons/$version
apt=$kept/apt
debian_keys=/usr/share/keyrings/debian-archive-keyring.gpg
ubuntu_keys=/usr/share/keyrings/ubuntu-archive-keyring.gpg

# Releases, not rolling suites: what they carry today they still carry in years.
case $version in
3.11) archive=Debian suite=bookworm ;;
3.12) archive=Ubuntu suite=noble ;;
3.13 | 3.13t) archive=Debian suite=trixie ;;
3.14 | 3.14t) archive=Ubuntu suite=resolute ;;
*) echo "$0: 3.11, 3.12, 3.13, 3.13t, 3.14 or 3.14t, not $version" >&2 && exit 2 ;;
esac

say() { echo "python $version: $*"; }

skip() {
    say "skipped: $*"
    exit 77
}

# Whether $1 is that version, with its headers.
fits() {
    "$1" -c 'import os, sys, sysconfig
gil = getattr(sys, "_is_gil_enabled", lambda: True)()
found = "%d.%d%s" % (*sys.version_info[:2], "" if gil else "t")
sys.exit(found != sys.argv[1] or not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' "$version" 2>/dev/null
}

mirror() {
    apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        sed -n "s/^$1|$1|//p" | head -n 1
}

# private_apt SOURCE COMMAND...: an apt with lists and downloads of its own; it checks signatures as always.
private_apt() {
    rm -rf "$apt/lists"
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
    : >"$apt/status"
    echo "$1" >"$apt/sources.list"
    shift
    cat >"$apt/apt.conf" <<END
Dir::State "$apt";
Dir::State::Lists "$apt/lists";
Dir::State::status "$apt/status";
Dir::Cache "$apt/cache";
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
APT::Sandbox::User "root";
END
    (cd "$apt" && apt-get -q -c "$apt/apt.conf" update && apt-get -q -c "$apt/apt.conf" "$@")
}

fetch() {
    command -v apt-get >/dev/null || skip "no apt-get to fetch the source with"
    mkdir -p "$apt"
    : >"$kept/fetch.log"
    from=$(mirror "$archive")
    keys=$debian_keys
    if test $archive = Ubuntu; then
        from=${from:-http://archive.ubuntu.com/ubuntu}
        keys=$ubuntu_keys
        if ! test -r "$keys"; then # Debian signs a package of Ubuntu's keys
            debian=$(mirror Debian)
            test -n "$debian" && private_apt "deb [signed-by=$debian_keys] $debian trixie main" download ubuntu-keyring \
                >>"$kept/fetch.log" 2>&1 && dpkg-deb -x "$apt"/ubuntu-keyring_*.deb "$apt/keys" && keys=$apt/keys$ubuntu_keys
        fi
    fi
    test -n "$from" || skip "apt knows no $archive mirror on this machine"
    test -r "$keys" || skip "no $keys to verify the source with (see $kept/fetch.log)"
    private_apt "deb-src [signed-by=$keys] $from $suite main" source --download-only --tar-only "python$number" \
        >>"$kept/fetch.log" 2>&1 || skip "$archive's source of $number cannot be had from $from (see $kept/fetch.log)"
}

compile() {
    for tool in gcc make tar xz; do
        command -v "$tool" >/dev/null || skip "no $tool to build an interpreter with"
    done
    fetch
    tarball=$(ls "$apt/python${number}"_*.orig.tar.xz | tail -n 1)
    say "building $(basename "$tarball" .orig.tar.xz) (once; two to four minutes)"
    rm -rf "$kept/src"
    mkdir -p "$kept/src"
    tar -xJf "$tarball" -C "$kept/src" --strip-components=1
    test "$version" = "$number" && gil=--prefix="$kept/python" || gil=--disable-gil
    {
        cd "$kept/src" &&
            nice ./configure --prefix="$kept/python" "$gil" --without-ensurepip --disable-test-modules \
                OPT="-DNDEBUG -O1 -Wall" &&
            nice make -j"$(nproc)" &&
            nice make install &&
            cd "$here"
    } >"$kept/build.log" 2>&1 || { say "the build failed; the end of $kept/build.log:" && tail -n 20 "$kept/build.log" && exit 1; }
    rm -rf "$kept/src"
}

interpreter=${INTERPRETER:-}
if test -z "$interpreter"; then
    for found in "$kept/python/bin/python$version" "$(command -v "python$version" || true)" "$python"; do
        test -n "$found" && fits "$found" && interpreter=$found && break
    done
fi
if test -z "$interpreter"; then
    compile
    interpreter=$kept/python/bin/python$version
fi
fits "$interpreter" || skip "$interpreter is no Python $version with headers"

venv=$work/venv
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }
if ! fits "$venv/bin/python"; then
    rm -rf "$venv" "$work/build"
    "$interpreter" -m venv --without-pip "$venv"
    # A pip of its own: an old one would take wheels of the stable ABI for an interpreter without a GIL.
    "$python" -m pip --python "$venv/bin/python" --disable-pip-version-check --quiet install --upgrade 'pip>=24.1'
fi
if ! test -e "$venv/.libraries"; then
    say "installing libraries"
    pip install 'scikit-build-core>=1.1' 'cython-cmake>=0.3' 'cython>=3.3.1' 'cmake>=3.21' ninja
    for one in 'pyarrow>=21' 'polars>=1.20' 'duckdb>=2'; do
        pip install --only-binary :all: "$one" >"$work/pip.log" 2>&1 || say "no wheel of $one for it: its tests are skipped"
    done
    touch "$venv/.libraries"
fi
say "building pagepool for $("$venv/bin/python" -VV | head -n 1)"
PATH="$venv/bin:$PATH" pip install --only-binary numpy --no-build-isolation -Cbuild-dir="$work/build" '.[test]'

# From here on the installed package is tested, not src/. Importing what is compiled must leave the GIL off, silently.
"$venv/bin/python" -W error -c '
import importlib, pathlib, sys, pagepool
folder = pathlib.Path(pagepool.__file__).parent
for file in folder.rglob("*.so"):
    importlib.import_module(".".join(["pagepool", *file.relative_to(folder).parts[:-1], file.name.split(".")[0]]))
sys.exit(sys.argv[1].endswith("t") and sys._is_gil_enabled() and "importing pagepool turned the GIL on")
' "$version"
test $# -gt 0 || set -- tests/unit tests/kernel
exec "$venv/bin/python" -m pytest -p no:cacheprovider \
    ${CI:+--require="$("$venv/bin/python" tests/required.py)"} "$@"
