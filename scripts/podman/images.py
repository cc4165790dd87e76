"""Makes the images of scripts/test-podman without any container tool, and says what is in them.

    images.py make DIR BUSYBOX   writes DIR/NAME.docker.tar, DIR/NAME.oci (a layout),
                                 DIR/NAME.oci.tar, and DIR/NAME.data, the listing of /data
    images.py flatten LAYOUT     prints that listing of an OCI layout

A listing is what the script `listing` beside this prints of a directory: here it comes from
the tar archives alone, so that it tells what a union has to show.
"""
import gzip, hashlib, io, json, os, sys, tarfile

TIME = 981173106  # 2001-02-03 04:05:06 UTC
CAPABILITY = bytes.fromhex("0100000202000000000000000000000000000000")  # cap_dac_override=ep


class Layer:
    def __init__(self):
        self.buffer = io.BytesIO()
        self.tar = tarfile.open(fileobj=self.buffer, mode="w", format=tarfile.PAX_FORMAT)

    def add(self, name, kind, mode=0o644, owner=(0, 0), time=TIME, data=b"", target="", xattrs={}):
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.mtime = kind, mode, time
        info.uid, info.gid = owner
        info.size, info.linkname = len(data), target
        info.pax_headers = {"SCHILY.xattr." + key: value.decode("utf-8", "surrogateescape") for key, value in xattrs.items()}
        self.tar.addfile(info, io.BytesIO(data))

    def dir(self, name, mode=0o755, **more):
        self.add(name, tarfile.DIRTYPE, mode, **more)

    def file(self, name, data=b"", mode=0o644, **more):
        self.add(name, tarfile.REGTYPE, mode, data=data if isinstance(data, bytes) else data.encode(), **more)

    def symlink(self, name, target, **more):
        self.add(name, tarfile.SYMTYPE, 0o777, target=target, **more)

    def link(self, name, target, **more):
        self.add(name, tarfile.LNKTYPE, target=target, **more)

    def bytes(self):
        self.tar.close()
        return self.buffer.getvalue()


def base(busybox, scripts):
    """A root filesystem: busybox, and what a runtime would otherwise create in it."""
    layer = Layer()
    for name in "bin dev etc proc root run sys var usr usr/bin sbin mnt".split():
        layer.dir(name)
    layer.dir("tmp", 0o1777)
    with open(busybox, "rb") as file:
        layer.file("bin/busybox", file.read(), 0o755)
    for applet in os.popen(busybox + " --list").read().split():
        if applet != "busybox":
            layer.symlink("bin/" + applet, "busybox")
    for name in "listing", "on-fuse", "absent", "refused":
        with open(os.path.join(scripts, name), "rb") as file:
            layer.file("bin/" + name, file.read(), 0o755)
    layer.file("etc/passwd", "root::0:0::/root:/bin/sh\nann:x:1000:1000::/tmp:/bin/sh\n")
    layer.file("etc/group", "root:x:0:\nann:x:1000:\n")
    for name in "hosts", "hostname", "resolv.conf":
        layer.file("etc/" + name)
    layer.symlink("etc/mtab", "/proc/mounts")
    layer.file("run/.containerenv")
    layer.file("root/secret", "secret\n", 0o600)
    return layer.bytes()


def tree(busybox, special=True):
    """Three layers below data/: all that an image can say. (podman cannot store a special file
    with force_mask.)"""
    one = Layer()
    one.dir("data")
    one.dir("data/d", 0o750, owner=(12, 34))
    one.file("data/d/old", "old\n")
    one.dir("data/d/sub")
    one.file("data/d/sub/older", "older\n")
    one.dir("data/gone")
    one.file("data/gone/x", "x\n")
    one.file("data/removed", "removed\n")
    one.file("data/becomes-dir", "file\n")
    one.dir("data/becomes-file")
    one.file("data/becomes-file/x", "x\n")
    one.file("data/changed", "one\n", owner=(1000, 1000))
    one.dir("data/merged", 0o755, owner=(5, 6))
    one.file("data/merged/one", "1\n")
    one.file("data/merged/both", "1\n")
    one.dir("data/lower")
    one.dir("data/lower/deep")
    for number in range(20):
        one.file("data/lower/deep/f%d" % number, "%d\n" % number, owner=(number, 100 + number))
    one.dir("data/owners")
    for owner in (0, 1, 33, 1000, 12345, 65533):
        one.file("data/owners/%d" % owner, "mine\n", 0o640, owner=(owner, owner + 1))
    one.dir("data/owners/sgid", 0o2775, owner=(7, 8))
    one.dir("data/owners/sticky", 0o1777, owner=(7, 8))
    one.dir("data/links")
    one.file("data/links/a", "linked\n", owner=(3, 4))
    one.link("data/links/b", "data/links/a", owner=(3, 4))
    one.link("data/links/c", "data/links/a", owner=(3, 4))
    one.symlink("data/links/soft", "a", owner=(9, 9))
    one.symlink("data/links/dangling", "/no/such/file")
    one.dir("data/kinds")
    if special:
        one.add("data/kinds/fifo", tarfile.FIFOTYPE, 0o622, owner=(1, 2))
    one.file("data/kinds/empty")
    one.file("data/kinds/big", hashlib.shake_128(b"big").digest(3 << 20))
    one.file("data/kinds/no-access", "-\n", 0)
    one.file("data/kinds/old-time", "-\n", time=1)
    one.dir("data/kinds/empty-dir", 0o700, time=1234567890)
    with open(busybox, "rb") as file:
        program = file.read()
    for name in "setuid", "setgid", "capable":   # busybox does what it is called
        one.dir("data/" + name)
    one.file("data/setuid/su", program, 0o4755)   # the one applet that keeps the right
    one.file("data/setgid/cat", program, 0o2755, owner=(0, 42))
    one.file("data/capable/cat", program, 0o755, xattrs={"security.capability": CAPABILITY})
    one.file("data/kinds/xattr", "-\n", xattrs={"user.note": b"hello"})
    one.dir("data/names")
    for name in ("with space", "ünïcode", "back\\slash", "co:lon,comma", "-dash", ".hidden", "n" * 200):
        one.file("data/names/" + name, name)

    two = Layer()
    two.dir("data")
    two.dir("data/d", 0o711, owner=(21, 43))
    two.file("data/d/.wh..wh..opq")
    two.file("data/d/new", "new\n")
    two.file("data/.wh.gone")
    two.file("data/.wh.removed")
    two.dir("data/becomes-dir")
    two.file("data/becomes-dir/y", "y\n")
    two.file("data/becomes-file", "a file now\n")
    two.file("data/changed", "two\n", 0o600, owner=(1000, 1000))
    two.dir("data/merged", 0o751, owner=(6, 5))
    two.file("data/merged/two", "2\n")
    two.file("data/merged/both", "2\n")

    three = Layer()
    three.dir("data")
    three.file("data/removed", "again\n", 0o444)
    three.dir("data/merged", 0o752, owner=(6, 6))
    three.file("data/merged/.wh.one")
    three.file("data/merged/three", "3\n")
    return [one.bytes(), two.bytes(), three.bytes()]


def beside():
    """A layer that holds a name and its whiteout: the whiteout means the layers below."""
    one, two = Layer(), Layer()
    one.dir("data")
    one.dir("data/d")
    one.file("data/d/old", "old\n")
    one.file("data/f", "old\n")
    one.file("data/g", "old\n")
    two.dir("data")
    two.file("data/.wh.d")
    two.dir("data/d")
    two.file("data/d/new", "new\n")
    two.file("data/f", "new\n")
    two.file("data/.wh.f")
    two.file("data/.wh.g")
    two.file("data/.wh.never-was")
    return [one.bytes(), two.bytes()]


def deep(count):
    """Many thin layers: each adds a file, changes one and deletes that of the layer below."""
    layers = []
    for number in range(count):
        layer = Layer()
        layer.dir("data")
        layer.dir("data/d")
        layer.file("data/d/only%d" % number, "%d\n" % number)
        layer.file("data/kept%d" % number, "%d\n" % number)
        layer.file("data/top", "%d\n" % number)
        if number:
            layer.file("data/d/.wh.only%d" % (number - 1))
        layers.append(layer.bytes())
    return layers


def flatten(layers):
    """name -> (TarInfo, sha256, file): later layers over earlier ones; hard links share `file`."""
    names = {}

    def remove_below(directory):
        for name in [n for n in names if n.startswith(directory + "/")]:
            del names[name]

    for layer in layers:
        tar = tarfile.open(fileobj=io.BytesIO(layer))
        members = tar.getmembers()
        for member in members:
            parent, last = os.path.split(member.name)
            if last == ".wh..wh..opq":
                remove_below(parent)
            elif last.startswith(".wh."):
                hidden = os.path.join(parent, last[4:])
                names.pop(hidden, None)
                remove_below(hidden)
        for member in members:
            if os.path.basename(member.name).startswith(".wh."):
                continue
            if not member.isdir() or (member.name in names and not names[member.name][0].isdir()):
                remove_below(member.name)
            if member.islnk():
                names[member.name] = names[member.linkname]
            else:
                data = tar.extractfile(member).read() if member.isfile() else b""
                names[member.name] = (member, hashlib.sha256(data).hexdigest()[:16], object())
    return names


def listing(layers):
    names = flatten(layers)
    count = {}
    for _, _, file in names.values():
        count[file] = count.get(file, 0) + 1
    lines = []
    for name, (info, digest, file) in names.items():
        if name == "data" or not name.startswith("data/"):
            continue
        said = "./" + name[5:]
        owner = "%d:%d %d" % (info.uid, info.gid, info.mtime)
        if info.isdir():
            lines.append("%s dir %o %s" % (said, info.mode & 0o7777, owner))
        elif info.issym():
            lines.append("%s symlink %s %s" % (said, owner, info.linkname))
        elif info.isfile():
            lines.append("%s file %o %s %d %d %s" % (said, info.mode & 0o7777, owner, count[file], info.size, digest))
        else:
            lines.append("%s other %o %s" % (said, info.mode & 0o7777, owner))
    return "".join(line + "\n" for line in sorted(lines, key=os.fsencode))


def write_image(out, name, layers):
    def digest(data):
        return hashlib.sha256(data).hexdigest()

    config = json.dumps({
        "architecture": os.popen("dpkg --print-architecture").read().strip() or "amd64",
        "os": "linux",
        "created": "2001-02-03T04:05:06Z",
        "config": {"Env": ["PATH=/bin:/usr/bin:/sbin"], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + digest(layer) for layer in layers]},
        "history": [{"created_by": "layer %d" % n} for n in range(len(layers))],
    }).encode()

    with tarfile.open(os.path.join(out, name + ".docker.tar"), "w") as archive:
        def put(member, data):
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for layer in layers:
            put(digest(layer) + ".tar", layer)
        put(digest(config) + ".json", config)
        put("manifest.json", json.dumps([{
            "Config": digest(config) + ".json",
            "RepoTags": ["localhost/%s:latest" % name],
            "Layers": [digest(layer) + ".tar" for layer in layers],
        }]).encode())

    layout = os.path.join(out, name + ".oci")
    os.makedirs(os.path.join(layout, "blobs/sha256"))

    def blob(data, kind, **more):
        with open(os.path.join(layout, "blobs/sha256", digest(data)), "wb") as file:
            file.write(data)
        return dict(mediaType="application/vnd.oci.image." + kind, digest="sha256:" + digest(data), size=len(data), **more)

    manifest = json.dumps({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(config, "config.v1+json"),
        "layers": [blob(gzip.compress(layer, 1, mtime=0), "layer.v1.tar+gzip") for layer in layers],
    }).encode()
    index = {"schemaVersion": 2, "manifests": [blob(
        manifest, "manifest.v1+json", annotations={"org.opencontainers.image.ref.name": "latest"})]}
    for file, content in ("index.json", index), ("oci-layout", {"imageLayoutVersion": "1.0.0"}):
        with open(os.path.join(layout, file), "w") as out_file:
            json.dump(content, out_file)
    with tarfile.open(layout + ".tar", "w") as archive:
        archive.add(layout, ".")
    with open(os.path.join(out, name + ".data"), "w", errors="surrogateescape") as file:
        file.write(listing(layers))


def read_layers(layout):
    def blob(digest):
        with open(os.path.join(layout, "blobs", *digest.split(":")), "rb") as file:
            return file.read()
    with open(os.path.join(layout, "index.json")) as file:
        manifest = json.loads(blob(json.load(file)["manifests"][0]["digest"]))
    for layer in manifest["layers"]:
        data = blob(layer["digest"])
        yield gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


if sys.argv[1] == "make":
    out, busybox = sys.argv[2:]
    root = base(busybox, os.path.dirname(os.path.abspath(__file__)))
    write_image(out, "base", [root])
    write_image(out, "tree", [root] + tree(busybox))
    write_image(out, "ordinary", [root] + tree(busybox, special=False))
    write_image(out, "beside", [root] + beside())
    write_image(out, "deep", [root] + deep(60))
else:
    sys.stdout.write(listing(read_layers(sys.argv[2])))
