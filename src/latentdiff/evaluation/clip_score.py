"""CLIP score (Hessel et al. 2021): the similarity of images and captions in a CLIP model."""

from pathlib import Path

import torch
from torch import Tensor

from latentdiff.config import UserError
from latentdiff.evaluation.feature_net import resize

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # Radford et al. 2021


class ClipScorer:
    """A CLIP model from a local Hugging Face folder (config.json, safetensors, tokenizer); nothing is downloaded."""

    def __init__(self, folder: str, device: torch.device) -> None:
        try:
            from transformers import AutoTokenizer, CLIPModel
        except ImportError as error:
            raise UserError("--clip needs transformers: pip install transformers") from error
        if not (Path(folder) / "config.json").is_file():
            raise UserError(f"--clip {folder} must be a folder with a CLIP model: config.json, safetensors, tokenizer")
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self.model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise UserError(f"--clip {folder} cannot be loaded: {error}") from error
        self.model, self.device = self.model.to(device).eval(), device
        self.size = self.model.config.vision_config.image_size

    @torch.no_grad()
    def score(self, x: Tensor, captions: list[str]) -> Tensor:
        """100 max(0, cos): images [B, 3, H, W] in [-1, 1] and their captions -> [B]."""
        mean, std = (torch.tensor(v, device=self.device).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
        pixels = (resize(x.to(self.device), self.size) / 2 + 0.5 - mean) / std  # [B, 3, size, size]
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(captions, padding=True, truncation=True, max_length=length, return_tensors="pt")
        tokens = {name: tokens[name].to(self.device) for name in ("input_ids", "attention_mask")}  # [B, length]
        logits = self.model(pixel_values=pixels, **tokens).logits_per_image.diagonal()  # [B]
        return 100 * (logits / self.model.logit_scale.exp()).clamp(min=0)
