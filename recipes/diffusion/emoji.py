"""Text to emoji at 64 x 64: half an hour on one CPU core with AMX.

The data has train/, val/ and test/, each with a metadata.jsonl; set data.path to your own folder.
"""

from latentdiff.conditioning.text import TextConfig
from latentdiff.data.folder import FolderConfig
from latentdiff.diffusion.loss import ObjectiveConfig
from latentdiff.diffusion.sampling_config import SamplingConfig
from latentdiff.diffusion.schedule import ScheduleConfig
from latentdiff.diffusion.unet import UNetConfig
from latentdiff.recipe import DiffusionRecipe
from latentdiff.training.settings import TrainConfig

recipe = DiffusionRecipe(
    autoencoder="emoji-autoencoder",
    data=FolderConfig(path="data/emoji", size=64, caption="text_long"),
    conditions=(TextConfig(dim=128, depth=3, heads=4, head_dim=32, max_length=48, vocab_size=2000),),
    unet=UNetConfig(
        channels=64,
        channel_mult=(1, 2, 3),
        num_res_blocks=1,
        attention_levels=(1, 2),
        head_channels=32,
        norm_groups=16,
    ),
    schedule=ScheduleConfig(kind="flow", snr_shift=3.0),  # colour and outline are decided at high noise levels
    objective=ObjectiveConfig(prediction="flow", timestep_sampling="logit_normal"),
    train=TrainConfig(
        steps=4000,
        batch_size=16,
        optimizer="muon",  # the text gap is larger after 3,000 steps than with AdamW after 9,000
        lr=2e-3,
        lr_schedule="linear",
        lr_decay_start=0.7,
        warmup_steps=100,
        betas=(0.9, 0.99),
        ema_decay=0.99,
        log_every=50,
        val_every=500,
        sample_every=1000,
        checkpoint_every=500,
    ),
    sampling=SamplingConfig(steps=25, guidance_scale=4.0),
    preview_prompts=(
        "a flat illustration of a red apple (apple, fruit, red), mostly red and green",
        "a 3d render of a red apple (apple, fruit, red), mostly red",
        "a cartoon sticker of a cat face (cat, face, pet), mostly orange",
        "a black and white icon of a cat face (cat, face, pet), mostly black",
        "a gradient illustration of a car (automobile), mostly blue",
        "a 3d render of a house (building, home), mostly orange and brown",
        "a flat illustration of a tree (forest), mostly green",
        "a cartoon sticker of a smiling face (face, smile), mostly yellow",
    ),
)
