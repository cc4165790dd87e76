# What a container's changes become: diff, commit, builds.

check_diff() {
    need_image tree
    podman run --name changer localhost/tree sh -euxc '
        on-fuse; cd /data
        echo x > new; rm removed; chmod 640 changed; chown 9:9 merged/two
        rm -r d; mkdir d; touch d/newer
        rm -r becomes-dir; echo f > becomes-dir
        rm becomes-file; mkdir becomes-file; touch becomes-file/z
        mv lower/deep/f3 lower/deep/g3; ln links/a links/e
        rm names/-dash; echo same > names/-dash
        mkdir -p made/below; cat kinds/big > /dev/null; ls -R > /dev/null; touch tmp; rm tmp' 
    podman diff changer | LC_ALL=C sort > got
    cat > wanted <<'LINES'
A /data/becomes-file/z
A /data/d/newer
A /data/links/e
A /data/lower/deep/g3
A /data/made
A /data/made/below
A /data/new
C /data
C /data/becomes-dir
C /data/becomes-file
C /data/changed
C /data/d
C /data/links
C /data/lower
C /data/lower/deep
C /data/merged
C /data/merged/two
C /data/names
C /data/names/-dash
D /data/d/new
D /data/lower/deep/f3
D /data/removed
LINES
    same_file "podman diff" got wanted
    podman create -q --name untouched localhost/tree true > /dev/null
    equal "podman diff of an untouched container" "$(podman diff untouched)" ""
    equal "podman diff of an image" "$(podman image diff localhost/tree | LC_ALL=C sort | tr '\n' ';')" \
        "A /data/merged/three;A /data/removed;C /data;C /data/merged;D /data/merged/one;"
}

# Changes of every kind; what is set here must be in the committed image.
changes='on-fuse; cd /data
    rm -r d; mkdir -m 710 d; chown 3:4 d; touch -d @1000 d/newer
    rm removed; rm -r merged; mkdir merged; echo m > merged/m
    rm -r becomes-dir; echo f > becomes-dir
    rm becomes-file; mkdir becomes-file; touch becomes-file/z
    mv lower moved; rm moved/deep/f1; mv moved/deep/f2 moved/deep/g2
    mkdir h; echo h > h/1; ln h/1 h/2; ln h/1 h/3
    mkdir h/setuid; cp setuid/su h/setuid; chmod 4711 h/setuid/su; cp setgid/cat h/setgid; chown 5:6 h/setgid; chmod 2711 h/setgid
    echo x > h/owned; chown 1000:77 h/owned; chmod 604 h/owned; touch -d @1234567890 h/owned
    chown 4:4 kinds/empty; chmod 700 kinds/xattr; touch -d @99 changed
    mkfifo h/fifo; ln -s nowhere h/soft; mkdir -m 1777 h/sticky'

check_commit() {
    need_image tree
    podman run --name committer localhost/tree sh -euxc "$changes; listing /data" > wanted
    podman commit -q committer localhost/committed > /dev/null
    in_run localhost/committed 'listing /data' > got
    same_file "the committed image" got wanted
    in_run localhost/committed '
        for gone in d/old d/new d/sub merged/one merged/two merged/both merged/three removed lower lower/deep moved/deep/f1 becomes-dir/y; do
            absent /data/$gone
        done'
    equal "capability" "$(run --user 1000 localhost/committed /data/capable/cat /root/secret)" secret
    equal "setuid" "$(run --user 1000 localhost/committed /data/h/setuid/su -c "cat /root/secret")" secret
    # Once more on top of it: marks of two generations.
    podman run --name committer2 localhost/committed sh -euxc 'on-fuse; cd /data; mkdir d/new; rm d/newer; rm -r h; mkdir h; mv moved lower; echo r > removed; touch -d @1600000000 d/new d h removed; listing /data' > wanted
    podman commit -q committer2 localhost/committed2 > /dev/null
    in_run localhost/committed2 'listing /data; absent /data/h/setuid; absent /data/d/newer' > got
    same_file "a commit of a commit" got wanted
    podman commit -q --squash committer2 localhost/committed3 > /dev/null
    in_run localhost/committed3 'listing /data' > got
    same_file "a squashed commit" got wanted
}

# A file of three names is changed under one of them: a layer has to hold that one.
check_commit_hard_link() {
    local name
    need_image tree
    for name in a b c; do
        podman run --name linked-$name localhost/tree sh -euxc "on-fuse; cd /data/links; ls -l > /dev/null; chmod 600 $name; echo more >> $name" > /dev/null
        podman commit -q linked-$name localhost/linked > /dev/null
        equal "links/$name" "$(in_run localhost/linked "stat -c '%a %u:%g' /data/links/$name; cat /data/links/$name")" $'600 3:4\nlinked\nmore'
    done
}

check_commit_capability() {
    need_image tree
    command -v setcap > /dev/null || skip "no setcap"
    podman create -q --name capable localhost/tree true > /dev/null
    as_owner sh -euxc 'm=$(podman mount capable)/data; mkdir "$m/dac"; cp "$m/setgid/cat" "$m/dac"; chmod 755 "$m/dac/cat"
        setcap cap_dac_override=ep "$m/dac/cat"; setfattr -n user.more -v xyz "$m/changed"; chown 7:7 "$m/capable/cat"'
    podman commit -q capable localhost/capable > /dev/null
    podman create -q --name capable2 localhost/capable true > /dev/null
    as_owner sh -euxc 'm=$(podman mount capable2)/data; getcap "$m/dac/cat"; getcap "$m/capable/cat"; getfattr --only-values -n user.more "$m/changed"; getfattr --only-values -n user.note "$m/kinds/xattr"' > got
    grep -q 'dac/cat cap_dac_override=ep' got
    # chown(2) takes the capability away, as on any filesystem.
    equal "capability after chown" "$(grep -c capable/cat got || true)" 0
    grep -q xyz got
    grep -q hello got
    equal "new capability" "$(run --user 1000 localhost/capable /data/dac/cat /root/secret)" secret
}

check_export() {
    need_image tree
    podman run --name exported localhost/tree sh -euxc "$changes; listing /data" > wanted
    podman export exported > exported.tar
    podman import -q exported.tar localhost/imported > /dev/null
    in_run localhost/imported 'listing /data' > got
    same_file "export and import" got wanted
}

containerfile() {
    rm -rf context
    mkdir -p context/dir
    echo copied > context/file
    echo below > context/dir/below
    cat > context/Containerfile <<'FILE'
FROM localhost/tree
RUN on-fuse && rm -r /data/d && mkdir /data/d && echo n > /data/d/n
RUN rm -r /data/merged /data/removed && mv /data/lower /data/moved
COPY --chown=5:6 file /data/file
COPY dir /data/d/
RUN on-fuse && rm /data/d/n && echo r > /data/removed && chmod 4755 /data/removed
FILE
}
built_right() { # IMAGE
    in_run "$1" '
        cd /data
        test "$(ls -A d)" = below; test "$(cat file d/below removed | tr "\n" " ")" = "copied below r "
        test "$(stat -c %u:%g file) $(stat -c %a removed)" = "5:6 4755"
        for gone in d/n d/new d/old d/sub merged lower; do absent $gone; done
        test "$(ls moved/deep | wc -l)" = 20; listing /data' > got
    python3 - got "$top/images/tree.data" <<'PYTHON'
import sys
got, was = ({l.split(" ")[0]: l for l in open(f, errors="surrogateescape")} for f in sys.argv[1:])
for prefix in "./names/", "./owners", "./becomes", "./kinds/":   # untouched: as in the image
    for name, line in was.items():
        assert not name.startswith(prefix) or got.get(name) == line, (line, got.get(name))
assert got["./moved/deep/f7"].split(" ")[1:] == was["./lower/deep/f7"].split(" ")[1:]
PYTHON
}

# No network is needed; but chroot isolation knows no --network.
offline() { if [ "$1" = chroot ]; then network=(); else network=(--network none); fi; }

# build_with ISOLATION COMMAND...: the image, its layers, and that the second build takes them from the cache
build_with() {
    local isolation=$1 tag=localhost/built-$1 layers
    shift
    offline "$isolation"
    containerfile
    "$@" "${network[@]}" --isolation "$isolation" --layers -t "$tag" context > out 2>&1 || { cat out; return 1; }
    cat out
    built_right "$tag"
    layers=$(podman image inspect -f '{{len .RootFS.Layers}}' "$tag")
    equal "layers of the built image" "$layers" 9
    "$@" "${network[@]}" --isolation "$isolation" --layers -t "$tag" context > out 2>&1 || { cat out; return 1; }
    equal "steps taken from the cache" "$(grep -c 'Using cache' out)" 5
    echo changed > context/dir/below
    "$@" "${network[@]}" --isolation "$isolation" --layers -t "$tag" context > out 2>&1 || { cat out; return 1; }
    equal "steps taken from the cache after a change" "$(grep -c 'Using cache' out)" 3
    equal "the changed file" "$(in_run "$tag" 'cat /data/d/below')" changed
    podman rmi -f "$tag" > /dev/null
    podman image prune -f > /dev/null
}

check_build() { need_image tree; build_with oci podman build; }
check_build_chroot() { need_image tree; build_with chroot podman build; }
check_bud() { need_image tree; build_with oci buildah bud; }
check_bud_chroot() { need_image tree; build_with chroot buildah bud; }

check_build_squash() {
    local option
    need_image tree
    containerfile
    for option in --squash --squash-all; do
        podman build --network none -q $option -t localhost/squashed context > /dev/null
        built_right localhost/squashed
        equal "layers with $option" "$(podman image inspect -f '{{len .RootFS.Layers}}' localhost/squashed)" "$([ $option = --squash ] && echo 5 || echo 1)"
        podman rmi -f localhost/squashed > /dev/null
    done
    podman build --network none -q --layers=false -t localhost/squashed context > /dev/null
    built_right localhost/squashed
}

# Several stages, files copied between them, and mounts in a RUN.
check_build_stages() {
    local isolation
    need_image tree base
    rm -rf context
    mkdir -p context/dir
    echo given > context/dir/given
    cat > context/Containerfile <<'FILE'
FROM localhost/tree AS first
RUN on-fuse && cd /data && rm -r d && mkdir d && echo n > d/n && chown 5:6 d/n && mv lower moved
FROM localhost/base AS second
COPY --from=first /data /data
RUN --mount=type=bind,from=first,source=/data,target=/other diff -r /other/moved /data/moved && rm -r /data/moved
RUN --mount=type=bind,source=dir,target=/given cp /given/given /data/given
RUN --mount=type=tmpfs,target=/scratch echo x > /scratch/x
FROM second
RUN mkdir /data/moved && absent /data/moved/deep /data/d/new /scratch/x && rm /data/changed
FILE
    for isolation in oci chroot; do
        offline $isolation
        podman build -q "${network[@]}" --isolation $isolation --no-cache -t localhost/staged context > /dev/null
        in_run localhost/staged '
            cd /data; absent changed moved/deep d/new; test "$(cat given d/n | tr "\n" " ")" = "given n "
            test "$(stat -c %u:%g d/n) $(stat -c "%a %u:%g" owners/33) $(stat -c %a setuid/su)" = "5:6 640 33:34 4755"'
        equal "capability of a copied file" "$(run --user 1000 localhost/staged /data/capable/cat /root/secret)" secret
        podman rmi -f localhost/staged > /dev/null
    done
    podman image prune -f > /dev/null
}

check_buildah() {
    local isolation c
    need_image tree
    for isolation in chroot oci; do
        offline $isolation
        c=$(buildah from localhost/tree)
        buildah run "${network[@]}" --isolation $isolation "$c" -- sh -euxc "$changes; listing /data" > wanted
        echo copied > given
        buildah copy -q --chown 3:4 "$c" given /data/h/given > /dev/null
        if [ "$role" = root ]; then buildah mount "$c" > at; "$top/scripts/listing" "$(cat at)/data" > seen; else
            buildah unshare sh -euxc 'm=$(buildah mount "$1"); "$top/scripts/listing" "$m/data" > seen; stat -f -c %t "$m" > type; buildah umount "$1"' sh "$c"
            equal "type of the mount" "$(cat type)" 65735546
        fi
        grep -q '^./h/given file 644 3:4' seen
        grep -v '^./h/given' seen | grep -v '^./h dir' > seen2
        grep -v '^./h dir' wanted > wanted2
        same_file "the mounted working container ($isolation)" seen2 wanted2
        buildah commit -q "$c" localhost/by-buildah > /dev/null
        buildah rm "$c" > /dev/null
        in_run localhost/by-buildah 'listing /data' > got
        same_file "the committed image ($isolation)" got seen
        podman rmi -f localhost/by-buildah > /dev/null
    done
    c=$(buildah from scratch)
    buildah add -q "$c" given /from-scratch > /dev/null
    buildah copy -q --from localhost/tree "$c" /bin/busybox /bin/cat > /dev/null
    buildah commit -q "$c" localhost/scratched > /dev/null
    equal "an image from scratch" "$(run localhost/scratched /bin/cat /from-scratch)" copied
}

# What is mounted in `buildah unshare` is left there, with its namespace.
check_buildah_unshare() {
    local c
    need_image tree
    c=$(buildah from localhost/tree)
    buildah unshare sh -euc 'm=$(buildah mount "$1"); rm -r "$m/data/d"; echo x > "$m/data/removed"; echo first > "$m/data/first"' sh "$c"
    buildah run --isolation chroot "$c" -- sh -euxc 'absent /data/d; test "$(cat /data/first)" = first; echo second > /data/second'
    buildah commit -q "$c" localhost/unshared > /dev/null
    in_run localhost/unshared 'absent /data/d; cd /data; test "$(cat removed first second | tr "\n" " ")" = "x first second "'
}
