#!/bin/bash
# Sets up a machine of a cluster for `ray up`: this project, as it was copied here, in ~/ray_pcasgd_env, with the versions
# of requirements.lock and without what only its development needs. Arguments go to `uv pip install`: --torch-backend cpu
# leaves out CUDA; packages are what a head needs to start machines of its cloud. In an image of the Dockerfile there is
# nothing to do. Says what failed, and ends with its exit status.
set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
environment=$HOME/ray_pcasgd_env
chmod 600 "$HOME/.ray/auth_token"

there=$(command -v ray-pcasgd || true)
if [ -n "$there" ] && [ "$there" != "$environment/bin/ray-pcasgd" ]; then
    echo "ray-pcasgd is here already: $there"
    exit
fi

# uv, wherever it is: on the path, where its own installer puts it, or in an environment of its own.
PATH=$PATH:$HOME/.local/bin:$HOME/.uv/bin
if ! command -v uv > /dev/null; then
    # Cloud images have Python, and often not what makes environments; right after their start others hold apt's lock.
    python3 -m venv --clear "$HOME/.uv" || {
        sudo apt-get -o DPkg::Lock::Timeout=600 update
        sudo apt-get -o DPkg::Lock::Timeout=600 install --yes python3-venv
        python3 -m venv --clear "$HOME/.uv"
    }
    "$HOME/.uv/bin/python" -m pip install --quiet uv
fi

# The machines of a cluster must have the same minor version of Python: that of their image.
test -x "$environment/bin/python" || uv venv --python "$(command -v python3)" "$environment"
uv pip install --python "$environment/bin/python" --constraint "$project/requirements.lock" "$@" --editable "$project"

# `ray exec`, jobs and `ray start` look for python and ray there, and for the token's mode.
# shellcheck disable=SC2016
grep -q ray_pcasgd_env "$HOME/.bashrc" ||
    echo 'export PATH=~/ray_pcasgd_env/bin:$PATH RAY_AUTH_MODE=token' >> "$HOME/.bashrc"
