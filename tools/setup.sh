# shellcheck shell=sh
# Sourced by quickstart.sh and check.sh: makes sure that what they need is installed.
#
#   need PACKAGE...   Debian's names; installs the missing ones, or says what to do and exits
#   want PACKAGE...   the same where they can be done without: each on its own, and a warning for one that cannot be had

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

other_system() {
    missing=
    for tool in cc meson ninja pkg-config python3; do
        command -v "$tool" > /dev/null || missing="$missing $tool"
    done
    for library in libzip OpenCL; do
        pkg-config --exists "$library" 2> /dev/null || missing="$missing $library"
    done
    [ -z "$missing" ] && return 0
    echo "Missing:$missing. Install, then run this again:"
    echo "  Fedora   sudo dnf install gcc meson ninja-build pkgconf python3 libzip-devel ocl-icd-devel check-devel"
    echo "  Arch     sudo pacman -S gcc meson ninja pkgconf python libzip ocl-icd opencl-headers check"
    echo "  macOS    brew install meson ninja pkg-config libzip opencl-headers check   (and configure with -Dopencl=disabled)"
    exit 1
}

is_debian() { command -v apt-get > /dev/null && command -v dpkg-query > /dev/null; }

is_installed() { dpkg-query -W -f '${db:Status-Status}\n' "$1" 2> /dev/null | grep -qx installed; }

# The lists of packages are fetched once.
lists_are_new=
apt_install() {
    if [ -z "$lists_are_new" ]; then
        as_root apt-get update -q || return 1
        lists_are_new=yes
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@"
}

need() {
    is_debian || { other_system; return 0; }
    missing=
    for package in "$@"; do is_installed "$package" || missing="$missing $package"; done
    [ -z "$missing" ] && return 0
    if [ "$(id -u)" != 0 ] && ! command -v sudo > /dev/null; then
        echo "These packages are missing. As root, run this and start again:"
        echo "  apt-get install -y --no-install-recommends$missing"
        exit 1
    fi
    echo "Installing:$missing"
    log=$(mktemp)
    # shellcheck disable=SC2086 # packages are words
    if ! apt_install $missing > "$log" 2>&1; then
        tail -n 5 "$log"
        rm -f "$log"
        echo "The packages could not be installed. Try: apt-get install$missing"
        exit 1
    fi
    rm -f "$log"
}

want() {
    is_debian || return 0
    for package in "$@"; do
        is_installed "$package" && continue
        if [ "$(id -u)" != 0 ] && ! command -v sudo > /dev/null; then
            echo "warning: $package is not installed; what needs it is skipped"
        elif apt_install "$package" > /dev/null 2>&1; then
            echo "Installed: $package"
        else
            echo "warning: $package cannot be installed here; what needs it is skipped"
        fi
    done
}
