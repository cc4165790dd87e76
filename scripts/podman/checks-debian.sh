# Debian's own programs in a whole Debian.

need_debian() {
    [ -e "$top/images/debian.tar" ] || skip "debootstrap could not make a Debian here"
    podman image exists localhost/debian || podman import -q "$top/images/debian.tar" localhost/debian > /dev/null
}

make_packages() {
    local version n
    for version in 1 2; do
        rm -rf package
        mkdir -p package/DEBIAN package/usr/share/thing package/etc
        printf 'Package: thing\nVersion: %s\nArchitecture: all\nMaintainer: n <n@e>\nDescription: thing\n' $version > package/DEBIAN/control
        for n in $(seq 100); do echo "$version $n" > package/usr/share/thing/f$n; done
        echo "only $version" > package/usr/share/thing/only$version
        dpkg-deb --root-owner-group -b package thing$version.deb > /dev/null
    done
}

check_dpkg() {
    need_debian
    make_packages
    podman run -d --name debian localhost/debian sleep 3000 > /dev/null
    podman cp thing1.deb debian:/
    podman cp thing2.deb debian:/
    podman exec -e DEBIAN_FRONTEND=noninteractive debian sh -euxc '
        grep " / fuse" /proc/mounts
        apt-get install -qq -y /thing1.deb
        test "$(cat /usr/share/thing/f7)" = "1 7"
        dpkg -i /thing2.deb
        test "$(cat /usr/share/thing/f7)" = "2 7"; ! test -e /usr/share/thing/only1 || exit 1
        dpkg --verify thing; test "$(dpkg-query -W -f "\${Version} \${db:Status-Status}" thing)" = "2 installed"
        apt-get purge -qq -y thing; ! test -e /usr/share/thing || exit 1
        dpkg --audit; dpkg -i /thing1.deb
        dpkg --verify > /tmp/verify || true; ! grep -v -E " c |/usr/share/(doc|man|locale)" /tmp/verify || exit 1'
    podman commit -q debian localhost/debian-thing > /dev/null
    run localhost/debian-thing sh -euxc 'test "$(cat /usr/share/thing/only1)" = "only 1"; dpkg --verify thing; ! ls /usr/share/thing/only2 || exit 1'
}

check_users_and_trees() {
    need_debian
    run localhost/debian sh -euxc '
        grep " / fuse" /proc/mounts
        useradd -m ann; groupadd crew; usermod -aG crew ann
        test "$(id -Gn ann)" = "ann crew"; test "$(stat -c %U /home/ann/.profile)" = ann
        su ann -c "echo mine > ~/mine; ! touch /etc/x" 2>/dev/null; test "$(stat -c %U:%G /home/ann/mine)" = ann:ann
        cp -a /usr/share/perl5 /tmp/perl5; diff -r /usr/share/perl5 /tmp/perl5
        chown -R ann:crew /usr/share/perl5; test -z "$(find /usr/share/perl5 ! -user ann)"; test -z "$(find /usr/share/perl5 ! -group crew)"
        tar -C /usr/share -cf /tmp/t.tar perl5; rm -rf /usr/share/perl5; tar -C /usr/share -xpf /tmp/t.tar
        diff -r /usr/share/perl5 /tmp/perl5; test -z "$(find /usr/share/perl5 ! -user ann)"
        mv /usr/share/perl5 /usr/share/perl6; diff -r /usr/share/perl6 /tmp/perl5; ! test -e /usr/share/perl5 || exit 1
        mv /usr/share/perl6 /usr/share/perl5; perl -e "use strict; use Carp; print 1 + 1" | grep -q 2
        ln /etc/debian_version /etc/dv; test "$(stat -c %h /etc/dv)" = 2
        ls -l /etc/shadow | grep -q "root shadow"; test "$(stat -c %a /usr/bin/passwd)" = 4755
        echo ann:secret | chpasswd; userdel -r ann; ! test -e /home/ann || exit 1'
}
