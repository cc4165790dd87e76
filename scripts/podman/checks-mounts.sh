# Owner mappings, and what is mounted into a container.

# The data of the image, and what a mapped container has made, must have the same owners for
# everybody: in the container, in a commit of it, and in a container without the mapping.
mapped() { # OPTION...: of podman run
    need_image tree
    run "$@" --user 0 localhost/tree sh -euxc 'on-fuse; listing /data' > got
    grep -v ./owners/65533 got > got-mapped
    grep -v ./owners/65533 "$top/images/tree.data" > wanted
    same_file "/data with $*" got-mapped wanted
    podman run --name mapped "$@" --user 0 localhost/tree sh -euxc '
        cd /data; mkdir made; cd made
        touch root ann other; chown 1000:1000 ann; chown 7:8 other; ln other again; mkdir -m 2775 group; chown 0:42 group; touch group/f; ln -s x soft; chown -h 5:6 soft
        cp ../setuid/su su; chmod 4755 su
        chown 9:9 ../changed; chown -R 11:12 ../merged; echo x >> ../owners/33; rm -r ../d; mkdir ../d
        listing /data' > wanted
    grep -q '^./made/root file 644 0:0 ' wanted
    grep -q '^./made/other file 644 7:8 .* 2 0 ' wanted
    grep -q '^./made/group/f file 644 0:42 ' wanted || grep -q '^./made/group/f file 644 0:0 ' wanted
    podman commit -q mapped localhost/mapped > /dev/null
    grep -v ./owners/65533 wanted > wanted-mapped
    in_run localhost/mapped 'listing /data' > got
    grep -v ./owners/65533 got > got-mapped
    same_file "/data of the committed image without the mapping" got-mapped wanted-mapped
    run "$@" --user 0 localhost/mapped sh -euxc 'on-fuse; listing /data' > got
    grep -v ./owners/65533 got > got-mapped
    same_file "/data of the committed image with the mapping" got-mapped wanted-mapped
    equal "setuid under a mapping" "$(run "$@" --user 1000 localhost/mapped /data/made/su -c 'cat /root/secret')" secret
    fails run "$@" --user 1000 localhost/mapped cat /root/secret
}

check_keep_id() {
    local me
    me=$(id -u)
    mapped --userns=keep-id
    equal "user in the container" "$(run --userns=keep-id localhost/tree id -u)" "$me"
    podman run --name kept --userns=keep-id localhost/tree sh -euxc 'on-fuse; echo mine > /tmp/mine; mkdir /tmp/dir; stat -c %u:%g /tmp/mine' > got
    equal "owner of a new file" "$(cat got)" "$me:$(id -g)"
    podman commit -q kept localhost/kept > /dev/null
    equal "owner of it in the image" "$(in_run localhost/kept 'stat -c %u:%g /tmp/mine')" "$me:$(id -g)"
    mkdir -p shared
    run --userns=keep-id -v "$work/shared:/shared" localhost/tree sh -euxc 'echo y > /shared/y'
    equal "owner of a file in a volume" "$(stat -c %u shared/y)" "$me"
}

check_uidmap() {
    mapped --uidmap 0:1000:60000 --gidmap 0:1000:60000
}

# podman cannot tell a mount program of several ranges: it makes a layer in which every file has
# been chowned, through the program. There it removes and links again all but one name of a file.
check_uidmap_copy() {
    need_image tree
    run --uidmap 0:5000:1001 --uidmap 1001:10000:50000 --gidmap 0:20000:40000 localhost/tree sh -euxc 'on-fuse; listing /data' > got
    grep -v -E '^./(owners/65533|links) ' got > got-mapped
    grep -v -E '^./(owners/65533|links) ' "$top/images/tree.data" > wanted
    same_file "/data in a copy with other owners" got-mapped wanted
}

check_uidmap_restart() {
    need_image tree
    podman run -d --name m --uidmap 0:1000:60000 --gidmap 0:1000:60000 localhost/tree sleep 1000 > /dev/null
    podman exec m sh -euxc 'on-fuse; cd /data; rm -r d; mkdir d; chown 3:4 d; touch d/n; chown 1000:5 changed; mv lower lower2; listing /data' > wanted
    podman stop -t 0 m > /dev/null
    podman start m > /dev/null
    podman exec m sh -euxc 'on-fuse; listing /data' > got
    same_file "after stop and start" got wanted
    podman diff m > got   # (of a running container: podman does a chown of its root)
    equal "owner of / after podman diff" "$(podman exec m stat -c %u:%g /)" 0:0
    grep -q '^A /data/d/n$' got
    grep -q '^D /data/d/new$' got
}

check_overlay_volume() {
    need_image base
    rm -rf volume
    mkdir -p volume/d volume/full
    echo one > volume/d/f
    echo gone > volume/gone
    touch volume/full/a volume/full/b
    as_owner "$top/scripts/listing" volume > before
    run -v "$work/volume:/y:O" localhost/base sh -euxc '
        grep -q " /y fuse" /proc/mounts; on-fuse
        cd /y; test "$(cat d/f)" = one; echo two > d/f; rm gone; rm -r full; mkdir full; touch full/c
        absent gone full/a; test "$(ls -A full)" = c; test "$(cat d/f)" = two; chown 5:6 d; test "$(stat -c %u:%g d)" = 5:6'
    as_owner "$top/scripts/listing" volume > after
    same_file "the directory under an overlay volume" after before
    # With an upper of one's own the changes stay.
    mkdir -p kept-upper kept-work
    run -v "$work/volume:/y:O,upperdir=$work/kept-upper,workdir=$work/kept-work" localhost/base sh -euxc 'echo kept > /y/d/kept; rm /y/gone'
    run -v "$work/volume:/y:O,upperdir=$work/kept-upper,workdir=$work/kept-work" localhost/base sh -euxc 'test "$(cat /y/d/kept)" = kept; absent /y/gone; test "$(cat /y/d/f)" = one'
    as_owner rm -rf kept-upper kept-work
}

# A named volume takes over what the image has at its place.
check_named_volume() {
    need_image tree
    podman volume rm -f named > /dev/null 2>&1 || true
    run -v named:/data localhost/tree sh -euxc 'on-fuse; grep -q " /data ext4\| /data " /proc/mounts; listing /data; rm -r /data/d; echo v > /data/removed' > got
    same_file "a new volume" got "$top/images/tree.data"
    run -v named:/data localhost/tree sh -euxc 'absent /data/d; test "$(cat /data/removed)" = v'
    podman volume rm named > /dev/null
}

# A root filesystem that is a directory, below an overlay.
check_rootfs() {
    rm -rf rootfs
    mkdir rootfs
    skopeo copy -q "docker-archive:$top/images/tree.docker.tar" "oci:$work/rootfs-image:latest"
    for layer in $(python3 -c 'import json,sys; m=json.load(open(sys.argv[1]+"/index.json"))["manifests"][0]["digest"][7:]; print(json.load(open(sys.argv[1]+"/blobs/sha256/"+m))["layers"][0]["digest"][7:])' "$work/rootfs-image"); do
        as_owner tar -C rootfs -xzpf "rootfs-image/blobs/sha256/$layer"
    done
    mkdir -p rootfs/data
    echo one > rootfs/data/f
    echo two > rootfs/data/g
    run --rootfs "$work/rootfs:O" sh -euxc 'on-fuse; cd /data; test "$(cat f)" = one; echo new > f; rm g; absent g; test "$(cat f)" = new; cat /root/secret'
    equal "the directory afterwards" "$(cat rootfs/data/f rootfs/data/g)" $'one\ntwo'
    as_owner rm -rf rootfs rootfs-image
}

check_image_volume() {
    need_image base tree
    run --mount type=image,source=localhost/tree,destination=/y,rw=true localhost/base sh -euxc '
        grep -q " /y fuse" /proc/mounts; listing /y/data > /tmp/l
        cd /y/data; rm -r d; mkdir d; absent d/new; echo w > changed; rm removed; mv merged merged2; test "$(cat changed)" = w; cat /tmp/l' > got
    same_file "an image mounted for writing" got "$top/images/tree.data"
    run --mount type=image,source=localhost/tree,destination=/y localhost/base sh -euxc '
        refused touch /y/x; refused rm /y/data/changed; listing /y/data' > got
    same_file "an image mounted for reading" got "$top/images/tree.data"
}

as_stored() { grep -v ' symlink ' "$1" | sed -E 's/ (dir|file) [0-7]([0-7]{3}) / \1 \2 /'; }

# Owners and modes are in an xattr, that of the files below is whoever keeps the store.
check_force_mask() {
    local upper
    use_store masked "$program" 'force_mask="shared"'
    need_image ordinary
    # podman itself stores neither owners of symlinks nor setuid, setgid and sticky bits.
    as_stored "$top/images/ordinary.data" > wanted
    in_run localhost/ordinary 'listing /data' > all
    as_stored all > got
    same_file "/data with force_mask" got wanted
    fails run --user 1000 localhost/ordinary cat /data/owners/33
    podman run --name masked localhost/ordinary sh -euxc 'on-fuse; cd /data
        chmod 4711 setuid/su; chmod 600 names/-dash; chown 5:6 names/.hidden; chmod 640 names/.hidden
        umask 077; mkdir private; echo p > private/p; ln -s x soft; chown -R 33:34 private
        rm -r d; mkdir -m 710 d; mv lower lower2; echo x >> changed; listing /data' > wanted
    grep -q '^./private/p file 600 33:34 ' wanted
    grep -q '^./setuid/su file 4711 0:0 ' wanted
    grep -q '^./names/.hidden file 640 5:6 ' wanted
    podman run -d --name setuid localhost/ordinary sleep 1000 > /dev/null
    podman exec setuid sh -euxc 'on-fuse; chmod 4711 /data/setuid/su; test "$(stat -c %a /data/setuid/su)" = 4711'
    equal "setuid with force_mask" "$(podman exec --user 1000 setuid /data/setuid/su -c 'cat /root/secret')" secret
    upper=$(podman inspect -f '{{.GraphDriver.Data.UpperDir}}' masked)
    equal "xattr below of a private file" "$(as_owner getfattr --absolute-names --only-values -n user.containers.override_stat "$upper/data/private/p" | sed 's/:[0-9a-z]*$//')" 33:34
    podman commit -q masked localhost/masked2 > /dev/null
    in_run localhost/masked2 'listing /data' > all
    as_stored all > got
    as_stored wanted > wanted2
    same_file "a commit with force_mask" got wanted2
}

# A user without subordinate ids: every file is his, and says so.
check_no_subids() {
    use_store alone "$program" 'ignore_chown_errors="true"'
    need_image tree
    sed -E 's/^(.* (dir|file|other) [0-7]+) [0-9]+:[0-9]+ /\1 0:0 /; s/^(.* symlink) [0-9]+:[0-9]+ /\1 0:0 /' "$top/images/tree.data" > wanted
    in_run localhost/tree 'listing /data' > got
    same_file "/data for a user without subordinate ids" got wanted
    podman run --name alone localhost/tree sh -euxc 'on-fuse; cd /data; rm -r d; mkdir d; echo n > d/n; echo x >> owners/33; mv lower lower2; chmod 711 merged; ln links/a links/new; listing /data' > wanted
    podman commit -q alone localhost/alone > /dev/null
    in_run localhost/alone 'listing /data; absent /data/d/new /data/lower' > got
    grep -v ./links/ got > got-alone
    grep -v ./links/ wanted > wanted-alone
    same_file "a commit of it" got-alone wanted-alone
    equal "podman diff" "$(podman diff alone | grep -c -E '^(A /data/d/n|D /data/d/new|C /data/owners/33|D /data/lower|A /data/links/new)$')" 5
}

# As podman writes it, with 500 layers: relative names that are symlinks, an empty option.
check_500_lowers() {
    rm -rf deep
    mkdir -p deep/l deep/diff deep/work deep/merged
    cat > deep/script <<'SCRIPT'
set -euxo pipefail
cd deep
lowers=
for n in $(seq 500); do
    mkdir -p layers/$n/diff/d
    echo $n > layers/$n/diff/d/f$n
    echo $n > layers/$n/diff/top
    ln -s ../layers/$n/diff l/$(printf 'LAYER%021d' $n)
    if [ $((n % 10)) = 0 ]; then touch layers/$n/diff/d/.wh.f$((n - 1)); fi
    lowers=l/$(printf 'LAYER%021d' $n)${lowers:+:$lowers}
done
"$program" -o "lowerdir=$lowers,upperdir=diff,workdir=work,,volatile" "$PWD/merged" < /dev/null
trap 'umount -l merged' EXIT
test "$(stat -f -c %t merged)" = 65735546
test "$(cat merged/top)" = 500
test "$(ls merged/d | wc -l)" = 450
for n in 1 10 250 498 500; do test "$(cat merged/d/f$n)" = $n; done
for n in 9 249 499; do ! test -e merged/d/f$n || exit 1; done
echo new > merged/top
rm merged/d/f1
rm -r merged/d
mkdir merged/d
test -z "$(ls -A merged/d)"
umount merged
trap - EXIT
test "$(cat diff/top)" = new
test "$(cat layers/500/diff/top)" = 500
SCRIPT
    as_owner bash deep/script
    rm -rf deep
}
