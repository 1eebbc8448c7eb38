# The repository's virtual environment, .venv. Sourced by the scripts, never run.
#
#   PYTHON           the interpreter to use; otherwise the first of Python 3.11 to 3.13 on the path
#   TORCH_INDEX_URL  the package index to take torch from; otherwise the usual one, and of the
#                    builds it offers the one for CPUs

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
venv="$root/.venv"

fail() {
    echo "error: $*" >&2
    exit 2
}

# Prints "3.11" for an interpreter of a supported version; false for any other.
supported_version() {
    "$1" -c 'import sys
version = sys.version_info[:2]
print("%d.%d" % version)
sys.exit(not (3, 11) <= version <= (3, 13))' 2>/dev/null
}

find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        supported_version "$PYTHON" >/dev/null ||
            fail "PYTHON=$PYTHON does not run as Python 3.11, 3.12 or 3.13: name one that does"
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.12 python3.13 python3.11 python; do
        if supported_version "$candidate" >/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.11, 3.12 or 3.13 on the path: install one, or name it with PYTHON="
}

# Makes .venv, or keeps the one that is there if it works and has the right Python.
make_venv() {
    local python version
    python=$(find_python)
    version=$(supported_version "$python")
    if [ "$(supported_version "$venv/bin/python")" = "$version" ] &&
        "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        return
    fi
    [ ! -e "$venv" ] || echo "$venv does not work with Python $version: making it anew"
    "$python" -m venv --clear "$venv" ||
        fail "$python cannot make a virtual environment: is its venv module installed?"
}

install_torch() {
    local version
    version=$(sed -n 's/^torch==//p' "$root/constraints.txt")
    [ -n "$version" ] || fail "constraints.txt names no version of torch"
    echo "installing torch $version"
    if [ -n "${TORCH_INDEX_URL:-}" ]; then
        "$venv/bin/python" -m pip install --quiet --index-url "$TORCH_INDEX_URL" "torch==$version"
        return
    fi
    # Not every index has a build with this label, and that is no error.
    "$venv/bin/python" -m pip install --quiet "torch==$version+cpu" 2>/dev/null ||
        "$venv/bin/python" -m pip install --quiet "torch==$version"
}

# install_project [EXTRA,...]
install_project() {
    make_venv
    install_torch
    echo "installing qvg_engine${1:+ with the extra $1}"
    # setuptools never removes from build/ what was removed from the source.
    rm -rf "$root/build"
    "$venv/bin/python" -m pip install --quiet --constraint "$root/constraints.txt" "$root${1:+[$1]}"
}
