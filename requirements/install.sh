#!/usr/bin/env bash
# Usage: requirements/install.sh VENV
#
# Installs what the package, its tools and its tests import into the virtual environment VENV.
# A Detectron2 that somebody put there stays as it is, and so does every package beside it.
set -euo pipefail

venv=$1
python=$venv/bin/python
requirements=$(dirname "$0")
# Tells a Detectron2 that this script installed from somebody's own. Holds what it was installed from.
marker=$venv/.mrcnn_plugin_detectron2

pip() { "$python" -m pip --disable-pip-version-check "$@"; }
# A folder of that name without a package in it (the clone of a repository, say) has no origin.
is_there() { "$python" -c "import importlib.util as u, sys; sys.exit(not getattr(u.find_spec('$1'), 'origin', None))"; }
# "detectron2" is the distribution of a build from source; the wheel below has another name.
is_own_wheel() { [ -e "$marker" ] && ! pip show --quiet detectron2 2>/dev/null; }

# The names in requirements files, without pins and in one spelling.
names() { sed -E '/^#/d; s/==.*//' "$@" | tr 'A-Z_' 'a-z-' | sort -u; }

install_missing() {
    local folder
    folder=$(mktemp -d)
    pip list --format=freeze >"$folder/there.txt"
    comm -23 <(names "$requirements"/{runtime,dev}.txt) <(names "$folder/there.txt") >"$folder/missing.txt"
    # OpenCV has several distributions, which overwrite each other's files.
    if is_there cv2; then sed -i '/^opencv/d' "$folder/missing.txt"; fi
    # As constraints, the versions that are there keep pip from replacing any for a new package.
    pip install -qq --constraint "$folder/there.txt" --requirement "$folder/missing.txt"
    rm -r "$folder"
}

install_pinned() {
    local wheel=$requirements/detectron2.txt site
    echo "Installing PyTorch, Detectron2 and what they need into $venv. The first time takes some minutes."
    pip install -qq --requirement "$requirements/runtime.txt" --requirement "$requirements/dev.txt"
    if is_there detectron2 && cmp --quiet "$wheel" "$marker"; then return; fi
    touch "$marker"
    site=$("$python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
    # The wheel says that it is for Python 3.10, but all of it is plain Python, save for one extension that is built for
    # Python 3.10 and another torch. Detectron2 needs that only for operators that this project does not use.
    pip install -qq --upgrade --no-deps --require-hashes --only-binary=:all: --python-version 3.10 \
        --implementation cp --abi none --platform any --target "$site" --requirement "$wheel"
    rm -f "$site"/detectron2/_C*.so
    cp "$wheel" "$marker"
}

if is_there detectron2 && ! is_own_wheel; then
    echo "Keeping the Detectron2 of $venv and all beside it; installing what is missing."
    install_missing
else
    install_pinned
fi
"$python" -c "import detectron2" || { echo "Detectron2 in $venv cannot be imported (see above)." >&2; exit 1; }
