# Sourced by quickstart.sh and check.sh: makes sure that what they need is installed.
#
#   need PACKAGE...   Debian's names; installs the missing ones, or says what to do and exits

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

need() {
    command -v apt-get > /dev/null && command -v dpkg-query > /dev/null || { other_system; return 0; }
    missing=
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Status}\n' "$package" 2> /dev/null | grep -qx installed || missing="$missing $package"
    done
    [ -z "$missing" ] && return 0
    if [ "$(id -u)" != 0 ] && ! command -v sudo > /dev/null; then
        echo "These packages are missing. As root, run this and start again:"
        echo "  apt-get install -y --no-install-recommends$missing"
        exit 1
    fi
    echo "Installing:$missing"
    log=$(mktemp)
    if ! { as_root apt-get update -q && as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -q --no-install-recommends $missing; } > "$log" 2>&1; then
        tail -n 5 "$log"
        rm -f "$log"
        echo "The packages could not be installed. Try: apt-get install$missing"
        exit 1
    fi
    rm -f "$log"
}
