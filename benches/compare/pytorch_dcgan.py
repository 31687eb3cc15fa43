"""One side of the comparison: the training step of PyTorch's DCGAN example, timed.

The networks, the loss (BCELoss on sigmoid outputs), the label tensors, the order of the updates and
the optimizer are those of the example. The data is synthetic and in memory, so that nothing but the
step is measured. The last line of the output is one JSON object.

--processes N runs N processes that share each step through DistributedDataParallel and Gloo:
the usual way to train this on several processes of CPUs. Two forwards of D before a backward fail
on DDP's buffer broadcast (pytorch #22095), hence broadcast_buffers=False.
"""

import argparse
import contextlib
import json
import math
import os
import statistics
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def generator(size: int, channels: int, latent: int, width: int) -> nn.Module:
    stages = int(math.log2(size)) - 3
    maps = width * 2**stages
    layers = [nn.ConvTranspose2d(latent, maps, 4, 1, 0, bias=False), nn.BatchNorm2d(maps), nn.ReLU(True)]
    for _ in range(stages):
        layers += [nn.ConvTranspose2d(maps, maps // 2, 4, 2, 1, bias=False),
                   nn.BatchNorm2d(maps // 2), nn.ReLU(True)]
        maps //= 2
    layers += [nn.ConvTranspose2d(maps, channels, 4, 2, 1, bias=False), nn.Tanh()]
    return nn.Sequential(*layers)


def discriminator(size: int, channels: int, width: int) -> nn.Module:
    layers = [nn.Conv2d(channels, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
    maps = width
    for _ in range(int(math.log2(size)) - 3):
        layers += [nn.Conv2d(maps, maps * 2, 4, 2, 1, bias=False),
                   nn.BatchNorm2d(maps * 2), nn.LeakyReLU(0.2, inplace=True)]
        maps *= 2
    layers += [nn.Conv2d(maps, 1, 4, 1, 0, bias=False), nn.Sigmoid(), nn.Flatten(0)]
    return nn.Sequential(*layers)


def initialise(module: nn.Module) -> None:
    name = type(module).__name__
    if "Conv" in name:
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif "BatchNorm" in name:
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def train(rank: int, args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    net_g = generator(args.image_size, args.channels, args.latent, args.width).apply(initialise)
    net_d = discriminator(args.image_size, args.channels, args.width).apply(initialise)
    torch.manual_seed(args.seed + 1 + rank)

    first_backward = contextlib.nullcontext
    net_d_of_g = net_d
    if args.processes > 1:
        dist.init_process_group("gloo", init_method=args.rendezvous, rank=rank,
                                world_size=args.processes)
        net_g = DistributedDataParallel(net_g, broadcast_buffers=False)
        net_d = DistributedDataParallel(net_d, broadcast_buffers=False)
        net_d_of_g = net_d
        if args.ddp == "frugal":
            # D's gradients of the real batch travel together with those of the fake one, and
            # those that D gets in G's step, which nobody uses, don't travel at all.
            first_backward = net_d.no_sync
            net_d_of_g = net_d.module

    criterion = nn.BCELoss()
    optimizer_d = torch.optim.Adam(net_d.parameters(), lr=2e-4, betas=(0.5, 0.999))
    optimizer_g = torch.optim.Adam(net_g.parameters(), lr=2e-4, betas=(0.5, 0.999))
    shape = (args.batch, args.channels, args.image_size, args.image_size)
    data = [torch.rand(shape) * 2 - 1 for _ in range(8)]

    def step(real: torch.Tensor) -> None:
        # D: maximise log(D(x)) + log(1 - D(G(z)))
        net_d.zero_grad()
        label = torch.full((args.batch,), 1.0)
        with first_backward():
            output = net_d(real)
            loss_real = criterion(output, label)
            loss_real.backward()
        output.mean().item()
        fake = net_g(torch.randn(args.batch, args.latent, 1, 1))
        label.fill_(0.0)
        output = net_d(fake.detach())
        loss_fake = criterion(output, label)
        loss_fake.backward()
        output.mean().item()
        optimizer_d.step()
        # G: maximise log(D(G(z)))
        net_g.zero_grad()
        label.fill_(1.0)
        output = net_d_of_g(fake)
        loss_g = criterion(output, label)
        loss_g.backward()
        output.mean().item()
        optimizer_g.step()

    times = []
    for index in range(args.warmup + args.steps):
        start = time.perf_counter()
        step(data[index % len(data)])
        times.append(time.perf_counter() - start)

    if args.processes > 1:
        dist.destroy_process_group()
    if rank == 0:
        median = statistics.median(times[args.warmup:])
        print(json.dumps({
            "images_per_s": round(args.batch * args.processes / median, 2),
            "median_step_s": round(median, 5),
            "steps": args.steps,
            "global_batch": args.batch * args.processes,
            "torch": torch.__version__,
        }), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--width", type=int, default=64, help="feature maps, ngf = ndf")
    parser.add_argument("--latent", type=int, default=100)
    parser.add_argument("--batch", type=int, default=64, help="samples a process and step")
    parser.add_argument("--steps", type=int, default=30, help="measured steps")
    parser.add_argument("--warmup", type=int, default=5, help="steps before those")
    parser.add_argument("--threads", type=int, default=1, help="intra-op threads a process")
    parser.add_argument("--processes", type=int, default=1, help="more than one: DDP over Gloo")
    parser.add_argument("--ddp", choices=["plain", "frugal"], default="frugal",
                        help="plain: every backward reduces; frugal: only what is used")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.processes == 1:
        train(0, args)
        return
    import socket
    import torch.multiprocessing

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    args.rendezvous = f"tcp://127.0.0.1:{port}"
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    torch.multiprocessing.spawn(train, args=(args,), nprocs=args.processes)


if __name__ == "__main__":
    main()
