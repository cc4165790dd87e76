# Shared by the scripts: say what happens, get what is needed.

# Where cargo puts the program.
built=${CARGO_TARGET_DIR:-$PWD/target}/release

step() { printf '\n==> %s\n' "$*"; }
missing() { printf 'missing: %s\n' "$*" >&2; }

# need_tools COMMAND:PACKAGE... — installs the packages of commands that are not there, as
# root on Debian; else says what is missing. Tests that need them skip themselves.
need_tools() {
    local pair packages=()
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null 2>&1 || packages+=("${pair##*:}")
    done
    [ ${#packages[@]} -eq 0 ] && return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y "${packages[@]}" >/dev/null && return 0
    fi
    missing "Debian packages ${packages[*]} (as root: apt-get install ${packages[*]}); what needs them is skipped"
}

# check_fuse — says why nothing can be mounted here, if so.
check_fuse() {
    if [ ! -e /dev/fuse ]; then
        missing "/dev/fuse: load the fuse module (modprobe fuse), or give the container the device"
        return 1
    fi
    if ! { : <>/dev/fuse; } 2>/dev/null; then
        missing "permission to open /dev/fuse (its mode is $(stat -c %a /dev/fuse); distributions use 666)"
        return 1
    fi
    if [ "$(id -u)" != 0 ] && ! command -v fusermount3 >/dev/null 2>&1; then
        missing "fusermount3 (Debian package fuse3), by which an ordinary user mounts"
        return 1
    fi
}

# in_memory COMMAND... — runs it with its temporary files in a tmpfs, if there is one with user xattrs
# (Linux 6.6), and 8 GB for it.
in_memory() (
    room=$(df --output=avail -t tmpfs /dev/shm 2>/dev/null | tail -n 1) || room=0
    memory=$(awk '/^MemAvailable:/ { print $2 }' /proc/meminfo)
    least=8000000 # KiB
    if [ "${room:-0}" -ge $least ] && [ "${memory:-0}" -ge $least ] && dir=$(mktemp -d /dev/shm/plyfs.XXXXXX); then
        trap 'rm -rf --one-file-system "$dir"' EXIT
        chmod 1777 "$dir" # as /tmp: tests run programs as other users
        if setfattr -n user.plyfs -v 1 "$dir" 2>/dev/null; then export TMPDIR=$dir; fi
    fi
    "$@"
)

# Runs a command while the kernel offers io_uring to FUSE mounts, with tests that use it.
uring_switch=/sys/module/fuse/parameters/enable_uring
with_uring() (
    before=$(cat "$uring_switch")
    trap 'echo "$before" > "$uring_switch"' EXIT
    echo Y > "$uring_switch"
    PLYFS_TEST_URING=on "$@"
)

# in_each_mode COMMAND... — runs it with mounts of the default mode, then with those where the kernel
# reads and writes the files itself, and where requests come by io_uring.
in_each_mode() {
    "$@"
    step "$*: where the kernel reads and writes the files itself"
    if [ "$(id -u)" = 0 ]; then
        PLYFS_TEST_IO=passthrough "$@"
    else
        echo "skipped: it takes root"
    fi
    step "$*: where requests come by io_uring"
    if [ -w "$uring_switch" ]; then
        with_uring "$@"
    else
        echo "skipped: it takes root and Linux 6.14"
    fi
}
# The options for the mode that mounts shall have.
mode_options=(${PLYFS_TEST_IO:+--io "$PLYFS_TEST_IO"} ${PLYFS_TEST_URING:+--io-uring "$PLYFS_TEST_URING"})

# A mount of the script's own: `make_mount` makes $dir with lower, upper, work and m (the
# mountpoint), `mount_it [OPTION...]` mounts it, and all of it goes when the script ends.
make_mount() {
    cargo build --quiet --release --locked
    dir=$(mktemp -d)
    trap remove_mount EXIT
    mkdir "$dir/lower" "$dir/upper" "$dir/work" "$dir/m"
}
mount_it() {
    "$built/plyfs" mount "${mode_options[@]}" "$@" --lower "$dir/lower" --upper "$dir/upper" --work "$dir/work" "$dir/m"
}
unmount_it() { "$built/plyfs" umount "$dir/m"; }
remove_mount() {
    if mountpoint -q "$dir/m"; then "$built/plyfs" umount --lazy "$dir/m" || true; fi
    rm -rf "$dir"
}
