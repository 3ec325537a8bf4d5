#!/bin/sh
# SPDX-License-Identifier: MIT
# Run the core's tests on an interpreter without a GIL.
#
# No distribution packages one, so it is built once from Debian's python3.13 source, verified by apt, with
# `--disable-gil`, and kept under build/ft. Nothing outside build/ is written; the machine's apt configuration is read
# (for the mirror), not changed.
#
#   tests/free_threaded.sh [pytest arguments]
#
#   FT_PYTHON=...  an interpreter to use instead of building one
#   FT_CACHE=...   where to keep the built one (default build/ft)
#   REQUIRE_FT=1   fail where no interpreter can be had; by default that is a skip with a reason
#   PYTHON=...     the ordinary Python whose pip installs the test libraries (default python3)
set -eu

cd "$(dirname "$0")/.."
python=$(command -v "${PYTHON:-python3}")
cache=${FT_CACHE:-build/ft}
mkdir -p "$cache" build/ft
cache=$(cd "$cache" && pwd)
work=$PWD/build/ft
suite=trixie
source=python3.13

say() { echo "free-threaded: $*"; }

skip() {
    say "skipped: $*"
    test "${REQUIRE_FT:-0}" = 1 && exit 1
    exit 0
}

without_gil() { "$1" -c 'import sys; sys.exit(sys._is_gil_enabled())' 2>/dev/null; }

mirror() {
    apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        sed -n 's/^Debian|Debian|//p' | head -n 1
}

fetch() {
    command -v apt-get >/dev/null || skip "no apt-get to fetch Debian's $source with"
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    test -r "$keyring" || skip "no $keyring to verify the source with"
    from=$(mirror)
    test -n "$from" || skip "apt knows no Debian mirror on this machine"
    apt=$cache/apt
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
    : >"$apt/status"
    echo "deb-src [signed-by=$keyring] $from $suite main" >"$apt/sources.list"
    set -- -q -oDir::State="$apt" -oDir::State::Lists="$apt/lists" -oDir::State::status="$apt/status" \
        -oDir::Cache="$apt/cache" -oDir::Etc::sourcelist="$apt/sources.list" -oDir::Etc::sourceparts=/dev/null \
        -oAPT::Sandbox::User=root
    { apt-get "$@" update && cd "$apt" && apt-get "$@" source --download-only "$source"; } >"$cache/fetch.log" 2>&1 ||
        skip "Debian's source of $source cannot be had from $from (see $cache/fetch.log)"
}

compile() {
    for tool in gcc make tar xz; do
        command -v "$tool" >/dev/null || skip "no $tool to build an interpreter with"
    done
    (fetch) || exit 1
    tarball=$(ls "$cache"/apt/${source}_*.orig.tar.xz 2>/dev/null | tail -n 1)
    test -n "$tarball" || exit 0
    say "building $(basename "$tarball" .orig.tar.xz) without a GIL (once; two to four minutes)"
    rm -rf "$cache/src"
    mkdir -p "$cache/src"
    tar -xJf "$tarball" -C "$cache/src" --strip-components=1
    (
        cd "$cache/src"
        nice ./configure --disable-gil --prefix="$cache/python" --without-ensurepip --disable-test-modules \
            OPT="-DNDEBUG -O1 -Wall"
        nice make -j"$(nproc)"
        nice make install
    ) >"$cache/build.log" 2>&1 || { say "the build failed; the end of $cache/build.log:" && tail -n 20 "$cache/build.log" && exit 1; }
    rm -rf "$cache/src"
}

interpreter=${FT_PYTHON:-}
if test -z "$interpreter"; then
    for found in "$cache/python/bin/python3.13t" "$(command -v python3.14t || true)" "$(command -v python3.13t || true)"; do
        test -n "$found" && without_gil "$found" && interpreter=$found && break
    done
fi
if test -z "$interpreter"; then
    compile
    interpreter=$cache/python/bin/python3.13t
fi
without_gil "$interpreter" || skip "$interpreter does not run without a GIL"

venv=$work/venv
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }
if ! without_gil "$venv/bin/python"; then
    rm -rf "$venv"
    "$interpreter" -m venv --without-pip "$venv"
    # A pip of its own: an old one would take wheels of the stable ABI, which is not for this interpreter.
    "$python" -m pip --python "$venv/bin/python" --disable-pip-version-check --quiet install --upgrade 'pip>=24.1'
fi
if ! test -e "$venv/.libraries"; then
    say "installing test libraries"
    pip install --only-binary :all: 'scikit-build-core>=1.1' 'cython-cmake>=0.3' 'cython>=3.3.1' 'cmake>=3.21' ninja \
        'numpy<2.5' 'pytest>=8' 'hypothesis>=6.100'
    touch "$venv/.libraries"
fi
say "building pagepool for $("$venv/bin/python" -VV | head -n 1)"
PATH="$venv/bin:$PATH" pip install --no-deps --no-build-isolation --force-reinstall -Cbuild-dir="$work/build" .

# From here on the installed package is tested, not src/. Importing it must leave the GIL off, without a warning.
"$venv/bin/python" -W error -c '
import sys
import pagepool, pagepool._core.loops
assert not sys._is_gil_enabled(), "importing pagepool turned the GIL on"
'
test $# -gt 0 || set -- tests/unit/test_core_*.py tests/unit/test_kernel_examples.py tests/unit/test_queue_threads.py \
    tests/unit/test_bridge.py tests/unit/test_napi_poll_list.py tests/unit/test_xdp_gather.py \
    tests/unit/test_xdp_batch.py tests/unit/test_xdp_headers.py tests/unit/test_shared_pool.py \
    tests/unit/test_shared_model.py \
    tests/unit/test_arrow_batch.py tests/unit/test_arrow_headers.py tests/unit/test_arrow_stream.py
exec "$venv/bin/python" -m pytest -q -p no:cacheprovider --require=free_threading "$@"
