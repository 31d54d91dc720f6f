#!/bin/sh
# Takes out of a base image what a running service must not have: installers, and compilers
# if the base brought any. Run in the last stage, as root, before the user changes.
set -eu

for place in /usr/local/lib/python3* /usr/lib/python3* /usr/lib/python3/dist-packages; do
    for name in pip pip-* setuptools setuptools-* _distutils_hack wheel wheel-* pkg_resources ensurepip; do
        rm -rf "$place/site-packages/"$name "$place/"$name
    done
done
rm -rf /usr/local/bin/pip* /usr/bin/pip* /usr/bin/wheel /usr/local/bin/wheel \
    /usr/share/python-wheels "$HOME/.cache" /var/lib/apt/lists/*
for tool in cc gcc g++ c++ clang ld as make; do
    found=$(command -v "$tool" || true)
    [ -z "$found" ] || rm -f "$found"
done
