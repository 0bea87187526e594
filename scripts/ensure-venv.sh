#!/bin/sh
# Make a virtual environment with pip, or say what is missing and how to get it.
#
#   usage: ensure-venv.sh [FOLDER]       (default .venv)
#
# $PYTHON names the interpreter; without it the first of python3, python3.13, 3.12, 3.11, 3.14 that is new enough is taken.
# Debian and Ubuntu ship python3 without `ensurepip`: as root its package is installed, else the command is printed.
set -eu

venv=${1:-.venv}
oldest="3, 11"

say() { printf '%s\n' "$*" >&2; }

new_enough() { "$1" -c "import sys; sys.exit(sys.version_info < ($oldest))" 2>/dev/null; }
has_venv() { "$1" -c 'import venv, ensurepip' 2>/dev/null; }

if [ -x "$venv/bin/python" ] && new_enough "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    exit 0
fi

find_python() {
    # The first that has all it needs; else the first that is new enough.
    candidates=${PYTHON:-"python3 python3.13 python3.12 python3.11 python3.14"}
    for wanted in has_venv new_enough; do
        for name in $candidates; do
            path=$(command -v "$name" 2>/dev/null) || continue
            if new_enough "$path" && "$wanted" "$path"; then
                printf '%s\n' "$path"
                return 0
            fi
        done
    done
    return 1
}

apt_install() {
    # Installs Debian packages when we may; else prints the line to type.
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then
        say "installing Debian packages: $*"
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq >/dev/null && apt-get install -y -qq --no-install-recommends "$@" >/dev/null </dev/null
    else
        say "Cure: sudo apt-get update && sudo apt-get install --no-install-recommends $*"
        return 1
    fi
}

if ! python=$(find_python); then
    if [ -n "${PYTHON:-}" ]; then
        say "PYTHON=$PYTHON is not a Python 3.11 or newer. Cure: name another, or leave PYTHON unset."
        exit 1
    fi
    say "No Python 3.11 or newer was found (python3 is: $(python3 --version 2>&1 || echo missing))."
    for version in 3.13 3.12 3.11; do
        if apt-cache show "python$version-venv" >/dev/null 2>&1; then
            apt_install "python$version" "python$version-venv" || exit 1
            break
        fi
    done
    python=$(find_python) || {
        say "Cure: install Python 3.11 or newer (Debian 12, Ubuntu 24.04 and later have it as python3; else pyenv or uv)"
        say "      and run: make PYTHON=/path/to/python3 <target>"
        exit 1
    }
fi

if ! has_venv "$python"; then
    say "$python has no venv/ensurepip."
    case $("$python" -c 'import sys; print(sys.base_prefix)') in
    /usr)
        # The versioned package fits whichever interpreter of the distribution was found.
        package=python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv
        [ "$("$python" -c 'import os, sys; print(os.path.realpath(sys.executable))')" = "$(readlink -f /usr/bin/python3)" ] &&
            package=python3-venv
        apt_install "$package" || exit 1
        ;;
    *)
        say "Cure: use a Python built with ensurepip: make PYTHON=/usr/bin/python3 <target>"
        exit 1
        ;;
    esac
    has_venv "$python" || { say "$python still has no ensurepip."; exit 1; }
fi

# A half-made or outdated environment is replaced: it holds nothing that cannot be installed again.
rm -rf "$venv"
say "making $venv with $python ($("$python" --version 2>&1))"
"$python" -m venv "$venv"
