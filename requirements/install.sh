#!/usr/bin/env bash
# Usage: requirements/install.sh VENV
#
# Installs everything that the package, its tools and its tests import into the virtual environment VENV.
# If VENV already has a Detectron2 of your own, the script changes neither it nor any other package.
set -euo pipefail

venv=$1
python=$venv/bin/python
requirements=$(dirname "$0")
# This file exists if the script installed Detectron2. It holds the requirement that Detectron2 was installed from.
marker=$venv/.mrcnn_plugin_detectron2

pip() { "$python" -m pip --disable-pip-version-check "$@"; }
# A folder of that name that is no package, such as the clone of a repository, has no origin.
is_there() { "$python" -c "import importlib.util as u, sys; sys.exit(not getattr(u.find_spec('$1'), 'origin', None))"; }
# A build from source is a distribution named "detectron2". The wheel below has another name.
is_own_wheel() { [ -e "$marker" ] && ! pip show --quiet detectron2 2>/dev/null; }

# Prints the names in requirements files without versions, in lower case and with hyphens.
names() { sed -E '/^#/d; s/==.*//' "$@" | tr 'A-Z_' 'a-z-' | sort -u; }
# Prints those entries of the lock that a regular expression of names selects, with their hashes.
locked() { awk -v names="^($1)==" '/^[^ ]/ { on = $0 ~ names } on' "$requirements/lock.txt"; }

install_missing() {
    local folder
    folder=$(mktemp -d)
    pip list --format=freeze >"$folder/there.txt"
    comm -23 <(names "$requirements"/{runtime,dev}.in) <(names "$folder/there.txt") >"$folder/missing.txt"
    # OpenCV has several distributions that overwrite each other's files, so any of them will do.
    if is_there cv2; then sed -i '/^opencv/d' "$folder/missing.txt"; fi
    # The constraints keep pip from replacing installed versions to suit a new package.
    pip install -qq --constraint "$folder/there.txt" --requirement "$folder/missing.txt"
    rm -r "$folder"
}

install_pinned() {
    local wheel=$requirements/detectron2.txt site
    echo "Installing PyTorch, Detectron2 and their requirements into $venv. The first time takes some minutes."
    # fvcore, iopath and antlr4-python3-runtime are built from source. Without build isolation, these tools build them. pip
    # would otherwise fetch others, whose hashes nobody checks.
    pip install -qq --require-hashes --requirement <(locked "setuptools|wheel|packaging")
    pip install -qq --require-hashes --no-build-isolation --requirement "$requirements/lock.txt"
    if is_there detectron2 && cmp --quiet "$wheel" "$marker"; then return; fi
    touch "$marker"
    site=$("$python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
    # The wheel is tagged for Python 3.10, but everything in it except one extension is plain Python. That extension is
    # built for Python 3.10 and another torch. This project does not use the operators in it, so it is removed.
    pip install -qq --upgrade --no-deps --require-hashes --only-binary=:all: --python-version 3.10 \
        --implementation cp --abi none --platform any --target "$site" --requirement "$wheel"
    rm -f "$site"/detectron2/_C*.so
    cp "$wheel" "$marker"
}

if is_there detectron2 && ! is_own_wheel; then
    echo "Keeping the Detectron2 and all packages of $venv, and installing only those that are missing."
    install_missing
else
    install_pinned
fi
"$python" -c "import detectron2" || { echo "Detectron2 in $venv cannot be imported. The error is above." >&2; exit 1; }
