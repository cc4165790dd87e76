"""Trees and layer records, for scripts/test-images.

    compare.py tree DIR                    prints a listing of DIR
    compare.py same EXPECTED FOUND TOOL    compares two listings; TOOL says what is known to differ
    compare.py splits STORE LAYERS         compares plyfs's tar-split.json.gz with those of
                                           containers/storage (LAYERS: its directory overlay-layers)
"""
import base64, gzip, hashlib, json, os, posixpath, stat, sys

KINDS = {stat.S_IFDIR: "d", stat.S_IFREG: "f", stat.S_IFLNK: "l", stat.S_IFIFO: "p", stat.S_IFCHR: "c", stat.S_IFBLK: "b"}


def tree(top):
    """A line of JSON for each path: all that a layer says of it. Hard links name the first of theirs."""
    first = {}

    def tell(path):
        at = os.path.join(os.fsencode(top), path)
        found = os.lstat(at)
        kind = KINDS[stat.S_IFMT(found.st_mode)]
        name = path.decode("utf-8", "backslashreplace")
        line = {"path": name, "kind": kind, "mode": "%04o" % stat.S_IMODE(found.st_mode),
                "owner": "%d:%d" % (found.st_uid, found.st_gid), "mtime": found.st_mtime_ns}
        if kind == "f":
            with open(at, "rb") as file:
                line["data"] = "%d %s" % (found.st_size, hashlib.sha256(file.read()).hexdigest())
        if kind == "l":
            line["target"] = os.fsdecode(os.readlink(at)).encode("utf-8", "backslashreplace").decode()
        if kind in "cb":
            line["device"] = "%d:%d" % (os.major(found.st_rdev), os.minor(found.st_rdev))
        for xattr in sorted(os.listxattr(at, follow_symlinks=False)):
            if xattr.startswith("user.") or xattr == "security.capability":
                line[xattr] = os.getxattr(at, xattr, follow_symlinks=False).hex()
        if kind != "d" and found.st_nlink > 1:
            line["links"] = first.setdefault(found.st_ino, name)
        print(json.dumps(line))
        if kind == "d":
            for name in sorted(os.listdir(at)):
                tell(os.path.join(path, name))

    tell(b"")


def same(expected, found, tool):
    """What is known to differ, and no fault of anybody's:

    - Of a directory that no layer lists the tools show the time at which they made it (plyfs: 1970).
    - podman shows the root with mode 0555 and the time of the load, whatever the layers say.
    - podman moves times before 1970 to 1970.
    """
    def read(path):
        with open(path) as file:
            lines = [json.loads(line) for line in file]
        return {line["path"]: line for line in lines}

    expected, found = read(expected), read(found)
    for path, line in expected.items():
        other = found.get(path, {})
        if line["kind"] == "d" and line["mtime"] == 0:
            other.pop("mtime", None)
            line.pop("mtime")
        if tool == "podman" and "mtime" in line:
            line["mtime"] = max(line["mtime"], 0)
    if tool == "podman":
        del expected[""], found[""]
    off = [(path, expected.get(path), found.get(path)) for path in sorted({*expected, *found}) if expected.get(path) != found.get(path)]
    for path, one, other in off[:5]:
        print("differs: %s\n  plyfs:  %s\n  %s: %s" % (path, one, tool, other))
    return len(off)


def pieces(path):
    """A record in the one form that both programs' records have, their known differences taken out:

    - Go's tar reader splits what lies between two files' data into several segments (a pax or GNU
      header has its own, and so has the end of the archive), the last of which may be empty: plyfs
      has one segment. So segments are joined, and `position`, which counts lines, is left out.
    - `name` is the tar's own in containers/storage ("./etc//passwd", a directory with or without
      "/"); in plyfs it is where the entry was unpacked ("etc/passwd", "etc/"). So names are
      cleaned. (Where an entry lies behind a symlink of its layer, they differ in truth: no image
      here has that.)
    - Of a sparse file plyfs records the pieces that the tar holds, for only so can the tar be
      written again; containers/storage records the file with its holes. So of sparse files only
      the names are compared, and of what lies around them nothing.
    """
    joined = []
    with gzip.open(path) as lines:
        for line in lines:
            line = json.loads(line)
            payload = base64.b64decode(line["payload"] or "")
            if line["type"] == 2:
                if joined and joined[-1][0] == "segment":
                    payload = joined.pop()[1] + payload
                if payload:
                    joined.append(("segment", payload))
                continue
            name = base64.b64decode(line["name_raw"]) if "name_raw" in line else line["name"].encode()
            name = posixpath.normpath(b"/" + name).lstrip(b"/")
            joined.append(("file", name, line.get("size", 0), payload, "extents" in line))
    return joined


def splits(store, layers):
    with open(os.path.join(layers, "layers.json")) as file:
        layers_json = json.load(file)
    theirs = {layer["diff-digest"]: os.path.join(layers, layer["id"] + ".tar-split.gz") for layer in layers_json if layer.get("diff-digest")}
    chains = os.path.join(store, "image/layerdb/sha256")
    off = count = 0
    for chain in os.listdir(chains):
        with open(os.path.join(chains, chain, "diff")) as file:
            diff = file.read().strip()
        if diff not in theirs:
            print("podman has no layer", diff)
            off += 1
            continue
        count += 1
        ours, other = pieces(os.path.join(chains, chain, "tar-split.json.gz")), pieces(theirs[diff])
        if any(piece[-1] is True for piece in ours):  # sparse files
            ours, other = ([piece[:2] for piece in all if piece[0] == "file"] for all in (ours, other))
        if ours != other:
            off += 1
            at = next((n for n, pair in enumerate(zip(ours, other)) if pair[0] != pair[1]), min(len(ours), len(other)))
            print("differs: %s, piece %d of %d and %d\n  plyfs:  %.300r\n  podman: %.300r" % (diff, at, len(ours), len(other), ours[at:at + 1], other[at:at + 1]))
    print(count, "records compared")
    return off if count else 1


if sys.argv[1] == "tree":
    tree(sys.argv[2])
elif sys.argv[1] == "same":
    sys.exit(min(same(*sys.argv[2:]), 1))
elif sys.argv[1] == "splits":
    sys.exit(min(splits(*sys.argv[2:]), 1))
