# Images: into the store, out of it, and what they show.

same_as_image() { # IMAGE WHAT: its data/ is that of the archive the script has made
    in_run "$1" 'listing /data' > got
    same_file "$2" got "$top/images/tree.data"
}

check_load() {
    local id
    podman load -q -i "$top/images/base.docker.tar"
    podman load -q -i "$top/images/tree.docker.tar"
    same_as_image localhost/tree "/data of the docker archive"
    podman load -q -i "$top/images/tree.oci.tar" > loaded
    id=$(sed 's/.*://' loaded)
    podman tag "$id" localhost/tree-oci
    same_as_image localhost/tree-oci "/data of the OCI archive"
}

check_attributes() {
    need_image tree
    # What setuid, a capability and an owner mean is tried, and not only listed.
    equal "setuid program as user 1000" "$(run --user 1000 localhost/tree /data/setuid/su -c "cat /root/secret")" secret
    equal "capable program as user 1000" "$(run --user 1000 localhost/tree /data/capable/cat /root/secret)" secret
    fails run --user 1000 localhost/tree cat /root/secret
    fails run --user 1000 localhost/tree cat /data/owners/33
    equal "file of the user" "$(run --user 33 localhost/tree cat /data/owners/33)" mine
    run --user 1000:8 localhost/tree sh -euxc 'cd /data/owners/sgid; touch f; mkdir d; test "$(stat -c %g f) $(stat -c "%g %a" d)" = "8 8 2755"'
    run --user 1000 localhost/tree sh -euxc 'cd /data/owners/sticky; touch mine; rm mine'
    # As the owner of the store sees it, with the attributes that busybox cannot show.
    podman create -q --name at localhost/tree > /dev/null
    as_owner sh -euxc 'm=$(podman mount at); getcap "$m/data/capable/cat"; getfattr --only-values -n user.note "$m/data/kinds/xattr"' > got
    grep -q 'cap_dac_override=ep' got
    grep -q 'hello' got
}

check_pull() {
    if [ -z "$registry" ]; then skip "no docker-registry"; fi
    podman rmi -f localhost/pulled 2> /dev/null || true
    podman pull -q --tls-verify=false "$registry/tree:latest" > id
    podman tag "$(cat id)" localhost/pulled
    same_as_image localhost/pulled "/data of the pulled image"
    podman push -q --tls-verify=false localhost/pulled "$registry/${work##*/}:pushed"
    skopeo copy -q --src-tls-verify=false "docker://$registry/${work##*/}:pushed" "oci:$work/pushed:latest"
    python3 "$top/scripts/images.py" flatten "$work/pushed" > got
    same_file "the pushed image" got "$top/images/tree.data"
}

check_many_layers() {
    need_image deep
    in_run localhost/deep 'listing /data; for n in $(seq 0 58); do absent /data/d/only$n; done; rm /data/d/only59; test -z "$(ls -A /data/d)"' > got
    same_file "/data of 60 layers" got "$top/images/deep.data"
}

check_whiteout_beside() {
    need_image beside
    in_run localhost/beside 'listing /data; absent /data/d/old' > got
    same_file "names beside their own whiteouts" got "$top/images/beside.data"
}

check_save_load() {
    local format id again
    need_image base tree
    podman run --name saver localhost/tree sh -euxc 'on-fuse; cd /data; rm -r d; mkdir d; echo n > d/n; rm changed; chown 5:6 merged; mv lower lower2; listing /data' > wanted
    podman commit -q saver localhost/saved > /dev/null
    for format in docker-archive oci-archive; do
        id=$(podman image inspect -f '{{.Id}}' localhost/saved)
        rm -f saved.tar
        podman save -q --format $format -o saved.tar localhost/saved
        (
            use_store second "$program"
            podman rmi -af > /dev/null
            podman load -q -i saved.tar > /dev/null
            again=$(podman image inspect -f '{{.Id}}' localhost/saved)
            # podman commit writes OCI; as a docker archive the configuration is another one.
            [ $format = docker-archive ] || equal "image id after save and load" "$again" "$id"
            in_run localhost/saved 'listing /data' > got
            same_file "$format, loaded into another store" got wanted
        )
    done
    use_store second "$program"
    podman rmi -af > /dev/null
}

check_skopeo() {
    need_image tree
    podman run --name copied localhost/tree sh -euxc 'on-fuse; cd /data; rm -r d; mkdir d; echo n > d/n; rm -r becomes-dir names; echo f > names; mv lower lower2; listing /data' > wanted
    podman commit -q copied localhost/copied > /dev/null
    rm -rf layout
    as_owner skopeo copy -q containers-storage:localhost/copied "oci:$work/layout:latest"
    as_owner python3 "$top/scripts/images.py" flatten "$work/layout" > got
    same_file "what skopeo copies" got wanted
    rm -rf second-layout
    as_owner skopeo copy -q containers-storage:localhost/tree "oci:$work/second-layout:latest"
    as_owner python3 "$top/scripts/images.py" flatten "$work/second-layout" > got
    same_file "what skopeo copies of a loaded image" got "$top/images/tree.data"
}

check_image_mount() {
    local id
    need_image tree base
    as_owner sh -euxc '
        m=$(podman image mount localhost/tree)
        case $(stat -f -c %t "$m") in 65735546) ;; *) echo "not FUSE: $m"; exit 1 ;; esac
        "$top/scripts/listing" "$m/data" > got
        if touch "$m/data/x" 2> /dev/null; then echo "an image mount can be written"; exit 1; fi
        podman image umount localhost/tree > /dev/null
        m=$(podman image mount localhost/base)   # one layer: a lower and "empty"
        test "$(cat "$m/root/secret")" = secret
        podman image umount localhost/base > /dev/null'
    same_file "a mounted image" got "$top/images/tree.data"
}
