"""Goes on from a checkpoint of Ganglion's in PyTorch, and compares: a row of gpu_check.py.

    python gpu_parity.py RUN_DIR IMAGES --device cuda --precision f32

RUN_DIR holds a job of one replica whose batch is the whole data set, so that the order of the
samples doesn't matter, with a checkpoint after every step; IMAGES are the same samples as raw bytes.
From State(1) on, weights and moments are Ganglion's, the latents are drawn from its keys, and the
steps are those of PyTorch's DCGAN example. Compared are the losses of every step and all parameters
after the last one. Prints one JSON object; the exit status says whether all is within the bounds.
"""

import argparse
import hashlib
import json
import struct
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Dict

import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benches/compare"))
from pytorch_dcgan import discriminator, generator  # noqa: E402

# Largest relative difference of a loss, and of all parameters together (by norm). bf16 has eight
# bits of mantissa, and each side rounds elsewhere.
BOUNDS = {"f32": (1e-4, 1e-5), "tf32": (1e-2, 1e-3), "bf16": (2e-2, 5e-3)}
KINDS = {"F32": torch.float32, "I64": torch.int64}


def tensors(path: Path) -> Dict[str, torch.Tensor]:
    """A safetensors file: the header's length, the header (JSON), the bytes."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + length])
    found = {}
    for name, about in header.items():
        if name != "__metadata__":
            start, end = (8 + length + offset for offset in about["data_offsets"])
            flat = torch.frombuffer(bytearray(data[start:end]), dtype=KINDS[about["dtype"]])
            found[name] = flat.reshape(about["shape"])
    return found


def latents(seed: int, step: int, batch: int, size: int) -> torch.Tensor:
    """As Ganglion draws them: a CPU generator seeded from SHA-256 of the key (src/random.rs)."""
    key = hashlib.sha256(b"ganglion key 1\0latents\0" + struct.pack("<3Q", seed, step, 0))
    number = struct.unpack("<q", key.digest()[:8])[0]
    drawn = torch.empty(batch, size).normal_(generator=torch.Generator().manual_seed(number))
    return drawn.view(batch, size, 1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", choices=list(BOUNDS), default="f32")
    parser.add_argument("--seed", type=int, default=0, help="the job's")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for library in (torch.backends.cudnn, torch.backends.cuda.matmul):
        library.allow_tf32 = args.precision == "tf32"

    steps = sorted(int(path.name.split("-")[1]) for path in (args.run_dir / "checkpoints").glob("step-*"))
    folder = lambda step: args.run_dir / "checkpoints" / f"step-{step:08}"
    first, last = steps[0], steps[-1]
    if first != 1 or last < 3:
        sys.exit(f"gpu_parity: {args.run_dir} has checkpoints {steps}; 1 to at least 3 are needed")
    model = json.loads((folder(first) / "manifest.json").read_text())["model"]
    batch = args.images.stat().st_size // (model["channels"] * model["image_size"] ** 2)
    with open(args.run_dir / "metrics.jsonl") as file:
        records = {record["step"]: record for record in map(json.loads, file) if "step" in record}

    device = torch.device(args.device)
    size, channels = model["image_size"], model["channels"]
    g = generator(size, channels, model["latent"], model["generator_width"]).to(device)
    d = discriminator(size, channels, model["discriminator_width"], sigmoid=False).to(device)
    nets = {"generator": g, "discriminator": d}
    moments = tensors(folder(first) / "optimizer.safetensors")
    optimizers = {}
    for name, net in nets.items():
        own = tensors(folder(first) / f"{name}.safetensors")
        net.load_state_dict({key.removeprefix("main."): value for key, value in own.items()})
        optimizers[name] = adam = torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999))
        for key, parameter in net.named_parameters():
            adam.state[parameter] = {
                "step": torch.tensor(float(first)),
                "exp_avg": moments[f"{name}.exp_avg.main.{key}"].to(device),
                "exp_avg_sq": moments[f"{name}.exp_avg_sq.main.{key}"].to(device),
            }
    pixels = torch.frombuffer(bytearray(args.images.read_bytes()), dtype=torch.uint8)
    real = pixels.reshape(batch, channels, size, size).to(device).float() / 127.5 - 1

    def computing():
        if args.precision == "bf16":
            return torch.autocast(device.type, dtype=torch.bfloat16)
        return nullcontext()

    worst_loss = 0.0
    for step in range(first, last):
        z = latents(args.seed, step, batch, model["latent"]).to(device)
        d.zero_grad()
        with computing():
            fake = g(z)
            on_real, on_fake = d(real).float(), d(fake.detach()).float()
        loss_d = functional.softplus(-on_real).mean() + functional.softplus(on_fake).mean()
        loss_d.backward()
        optimizers["discriminator"].step()
        g.zero_grad()
        with computing():
            on_fake = d(fake).float()
        loss_g = functional.softplus(-on_fake).mean()
        loss_g.backward()
        optimizers["generator"].step()
        for key, loss in (("loss_d", loss_d), ("loss_g", loss_g)):
            found = records[step + 1][key]
            worst_loss = max(worst_loss, abs(found - loss.item()) / abs(loss.item()))

    difference = norm = 0.0
    for name, net in nets.items():
        theirs = tensors(folder(last) / f"{name}.safetensors")
        for key, parameter in net.named_parameters():
            ours = parameter.detach().cpu().double()
            difference += (theirs[f"main.{key}"].double() - ours).square().sum().item()
            norm += ours.square().sum().item()
    worst_weight = (difference / norm) ** 0.5
    of_loss, of_weights = BOUNDS[args.precision]
    # Written so that NaN is not within.
    within = worst_loss <= of_loss and worst_weight <= of_weights
    print(json.dumps({"steps": last - first, "loss": worst_loss, "loss_bound": of_loss,
                      "weights": worst_weight, "weights_bound": of_weights}))
    sys.exit(0 if within else 1)


if __name__ == "__main__":
    main()
