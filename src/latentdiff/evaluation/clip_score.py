"""CLIP score: how well pictures fit their captions, judged by a CLIP model that lies in a folder."""

from pathlib import Path

import torch
from torch import Tensor

from latentdiff.config import UserError
from latentdiff.evaluation.feature_net import resize

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # Radford et al. 2021


class Clip:
    """A folder as Hugging Face keeps CLIP in: config.json, safetensors, tokenizer files. Nothing is downloaded."""

    def __init__(self, folder: str, device: torch.device) -> None:
        try:
            from transformers import AutoTokenizer, CLIPModel
        except ImportError as error:
            raise UserError("--clip needs transformers: pip install transformers") from error
        if not (Path(folder) / "config.json").is_file():
            raise UserError(f"--clip {folder} is no folder with a CLIP model (config.json, *.safetensors, tokenizer)")
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self.model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise UserError(f"--clip {folder} cannot be opened: {error}") from error
        self.model, self.device = self.model.to(device).eval(), device
        self.size = self.model.config.vision_config.image_size
        self.about = {"model": Path(folder).name, "resize": f"antialiased bilinear to {self.size}"}

    @torch.no_grad()
    def score(self, x: Tensor, captions: list[str]) -> Tensor:
        """100 max(0, cos) (Hessel et al. 2021, with the usual factor): x [B, 3, H, W] in [-1, 1] -> [B]."""
        mean, std = (torch.tensor(v, device=self.device).view(3, 1, 1) for v in (MEAN, STD))
        pixels = (resize(x.to(self.device), self.size) / 2 + 0.5 - mean) / std
        length = self.model.config.text_config.max_position_embeddings
        words = self.tokenizer(captions, padding=True, truncation=True, max_length=length, return_tensors="pt")
        words = {n: words[n].to(self.device) for n in ("input_ids", "attention_mask")}
        cosine = self.model(pixel_values=pixels, **words).logits_per_image.diagonal()
        return 100 * (cosine / self.model.logit_scale.exp()).clamp(min=0)
