"""The two recipes, what they build, and how a finished run is loaded."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from latentdiff import config
from latentdiff.autoencoder.autoencoder import Autoencoder, AutoencoderConfig
from latentdiff.autoencoder.discriminator import DiscriminatorConfig
from latentdiff.autoencoder.loss import LossConfig
from latentdiff.conditioning.conditioner import Conditioner
from latentdiff.conditioning.label import Label, LabelCondition
from latentdiff.conditioning.text import Text, TextCondition
from latentdiff.config import UserError
from latentdiff.data.cache import Cache
from latentdiff.data.folder import Folder, FolderDataset
from latentdiff.data.loader import First
from latentdiff.data.picture import BadList
from latentdiff.data.shapes import Shapes, ShapesDataset
from latentdiff.data.tokenizer import CaptionTokenizer, load_tokenizer, train_wordpiece
from latentdiff.diffusion.schedule import Schedule, ScheduleConfig
from latentdiff.diffusion.unet import UNet, UNetConfig
from latentdiff.latent_diffusion import LatentDiffusion, Objective, Sampling
from latentdiff.training import checkpoint, run
from latentdiff.training.settings import Train
from latentdiff.training.world import World

DATASETS = {Shapes: ShapesDataset, Folder: FolderDataset}


@dataclass(frozen=True)
class AutoencoderRecipe:
    """Stage one: what to train the autoencoder on, and how."""

    name: str = ""  # the run's folder; empty: the recipe file's name with -autoencoder after it
    data: Shapes | Folder = Shapes()  # the pictures
    autoencoder: AutoencoderConfig = AutoencoderConfig()  # the network
    loss: LossConfig = LossConfig()  # of the reconstruction
    discriminator: DiscriminatorConfig | None = DiscriminatorConfig()  # the adversary; none: train without
    statistics: str = "scalar"  # how latents are normalised: scalar (one number, as the original) or channel
    train: Train = Train(betas=(0.5, 0.9), lr=1e-4, weight_decay=0.0, clip=0.0)  # the loop

    def named(self, stem: str) -> "AutoencoderRecipe":
        return self if self.name else replace(self, name=f"{stem}-autoencoder")


@dataclass(frozen=True)
class FrozenAutoencoder:
    path: str = ""  # a stage-one run (folder or name), or an autoencoder recipe (.py), which is used untrained
    statistics: str = "run"  # of the latents: run (its own), data (measured on this data) or identity (0 and 1)


@dataclass(frozen=True)
class DiffusionRecipe:
    """Stage two: what to train the denoiser on, in which latent space, with which conditions, and how."""

    name: str = ""  # the run's folder; empty: the recipe file's name
    autoencoder: FrozenAutoencoder | str = FrozenAutoencoder()  # the frozen first stage
    data: Shapes | Folder = Shapes()  # the pictures and their captions
    cache: Cache = Cache()  # of the latents
    conditions: tuple[Text | Label, ...] = ()  # what the U-Net is told
    unet: UNetConfig = UNetConfig()  # the denoiser
    schedule: ScheduleConfig = ScheduleConfig()  # signal and noise over time
    objective: Objective = Objective()  # what is predicted, and how errors weigh
    train: Train = Train()  # the loop
    sampling: Sampling = Sampling()  # defaults of sample.py, and of the pictures drawn while training
    preview: tuple[str, ...] = ()  # captions drawn every train.sample_every steps; empty: some of the validation data

    def __post_init__(self) -> None:
        if isinstance(self.autoencoder, str):
            object.__setattr__(self, "autoencoder", FrozenAutoencoder(self.autoencoder))
        if self.autoencoder.statistics not in ("run", "data", "identity"):
            raise UserError(
                f"autoencoder.statistics is {self.autoencoder.statistics!r}; it must be run, data or identity"
            )

    def named(self, stem: str) -> "DiffusionRecipe":
        return self if self.name else replace(self, name=stem)


def open_data(recipe: AutoencoderRecipe | DiffusionRecipe, split: str):
    """The data set of a recipe: "train", "val" or "test"; with --overfit all are the same few items."""
    dataset = DATASETS[type(recipe.data)]
    if recipe.train.overfit:
        return First(dataset(recipe.data, "train"), recipe.train.overfit)
    return dataset(recipe.data, split)


def bad_list(recipe: AutoencoderRecipe | DiffusionRecipe, folder: Path, data) -> BadList:
    """The pictures of a run that cannot be read, listed in its folder."""
    return BadList(folder / "bad_pictures.jsonl", len(data), getattr(recipe.data, "max_bad", 1.0))


def build_autoencoder(recipe: AutoencoderRecipe) -> Autoencoder:
    """The autoencoder with weights initialised from the recipe's seed."""
    torch.manual_seed(recipe.train.seed)
    return Autoencoder(recipe.autoencoder)


def build_diffusion(recipe: DiffusionRecipe, z_channels: int, tokenizer: CaptionTokenizer | None) -> LatentDiffusion:
    """The denoiser with weights initialised from the recipe's seed."""
    torch.manual_seed(recipe.train.seed)
    conditioner = Conditioner([_build_condition(c, tokenizer) for c in recipe.conditions])
    unet = UNet(
        recipe.unet, z_channels + conditioner.concat_channels, z_channels,
        conditioner.context_dim or None, conditioner.vector_dim or None,
    )  # fmt: skip
    model = LatentDiffusion(conditioner, unet, Schedule(recipe.schedule), recipe.objective)
    model.check(recipe.sampling)
    model.sampling = recipe.sampling
    return model


def _build_condition(condition: Text | Label, tokenizer: CaptionTokenizer | None):
    if isinstance(condition, Text):
        return TextCondition(condition, tokenizer.pad_id, tokenizer.empty)
    return LabelCondition(condition)


def open_tokenizer(recipe: DiffusionRecipe, folder: Path, data, world: World, say) -> CaptionTokenizer | None:
    """The run's tokenizer: its own copy, or trained on the captions, or from the file that the recipe names."""
    text = next((c for c in recipe.conditions if isinstance(c, Text)), None)
    if text is None:
        return None
    path = folder / "tokenizer.json"

    def make() -> bytes:
        if path.exists():
            return path.read_bytes()
        captions = data.captions()
        if not captions:
            raise UserError(f"conditions has Text, but {getattr(recipe.data, 'path', 'the data')} has no captions")
        made = load_tokenizer(text.tokenizer) if text.tokenizer else train_wordpiece(captions, text.vocab_size)
        tokenizer = CaptionTokenizer(made, text.length)
        _say_what_is_cut(tokenizer, captions, say)
        return tokenizer.to_bytes()

    content = world.share("tokenizer", make)
    tokenizer = CaptionTokenizer.from_bytes(content, text.length)
    if tokenizer.vocab_size > text.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, more than conditions' vocab_size={text.vocab_size}"
        )
    tokenizer.encode(recipe.preview, strict=True)  # a caption of ours that is too long is refused, not cut
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


def open_autoencoder(recipe: DiffusionRecipe, folder: Path, world: World, say) -> tuple[Autoencoder, AutoencoderRecipe]:
    """The frozen autoencoder of a diffusion run and its recipe: the run's own copy, or from where the recipe says."""
    own, source = folder / "autoencoder", recipe.autoencoder.path
    if (own / "model.safetensors").exists():
        first_stage, autoencoder = run.read_recipe(own, AutoencoderRecipe), load_autoencoder(own)
    elif not source:
        raise UserError(
            "autoencoder is empty; name a stage-one run (autoencoder=runs/NAME) or an autoencoder recipe (.py)"
        )
    elif source.endswith(".py"):
        first_stage = config.read_recipe(source, AutoencoderRecipe)
        autoencoder, seed = build_autoencoder(first_stage), first_stage.train.seed
        say(f"WARNING: {source} is a recipe, not a run: the autoencoder is UNTRAINED, initialised from seed {seed}")
    else:
        path = run.find_run(source)
        first_stage, autoencoder = run.read_recipe(path, AutoencoderRecipe), load_autoencoder(path)
    return autoencoder.to(world.device).eval().requires_grad_(False), first_stage


def keep_parts(
    folder: Path, autoencoder: Autoencoder, first_stage: AutoencoderRecipe, tokenizer: CaptionTokenizer | None
) -> None:
    """Put the frozen autoencoder and the tokenizer into the run's folder, which is then all that sample.py needs."""
    own = folder / "autoencoder"
    own.mkdir(exist_ok=True)
    checkpoint.write_json(own / "recipe.json", config.to_dict(first_stage))
    checkpoint.write_tensors(own / "model.safetensors", autoencoder.state_dict())
    if tokenizer is not None:
        tokenizer.save(folder / "tokenizer.json")


def choose_statistics(recipe: DiffusionRecipe, autoencoder: Autoencoder, measured, say) -> None:
    """Compare the autoencoder's own statistics with those measured on this data while caching (mean, variance [C]).

    autoencoder.statistics = data puts the measured ones into the run's own copy, identity puts 0 and 1.
    """
    wanted = recipe.autoencoder.statistics
    if wanted == "identity":
        autoencoder.set_statistics(0.0, 1.0)
    elif measured is None:
        if wanted == "data":
            raise UserError("autoencoder.statistics=data is measured while caching; it needs cache.enabled=true")
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
                f"where 1 is right; autoencoder.statistics=data would normalise by this data"
            )


# ---- loading


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """The weights to use of a run: the finished model's, or the EMA's of its newest checkpoint."""
    if (folder / "model.safetensors").is_file():
        return checkpoint.read_tensors(folder / "model.safetensors")
    checkpoints = checkpoint.list_checkpoints(folder / "checkpoints")
    if not checkpoints:
        raise UserError(f"run {folder} has no weights yet; train it until its first checkpoint")
    return checkpoint.read_tensors(checkpoints[-1] / "ema.safetensors")


def load_autoencoder(folder: Path) -> Autoencoder:
    """A stage-one run's autoencoder."""
    recipe = run.read_recipe(folder, AutoencoderRecipe)
    autoencoder = Autoencoder(recipe.autoencoder)
    _load(autoencoder, weights_of(folder), folder)
    return autoencoder.eval()


def load_run(path: str | Path, device: str | torch.device = "cpu") -> LatentDiffusion | Autoencoder:
    """A trained run as a model: a LatentDiffusion with its autoencoder and tokenizer, or an Autoencoder."""
    folder = run.find_run(path)
    recipe = run.read_recipe(folder, DiffusionRecipe, AutoencoderRecipe)
    if isinstance(recipe, AutoencoderRecipe):
        return load_autoencoder(folder).to(device)
    text = next((c for c in recipe.conditions if isinstance(c, Text)), None)
    tokenizer = CaptionTokenizer(load_tokenizer(folder / "tokenizer.json"), text.length) if text else None
    autoencoder = load_autoencoder(folder / "autoencoder")
    model = build_diffusion(recipe, autoencoder.z_channels, tokenizer)
    _load(model, weights_of(folder), folder)
    model.autoencoder, model.tokenizer = autoencoder, tokenizer
    model.size = size_of(recipe)
    return model.eval().requires_grad_(False).to(device)


def size_of(recipe: AutoencoderRecipe | DiffusionRecipe) -> tuple[int, int]:
    """Height and width of the training pictures."""
    if isinstance(recipe.data, Shapes):
        return recipe.data.height, recipe.data.width
    return recipe.data.size, recipe.data.width or recipe.data.size


def _load(module: torch.nn.Module, tensors: dict[str, torch.Tensor], folder: Path) -> None:
    missing, unexpected = module.load_state_dict(tensors, strict=False)
    if missing or unexpected:
        raise UserError(
            f"the weights of {folder} do not fit its recipe: {len(missing)} tensors missing "
            f"({', '.join(missing[:3])}), {len(unexpected)} unexpected ({', '.join(unexpected[:3])})"
        )
