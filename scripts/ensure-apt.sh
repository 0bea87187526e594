#!/bin/sh
# See that programs of Debian packages are there: ensure-apt.sh PACKAGE...   (a package's program has its name)
#
# As root on Debian or Ubuntu they are installed; else the command is printed and the caller goes on: what needs the
# program says so itself.
set -eu

missing=
for package in "$@"; do
    command -v "$package" >/dev/null 2>&1 || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then
    printf 'installing Debian packages:%s\n' "$missing" >&2
    export DEBIAN_FRONTEND=noninteractive
    # Debian starts a server it installs; a benchmark or a test starts its own.
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d.fleet && chmod +x /usr/sbin/policy-rc.d.fleet
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        mv /usr/sbin/policy-rc.d.fleet /usr/sbin/policy-rc.d
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    else
        rm -f /usr/sbin/policy-rc.d.fleet
    fi
    # shellcheck disable=SC2086  # a list of words
    apt-get update -qq >/dev/null && apt-get install -y -qq --no-install-recommends $missing >/dev/null </dev/null || {
        printf 'could not install:%s; going on without\n' "$missing" >&2
    }
else
    printf 'missing:%s  Cure: sudo apt-get install --no-install-recommends%s\n' "$missing" "$missing" >&2
fi
