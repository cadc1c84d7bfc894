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
from latentdiff.convert.compvis.key_maps import CONDITION, EMA, FIRST_STAGE, model_key_map
from latentdiff.convert.compvis.model_config import CompVisModel
from latentdiff.convert.compvis.state_dict import CheckpointReader
from latentdiff.convert.converted_run import ConvertedRun, refuse_existing, write_run
from latentdiff.convert.key_map import Entry, Weights, shapes_of
from latentdiff.convert.unpickle import open_weights
from latentdiff.data.tokenizer import CaptionTokenizer


def import_checkpoint(
    checkpoint: str, *, output: str, config: str | None = None, vocab: str | None = None, weights: str = "ema"
) -> None:
    """Convert a .ckpt or .safetensors file.

    Args:
        output: the run's folder.
        config: the model's config.yaml; it is not needed for released models.
        vocab: vocab.txt of the text encoder.
        weights: ema (where the checkpoint has EMA weights) or raw.
    """
    folder = Path(output)
    if weights not in ("ema", "raw"):
        raise UserError(f"--weights is {weights!r}; it must be ema or raw")
    refuse_existing(folder)  # before the long work
    tensors, metadata = open_weights(Path(checkpoint))
    model = model_config.read_yaml(Path(config)) if config else zoo.recognise(tensors)
    if model.names:
        others = f" (the same network: {', '.join(model.names[1:])})" if len(model.names) > 1 else ""
        print(f"recognised: {model.names[0]}{others}")
    reader, tokenizer = CheckpointReader(tensors, use_ema=weights == "ema"), open_vocabulary(model, vocab)
    run = read_run(reader, model, tokenizer)
    reader.check_complete()
    write_run(folder, run._replace(step=training_steps(tensors, metadata)))
    reader.report_unused()
    print(f"wrote {folder} with {'EMA' if reader.uses_ema else 'raw'} weights")


def open_vocabulary(model: CompVisModel, vocab: str | None) -> CaptionTokenizer | None:
    conditions = model.diffusion.conditions if model.diffusion else ()
    text = next((c for c in conditions if isinstance(c, TextConfig)), None)
    if text is None:
        return None
    if vocab is None:
        raise UserError("this model has a text encoder; add --vocab vocab.txt (usually that of bert-base-uncased)")
    tokenizer = CaptionTokenizer(vocab, text.max_length)
    if tokenizer.vocab_size > text.vocab_size:
        raise UserError(f"--vocab {vocab} has {tokenizer.vocab_size} tokens; the model has only {text.vocab_size}")
    return tokenizer


def training_steps(tensors: Weights, metadata: dict) -> int:
    """Steps of training, if the checkpoint has them; otherwise 0."""
    updates = tensors.get(f"{EMA}num_updates", torch.zeros(()))
    step = metadata.get("global_step", metadata.get("latentdiff.step", updates.item()))
    return int(step) if str(step).isdigit() or isinstance(step, (int, float)) else 0


def read_run(reader: CheckpointReader, model: CompVisModel, tokenizer: CaptionTokenizer | None) -> ConvertedRun:
    """The run of a checkpoint; missing tensors are recorded in `reader`."""
    with torch.device("meta"):
        autoencoder = Autoencoder(model.first_stage.autoencoder)
    is_inpainting = model.diffusion and any(isinstance(c, MaskedConfig) for c in model.diffusion.conditions)
    weights = _read_first_stage(reader, autoencoder, bool(model.diffusion), is_inpainting)
    diffusion = _read_diffusion(reader, model, autoencoder, tokenizer) if model.diffusion else {}
    scale = reader.read_number("scale_factor") if model.scale is None else model.scale
    if "scale_factor" in reader.tensors and model.scale is not None:
        print(f"scale_factor in the checkpoint is not used: it is {model.scale:g} in the config")
    reader.ignore("scale_factor")
    if is_inpainting and scale not in (None, 1):
        raise UserError(f"scale_factor is {scale:g}; it must be 1 for inpainting: the masked latent is scaled too")
    weights["latent_shift"] = torch.zeros(autoencoder.z_channels, 1, 1)
    weights["latent_scale"] = torch.full((autoencoder.z_channels, 1, 1), scale or 1.0)
    first_stage = ConvertedRun(model.first_stage, weights)
    if model.diffusion is None:
        return first_stage
    metadata = {"compvis.scale_factor": "buffer" if model.scale is None else "config"}  # for an exact export
    metadata |= {"compvis.new_attention_order": "true"} if model.new_attention_order else {}
    return ConvertedRun(replace(model.diffusion, init=""), diffusion, first_stage, tokenizer, metadata=metadata)


def _read_first_stage(reader: CheckpointReader, model: Autoencoder, has_unet: bool, is_inpainting: bool) -> Weights:
    """A first stage alone, inside a diffusion model, or stored twice: inpainting encodes its condition with it."""
    prefix = FIRST_STAGE if has_unet or reader.has(f"{FIRST_STAGE}encoder.") else ""
    if is_inpainting:
        prefix = FIRST_STAGE if reader.has(FIRST_STAGE) else CONDITION
        reader.ignore(CONDITION if prefix == FIRST_STAGE else FIRST_STAGE)
    shapes = shapes_of(model)
    return reader.read({name: Entry((prefix + name,)) for name in shapes}, shapes)


def _read_diffusion(
    reader: CheckpointReader, model: CompVisModel, autoencoder: Autoencoder, tokenizer: CaptionTokenizer | None
) -> Weights:
    with torch.device("meta"):
        network = build_diffusion(model.diffusion, autoencoder, tokenizer)
    weights = reader.read(model_key_map(network, model.new_attention_order), shapes_of(network))
    reader.ignore(CONDITION, ".to_logits.")  # the unused output head of the text encoder
    reader.check_schedule(network.schedule)
    if network.unet.vector is not None:  # the original adds rows of the label table to the time embedding directly
        width = network.unet.vector.out_features
        weights |= {"unet.vector.weight": torch.eye(width), "unet.vector.bias": torch.zeros(width)}
    return weights | {name: tokenizer.empty for name, _ in network.named_buffers() if name.endswith(".empty")}
