"""Writes games.safetensors, which tests/games.rs compares with.

    python tests/goldens/games.py           # needs torch 2.11, numpy, safetensors

Three steps of every game, and of every regulariser, with tiny networks: DCGAN's generator, and a
discriminator without norms. Everything is written from the papers, with PyTorch's autograd, its
Adam, and DiffAugment's own way of shifting and cutting. Draws are Ganglion's (src/random.rs,
src/regularise): ChaCha8 and libtorch's CPU generator, each keyed by SHA-256.

Of vectors only the norm and one projection are kept, on cos(i)/sqrt(n).

initial.<network>.<name>   initial weights; packed_discriminator's has two images' channels
pixels                     [steps, 2 * batch, 1, 4, 4], blocks of 8x8
<case>.losses              [steps, 2]: J_D and J_G of each step's last updates
<case>.beliefs             [steps, 2]: D(x) and D(G(z)), likewise
<case>.<network>.first     norm and projection of Adam's first moment after the first step
<case>.<network>.last      the same after the last step
<case>.running             the same of G's running statistics after the last step
"""

import hashlib
import math
import pathlib
import struct

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

NZ, WIDTH, BATCH, STEPS, SEED, SIDE = 4, 2, 4, 3, 7, 32
HERE = pathlib.Path(__file__).parent
LN_2 = math.log(2.0)


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(NZ, WIDTH * 4, 4, 1, 0, bias=False),
            nn.BatchNorm2d(WIDTH * 4),
            nn.ReLU(True),
            nn.ConvTranspose2d(WIDTH * 4, WIDTH * 2, 4, 2, 1, bias=False),
            nn.BatchNorm2d(WIDTH * 2),
            nn.ReLU(True),
            nn.ConvTranspose2d(WIDTH * 2, WIDTH, 4, 2, 1, bias=False),
            nn.BatchNorm2d(WIDTH),
            nn.ReLU(True),
            nn.ConvTranspose2d(WIDTH, 1, 4, 2, 1, bias=False),
            nn.Tanh(),
        )

    def forward(self, z):
        return self.main(z)


class Discriminator(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(channels, WIDTH, 4, 2, 1, bias=False),
            nn.LeakyReLU(0.2),
            nn.Conv2d(WIDTH, WIDTH * 2, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(WIDTH * 2, WIDTH * 4, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(WIDTH * 4, 1, 4, 1, 0, bias=False),
        )

    def forward(self, x):
        return self.main(x).view(-1)


# Draws


def key(label, *numbers):
    packed = struct.pack(f"<{len(numbers)}Q", *numbers)
    return hashlib.sha256(b"ganglion key 1\0" + label + b"\0" + packed).digest()


def normal(key, shape, deviation=1.0):
    seed = struct.unpack("<Q", key[:8])[0]
    seed = seed - (1 << 64) if seed >= 1 << 63 else seed
    return torch.empty(shape).normal_(0, deviation, generator=torch.Generator().manual_seed(seed))


def chacha8(key):
    """Words of 64 bits (RFC 8439's rounds and constants, 8 rounds, a counter of 64 bits)."""

    def rotate(x, n):
        return (x << n | x >> 32 - n) & 0xFFFFFFFF

    def quarter(s, a, b, c, d):
        for x, y, z, n in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            s[x] = s[x] + s[y] & 0xFFFFFFFF
            s[z] = rotate(s[z] ^ s[x], n)

    constants = struct.unpack("<4I", b"expand 32-byte k")
    counter = 0
    while True:
        start = [*constants, *struct.unpack("<8I", key), counter & 0xFFFFFFFF, counter >> 32, 0, 0]
        s = list(start)
        for _ in range(4):
            for column in range(4):
                quarter(s, column, 4 + column, 8 + column, 12 + column)
            for diagonal in range(4):
                quarter(
                    s,
                    diagonal,
                    4 + (diagonal + 1) % 4,
                    8 + (diagonal + 2) % 4,
                    12 + (diagonal + 3) % 4,
                )
        words = [a + b & 0xFFFFFFFF for a, b in zip(s, start)]
        for low, high in zip(words[::2], words[1::2]):
            yield low | high << 32
        counter += 1


def below(stream, bound):
    """Lemire 2019, algorithm 5."""
    while True:
        product = next(stream) * bound
        if product % (1 << 64) >= ((1 << 64) - bound) % bound:
            return product >> 64


def uniform(stream):
    return below(stream, 1 << 24) / (1 << 24)


def latents(step, round):
    numbers = (SEED, step, 0) + ((round,) if round else ())
    return normal(key(b"latents", *numbers), (BATCH, NZ)).view(BATCH, NZ, 1, 1)


# The way to D


def augment(x, which, stream):
    shift, cut = SIDE // 8, SIDE // 2
    numbers = []
    for _ in range(len(x)):
        color = [uniform(stream) - 0.5, uniform(stream) * 2, uniform(stream) + 0.5]
        moves = [below(stream, 2 * shift + 1) - shift for _ in range(2)]
        numbers.append(color + moves + [below(stream, SIDE + 1) for _ in range(2)])
    out = []
    for image, (bright, saturate, contrast, down, right, y, x_centre) in zip(x, numbers):
        if "color" in which:
            image = image + bright
            grey = image.mean(0, keepdim=True)
            image = (image - grey) * saturate + grey
            even = image.mean()
            image = (image - even) * contrast + even
        if "translation" in which:
            padded = F.pad(image, (shift, shift, shift, shift))
            image = padded[:, shift - down : shift - down + SIDE, shift - right : shift - right + SIDE]
        if "cutout" in which:
            mask = torch.ones(SIDE, SIDE)
            rows = slice(max(0, y - cut // 2), max(0, y + cut // 2))
            columns = slice(max(0, x_centre - cut // 2), max(0, x_centre + cut // 2))
            mask[rows, columns] = 0
            image = image * mask
        out.append(image)
    return torch.stack(out)


def show(x, side, case, step, round):
    if case.get("augment"):
        stream = chacha8(key(b"chance", SEED, step, 0, round, side))
        x = augment(x, case["augment"], stream)
    if "noise" in case:
        deviation, steps = case["noise"]
        deviation *= max(0.0, 1 - step / steps)
        noise = normal(key(b"chance", SEED, step, 0, round, 3), (2, BATCH, 1, SIDE, SIDE), deviation)
        x = x + noise[side]
    m = case.get("packing", 1)
    return x.reshape(len(x) // m, m, SIDE, SIDE)


# Games


def f_gan(activation, conjugate):
    return (
        lambda r, f: -activation(r).mean() + conjugate(activation(f)).mean(),
        lambda f, r: -conjugate(activation(f)).mean(),
    )


def cross_entropy(r, f, smoothing=0.0):
    real = F.binary_cross_entropy_with_logits(r, torch.full_like(r, 1 - smoothing))
    return real + F.binary_cross_entropy_with_logits(f, torch.zeros_like(f))


GAMES = {
    "minimax": (cross_entropy, lambda f, r: -F.softplus(f).mean()),
    "non-saturating": (cross_entropy, lambda f, r: F.softplus(-f).mean()),
    "maximum-likelihood": (cross_entropy, lambda f, r: -f.exp().mean()),
    "least-squares": (
        lambda r, f, smoothing=0.0: 0.5 * ((r - 1 + smoothing) ** 2).mean() + 0.5 * (f**2).mean(),
        lambda f, r: 0.5 * ((f - 1) ** 2).mean(),
    ),
    "hinge": (
        lambda r, f: F.relu(1 - r).mean() + F.relu(1 + f).mean(),
        lambda f, r: -f.mean(),
    ),
    "wasserstein": (lambda r, f: f.mean() - r.mean(), lambda f, r: -f.mean()),
    "relativistic": (
        lambda r, f: F.softplus(f - r).mean(),
        lambda f, r: F.softplus(r - f).mean(),
    ),
    "f-kl": f_gan(lambda v: v, lambda t: (t - 1).exp()),
    "f-reverse-kl": f_gan(lambda v: -(-v).exp(), lambda t: -1 - (-t).log()),
    "f-pearson": f_gan(lambda v: v, lambda t: t**2 / 4 + t),
    "f-hellinger": f_gan(lambda v: 1 - (-v).exp(), lambda t: t / (1 - t)),
    "f-js": f_gan(lambda v: LN_2 - F.softplus(-v), lambda t: -(2 - t.exp()).log()),
    "f-gan": f_gan(lambda v: -F.softplus(-v), lambda t: -(1 - t.exp()).log()),
}


def beliefs(game, r, f):
    if game == "least-squares":
        return r.clamp(0, 1).mean(), f.clamp(0, 1).mean()
    if game == "wasserstein":
        centre = (r.mean() + f.mean()) / 2
        return (r - centre).sigmoid().mean(), (f - centre).sigmoid().mean()
    if game == "relativistic":
        return (r - f).sigmoid().mean(), (f - r).sigmoid().mean()
    ratio = {
        "f-kl": lambda v: (v - 1).exp(),
        "f-pearson": lambda v: (1 + v / 2).clamp(min=0),
        "f-hellinger": lambda v: (2 * v).exp(),
    }.get(game, torch.exp)
    return tuple((ratio(s) / (1 + ratio(s))).mean() for s in (r, f))


def slopes(on, x):
    return torch.autograd.grad(on.sum(), x, create_graph=True)[0].flatten(1)


def cost_d(case, d, x, fake, step, round):
    """J_D; `x` and `fake` are what D sees."""
    game = case["objective"]
    on_real, on_fake = d(x), d(fake)
    smoothing = {"smoothing": case["smoothing"]} if "smoothing" in case else {}
    cost = GAMES[game][0](on_real, on_fake, **smoothing)
    if "r1" in case:
        cost = cost + case["r1"] / 2 * (slopes(on_real, x) ** 2).sum(1).mean()
    if "r2" in case:
        cost = cost + case["r2"] / 2 * (slopes(on_fake, fake) ** 2).sum(1).mean()
    penalty = case.get("gradient_penalty", 10.0 if game == "wasserstein" else 0.0)
    if penalty:
        stream = chacha8(key(b"chance", SEED, step, 0, round, 2))
        mix = torch.tensor([uniform(stream) for _ in x]).view(-1, 1, 1, 1)
        between = (mix * x + (1 - mix) * fake).detach().requires_grad_()
        cost = cost + penalty * ((slopes(d(between), between).norm(dim=1) - 1) ** 2).mean()
    return cost, on_real, on_fake


def train(weights, pixels, case):
    g, d = Generator(), Discriminator(case.get("packing", 1))
    g.load_state_dict(weights["generator"], strict=False)
    d.load_state_dict(weights["packed_discriminator" if "packing" in case else "discriminator"])
    adam = {net: torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999)) for net in (g, d)}
    k, n = case.get("discriminator_steps", 1), case.get("generator_steps", 1)
    cost_g = GAMES[case["objective"]][1]
    out, losses, believed = {}, [], []

    def update(net, cost, retain=False):
        parameters = list(net.parameters())
        for p, grad in zip(parameters, torch.autograd.grad(cost, parameters, retain_graph=retain)):
            p.grad = grad
        return adam[net].step

    def generate(step, round, track=True):
        if track:
            return g(latents(step, round))
        kept = {key: value.clone() for key, value in g.state_dict().items() if "running" in key}
        fake = g(latents(step, round))
        g.load_state_dict(kept, strict=False)
        return fake

    for step in range(STEPS):
        for round in range(k):
            x = pixels[step, round * BATCH : (round + 1) * BATCH].float() / 127.5 - 1
            x = show(x, 0, case, step, round).detach().requires_grad_()
            # G's running statistics follow the fakes that it is updated by.
            fake = show(generate(step, round, track=round == k - 1), 1, case, step, round)
            if case.get("update") == "simultaneous":
                j_d, on_real, on_fake = cost_d(case, d, x, fake, step, round)
                j_g = cost_g(on_fake, on_real.detach())
                step_d = update(d, j_d, retain=True)
                step_g = update(g, j_g)
                step_d()
                step_g()
            else:
                seen = fake.detach().requires_grad_()
                j_d, on_real, on_fake = cost_d(case, d, x, seen, step, round)
                update(d, j_d)()
        for number in range(n if case.get("update") != "simultaneous" else 0):
            if number:
                round = k - 1 + number
                x = pixels[step, (k - 1) * BATCH : k * BATCH].float() / 127.5 - 1
                x = show(x, 0, case, step, round)
                fake = show(generate(step, round), 1, case, step, round)
            j_g = cost_g(d(fake), d(x).detach())
            update(g, j_g)()
        losses.append([j_d.item(), j_g.item()])
        believed.append([belief.item() for belief in beliefs(case["objective"], on_real, on_fake)])
        if step == 0:
            for name, net in (("generator", g), ("discriminator", d)):
                out[f"{name}.first"] = moments(net, adam[net])
    for name, net in (("generator", g), ("discriminator", d)):
        out[f"{name}.last"] = moments(net, adam[net])
    running = [value for name, value in g.state_dict().items() if "running" in name]
    out["running"] = digest(running)
    out["losses"] = torch.tensor(losses, dtype=torch.float64)
    out["beliefs"] = torch.tensor(believed, dtype=torch.float64)
    return out


def moments(net, optimizer):
    return digest([optimizer.state[p]["exp_avg"] for p in net.parameters()])


def digest(tensors):
    flat = torch.cat([t.flatten() for t in tensors]).double()
    projection = torch.dot(flat, torch.arange(len(flat), dtype=torch.float64).cos())
    return torch.stack([flat.norm(), projection / len(flat) ** 0.5])


ALL = ["color", "translation", "cutout"]
CASES = {game: {"objective": game} for game in GAMES}
CASES |= {f"{game}.simultaneous": {"objective": game, "update": "simultaneous"} for game in GAMES}
CASES |= {
    "r1": {"objective": "non-saturating", "r1": 2.0},
    "r2": {"objective": "non-saturating", "r2": 3.0},
    "r1_r2": {"objective": "relativistic", "r1": 1.0, "r2": 1.0, "update": "simultaneous"},
    "penalty": {"objective": "hinge", "gradient_penalty": 5.0},
    "penalty_off": {"objective": "wasserstein", "gradient_penalty": 0.0},
    "smoothing": {"objective": "minimax", "smoothing": 0.1},
    "smoothing_squares": {"objective": "least-squares", "smoothing": 0.2},
    "noise": {"objective": "non-saturating", "noise": (0.5, 2)},
    "augment": {"objective": "non-saturating", "augment": ALL},
    "packing": {"objective": "non-saturating", "packing": 2},
    "critic_steps": {"objective": "wasserstein", "discriminator_steps": 2},
    "generator_steps": {"objective": "relativistic", "generator_steps": 2},
    "all": {
        "objective": "relativistic",
        "r1": 1.0,
        "r2": 0.5,
        "gradient_penalty": 2.0,
        "noise": (0.3, 5),
        "augment": ALL,
        "packing": 2,
        "discriminator_steps": 2,
        "generator_steps": 3,
    },
}


def main():
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    networks = {
        "generator": Generator(),
        "discriminator": Discriminator(1),
        "packed_discriminator": Discriminator(2),
    }
    for net in networks.values():
        for name, p in net.named_parameters():
            # Wide enough for D to be far from flat.
            nn.init.normal_(p, 1.0 if p.dim() == 1 and "weight" in name else 0.0, 0.2)
    weights = {
        name: {key: p.detach().clone() for key, p in net.named_parameters()}
        for name, net in networks.items()
    }
    coarse = torch.randint(0, 256, (STEPS, 2 * BATCH, 1, 4, 4), dtype=torch.uint8)
    pixels = coarse.repeat_interleave(8, dim=3).repeat_interleave(8, dim=4)
    out = {"pixels": coarse}
    for name, tensors in weights.items():
        out |= {f"initial.{name}.{key}": value for key, value in tensors.items()}
    for name, case in CASES.items():
        found = train(weights, pixels, case)
        print(f"{name:28} {found['losses'].flatten().tolist()}")
        out |= {f"{name}.{key}": value for key, value in found.items()}
    save_file(out, HERE / "games.safetensors")


if __name__ == "__main__":
    main()
