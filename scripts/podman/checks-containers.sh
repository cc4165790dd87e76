# Containers: run, exec, stop and start, and what programs do in them.

check_run() {
    need_image tree
    podman run -d --name r localhost/tree sleep 1000 > /dev/null
    equal "daemons of one container" "$(daemons)" 1
    podman exec r on-fuse
    equal "type of / in stat -f" "$(podman exec r stat -f -c %t /)" 65735546
    equal "exit code" "$(run localhost/tree sh -c 'exit 42'; echo $?)" 42
    equal "output" "$(echo in | run -i localhost/tree cat)" in
    podman rm -f -t 0 r > /dev/null
    no_daemon || fail "the daemon outlives its container"
}

check_exec() {
    need_image tree
    podman run -d --name e localhost/tree sleep 1000 > /dev/null
    podman exec e sh -c 'on-fuse && echo one > /data/by-exec'
    equal "what another exec wrote" "$(podman exec e cat /data/by-exec)" one
    podman exec --user 1000 e sh -c 'echo two > /tmp/mine'
    equal "owner of a user's file" "$(podman exec e stat -c %u:%g:%a /tmp/mine)" 1000:1000:644
    fails podman exec --user 1000 e sh -c 'echo x > /data/by-exec'
    echo from outside > given
    podman cp given e:/data/given
    equal "a file copied into it" "$(podman exec e cat /data/given)" "from outside"
    podman exec e sh -c 'echo from inside > /data/given'
    podman cp e:/data/given taken
    equal "a file copied out of it" "$(cat taken)" "from inside"
    podman cp e:/data/d copied-out
    equal "a directory copied out of it" "$(find copied-out -type f)" copied-out/new
    rm -rf copied-out
}

check_restart() {
    need_image tree
    podman run -d --name s localhost/tree sleep 1000 > /dev/null
    podman exec s sh -euxc 'cd /data; rm -r d; mkdir d; echo n > d/n; echo more >> changed; rm removed; mv lower moved; chown 44:55 merged; listing /data' > wanted
    podman stop -t 0 s > /dev/null
    no_daemon || fail "the daemon outlives a stopped container"
    podman start s > /dev/null
    podman exec s sh -euxc 'on-fuse; listing /data' > got
    same_file "after stop and start" got wanted
    podman exec s sh -euxc 'cd /data; absent d/new; rm -r moved; mkdir lower; listing /data' > wanted
    podman restart -t 0 s > /dev/null
    podman exec s sh -euxc 'on-fuse; listing /data' > got
    same_file "after restart" got wanted
}

check_lower_changes() {
    need_image tree
    in_run localhost/tree '
        listing /data > /tmp/before
        cd /data
        echo two >> changed; test "$(cat changed)" = "two
two"; test "$(stat -c "%a %u" changed)" = "600 1000"
        rm removed; absent removed
        echo new > removed; test "$(cat removed)" = new
        rm -r becomes-dir; echo f > becomes-dir; test -f becomes-dir
        rm becomes-file; mkdir becomes-file; test -z "$(ls -A becomes-file)"
        rm -r merged; absent merged/two
        mkdir merged; test -z "$(ls -A merged)"; absent merged/one; absent merged/two; absent merged/both
        rmdir merged; absent merged
        truncate -s 10 kinds/big; test "$(stat -c %s kinds/big)" = 10
        dd if=/dev/zero of=setgid/cat bs=1 count=1 seek=5 conv=notrunc 2>/dev/null; test "$(stat -c %s setgid/cat)" = "$(stat -c %s setuid/su)"
        chmod 600 names/-dash; chown 8:9 names/.hidden; touch -d @77 "names/with space"
        test "$(stat -c "%a" names/-dash) $(stat -c "%u:%g" names/.hidden) $(stat -c %Y "names/with space")" = "600 8:9 77"
        rm "names/co:lon,comma" "names/back\\slash" names/n*; test "$(ls -A names | wc -l)" = 4
        ln -sf x links/soft; test "$(readlink links/soft)" = x
        cp -a lower lower3; rm -r lower; test "$(ls lower3/deep | wc -l)" = 20'
    # Nothing of that is in the image.
    in_run localhost/tree 'listing /data' > got
    same_file "the image after a container changed it" got "$top/images/tree.data"
}

check_opaque() {
    need_image tree
    # Layer 2 has made d opaque: old must be hidden from listings and from look-ups.
    in_run localhost/tree '
        cd /data/d
        test "$(ls -A)" = new
        for name in old sub sub/older; do
            absent $name; refused cat $name; refused rm $name
        done
        test "$(stat -c "%a %u:%g" .)" = "711 21:43"
        mkdir sub; test -z "$(ls -A sub)"; absent sub/older
        echo mine > old; test "$(cat old)" = mine'
    # The same once more on top, by a container.
    in_run localhost/tree '
        cd /data; rm -r d; mkdir d; touch d/newer; test "$(ls -A d)" = newer
        for name in old sub new; do absent d/$name; done
        mv d e; mkdir d; test -z "$(ls -A d)"; absent d/new; test "$(ls -A e)" = newer
        absent e/old; absent e/new'
}

check_hard_links() {
    need_image tree
    in_run localhost/tree '
        cd /data/links
        test "$(stat -c "%h %i" a)" = "$(stat -c "%h %i" c)"
        echo more >> a; test "$(tail -n 1 c)" = more; test "$(stat -c "%h %i" a)" = "$(stat -c "%h %i" b)"
        rm a; test "$(stat -c %h b)" = 2; ln b a; test "$(stat -c %h c)" = 3
        ln ../changed ../also; echo x > ../also; test "$(cat ../changed)" = x'
    podman run -d --name linked localhost/tree sleep 1000 > /dev/null
    podman exec linked sh -euxc 'cd /data/links; echo more >> a; ln a e'
    podman restart -t 0 linked > /dev/null
    podman exec linked sh -euxc 'cd /data/links; echo last >> e; test "$(tail -n 1 c)" = last; test "$(stat -c "%h %i" a)" = "$(stat -c "%h %i" e)"; test "$(stat -c %h b)" = 4'
}

check_rename() {
    need_image tree
    # mv(1) copies when rename(2) gives EXDEV; either way the tree must be whole.
    in_run localhost/tree '
        cd /data
        (cd lower; find . -type f | sort | xargs sha256sum) > /tmp/before
        mv lower elsewhere; absent lower; absent lower/deep
        (cd elsewhere; find . -type f | sort | xargs sha256sum) | diff /tmp/before -
        test "$(stat -c %u:%g elsewhere/deep/f7)" = 7:107
        mv elsewhere becomes-dir/; mv becomes-dir/elsewhere lower
        (cd lower; find . -type f | sort | xargs sha256sum) | diff /tmp/before -
        mv merged/both merged/two; test "$(cat merged/two)" = 2; absent merged/both
        mv d e; test "$(ls -A e)" = new; absent d; absent e/old'
}

check_tar_and_chown() {
    need_image tree
    in_run localhost/tree '
        cd /data; listing /data > /tmp/before
        tar -cf /tmp/d.tar lower owners links merged setuid kinds
        rm -r lower owners links merged setuid kinds
        tar -xf /tmp/d.tar
        listing /data | grep -v -E "^./kinds/fifo|^./links/dangling|^./links/soft| dir " > /tmp/after; grep -v -E "^./kinds/fifo|^./links/dangling|^./links/soft| dir " /tmp/before | diff - /tmp/after
        test "$(stat -c "%a %u:%g" owners/sgid) $(stat -c %a setuid/su) $(stat -c %h links/a)" = "2775 7:8 4755 3"
        chown -R 77:88 lower; chmod -R go-rwx lower
        test -z "$(find lower ! -user 77)"; test -z "$(find lower ! -group 88)"; test -z "$(find lower -perm -004)"
        cp -a lower lower2; test "$(stat -c "%a %u:%g" lower2/deep/f3)" = "600 77:88"; diff -r lower lower2'
}

check_read_only() {
    need_image tree
    run --read-only localhost/tree sh -euxc 'on-fuse; listing /data; refused touch /data/x; refused rm /data/changed; echo t > /tmp/t' > got
    same_file "/data of a read-only container" got "$top/images/tree.data"
}

check_crun() {
    runtime=crun
    use_store main "$program"
    need_image tree
    in_run localhost/tree 'listing /data' > got
    same_file "/data under crun" got "$top/images/tree.data"
    podman run -d --name c localhost/tree sleep 1000 > /dev/null
    podman exec c sh -euxc 'on-fuse; rm -r /data/d; mkdir /data/d; echo x > /data/d/x'
    podman stop -t 0 c > /dev/null
    podman start c > /dev/null
    equal "d after a restart" "$(podman exec c ls -A /data/d)" x
}

check_many_containers() {
    local count=20 n jobs=()
    [ -z "$quick" ] || count=6
    need_image tree
    for n in $(seq $count); do
        podman run -d --name many$n localhost/tree sh -euxc "on-fuse; cd /data; rm -r d; mkdir d; echo $n > d/n; echo $n >> changed; mv lower lower$n; touch /tmp/ready; sleep 1000" > /dev/null &
        jobs+=($!)
        [ $((n % 4)) != 0 ] || { wait "${jobs[@]}"; jobs=(); }
    done
    [ ${#jobs[@]} = 0 ] || wait "${jobs[@]}"
    for n in $(seq $count); do
        podman exec many$n sh -euxc "until test -e /tmp/ready; do sleep 0.1; done"
        equal "what container $n has written" "$(podman exec many$n sh -c 'cat /data/d/n; tail -n 1 /data/changed; ls /data | grep lower')" "$n
$n
lower$n"
    done
    equal "daemons" "$(daemons)" "$count"
    podman rm -af -t 0 > /dev/null
    no_daemon || fail "daemons outlive $count containers"
    equal "containers left" "$(podman ps -aq)" ""
}
