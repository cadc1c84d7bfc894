"""Writes sampled images: their settings inside the PNG and in samples.jsonl; no file is overwritten."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from latentdiff.config import UserError
from latentdiff.training import image_grid


class ImageWriter:
    """Writes 00012-s7.png (number and seed), samples.jsonl and grid.png; the numbers continue those in the folder."""

    def __init__(self, output: Path, metadata: dict[str, Any]) -> None:
        """metadata: what is stored in every image."""
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--output {output} cannot be created as a folder: {error.strerror}") from error
        self.output, self.metadata, self.images = output, metadata, []
        numbers = [int(p.name.split("-")[0]) for p in output.glob("*-s*.png") if p.name.split("-")[0].isdigit()]
        self.next = max(numbers, default=-1) + 1

    def write(
        self, image: np.ndarray, prompt: str | None, seed: int, inputs: dict[str, Any], steps: list[np.ndarray]
    ) -> None:  # fmt: skip
        """Write one image, uint8 [H, W, 3]; steps: intermediate results, written as a row in 00012-s7-steps.png."""
        height, width = image.shape[:2]
        metadata = {"prompt": prompt, "seed": seed, "height": height, "width": width} | inputs | self.metadata
        info = PngInfo()
        info.add_text("latentdiff", json.dumps(metadata))
        info.add_text("parameters", _parameters(metadata))
        path = self.output / f"{self.next:05d}-s{seed}.png"
        Image.fromarray(image).save(path, pnginfo=info)
        if steps:
            image_grid.grid(np.stack(steps), len(steps)).save(path.with_name(path.stem + "-steps.png"))
        with open(self.output / "samples.jsonl", "a") as file:
            file.write(json.dumps({"file_name": path.name} | metadata) + "\n")
        self.images.append(image)
        self.next += 1

    def grid(self, columns: int) -> Path | None:
        """Write all images as one grid, small ones enlarged, if they have one size; returns its path."""
        if len(self.images) < 2 or len({image.shape for image in self.images}) > 1:
            return None
        path, number = self.output / "grid.png", 1
        while path.exists():
            path, number = self.output / f"grid-{number}.png", number + 1
        images = np.stack(self.images)
        image_grid.grid(images, columns, scale=max(1, 96 // images.shape[2])).save(path)
        return path


def _parameters(metadata: dict[str, Any]) -> str:
    """The text that other tools read from a PNG."""
    negative = f"\nNegative prompt: {metadata['negative_prompt']}" if metadata["negative_prompt"] else ""
    return (
        f"{metadata['prompt'] or ''}{negative}\nSteps: {metadata['steps']}, Sampler: {metadata['sampler']}, "
        f"CFG scale: {metadata['guidance_scale']}, Seed: {metadata['seed']}, "
        f"Size: {metadata['width']}x{metadata['height']}, Model: {metadata['run']}"
    )
