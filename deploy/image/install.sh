#!/bin/sh
# Fills /opt/fedcare, a virtual environment without pip, in the first stage of an image.
#
#   install.sh locks LOCK..   packages pinned by hash; with TORCH=cpu or cuda also torch
#   install.sh product        this source tree, built with the pinned build tools
#   install.sh beside LOCK    into /opt/beside, for an image that needs one package more
#
# If the wheel house (deploy/wheelhouse) holds wheels, everything comes from there and no index
# is asked, whatever is configured. If it holds none, everything comes from the index: pip's
# (PIP_INDEX_URL), and TORCH_INDEX for torch.
set -eu

cd /src
house=deploy/wheelhouse
if ls "$house"/*.whl >/dev/null 2>&1; then
    from="--no-index --find-links $house"
    torch_from=$from
    echo "packages come from the wheel house alone"
else
    from=""
    torch_from="--index-url ${TORCH_INDEX:-}"
    echo "packages come from the index"
fi

# into VENV ARGUMENT..: pip of the base image, working on an environment that has none.
into() {
    venv=$1
    shift
    python3 -m pip --python "$venv/bin/python" --disable-pip-version-check --no-input --quiet \
        install --no-cache-dir "$@"
}

locked="--require-hashes --no-deps --only-binary :all:"

case "$1" in
locks)
    shift
    python3 -m venv --without-pip /opt/fedcare
    for lock in "$@"; do
        into /opt/fedcare $from $locked -r "$lock"
    done
    case "${TORCH:-none}" in
    none) ;;
    cpu) into /opt/fedcare $torch_from --no-deps -r requirements-torch.txt ;;
    cuda) into /opt/fedcare $torch_from -r requirements-torch.txt ;; # CUDA's libraries are its requirements
    *)
        echo "TORCH is '$TORCH': it must be cpu or cuda" >&2
        exit 1
        ;;
    esac
    ;;
product)
    python3 -m venv --without-pip /build
    into /build $from $locked -r deploy/build.lock
    mkdir /wheel
    # The build back end, called as an installer would; pip here has no build tools of its own.
    /build/bin/python -c "from setuptools import build_meta; build_meta.build_wheel('/wheel')"
    into /opt/fedcare --no-index --no-deps /wheel/*.whl
    ;;
beside)
    into /opt/fedcare $from $locked -r "$2" --target /opt/beside
    ;;
*)
    echo "install.sh: '$1' is neither locks, product nor beside" >&2
    exit 1
    ;;
esac
