"""Loads what `gan-worker export` writes in the programs that it is for, and compares what they draw.

    python tests/exports/check.py [CHECKPOINT]

Without a checkpoint it trains small ones first, with target/release/gan-coord. Compared are, for the
same latents: gan-worker's own picture, PyTorch's DCGAN example with the safetensors file loaded into it
(strictly), the TorchScript file, and the ONNX file in onnxruntime. A generator that is given more than
latents is none of the example's: its TorchScript and its ONNX file are compared with each other, and
with gan-worker's picture where labels are all that is given. Every line says what was compared, and how
far apart the farthest pixels are; the exit code is 1 if one of them is too far.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy
import onnx
import onnxruntime
import safetensors.torch
import torch
import torch.nn as nn

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("GAN_BIN", ROOT / "target/release"))

# Images are in -1 … 1. Kernels add in other orders; what is beyond this is another computation.
NEAR = 1e-4


class Generator(nn.Module):
    """That of PyTorch's DCGAN example, for any size: the names are `main.0.weight` and so on."""

    def __init__(self, size: int, channels: int, latent: int, width: int) -> None:
        super().__init__()
        maps = width * size // 8
        layers = [nn.ConvTranspose2d(latent, maps, 4, 1, 0, bias=False), nn.BatchNorm2d(maps), nn.ReLU(True)]
        while maps > width:
            layers += [nn.ConvTranspose2d(maps, maps // 2, 4, 2, 1, bias=False),
                       nn.BatchNorm2d(maps // 2), nn.ReLU(True)]
            maps //= 2
        layers += [nn.ConvTranspose2d(maps, channels, 4, 2, 1, bias=False), nn.Tanh()]
        self.main = nn.Sequential(*layers)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.main(latents)


def run(*arguments: object) -> str:
    ran = subprocess.run([str(a) for a in arguments], stdout=subprocess.PIPE, text=True)
    if ran.returncode != 0:
        sys.exit(f"{' '.join(str(a) for a in arguments)}: exit code {ran.returncode}")
    return ran.stdout


def worker(*arguments: object) -> dict:
    return json.loads(run(BIN / "gan-worker", *arguments, "--json"))


def trained(folder: pathlib.Path, name: str, *settings: str, job: str = "mnist") -> pathlib.Path:
    """The last checkpoint of a short job."""
    run_dir = folder / name
    changes = [part for setting in ("train.steps=30", "model.generator_width=8",
                                    "model.discriminator_width=8", *settings)
               for part in ("--set", setting)]
    run(BIN / "gan-coord", "run", ROOT / f"deploy/jobs/{job}.toml", "--workers", 1, "--run-dir", run_dir, *changes)
    return run_dir / "checkpoints" / "step-00000030"


def drawn_by_us(checkpoint: pathlib.Path, folder: pathlib.Path, *options: str) -> tuple:
    """Four latents, and gan-worker's images of them as bytes [4, c, s, s]."""
    latents = []
    for number in range(4):
        told = worker("arithmetic", checkpoint, "--plus", number, "--out", folder / "sum.png", *options)
        latents.append(told["sum"])
    picture = folder / "grid.png"
    worker("sample", checkpoint, "--count", 4, "--columns", 4, "--out", picture, *options)
    return torch.tensor(latents, dtype=torch.float32)[:, :, None, None], picture


def pixels(picture: pathlib.Path, shape: tuple) -> numpy.ndarray:
    """The images of a grid in one row, two pixels around each: what torchvision's make_grid has."""
    import struct
    import zlib

    data = picture.read_bytes()
    at, stream = 8, b""
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at:at + 8])
        body = data[at + 8:at + 8 + length]
        if kind == b"IHDR":
            wide, high, depth, colour = struct.unpack(">IIBB", body[:10])
            assert depth == 8 and colour in (0, 2), (depth, colour)
        if kind == b"IDAT":
            stream += body
        at += 12 + length
    planes = 1 if colour == 0 else 3
    raw = zlib.decompress(stream)
    rows, before = [], [0] * (wide * planes)
    for y in range(high):
        start = y * (wide * planes + 1)
        kind, row = raw[start], list(raw[start + 1:start + 1 + wide * planes])
        for x in range(len(row)):
            left = row[x - planes] if x >= planes else 0
            up = before[x]
            corner = before[x - planes] if x >= planes else 0
            estimate = left + up - corner
            paeth = min((left, up, corner), key=lambda value: abs(estimate - value))
            row[x] = (row[x] + (0, left, up, (left + up) // 2, paeth)[kind]) & 255
        rows.append(row)
        before = row
    image = numpy.array(rows, dtype=numpy.uint8).reshape(high, wide, planes)
    count, channels, side, _ = shape
    assert channels == planes and high == side + 4, (shape, image.shape)
    cells = [image[2:2 + side, 2 + n * (side + 2):2 + n * (side + 2) + side] for n in range(count)]
    return numpy.stack(cells).transpose(0, 3, 1, 2)


class Account:
    """What was compared, and whether all of it was near."""

    def __init__(self) -> None:
        self.good = True

    def near(self, what: str, found: torch.Tensor, expected: torch.Tensor, limit: float = NEAR) -> None:
        if found.shape != expected.shape:
            self.good = False
            print(f"  {what}: shape {list(found.shape)}, expected {list(expected.shape)}")
            return
        farthest = (found.double() - expected.double()).abs().max().item()
        near = farthest <= limit
        self.good &= near
        print(f"  {what}: farthest pixels {farthest:.1e} apart{'' if near else ', TOO FAR'}")

    def holds(self, what: str, whether: bool) -> None:
        self.good &= whether
        print(f"  {what}: {'yes' if whether else 'NO'}")


def exported(checkpoint: pathlib.Path, folder: pathlib.Path) -> dict:
    """The files, by how their names end."""
    files = {}
    for extension in ("safetensors", "pt", "onnx"):
        files[extension] = folder / f"generator.{extension}"
        worker("export", checkpoint, "--out", files[extension])
    return files


def loaded(files: dict) -> tuple:
    """The TorchScript module, and a session of the ONNX file, which is checked first."""
    script = torch.jit.load(files["pt"])
    script.eval()
    onnx.checker.check_model(onnx.load(files["onnx"]), full_check=True)
    return script, onnxruntime.InferenceSession(str(files["onnx"]), providers=["CPUExecutionProvider"])


def check_other(checkpoint: pathlib.Path, folder: pathlib.Path, account: Account, classes: int = 0) -> None:
    """A generator that is given more than latents, or whose layers are none of the example's."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    script, session = loaded(exported(checkpoint, folder))
    inputs = {value.name: value for value in session.get_inputs()}
    print(f"{checkpoint.name} of {manifest['job']}, given {', '.join(inputs)}")
    drawn = numpy.random.default_rng(1)
    given = {}
    for name, value in inputs.items():
        shape = (4, *value.shape[1:])
        numbers = {"latents": drawn.standard_normal, "noise": drawn.standard_normal,
                   "coarse": lambda shape: drawn.uniform(-1, 1, shape),
                   "labels": lambda shape: numpy.arange(4) % classes}[name](shape)
        given[name] = numbers.astype(numpy.int64 if name == "labels" else numpy.float32)
    with torch.no_grad():
        expected = script(*(torch.from_numpy(given[name]) for name in inputs))
    account.holds("the images differ from each other", (expected[0] - expected[1]).abs().max().item() > 0.01)
    for count in (4, 1):
        found = session.run(["images"], {name: value[:count] for name, value in given.items()})[0]
        account.near(f"ONNX against TorchScript, {count} at a time", torch.from_numpy(found), expected[:count])
    if set(inputs) == {"latents", "labels"}:
        label = classes // 3
        latents, picture = drawn_by_us(checkpoint, folder, "--class", str(label))
        with torch.no_grad():
            images = script(latents, torch.full((len(latents),), label))
        ours = torch.from_numpy(pixels(picture, tuple(images.shape)))
        as_bytes = ((images + 1) * 127.5).round().clamp(0, 255)
        account.near("TorchScript against gan-worker sample, steps of 255", ours, as_bytes, 1.0)


def check(checkpoint: pathlib.Path, folder: pathlib.Path, account: Account) -> None:
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    model = manifest["model"]
    print(f"{checkpoint.name} of {manifest['job']}, {model['image_size']} pixels, {model['channels']} channels")
    files = exported(checkpoint, folder)

    latents, picture = drawn_by_us(checkpoint, folder)
    example = Generator(model["image_size"], model["channels"], model["latent"], model["generator_width"])
    example.load_state_dict(safetensors.torch.load_file(files["safetensors"]), strict=True)
    example.eval()
    with torch.no_grad():
        expected = example(latents)
    account.holds("the images differ from each other", (expected[0] - expected[1]).abs().max().item() > 0.01)

    ours = torch.from_numpy(pixels(picture, tuple(expected.shape)))
    as_bytes = ((expected + 1) * 127.5).round().clamp(0, 255)
    account.near("PyTorch's example against gan-worker sample, steps of 255", ours, as_bytes, 1.0)

    script, session = loaded(files)
    with torch.no_grad():
        account.near("TorchScript against the example", script(latents), expected)
        account.near("TorchScript, latents [n, z]", script(latents[:, :, 0, 0]), expected)
    state, theirs = script.state_dict(), example.state_dict()
    same = set(state) == set(theirs) and all(torch.equal(state[name], theirs[name]) for name in theirs)
    account.holds("TorchScript's state dict is the example's", same)

    for count in (4, 1):
        found = session.run(["images"], {"latents": latents[:count].numpy()})[0]
        account.near(f"ONNX against the example, {count} at a time", torch.from_numpy(found), expected[:count])


def main() -> None:
    account = Account()
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        checkpoints = [pathlib.Path(argument) for argument in sys.argv[1:]] or [
            trained(folder, "grey"),
            trained(folder, "colour", "model.image_size=64", "model.channels=3", "train.ema_decay=0"),
        ]
        for checkpoint in checkpoints:
            check(checkpoint, folder, account)
        if not sys.argv[1:]:
            told = ("model.conditional=concatenation", "model.classes=10")
            split, noise = "model.latent_input=split", "model.hidden_noise=multiplicative"
            for checkpoint in (
                trained(folder, "told", *told, split),
                trained(folder, "noisy", *told, split, noise, "model.image_size=28", "model.kernel=5"),
                trained(folder, "level", *told, "model.pyramid=true"),
                trained(folder, "points", split, noise, "model.latent=8", job="ring"),
            ):
                check_other(checkpoint, folder, account, classes=10)
    print("all near" if account.good else "NOT the same")
    sys.exit(not account.good)


if __name__ == "__main__":
    main()
