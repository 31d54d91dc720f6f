#!/bin/sh
# Fills virtual environments without pip in the first stages of an image.
#
#   install.sh locks VENV LOCK..   packages pinned by hash
#   install.sh torch VENV cpu|cuda torch, pinned by version (requirements-torch.txt says why)
#   install.sh wheel               this source tree as a wheel in /wheel, built with /build's tools
#   install.sh product VENV        that wheel
#   install.sh beside LOCK         into /opt/beside, for an image that needs one package more
#   install.sh compile VENV        byte code for everything: a read-only container can write none
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
locked="--require-hashes --no-deps --only-binary :all:"

# into VENV ARGUMENT..: pip of the base image, working on an environment that has none.
into() {
    venv=$1
    shift
    [ -x "$venv/bin/python" ] || python3 -m venv --without-pip "$venv"
    python3 -m pip --python "$venv/bin/python" --disable-pip-version-check --no-input --quiet \
        install --no-cache-dir --no-compile "$@"
}

case "$1" in
locks)
    venv=$2
    shift 2
    for lock in "$@"; do
        into "$venv" $from $locked -r "$lock"
    done
    ;;
torch)
    if [ "$3" = cuda ] && ls "$house"/torch-*+cpu-*.whl >/dev/null 2>&1; then
        echo "TORCH is cuda, but $house holds the CPU build of torch: empty it, or put CUDA's there" >&2
        exit 1
    fi
    case "$3" in
    cpu) into "$2" $torch_from --no-deps -r requirements-torch.txt ;;
    cuda) into "$2" $torch_from -r requirements-torch.txt ;; # CUDA's libraries are its requirements
    *)
        echo "TORCH is '$3': it must be cpu or cuda" >&2
        exit 1
        ;;
    esac
    ;;
wheel)
    mkdir /wheel
    # The build back end, called as an installer would; no environment here has an installer.
    /build/bin/python -c "from setuptools import build_meta; build_meta.build_wheel('/wheel')"
    ;;
product) into "$2" --no-index --no-deps /wheel/*.whl ;;
beside) into /build $from $locked -r "$2" --target /opt/beside ;;
compile)
    # Not checked against the sources' times at each start: nobody can change these files.
    "$2/bin/python" -m compileall -q -j 0 --invalidation-mode unchecked-hash "$2/lib" || true
    "$2/bin/python" -c "import common.cli"
    ;;
*)
    echo "install.sh: '$1' is none of locks, torch, wheel, product, beside, compile" >&2
    exit 1
    ;;
esac
