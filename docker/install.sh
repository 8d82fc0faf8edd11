#!/bin/sh
# Installs locked requirements, or this package, into a virtual environment: install.sh VENV REQUIREMENTS.txt, install.sh VENV .
# The build tools are locked, too, in /build, so the build is not isolated: an isolated one would download its own.
set -eu
venv=$1
case $2 in
*.txt) what="--require-hashes -r $2" ;;
*) what=$2 ;;
esac
index=
if [ -n "$(find docker -name '*.whl')" ]; then
  index="--no-index --find-links docker" # without a network
fi
made=$(mktemp -d)
# shellcheck disable=SC2086 # these are several words
/build/bin/python3 -m pip wheel -q --no-deps --no-build-isolation --wheel-dir "$made" $index $what
# By name: for a file, pip would record its path, which differs each time.
names=$(basename -a "$made"/*.whl | sed 's/^\([^-]*\)-\([^-]*\)-.*/\1==\2/')
# shellcheck disable=SC2086 # these are several words
/build/bin/python3 -m pip --python "$venv/bin/python3" install -q --no-index --no-deps --no-compile --find-links "$made" $names
rm -rf "$made"
