"""The loops of diffusers' training examples (as of August 2026), rewritten over the classes of diffusers with the same
operations in the same order; fixes are listed in the docstrings."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.speed import machine, networks, training_loops
from latentdiff.autoencoder import discriminator, perceptual
from latentdiff.build import build_autoencoder, build_diffusion
from latentdiff.convert.diffusers import text_encoder
from latentdiff.recipe import AutoencoderRecipe, open_data
from latentdiff.stage_two.components import open_tokenizer
from latentdiff.training.distributed import SINGLE_PROCESS
from latentdiff.training.precision import autocast


class ImageFolder(Dataset):
    """pixel_values in [-1, 1] and the caption's tokens, with the transforms of the examples."""

    def __init__(self, folder: Path, pixels: int, tokenizer=None) -> None:
        self.paths, self.tokenizer = sorted(folder.glob("*.jpg")), tokenizer
        self.transform = transforms.Compose(
            [transforms.Resize(pixels), transforms.CenterCrop(pixels), transforms.ToTensor(),
             transforms.Normalize([0.5], [0.5])]
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        item = {"pixel_values": self.transform(Image.open(self.paths[i]).convert("RGB"))}
        if self.tokenizer is not None:
            item["input_ids"] = self.tokenizer.encode([self.paths[i].with_suffix(".txt").read_text()])[0]
        return item


def epochs(data: Dataset, batch: int) -> Iterator[dict[str, Tensor]]:
    loader = DataLoader(data, batch_size=batch, shuffle=True)  # dataloader_num_workers=0, the default of the examples
    while True:
        yield from loader


def text_to_image(record, size: str) -> None:
    """examples/text_to_image/train_text_to_image.py with --use_ema and, if this machine has bf16, --mixed_precision.

    Each step: encode the images, sample and scale; sample noise and t; add the noise; encode the captions; predict; MSE
    loss; read it for the log; backward; gradient clipping; AdamW; zero_grad; EMA. Autoencoder and text encoder are
    frozen and have their weights in the type of the mixed precision.
    """
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel

    record.reset_memory()
    s, device, dtype = training_loops.sizes()[size], machine.device(), machine.dtype()
    folder = training_loops.write_images(Path(tempfile.mkdtemp()), s)
    r = training_loops.text_recipe(s, folder)
    tokenizer = open_tokenizer(r, folder, open_data(r, "train"), SINGLE_PROCESS, print)
    frozen = build_autoencoder(AutoencoderRecipe(autoencoder=s.frozen))
    model = networks.randomize_zeros(build_diffusion(r, frozen, tokenizer))
    vae = networks.diffusers_autoencoder(frozen, s.pixels).to(device, dtype).requires_grad_(False)
    side = s.pixels // frozen.factor
    unet = networks.diffusers_unet(model.unet, (4, side, side)).to(device).train()
    text_encoder = bert(model.conditioner.parts[0], s.text, tokenizer.pad_id).to(device, dtype).requires_grad_(False)
    noise_scheduler = DDPMScheduler(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear")
    ema = EMAModel(unet.parameters(), decay=r.train.ema_decay)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=r.train.lr, weight_decay=r.train.weight_decay)
    for batch in epochs(ImageFolder(folder, s.pixels, tokenizer), s.text_batch):
        with torch.no_grad():
            latents = vae.encode(batch["pixel_values"].to(device, dtype)).latent_dist.sample()
        latents = latents * vae.config.scaling_factor
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (len(latents),), device=device)
        noisy_latents = noise_scheduler.add_noise(latents, noise, timesteps)
        with torch.no_grad():
            encoder_hidden_states = text_encoder(batch["input_ids"].to(device))[0]
        with autocast(device, dtype):
            model_pred = unet(noisy_latents, timesteps, encoder_hidden_states).sample
        loss = F.mse_loss(model_pred.float(), noise.float())
        train_loss = loss.item()
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), r.train.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())
        record(loss=train_loss)


def bert(part: nn.Module, text, pad_id: int) -> nn.Module:
    """LDMBertModel with the weights of a Text condition."""
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    options, weights = text_encoder.to_diffusers(text, part.state_dict(), pad_id)
    model = LDMBertModel(LDMBertConfig(**{k: v for k, v in options.items() if k != "architectures"}))
    model.load_state_dict(weights, strict=False)  # to_logits is not used
    return model.eval()


def autoencoder(record, size: str) -> None:
    """examples/research_projects/autoencoderkl/train_autoencoderkl.py with --use_ema, L1 and the hinge loss.

    The images of every batch are encoded, sampled and decoded. Even batches train the autoencoder (L1 and LPIPS, KL, -D
    of the result, the adaptive weight from two gradients of the last layer, backward, gradient clipping, AdamW), odd
    batches the discriminator; the EMA is updated after each. A repeat is one of each: an update of both networks.

    Fixed: LPIPS has a gradient (in the example it is under no_grad); the discriminator's optimizer step is done, on
    detached images and with the gradients of the autoencoder's step cleared; weights stay in float32 under autocast (in
    the example they are cast). The example uses a discriminator and LPIPS of other projects; here both libraries use
    those of latentdiff.
    """
    from diffusers.training_utils import EMAModel

    record.reset_memory()
    s, device, dtype = training_loops.sizes()[size], machine.device(), machine.dtype()
    folder = training_loops.write_images(Path(tempfile.mkdtemp()), s)
    r = training_loops.autoencoder_recipe(s, folder)
    vae = networks.diffusers_autoencoder(build_autoencoder(r), s.pixels).to(device).train()
    disc = discriminator.Discriminator(s.discriminator).to(device)
    lpips = perceptual.build(r.loss.perceptual).to(device)
    ema = EMAModel(vae.parameters(), decay=r.train.ema_decay)
    settings = {"lr": r.train.lr, "betas": r.train.betas, "weight_decay": r.train.weight_decay}
    optimizer, disc_optimizer = (torch.optim.AdamW(m.parameters(), **settings) for m in (vae, disc))
    nll = 0.0
    for step, batch in enumerate(epochs(ImageFolder(folder, s.pixels), s.autoencoder_batch)):
        targets = batch["pixel_values"].to(device)
        with autocast(device, dtype):
            posterior = vae.encode(targets).latent_dist
            reconstructions = vae.decode(posterior.sample()).sample
        if step % 2 == 0:
            with autocast(device, dtype):
                nll_loss = generator_nll(reconstructions, targets, lpips, r.loss.perceptual.weight)
                kl_loss = posterior.kl().sum() / len(targets)
                g_loss = -disc(reconstructions).mean()
            last_layer = vae.decoder.conv_out.weight
            nll_grads, g_grads = (torch.autograd.grad(x, last_layer, retain_graph=True)[0] for x in (nll_loss, g_loss))
            disc_weight = (nll_grads.norm() / (g_grads.norm() + 1e-4)).clamp(0, 1e4).detach() * s.discriminator.weight
            loss = nll_loss + r.autoencoder.bottleneck.weight * kl_loss + disc_weight * g_loss
            nll = nll_loss.item()
            loss.backward()
            nn.utils.clip_grad_norm_(vae.parameters(), r.train.grad_clip)
            optimizer.step()
            optimizer.zero_grad()
        else:
            disc_optimizer.zero_grad()
            with autocast(device, dtype):
                disc_loss = discriminator.hinge(disc(targets), disc(reconstructions.detach()))
            disc_loss.item()
            disc_loss.backward()
            nn.utils.clip_grad_norm_(disc.parameters(), r.train.grad_clip)
            disc_optimizer.step()
        ema.step(vae.parameters())
        if step % 2 == 1:
            record(nll=nll)


def generator_nll(reconstructions: Tensor, targets: Tensor, lpips: nn.Module, weight: float) -> Tensor:
    """The absolute error plus the perceptual distance at every pixel, summed over an image: the batch mean."""
    rec_loss = F.l1_loss(reconstructions.float(), targets.float(), reduction="none")
    rec_loss = rec_loss + weight * lpips(reconstructions, targets)
    return rec_loss.sum() / len(targets)
