"""What a diffusion run keeps beside its weights: the frozen autoencoder, the tokenizer and the names of the classes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from latentdiff import config
from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.conditioning.text import TextConfig
from latentdiff.config import UserError
from latentdiff.data.tokenizer import CaptionTokenizer, load_tokenizer, train_wordpiece
from latentdiff.load import init_run
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe
from latentdiff.training import checkpoint
from latentdiff.training.distributed import World


def open_tokenizer(
    recipe: DiffusionRecipe, folder: Path, data: Any, world: World, info: Callable[[str], None]
) -> CaptionTokenizer | None:
    """The run's tokenizer: its own copy, that of the run named by init, the file named by the recipe, or a new one
    trained on the captions of the data; None without a Text condition."""
    text = next((c for c in recipe.conditions if isinstance(c, TextConfig)), None)
    if text is None:
        return None
    path = folder / "tokenizer.json"

    def create() -> bytes:
        if path.exists():
            return path.read_bytes()
        inherited = init_run(recipe) / "tokenizer.json" if recipe.init else path
        if inherited.exists() and not text.tokenizer:
            return inherited.read_bytes()  # the token embeddings of the other run belong to it
        captions = data.captions()
        if not captions:
            raise UserError(f"conditions has Text, but {getattr(recipe.data, 'path', 'the data')} has no captions")
        vocabulary = load_tokenizer(text.tokenizer) if text.tokenizer else train_wordpiece(captions, text.vocab_size)
        tokenizer = CaptionTokenizer(vocabulary, text.max_length)
        _warn_truncated(tokenizer, captions, info)
        return tokenizer.to_bytes()

    tokenizer = CaptionTokenizer.from_bytes(world.broadcast_bytes("tokenizer", create), text.max_length)
    if tokenizer.vocab_size > text.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, more than vocab_size={text.vocab_size} of conditions"
        )
    if long := tokenizer.too_long(recipe.preview_prompts):
        raise UserError(
            f"preview_prompts has {long[0][0]!r} with {long[0][1]} tokens, but the model reads at most "
            f"{text.max_length - 2}; shorten it, or use preview_prompts= to sample validation captions"
        )
    return tokenizer


def _warn_truncated(
    tokenizer: CaptionTokenizer, captions: list[str], info: Callable[[str], None], limit: int = 20_000
) -> None:  # fmt: skip
    """Log how many captions are truncated, of all of them or of `limit` spread evenly."""
    checked = captions[:: -(-len(captions) // limit)]
    long = tokenizer.too_long(checked)
    if long:
        longest = max(count for _, count in long) + 2
        info(
            f"WARNING: {len(long):,} of {len(checked):,} captions have more tokens than conditions' "
            f"max_length={tokenizer.length} and are truncated in training; max_length={longest} would fit all of them"
        )


def save_components(
    folder: Path, autoencoder: Autoencoder, first_stage: AutoencoderRecipe, tokenizer: CaptionTokenizer | None,
    data: Any,
) -> None:  # fmt: skip
    """Write the autoencoder, the tokenizer and the class names into the run's folder: all that sample.py needs."""
    own = folder / "autoencoder"
    own.mkdir(exist_ok=True)
    checkpoint.write_json(own / "recipe.json", config.to_dict(first_stage))
    checkpoint.write_tensors(own / "model.safetensors", autoencoder.state_dict())
    if tokenizer is not None:
        tokenizer.save(folder / "tokenizer.json")
    names = {"label": getattr(data, "label_names", []), "boxes": getattr(data, "category_names", [])}
    checkpoint.write_json(folder / "classes.json", {field: list(values) for field, values in names.items() if values})
