#!/usr/bin/env bash
# Create .venv and install the pinned dependencies into it; do nothing when that has been done already.
#
#   PYTHON        the Python to build on (default: the first of python3, python3.11, python3.12 that is 3.11 or 3.12)
#   TORCH         the torch to install, as pip names it, e.g. torch==2.12.1+cu130 or a wheel's path
#                 (default: keep the torch that PYTHON can import already; else the pinned one, CPU build without a GPU)
#   TORCH_INDEX   a package index to look for torch in, besides those that pip is configured with
#
# A choice made once holds until another is made, so `make test` keeps what `make setup TORCH=...` built; and torch stays
# when only the other requirements have changed.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=$PWD/.venv
done_file=$venv/setup-done
inputs="$PWD $(cat pyproject.toml constraints.txt scripts/setup.sh scripts/build_ops.py | sha256sum | cut -d' ' -f1)"
torch_pin=$(grep '^torch==' constraints.txt)
PYTHON=${PYTHON:-} TORCH=${TORCH:-} TORCH_INDEX=${TORCH_INDEX:-}

# With this environment activated, `python3` is its own: it must not be built upon itself.
PATH=:$PATH:; PATH=${PATH//":$venv/bin:"/:}; PATH=${PATH#:}; PATH=${PATH%:}

say() { echo "setup: $*"; }
fail() { echo "setup: $*" >&2; exit 2; }
pip() { "$venv/bin/python" -m pip --quiet "$@"; }

find_python() {
    local candidates=(python3 python3.11 python3.12) check candidate
    [[ -n $PYTHON ]] && candidates=("$PYTHON")
    check='import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)) or sys.prefix == sys.argv[1])'
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c "$check" "$venv" 2> /dev/null; then python=$candidate; return; fi
    done
    fail "no Python 3.11 or 3.12 with the venv module among: ${candidates[*]}. Install one (on Debian and Ubuntu also" \
        "its -venv package) or name it: make setup PYTHON=/path/to/python3.12"
}

create_environment() {
    keep_torch=
    [[ -n $TORCH ]] || keep_torch=$("$python" scripts/usable_torch.py || true)
    if [[ -z $keep_torch ]]; then
        "$python" -m venv "$venv"
        return
    fi
    say "keeping the torch $keep_torch that this Python has"
    "$python" -m venv --system-site-packages "$venv"
    # A venv made from inside another sees the base Python's packages only: link the outer one's too.
    "$python" -c 'import sys, sysconfig; sys.prefix == sys.base_prefix or print(sysconfig.get_path("purelib"))' \
        > "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/_outer_venv.pth"
}

install_torch() {
    local index=(${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"})
    if [[ -n $TORCH ]]; then
        say "installing $TORCH"
        pip install "${index[@]}" "$TORCH"
    elif nvidia-smi -L > /dev/null 2>&1; then
        say "installing $torch_pin for the NVIDIA GPU of this machine"
        pip install "${index[@]}" "$torch_pin"
    else
        say "installing $torch_pin, CPU build (no NVIDIA GPU found)"
        pip install "${index[@]}" "$torch_pin+cpu" 2> /dev/null || install_cpu_torch_by_uv ||
            { say "no CPU build within reach: installing the default one, which runs on CPU too but may take gigabytes"
              pip install "${index[@]}" "$torch_pin"; }
    fi
}

install_cpu_torch_by_uv() {
    say "pip's package indexes have no CPU build; uv knows where PyTorch keeps them"
    pip install --constraint constraints.txt uv &&
        "$venv/bin/uv" --quiet pip install --python "$venv/bin/python" --torch-backend=cpu "$torch_pin"
}

install_the_rest() {
    say "installing DeepSpeed, Megatron-core and the rest"
    # The torch that is there now is the one to keep, whatever build it is.
    { grep -v '^torch==' constraints.txt; "$venv/bin/python" -c \
        'from importlib.metadata import version; print("torch==" + version("torch"))'; } > "$venv/constraints.txt"
    pip install --constraint "$venv/constraints.txt" ninja py-cpuinfo psutil
    # DeepSpeed's setup.py imports torch, so it cannot build in isolation; its kernels are compiled at first use.
    export DS_BUILD_OPS=0
    if [[ -n $keep_torch ]]; then
        # Of the base Python's packages only torch is wanted; commands such as deepspeed must be this environment's own.
        grep -Ev '^(torch|uv|pip|setuptools|wheel)==' constraints.txt > "$venv/requirements.txt"
        pip install --ignore-installed --no-deps --no-build-isolation --requirement "$venv/requirements.txt"
    fi
    pip install --constraint "$venv/constraints.txt" --no-build-isolation deepspeed
    # setuptools warns of what an editable install is: the tree itself
    PYTHONWARNINGS=ignore pip install --constraint "$venv/constraints.txt" --no-build-isolation --editable '.[dev]'
}

# What an earlier run has done.
chosen="$PYTHON|$TORCH|$TORCH_INDEX"
update_only=
clear=
keep_torch=
if [[ -f $done_file && -x $venv/bin/python ]]; then
    { read -r done_inputs; read -r done_chosen; } < "$done_file"
    [[ $chosen == "||" ]] && chosen=$done_chosen
    [[ $chosen == "$done_chosen" && $inputs == "$done_inputs" ]] && exit 0
    if [[ $chosen != "$done_chosen" || $done_inputs != "$PWD "* ]]; then
        say "another Python, torch or folder than last time: starting afresh"
        clear=yes
        IFS='|' read -r PYTHON TORCH TORCH_INDEX <<< "$chosen"
    elif "$venv/bin/python" scripts/usable_torch.py > /dev/null; then
        update_only=yes
    fi
fi

if [[ -z $update_only ]]; then
    find_python
    [[ -z $clear ]] || rm -rf "$venv"
    say "Python $("$python" -c 'import platform; print(platform.python_version())')"
    create_environment
fi
rm -f "$done_file"
pip install --constraint constraints.txt --upgrade pip setuptools wheel
[[ -n $update_only || -n $keep_torch ]] || install_torch
install_the_rest
say "compiling DeepSpeed's CPU Adam"
# by the ninja that runs will find: another version would not trust its log, and would build again
PATH="$venv/bin:$PATH" "$venv/bin/python" scripts/build_ops.py
printf '%s\n%s\n' "$inputs" "$chosen" > "$done_file"
say "done: $venv"
