"""What a recipe builds: the networks, the tokenizer, and what of a run they leave in its folder."""

import datetime
from pathlib import Path

import torch
from torch import nn

from latentdiff import config
from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.conditioning.conditioner import Conditioner
from latentdiff.conditioning.label import LabelCondition, LabelConfig
from latentdiff.conditioning.layout import LayoutCondition, LayoutConfig
from latentdiff.conditioning.precomputed import PrecomputedCondition, PrecomputedConfig
from latentdiff.conditioning.spatial import (
    LowResCondition,
    LowResConfig,
    MaskedCondition,
    MaskedConfig,
    SemanticCondition,
    SemanticConfig,
)
from latentdiff.conditioning.text import TextCondition, TextConfig
from latentdiff.config import UserError
from latentdiff.data.degrade import DegradeConfig
from latentdiff.data.tokenizer import CaptionTokenizer, load_tokenizer, train_wordpiece
from latentdiff.diffusion.alignment import Alignment
from latentdiff.diffusion.schedule import Schedule
from latentdiff.diffusion.unet import UNet
from latentdiff.model import LatentDiffusion
from latentdiff.recipe import AutoencoderRecipe, Condition, DiffusionRecipe, size_of
from latentdiff.training import checkpoint, run_dir
from latentdiff.training.distributed import World


def build_autoencoder(recipe: AutoencoderRecipe) -> Autoencoder:
    """The autoencoder with weights initialised from the recipe's seed."""
    torch.manual_seed(recipe.train.seed)
    autoencoder = Autoencoder(recipe.autoencoder)
    if recipe.freeze_encoder:
        if not recipe.init:
            raise UserError("freeze_encoder is true, but init is empty: name the run whose encoder stays (init=RUN)")
        for part in (autoencoder.encoder, autoencoder.quant_conv, autoencoder.quantize):
            part.requires_grad_(False)
    return autoencoder


def build_diffusion(
    recipe: DiffusionRecipe, autoencoder: Autoencoder, tokenizer: CaptionTokenizer | None
) -> LatentDiffusion:
    """The denoiser with weights initialised from the recipe's seed; of the autoencoder it knows the four names only."""
    torch.manual_seed(recipe.train.seed)
    conditioner = Conditioner([_build_condition(c, recipe, autoencoder, tokenizer) for c in recipe.conditions])
    z_channels = autoencoder.z_channels
    unet = UNet(
        recipe.unet, z_channels + conditioner.concat_channels, z_channels,
        conditioner.context_dim or None, conditioner.vector_dim or None,
    )  # fmt: skip
    unet.check(*(side // autoencoder.factor for side in size_of(recipe)))
    model = LatentDiffusion(conditioner, unet, Schedule(recipe.schedule), recipe.objective)
    if recipe.align is not None:
        model.alignment = Alignment(recipe.align, recipe.unet.channels * recipe.unet.channel_mult[-1])
    model.check(recipe.sampling)
    model.sampling = recipe.sampling
    return model


def _build_condition(
    condition: Condition, recipe: DiffusionRecipe, autoencoder: Autoencoder, tokenizer: CaptionTokenizer | None
) -> nn.Module:
    factor = autoencoder.factor
    builders = {
        TextConfig: lambda: TextCondition(condition, tokenizer.pad_id, tokenizer.empty),
        LabelConfig: lambda: LabelCondition(condition),
        LayoutConfig: lambda: LayoutCondition(condition),
        SemanticConfig: lambda: SemanticCondition(condition, factor),
        LowResConfig: lambda: LowResCondition(condition, scale_of(recipe) / factor),
        MaskedConfig: lambda: MaskedCondition(
            condition, autoencoder.z_channels, factor, lambda x: autoencoder.encode(x)
        ),
        PrecomputedConfig: lambda: PrecomputedCondition(condition),
    }
    return builders[type(condition)]()


def scale_of(recipe: DiffusionRecipe) -> int:
    """How many times larger than low_res the pictures are; 1 where none is read."""
    scale = next((field.scale for field in recipe.derived_fields if isinstance(field, DegradeConfig)), 1)
    height, width = size_of(recipe)
    if height % scale or width % scale:
        raise UserError(f"Degrade's scale is {scale}; it must divide the sides of the pictures, {width}x{height}")
    return scale


def init_run(recipe: AutoencoderRecipe | DiffusionRecipe) -> Path:
    """The folder of the run that this one starts from, which must be of the same stage."""
    folder = run_dir.find_run(recipe.init)
    run_dir.read_recipe(folder, type(recipe))
    return folder


def open_tokenizer(recipe: DiffusionRecipe, folder: Path, data, world: World, say) -> CaptionTokenizer | None:
    """The run's tokenizer: its own copy, or trained on the captions, or from the file that the recipe names."""
    text = next((c for c in recipe.conditions if isinstance(c, TextConfig)), None)
    if text is None:
        return None
    path = folder / "tokenizer.json"

    def make() -> bytes:
        if path.exists():
            return path.read_bytes()
        theirs = init_run(recipe) / "tokenizer.json" if recipe.init else path
        if theirs.exists() and not text.tokenizer:
            return theirs.read_bytes()  # what its tokens mean has been learned
        captions = data.captions()
        if not captions:
            raise UserError(f"conditions has Text, but {getattr(recipe.data, 'path', 'the data')} has no captions")
        made = load_tokenizer(text.tokenizer) if text.tokenizer else train_wordpiece(captions, text.vocab_size)
        tokenizer = CaptionTokenizer(made, text.max_length)
        _say_what_is_cut(tokenizer, captions, say)
        return tokenizer.to_bytes()

    content = world.share("tokenizer", make)
    tokenizer = CaptionTokenizer.from_bytes(content, text.max_length)
    if tokenizer.vocab_size > text.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, more than conditions' vocab_size={text.vocab_size}"
        )
    if long := tokenizer.too_long(recipe.preview_prompts):  # refused, not cut
        raise UserError(
            f"preview has {long[0][0]!r}, {long[0][1]} tokens to this tokenizer, but the model reads at most "
            f"{text.max_length - 2}; preview= draws captions of the held-out pictures instead"
        )
    return tokenizer


def _say_what_is_cut(tokenizer: CaptionTokenizer, captions: list[str], say, limit: int = 20_000) -> None:
    """How many captions are too long for the model, of all or of `limit` spread evenly."""
    some = captions[:: -(-len(captions) // limit)]
    long = tokenizer.too_long(some)
    if long:
        most = max(count for _, count in long) + 2
        say(
            f"WARNING: {len(long):,} of {len(some):,} captions have more tokens than conditions' "
            f"length={tokenizer.length} holds and lose their end in training; length={most} would hold all of them"
        )


def keep_parts(
    folder: Path, autoencoder: Autoencoder, first_stage: AutoencoderRecipe, tokenizer: CaptionTokenizer | None, data
) -> None:
    """Put the frozen autoencoder, the tokenizer and the names of the data's classes into the run's folder, which is
    then all that sample.py needs."""
    own = folder / "autoencoder"
    own.mkdir(exist_ok=True)
    checkpoint.write_json(own / "recipe.json", config.to_dict(first_stage))
    checkpoint.write_tensors(own / "model.safetensors", autoencoder.state_dict())
    if tokenizer is not None:
        tokenizer.save(folder / "tokenizer.json")
    names = {"label": getattr(data, "label_names", []), "boxes": getattr(data, "category_names", [])}
    checkpoint.write_json(folder / "classes.json", {field: list(found) for field, found in names.items() if found})


def choose_statistics(recipe: DiffusionRecipe, autoencoder: Autoencoder, measured, say) -> None:
    """Compare the autoencoder's own statistics with those measured on this data while caching (mean, variance [C]).

    autoencoder.latent_stats = data puts the measured ones into the run's own copy, identity puts 0 and 1.
    """
    wanted = recipe.autoencoder.latent_stats
    if wanted == "identity":
        autoencoder.set_statistics(0.0, 1.0)
    elif measured is None:
        if wanted == "data":
            raise UserError("autoencoder.latent_stats=data is measured while caching; it needs cache.enabled=true")
        return
    elif wanted == "data":
        mean, variance = (torch.from_numpy(m).float() for m in measured)
        autoencoder.set_statistics(mean, variance.rsqrt())
    else:
        variance = torch.from_numpy(measured[1]) * autoencoder.scale.flatten().double().cpu() ** 2
        ratio = variance.mean().sqrt().item()
        if not 0.8 <= ratio <= 1.25:
            say(
                f"WARNING: the latents of this data have a standard deviation of {ratio:.2f} after normalisation, "
                f"where 1 is right; autoencoder.latent_stats=data would normalise by this data"
            )


PREDICTIONS = {"eps": "epsilon", "v": "v", "x0": "sample", "flow": "flow"}  # ours -> ModelSpec's


def weights_metadata(recipe: AutoencoderRecipe | DiffusionRecipe, step: int, autoencoder_hash: str) -> dict[str, str]:
    """The metadata of a run's weights after `step` steps; autoencoder_hash: Autoencoder.weights_hash()."""
    two = isinstance(recipe, DiffusionRecipe)
    height, width = size_of(recipe)
    facts = {
        "latentdiff.recipe": config.hash_of(recipe),
        "latentdiff.step": str(step),
        "latentdiff.autoencoder": autoencoder_hash,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "latent-diffusion" if two else "latent-diffusion/autoencoder",
        "modelspec.implementation": "latentdiff",
        "modelspec.title": recipe.name,
        "modelspec.resolution": f"{width}x{height}",
        "modelspec.date": datetime.date.today().isoformat(),
    }
    return facts | ({"modelspec.prediction_type": PREDICTIONS[recipe.objective.prediction]} if two else {})
