"""A checkpoint of the original release -> a run: recipe.json, model.safetensors, autoencoder/, tokenizer.json."""

from dataclasses import replace
from pathlib import Path

import torch

from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.build import build_diffusion
from latentdiff.conditioning.inpainting import MaskedConfig
from latentdiff.conditioning.text import TextConfig
from latentdiff.config import UserError
from latentdiff.convert.compvis import model_config, zoo
from latentdiff.convert.compvis.key_map import AVERAGE, CONDITION, FIRST_STAGE, Place, Weights, model_places
from latentdiff.convert.compvis.model_config import Original
from latentdiff.convert.compvis.state_dict import State
from latentdiff.convert.native import Native, refuse_existing, write_run
from latentdiff.convert.unpickle import open_weights
from latentdiff.data.tokenizer import CaptionTokenizer


def import_checkpoint(
    checkpoint: str, *, output: str, config: str | None = None, vocab: str | None = None, weights: str = "ema"
) -> None:
    """The run `output` from a .ckpt or .safetensors; weights: ema, where the file has averages, or raw."""
    folder = Path(output)
    if weights not in ("ema", "raw"):
        raise UserError(f"--weights is {weights!r}; it must be ema or raw")
    refuse_existing(folder)  # before long work
    tensors, facts = open_weights(Path(checkpoint))
    original = model_config.read_config(Path(config)) if config else zoo.recognise(tensors)
    if original.names:
        others = f"; {', '.join(original.names[1:])}: the same network" if len(original.names) > 1 else ""
        print(f"recognised: {original.names[0]}{others}")
    state = State(tensors, averages=weights == "ema")
    tokenizer = open_vocabulary(original, vocab)
    parts = take(state, original, tokenizer)
    state.check()
    write_run(folder, native(original, parts, tokenizer, steps(tensors, facts)))
    state.report()
    print(f"weights: {'averaged' if state.averages else 'raw'}; done: {folder}")


def open_vocabulary(original: Original, vocab: str | None) -> CaptionTokenizer | None:
    conditions = original.diffusion.conditions if original.diffusion else ()
    text = next((c for c in conditions if isinstance(c, TextConfig)), None)
    if text is None:
        return None
    if vocab is None:
        raise UserError("this model reads text: give its words with --vocab vocab.txt (bert-base-uncased's, as a rule)")
    tokenizer = CaptionTokenizer(vocab, text.max_length)
    if tokenizer.vocab_size > text.vocab_size:
        raise UserError(f"--vocab {vocab} has {tokenizer.vocab_size} words; the model knows {text.vocab_size}")
    return tokenizer


def steps(tensors: Weights, facts: dict) -> int:
    """How long it was trained, where the file says so."""
    updates = tensors.get(f"{AVERAGE}num_updates", torch.zeros(()))
    step = facts.get("global_step", facts.get("latentdiff.step", updates.item()))
    return int(step) if str(step).isdigit() or isinstance(step, (int, float)) else 0


# ---- what is taken


def take(state: State, original: Original, tokenizer: CaptionTokenizer | None) -> tuple[Weights, Weights]:
    """Our weights of the first stage, with its statistics, and of the rest; what is missing is noted in `state`."""
    with torch.device("meta"):
        first_stage = Autoencoder(original.first_stage.autoencoder)
    one, two = take_first_stage(state, original, first_stage), {}
    if original.diffusion is not None:
        two = take_diffusion(state, original, first_stage, tokenizer)
    scale = state.number("scale_factor") if original.scale is None else original.scale
    if "scale_factor" in state.tensors and original.scale is not None:
        print(f"scale_factor in the file is not used: the config says {original.scale:g}")
    state.drop("scale_factor")
    if (
        original.diffusion
        and scale not in (None, 1)
        and any(isinstance(c, MaskedConfig) for c in original.diffusion.conditions)
    ):
        raise UserError(
            f"scale_factor is {scale:g} under inpainting; this project scales the masked picture's latent too"
        )
    one["latent_shift"] = torch.zeros(first_stage.z_channels, 1, 1)
    one["latent_scale"] = torch.full((first_stage.z_channels, 1, 1), scale or 1.0)
    return one, two


def take_first_stage(state: State, original: Original, first_stage: Autoencoder) -> Weights:
    """Alone, inside a model, or there twice: as what encodes the condition of inpainting as well."""
    prefix = FIRST_STAGE if original.diffusion or state.has(f"{FIRST_STAGE}encoder.") else ""
    conditions = original.diffusion.conditions if original.diffusion else ()
    if any(isinstance(c, MaskedConfig) for c in conditions):
        if not state.has(FIRST_STAGE):
            prefix = CONDITION
        state.drop(CONDITION if prefix == FIRST_STAGE else FIRST_STAGE)
    parameters = dict(first_stage.named_parameters())
    return state.take({name: Place(prefix + name) for name in parameters}, parameters)


def take_diffusion(
    state: State, original: Original, first_stage: Autoencoder, tokenizer: CaptionTokenizer | None
) -> Weights:
    with torch.device("meta"):
        model = build_diffusion(original.diffusion, first_stage, tokenizer)
    weights = state.take(model_places(model, original.new_order), dict(model.named_parameters()))
    state.drop(CONDITION, ".to_logits.")  # the head of the text encoder, which nothing reads
    state.check_schedule(model.schedule)
    if model.unet.vector is not None:  # the table of labels is as wide as what it is added to
        width = model.unet.vector.out_features
        weights |= {"unet.vector.weight": torch.eye(width), "unet.vector.bias": torch.zeros(width)}
    for name, buffer in model.named_buffers():
        if name.endswith(".empty"):
            weights[name] = tokenizer.empty
    return weights


def native(original: Original, parts: tuple[Weights, Weights], tokenizer: CaptionTokenizer | None, step: int) -> Native:
    """The run in memory, with what export must know to give the file back."""
    if original.diffusion is None:
        return Native(original.first_stage, parts[0], step=step)
    notes = {"compvis.scale_factor": "buffer" if original.scale is None else "config"}
    notes |= {"compvis.new_attention_order": "true"} if original.new_order else {}
    first_stage = Native(original.first_stage, parts[0])
    return Native(replace(original.diffusion, init=""), parts[1], first_stage, tokenizer, step, notes)
