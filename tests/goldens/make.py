"""Writes the golden files that tests/parity.rs compares with.

    python tests/goldens/make.py            # needs torch 2.11, numpy, safetensors

The networks, their initialisation and the optimizer are those of PyTorch's DCGAN example
(pytorch/examples, dcgan/main.py), at 32x32 with one doubling stage less; D ends in logits, and the
losses are written with softplus, which is what BCELoss on a sigmoid computes. Latents are drawn as
Ganglion draws them: a CPU generator seeded from SHA-256 of the key (src/random.rs).

inputs.safetensors   initial weights, ten steps of pixels (uint8) and latents, forward outputs
<update>_<objective>.safetensors    losses of ten steps, gradients of the first, state after ten
two_replicas_<update>.safetensors   losses of ten steps and the state after them for two replicas:
                                    mean gradients, batch norm a replica, running statistics moved
                                    by the mean of the replicas' statistics
"""

import hashlib
import pathlib
import struct

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

NZ, NGF, NDF, NC, BATCH, STEPS, SEED = 8, 8, 8, 3, 8, 10, 5
HERE = pathlib.Path(__file__).parent


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(NZ, NGF * 4, 4, 1, 0, bias=False),
            nn.BatchNorm2d(NGF * 4),
            nn.ReLU(True),
            nn.ConvTranspose2d(NGF * 4, NGF * 2, 4, 2, 1, bias=False),
            nn.BatchNorm2d(NGF * 2),
            nn.ReLU(True),
            nn.ConvTranspose2d(NGF * 2, NGF, 4, 2, 1, bias=False),
            nn.BatchNorm2d(NGF),
            nn.ReLU(True),
            nn.ConvTranspose2d(NGF, NC, 4, 2, 1, bias=False),
            nn.Tanh(),
        )

    def forward(self, z):
        return self.main(z)


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(NC, NDF, 4, 2, 1, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(NDF, NDF * 2, 4, 2, 1, bias=False),
            nn.BatchNorm2d(NDF * 2),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(NDF * 2, NDF * 4, 4, 2, 1, bias=False),
            nn.BatchNorm2d(NDF * 4),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(NDF * 4, 1, 4, 1, 0, bias=False),
        )

    def forward(self, x):
        return self.main(x).view(-1)


def weights_init(m):
    name = m.__class__.__name__
    if "Conv" in name:
        nn.init.normal_(m.weight, 0.0, 0.02)
    elif "BatchNorm" in name:
        nn.init.normal_(m.weight, 1.0, 0.02)
        nn.init.zeros_(m.bias)


def latents(step, replica):
    key = hashlib.sha256(b"ganglion key 1\0latents\0" + struct.pack("<3Q", SEED, step, replica))
    seed = struct.unpack("<Q", key.digest()[:8])[0]
    seed = seed - (1 << 64) if seed >= 1 << 63 else seed
    return torch.empty(BATCH, NZ).normal_(generator=torch.Generator().manual_seed(seed))


def cost_d(real, fake):
    return F.softplus(-real).mean() + F.softplus(fake).mean()


COST_G = {
    "minimax": lambda s: -F.softplus(s).mean(),
    "non-saturating": lambda s: F.softplus(-s).mean(),
    "maximum-likelihood": lambda s: -s.exp().mean(),
}


def images(pixels):
    return pixels.float() / 127.5 - 1


def adam(net):
    return torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999))


def clone(weights):
    g, d = Generator(), Discriminator()
    for name, net in (("generator", g), ("discriminator", d)):
        own = {k[len(name) + 1 :]: v for k, v in weights.items() if k.startswith(name + ".")}
        net.load_state_dict(own)
    return g, d


def gradients(net):
    return [p.grad.clone() for p in net.parameters()]


def train(weights, inputs, update, objective, replicas):
    """Ten steps. With one replica, line for line the example's loop."""
    g, d = clone(weights)
    opt_g, opt_d = adam(g), adam(d)
    out, losses = {}, []
    for step in range(STEPS):
        batches = [
            (images(inputs[f"pixels.{r}"][step]), inputs[f"latents.{r}"][step].view(BATCH, NZ, 1, 1))
            for r in range(replicas)
        ]
        players = Replicas(g, d, replicas)
        loss_d = loss_g = 0.0
        fakes, grad_d, grad_g = [], [], []
        for r, (x, z) in enumerate(batches):
            g_r, d_r = players.of[r]
            d.zero_grad()
            fake = g_r(z)
            real_logits = d_r(x)
            fake_logits = d_r(fake.detach() if update == "alternating" else fake)
            j_d = cost_d(real_logits, fake_logits)
            j_d.backward(inputs=list(d.parameters()), retain_graph=update == "simultaneous")
            grad_d.append(gradients(d))
            loss_d += j_d.item() / replicas
            if update == "simultaneous":
                g.zero_grad()
                j_g = COST_G[objective](fake_logits)
                j_g.backward(inputs=list(g.parameters()))
                grad_g.append(gradients(g))
                loss_g += j_g.item() / replicas
            fakes.append(fake)
        apply(d, opt_d, grad_d, out, "discriminator", step)
        if update == "alternating":
            for r, fake in enumerate(fakes):
                g.zero_grad()
                j_g = COST_G[objective](players.of[r][1](fake))
                j_g.backward(inputs=list(g.parameters()))
                grad_g.append(gradients(g))
                loss_g += j_g.item() / replicas
        apply(g, opt_g, grad_g, out, "generator", step)
        players.merge()
        losses.append([loss_d, loss_g])
    out["losses"] = torch.tensor(losses, dtype=torch.float64)
    for name, net in (("generator", g), ("discriminator", d)):
        for key, value in net.state_dict().items():
            out[f"after.{name}.{key}"] = value.clone()
    return out


def apply(net, optimizer, grads, out, name, step):
    """One Adam step with the mean gradient."""
    for (key, parameter), *of in zip(net.named_parameters(), *grads):
        parameter.grad = sum(of) / len(of)
        if step == 0:
            out[f"gradient.{name}.{key}"] = parameter.grad.clone()
    optimizer.step()


class Replicas:
    """Replicas of the networks: the same parameters, buffers of their own. Moving running statistics
    is linear, so the mean of the replicas' is what the mean of their batch statistics makes of the
    start. With one replica the networks themselves are used, as in the example."""

    def __init__(self, g, d, count):
        self.of = [(g, d)]
        if count > 1:
            self.of = [(share(g), share(d)) for _ in range(count)]
        self.networks = (g, d)

    def merge(self):
        if len(self.of) == 1:
            return
        for index, network in enumerate(self.networks):
            copies = [replica[index].buffers() for replica in self.of]
            for buffer, *parts in zip(network.buffers(), *copies):
                if buffer.dtype == torch.int64:
                    buffer.copy_(parts[0])
                else:
                    buffer.copy_(sum(parts) / len(parts))


def share(network):
    """A copy with the very same parameters."""
    other = type(network)()
    other.load_state_dict(network.state_dict())
    for own, module in zip(network.modules(), other.modules()):
        for name, parameter in own._parameters.items():
            module._parameters[name] = parameter
    return other


def drop(tensors, prefix):
    for name in [name for name in tensors if name.startswith(prefix)]:
        del tensors[name]


def main():
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    g, d = Generator(), Discriminator()
    g.apply(weights_init)
    d.apply(weights_init)
    weights = {f"generator.{k}": v.clone() for k, v in g.state_dict().items()}
    weights |= {f"discriminator.{k}": v.clone() for k, v in d.state_dict().items()}
    inputs = dict(weights)
    for r in range(2):
        # Coarse blocks of colour, so that there is something to learn and the file packs well.
        coarse = torch.randint(0, 256, (STEPS, BATCH, NC, 4, 4), dtype=torch.uint8)
        coarse = coarse.repeat_interleave(8, dim=3).repeat_interleave(8, dim=4)
        inputs[f"pixels.{r}"] = coarse
        inputs[f"latents.{r}"] = torch.stack([latents(step, r) for step in range(STEPS)])
    fake = g(inputs["latents.0"][0].view(BATCH, NZ, 1, 1))
    inputs["forward.images"] = fake.detach()
    inputs["forward.logits_real"] = d(images(inputs["pixels.0"][0])).detach()
    inputs["forward.logits_fake"] = d(fake).detach()
    # Stored 4x4; the test enlarges them as above.
    stored = {k: v[..., ::8, ::8].contiguous() if k.startswith("pixels") else v for k, v in inputs.items()}
    save_file(stored, HERE / "inputs.safetensors")
    for update in ("alternating", "simultaneous"):
        for objective in COST_G:
            out = train(weights, inputs, update, objective, 1)
            if objective != "non-saturating":
                # J_D is the same in all games, and so is its first gradient.
                drop(out, "gradient.discriminator")
            save_file(out, HERE / f"{update}_{objective}.safetensors")
        out = train(weights, inputs, update, "non-saturating", 2)
        drop(out, "gradient")
        save_file(out, HERE / f"two_replicas_{update}.safetensors")


if __name__ == "__main__":
    main()
