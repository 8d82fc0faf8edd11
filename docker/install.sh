#!/bin/sh
# Installs into a virtual environment what is locked, or this package: install.sh VENV REQUIREMENTS.txt, install.sh VENV .
# What builds packages is locked, too, in /build; so there is no isolated build, which would fetch its own.
set -eu
venv=$1
case $2 in
*.txt) what="--require-hashes -r $2" ;;
*) what=$2 ;;
esac
index=
if [ -n "$(find docker -name '*.whl')" ]; then
  index="--no-index --find-links docker" # there is no network
fi
made=$(mktemp -d)
# shellcheck disable=SC2086 # these are several words
/build/bin/python3 -m pip wheel -q --no-deps --no-build-isolation --wheel-dir "$made" $index $what
# By name: of a file, pip would note the path, which is another each time.
names=$(basename -a "$made"/*.whl | sed 's/^\([^-]*\)-\([^-]*\)-.*/\1==\2/')
# shellcheck disable=SC2086 # these are several words
/build/bin/python3 -m pip --python "$venv/bin/python3" install -q --no-index --no-deps --no-compile --find-links "$made" $names
rm -rf "$made"
