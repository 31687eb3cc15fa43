"""One side of the comparison: the training step of PyTorch's DCGAN example, timed.

The networks, the loss (BCELoss on sigmoid outputs), the label tensors, the order of the updates and
the optimizer are those of the example. The data is synthetic and in memory (the device's), so that
nothing but the step is measured. The last line of the output is one JSON object.

--processes N runs N processes that share each step through DistributedDataParallel, over Gloo on a
CPU and NCCL on GPUs: the usual way. Two forwards of D before a backward fail on DDP's buffer
broadcast (pytorch #22095), hence broadcast_buffers=False.

--update simultaneous is Goodfellow's tutorial's: both losses at the same point, from one look of D
at the fakes; each backward is asked for the gradients of its own player alone.

--precision bf16 computes under autocast. BCELoss refuses that, so D then ends in logits, and the loss
is BCEWithLogitsLoss, in single precision: the same mathematics.

--tuned is what PyTorch's own guides advise: channels_last, bf16 autocast (unless --precision says
otherwise), fused Adam, no look at a scalar within a step, D frozen while G learns, kernels chosen by
timing (cuDNN's benchmark), and --execution:

  eager      kernel by kernel
  compiled   torch.compile; on a GPU with mode="reduce-overhead", which is CUDA graphs
  graph      torch.compile, and the whole step, optimizers included, captured as one CUDA graph
"""

import argparse
import contextlib
import json
import math
import os
import statistics
import time
from typing import Callable, List

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
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


def discriminator(size: int, channels: int, width: int, sigmoid: bool = True) -> nn.Module:
    layers = [nn.Conv2d(channels, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
    maps = width
    for _ in range(int(math.log2(size)) - 3):
        layers += [nn.Conv2d(maps, maps * 2, 4, 2, 1, bias=False),
                   nn.BatchNorm2d(maps * 2), nn.LeakyReLU(0.2, inplace=True)]
        maps *= 2
    layers += [nn.Conv2d(maps, 1, 4, 1, 0, bias=False)] + ([nn.Sigmoid()] if sigmoid else [])
    layers += [nn.Flatten(0)]
    return nn.Sequential(*layers)


def initialise(module: nn.Module) -> None:
    name = type(module).__name__
    if "Conv" in name:
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif "BatchNorm" in name:
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


class Players:
    """Both networks and their optimizers, as the arguments want them."""

    def __init__(self, args: argparse.Namespace, device: torch.device, rank: int) -> None:
        self.args, self.device = args, device
        self.logits = args.tuned or args.precision == "bf16"
        torch.manual_seed(args.seed)
        net_g = generator(args.image_size, args.channels, args.latent, args.width)
        net_d = discriminator(args.image_size, args.channels, args.width, sigmoid=not self.logits)
        net_g, net_d = net_g.apply(initialise).to(device), net_d.apply(initialise).to(device)
        if args.tuned:
            net_g = net_g.to(memory_format=torch.channels_last)
            net_d = net_d.to(memory_format=torch.channels_last)
        torch.manual_seed(args.seed + 1 + rank)

        settings = {"fused": True, "capturable": args.execution == "graph"} if args.tuned else {}
        if device.type == "cpu":
            settings.pop("capturable", None)
        adam = lambda net: torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999), **settings)
        self.optimizer_g, self.optimizer_d = adam(net_g), adam(net_d)
        self.of_g, self.of_d = list(net_g.parameters()), list(net_d.parameters())

        self.shared = args.processes > 1
        if args.tuned and args.execution != "eager" and self.shared:
            net_g, net_d = torch.compile(net_g), torch.compile(net_d)
        # D for a pass whose gradients of D travel, and D for one whose don't.
        self.net_g, self.net_d, self.bare_d = net_g, net_d, net_d
        self.first_backward: Callable = contextlib.nullcontext
        if self.shared:
            ddp = lambda net: DistributedDataParallel(net, broadcast_buffers=False)
            self.net_g, self.net_d = ddp(net_g), ddp(net_d)
            self.bare_d = self.net_d
            if args.ddp == "frugal":
                # D's gradients of the real batch travel together with those of the fake one, and
                # those that D gets in G's step, which nobody uses, don't travel at all.
                self.first_backward = self.net_d.no_sync
                self.bare_d = net_d

    def precision(self) -> contextlib.AbstractContextManager:
        if self.args.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def latents(self) -> torch.Tensor:
        return torch.randn(self.args.batch, self.args.latent, 1, 1, device=self.device)

    def freeze(self, frozen: bool) -> None:
        for parameter in self.of_d:
            parameter.requires_grad_(not frozen)


def example(players: Players) -> Callable[[torch.Tensor], None]:
    """The example's step."""
    p, batch, device = players, players.args.batch, players.device
    criterion = nn.BCEWithLogitsLoss() if p.logits else nn.BCELoss()
    belief = torch.sigmoid if p.logits else lambda output: output

    def judge(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
        with p.precision():
            return net(images).float()

    def fakes() -> torch.Tensor:
        with p.precision():
            return p.net_g(p.latents())

    def alternating(real: torch.Tensor) -> None:
        # D: maximise log(D(x)) + log(1 - D(G(z)))
        p.net_d.zero_grad()
        label = torch.full((batch,), 1.0, device=device)
        with p.first_backward():
            output = judge(p.net_d, real)
            loss_real = criterion(output, label)
            loss_real.backward()
        belief(output).mean().item()
        fake = fakes()
        label.fill_(0.0)
        output = judge(p.net_d, fake.detach())
        loss_fake = criterion(output, label)
        loss_fake.backward()
        belief(output).mean().item()
        p.optimizer_d.step()
        # G: maximise log(D(G(z)))
        p.net_g.zero_grad()
        label.fill_(1.0)
        output = judge(p.bare_d, fake)
        loss_g = criterion(output, label)
        loss_g.backward()
        belief(output).mean().item()
        p.optimizer_g.step()

    def simultaneous(real: torch.Tensor) -> None:
        p.net_d.zero_grad()
        p.net_g.zero_grad()
        ones = torch.full((batch,), 1.0, device=device)
        zeros = torch.full((batch,), 0.0, device=device)
        fake = fakes()
        on_real = judge(p.bare_d, real)
        on_fake = judge(p.net_d, fake)
        loss_d = criterion(on_real, ones) + criterion(on_fake, zeros)
        loss_g = criterion(on_fake, ones)
        loss_d.backward(inputs=p.of_d, retain_graph=True)
        loss_g.backward(inputs=p.of_g)
        belief(on_real).mean().item()
        belief(on_fake).mean().item()
        p.optimizer_d.step()
        p.optimizer_g.step()

    return alternating if p.args.update == "alternating" else simultaneous


def tuned(players: Players) -> Callable[[torch.Tensor], None]:
    """The same mathematics as PyTorch does it best."""
    p, args = players, players.args

    # softplus(-s) is -log(sigmoid(s)), what BCEWithLogitsLoss computes.
    def make() -> torch.Tensor:
        with p.precision():
            return p.net_g(p.latents())

    def cost_d(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        with p.precision():
            on_real, on_fake = p.bare_d(real).float(), p.net_d(fake).float()
        return functional.softplus(-on_real).mean() + functional.softplus(on_fake).mean()

    def cost_g(fake: torch.Tensor) -> torch.Tensor:
        with p.precision():
            on_fake = p.bare_d(fake).float()
        return functional.softplus(-on_fake).mean()

    def costs(real: torch.Tensor, fake: torch.Tensor) -> List[torch.Tensor]:
        with p.precision():
            on_real, on_fake = p.bare_d(real).float(), p.net_d(fake).float()
        on_both = functional.softplus(-on_real).mean() + functional.softplus(on_fake).mean()
        return [on_both, functional.softplus(-on_fake).mean()]

    if args.execution != "eager" and not p.shared:
        graphs = p.device.type == "cuda" and args.execution == "compiled"
        compiled = lambda function: torch.compile(function, mode="reduce-overhead" if graphs else None)
        make, cost_d, cost_g, costs = map(compiled, (make, cost_d, cost_g, costs))
    begin = torch.compiler.cudagraph_mark_step_begin

    def alternating(real: torch.Tensor) -> None:
        begin()
        p.optimizer_d.zero_grad(set_to_none=True)
        fake = make()
        cost_d(real, fake.detach()).backward()
        p.optimizer_d.step()
        p.freeze(True)
        p.optimizer_g.zero_grad(set_to_none=True)
        cost_g(fake).backward()
        p.freeze(False)
        p.optimizer_g.step()

    def simultaneous(real: torch.Tensor) -> None:
        begin()
        p.optimizer_d.zero_grad(set_to_none=True)
        p.optimizer_g.zero_grad(set_to_none=True)
        on_both, loss_g = costs(real, make())
        on_both.backward(inputs=p.of_d, retain_graph=True)
        loss_g.backward(inputs=p.of_g)
        p.optimizer_d.step()
        p.optimizer_g.step()

    step = alternating if args.update == "alternating" else simultaneous
    return captured(step, p) if args.execution == "graph" else step


def captured(step: Callable[[torch.Tensor], None], players: Players) -> Callable[[torch.Tensor], None]:
    """The step as one CUDA graph over a batch that lies in one place."""
    args, device = players.args, players.device
    shape = (args.batch, args.channels, args.image_size, args.image_size)
    place = torch.rand(shape, device=device).contiguous(memory_format=torch.channels_last)
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(5):
            step(place)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    players.optimizer_d.zero_grad(set_to_none=True)
    players.optimizer_g.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        step(place)

    def replay(real: torch.Tensor) -> None:
        place.copy_(real)
        graph.replay()

    return replay


def train(rank: int, args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    cuda = args.device == "cuda"
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
        if args.precision != "default":
            torch.backends.cudnn.allow_tf32 = args.precision == "tf32"
            torch.backends.cuda.matmul.allow_tf32 = args.precision == "tf32"
        torch.backends.cudnn.benchmark = args.tuned
    if args.execution != "eager" and args.update == "simultaneous":
        # Two backward passes go through one forward pass.
        from torch._functorch import config as functorch
        functorch.donated_buffer = False
    if args.processes > 1:
        dist.init_process_group("nccl" if cuda else "gloo", init_method=args.rendezvous, rank=rank,
                                world_size=args.processes)
    players = Players(args, device, rank)
    step = tuned(players) if args.tuned else example(players)
    shape = (args.batch, args.channels, args.image_size, args.image_size)
    data = [torch.rand(shape, device=device) * 2 - 1 for _ in range(8)]
    if args.tuned:
        data = [images.contiguous(memory_format=torch.channels_last) for images in data]

    def wait() -> None:
        if cuda:
            torch.cuda.synchronize()

    # On a GPU, steps of a block overlap as far as the step allows.
    block = 10 if cuda else 1
    wait()
    start = time.perf_counter()
    step(data[0])
    wait()
    first = time.perf_counter() - start
    for index in range(1, args.warmup):
        step(data[index % len(data)])
    times = []
    for _ in range(max(1, args.steps // block)):
        wait()
        start = time.perf_counter()
        for index in range(block):
            step(data[index % len(data)])
        wait()
        times.append((time.perf_counter() - start) / block)

    finite = all(bool(torch.isfinite(parameter).all()) for parameter in players.of_g + players.of_d)
    if args.processes > 1:
        dist.destroy_process_group()
    if rank == 0:
        median = statistics.median(times)
        print(json.dumps({
            "images_per_s": round(args.batch * args.processes / median, 2),
            "median_step_s": round(median, 6),
            "first_step_s": round(first, 3),
            "steps": len(times) * block,
            "global_batch": args.batch * args.processes,
            "finite": finite,
            "peak_bytes": torch.cuda.max_memory_reserved() if cuda else None,
            "torch": torch.__version__,
        }), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu",
                        help="with several processes, process i takes GPU i")
    parser.add_argument("--update", choices=["alternating", "simultaneous"], default="alternating")
    parser.add_argument("--precision", choices=["default", "f32", "tf32", "bf16"],
                        help="default: PyTorch's own, which is f32, but TF32 in a GPU's convolutions "
                             "[default: bf16 with --tuned, else default]")
    parser.add_argument("--tuned", action="store_true", help="as PyTorch does it best")
    parser.add_argument("--execution", choices=["eager", "compiled", "graph"], default="eager",
                        help="of a tuned step")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--width", type=int, default=64, help="feature maps, ngf = ndf")
    parser.add_argument("--latent", type=int, default=100)
    parser.add_argument("--batch", type=int, default=64, help="samples a process and step")
    parser.add_argument("--steps", type=int, default=30, help="measured steps")
    parser.add_argument("--warmup", type=int, default=5, help="steps before those")
    parser.add_argument("--threads", type=int, default=1, help="intra-op threads a process")
    parser.add_argument("--processes", type=int, default=1, help="more than one: DDP")
    parser.add_argument("--ddp", choices=["plain", "frugal"], default="frugal",
                        help="plain: every backward reduces; frugal: only what is used")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.precision = args.precision or ("bf16" if args.tuned else "default")
    if args.execution != "eager" and not args.tuned:
        parser.error("--execution is for --tuned")
    if args.execution == "graph" and (args.device != "cuda" or args.processes > 1):
        parser.error("--execution graph is for one process on a GPU")
    if args.precision == "tf32" and args.device != "cuda":
        parser.error("--precision tf32 is for GPUs")
    if args.tuned and args.processes > 1:
        args.ddp = "frugal"
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
