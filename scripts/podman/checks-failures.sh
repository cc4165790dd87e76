# Daemons that are killed, stores that are reset, and stores that two programs have written.

# kill_daemon CONTAINER: kills it with -9, by the upper that it has
kill_daemon() {
    local upper pid
    upper=$(podman inspect -f '{{.GraphDriver.Data.UpperDir}}' "$1")
    pid=$(pgrep -f "^$program .*upperdir=$upper")
    kill -9 "$pid"
    while [ -d "/proc/$pid" ]; do sleep 0.05; done
}

# (A program on the dead mount itself ends with SIGBUS, as soon as it needs a page of it.)
check_killed_daemon() {
    local name merged
    need_image tree
    for name in one two; do
        podman run -d --name $name localhost/tree sleep 1000 > /dev/null
        podman exec $name sh -euxc '
            on-fuse; cd /data
            rm -r d; mkdir d; mv lower moved
            echo kept > synced; sync -f synced; dd if=/dev/zero of=changed bs=1k count=100 conv=fsync 2>/dev/null'
        kill_daemon $name
    done
    fails podman exec one cat /data/synced
    merged=$(podman inspect -f '{{.GraphDriver.Data.MergedDir}}' one)
    as_owner sh -c "stat '$merged/data' 2>&1 || true" > got
    grep -q 'not connected' got
    podman rm -f -t 0 two > /dev/null
    podman stop -t 0 one > /dev/null
    podman start one > /dev/null
    podman exec one sh -euxc 'on-fuse; cd /data; test "$(cat synced)" = kept; test "$(stat -c %s changed)" = 102400; absent d/new; test -f moved/deep/f7'
    podman rm -f -t 0 one > /dev/null
    in_run localhost/tree 'listing /data' > got
    same_file "the image after all that" got "$top/images/tree.data"
}

check_terminated_daemon() {
    need_image tree
    podman run -d --name t localhost/tree sleep 1000 > /dev/null
    podman exec t sh -euxc 'on-fuse; echo kept > /data/new'
    pkill -f "^$program .*upperdir=$(podman inspect -f '{{.GraphDriver.Data.UpperDir}}' t)"
    sleep 1
    podman stop -t 0 t > /dev/null
    podman start t > /dev/null
    equal "what was written before" "$(podman exec t cat /data/new)" kept
}

check_reset() {
    local program_of_store=$work/store-reset/
    use_store reset "$program"
    need_image tree
    podman run -d --name a localhost/tree sleep 1000 > /dev/null
    podman create -q --name b localhost/tree true > /dev/null
    as_owner podman mount b > /dev/null
    podman exec a on-fuse
    podman system reset -f > /dev/null 2>&1
    equal "mounts left" "$(grep -c "$program_of_store" /proc/mounts || true)" 0
    no_daemon || fail "a daemon is left after podman system reset"
    need_image tree
    in_run localhost/tree 'listing /data' > got
    same_file "an image in the new store" got "$top/images/tree.data"
}

# A container that one program has made and another goes on with, and back.
check_switch() {
    local other step
    other=$(command -v fuse-overlayfs) || skip "no fuse-overlayfs to switch to"
    cp "$other" other-program
    other=$work/other-program
    use_store switched "$other"
    need_image tree
    podman run -d --name w localhost/tree sleep 1000 > /dev/null
    podman exec w sh -euxc 'on-fuse; cd /data
        rm -r kinds; mkdir kinds; echo k > kinds/k; rm removed; rm names/-dash; rm -r lower/deep; mkdir lower/deep
        echo more >> changed; rm -r becomes-dir; echo f > becomes-dir; chown -R 8:9 merged; mkdir h; echo h > h/1; ln h/1 h/2
        mkdir twice; rm -r twice; mkdir twice; listing /data' > wanted
    for step in "$program" "$other" "$program"; do
        podman stop -t 0 w > /dev/null
        use_store switched "$step"
        podman start w > /dev/null
        podman exec w sh -euxc 'on-fuse; listing /data' > got
        same_file "the tree, taken over by ${step##*/}" got wanted
        podman exec w sh -euxc 'cd /data
            absent kinds/big kinds/setuid lower/deep/f1
            rm -rf h2 twice owners names; mkdir names; echo '"${step##*/}"' > names/by
            rm h/1; echo h > h/1; rm -rf merged; echo x >> changed; touch lower/deep/n; mv h h2; mkdir h; touch h/1; listing /data' > wanted
    done
    podman commit -q w localhost/switched > /dev/null
    in_run localhost/switched 'listing /data' > got
    same_file "the committed image" got wanted
    podman rm -f -t 0 w > /dev/null
    pgrep -f "^$other " > /dev/null && fail "a daemon of the other program is left"
    true
}
