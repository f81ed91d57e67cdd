# Sourced by scripts/up and scripts/test: make_venv LOCK brings $here/.venv to exactly what the lock says.

die() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

find_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3.14 python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "Python 3.11 or newer is needed, but not found (set PYTHON to its path, or: apt-get install python3 python3-venv)"
}

make_venv() {
    local lock=$here/$1 venv=$here/.venv python version
    # What is in the venv follows from these alone; the checkout's path too, since scripts in a venv name it.
    digest() { { echo "$here"; cat "$1" "$here/pyproject.toml"; } | sha256sum | cut -d' ' -f1; }
    # The stamp names the locks that the venv satisfies: the tests' holds all that the other does.
    if [ -x "$venv/bin/stowage" ] && grep -qsxF "$(digest "$lock")" "$venv/.stowage-lock" && "$venv/bin/python" -c ''; then
        return
    fi
    python=$(find_python)
    # Two at once would install over each other.
    exec 9>"$here/.venv.lock"
    flock 9
    # Debian's Python makes a venv with pip only where its package python3-venv is; its own pip can serve one without.
    local seed=() outer=0
    if ! "$python" -c 'import ensurepip' 2>/dev/null; then
        version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        "$python" -m pip --python "$python" --version >/dev/null 2>&1 ||
            die "this Python has neither ensurepip nor a pip of 22.3 or newer: apt-get install python$version-venv"
        seed=(--without-pip) outer=1
    fi
    echo "$(basename "$0"): installing the locked packages into $venv (once, and when the lock changes)" >&2
    if ! "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        { [ $outer = 0 ] && ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; }; then
        rm -rf "$venv"
        "$python" -m venv "${seed[@]}" "$venv"
    fi
    rm -f "$venv/.stowage-lock"
    local pip=("$venv/bin/python" -m pip)
    [ $outer = 0 ] || pip=("$python" -m pip --python "$venv/bin/python")
    pip+=(install -qq --disable-pip-version-check --no-input --root-user-action=ignore)
    "${pip[@]}" --require-hashes --only-binary :all: -r "$here/requirements.txt" ||
        die "the locked packages could not be installed"
    # One package of the tests comes as source alone; it is built with the setuptools just installed, no other.
    [ "$1" = requirements.txt ] || "${pip[@]}" --require-hashes --no-build-isolation -r "$lock" ||
        die "the locked packages could not be installed"
    "${pip[@]}" --no-deps --no-build-isolation --no-index --editable "$here" || die "stowage could not be installed"
    for lock in "$here/requirements.txt" "$lock"; do
        digest "$lock"
    done >"$venv/.stowage-lock"
    exec 9>&-
}
