#!/bin/sh
# Installs those Debian packages whose programs are missing, or says in one sentence which are.
# Usage: [PYTHON=python3] system_packages.sh PACKAGE ...    ends with 1 where one is missing and cannot be installed
set -eu

present() {
    case "$1" in
    fonts-dejavu-core) test -e /usr/share/fonts/truetype/dejavu/DejaVuSans.ttf ;;
    findutils) command -v find ;;
    iproute2) command -v ip ;;
    libc6-dev) test -e /usr/include/stdio.h ;;
    libopenmpi-dev) test -x /usr/bin/mpicc ;;
    munge) command -v munged ;;
    openmpi-bin) test -x /usr/bin/mpirun ;;
    openssh-client) command -v ssh ;;
    openssh-server) command -v sshd ;;
    procps) command -v ps ;;
    python3-venv) "${PYTHON:-python3}" -c 'import ensurepip, venv' ;;
    slurm-client) command -v sbatch ;;
    slurm-wlm-jwt-plugin) test -e /usr/lib/*/slurm-wlm/auth_jwt.so ;;
    sysvinit-utils) command -v killall5 ;;
    util-linux) command -v unshare ;;
    *) command -v "$1" ;;
    esac >/dev/null 2>&1
}

missing() {
    for package in "$@"; do
        present "$package" || printf ' %s' "$package"
    done
}

packages=$(missing "$@")
if [ -n "$packages" ] && [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    # A server that comes with a package is not started (the tests start their own): Debian asks this file.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # shellcheck disable=SC2086
    apt-get install -y -qq --no-install-recommends $packages >/dev/null
    packages=$(missing "$@")
fi
if [ -n "$packages" ]; then
    echo "Missing system packages:$packages. Have an administrator install them (on Debian: 'apt-get install$packages')" \
        "and run the same command again." >&2
    exit 1
fi
