"""Drawn pictures on the disk: their parameters inside, listed in samples.jsonl, and nothing overwritten."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from latentdiff.config import UserError
from latentdiff.training import image_grid


class ImageWriter:
    """00012-s7.png with the parameters inside, samples.jsonl, grid.png; the counter goes on, nothing is overwritten."""

    def __init__(self, output: Path, about: dict) -> None:
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--output {output} cannot be a folder: {error.strerror}") from error
        self.output, self.about, self.drawn = output, about, []
        numbers = [int(p.name.split("-")[0]) for p in output.glob("*-s*.png") if p.name.split("-")[0].isdigit()]
        self.next = max(numbers, default=-1) + 1

    def write(self, image: np.ndarray, prompt: str | None, seed: int, given: dict, row: list[np.ndarray]) -> None:
        """One picture uint8 [H, W, 3]; row: how it came to be, beside it as 00012-s7-steps.png."""
        height, width = image.shape[:2]
        about = {"prompt": prompt, "seed": seed, "height": height, "width": width} | given | self.about
        info = PngInfo()
        info.add_text("latentdiff", json.dumps(about))
        info.add_text("parameters", _parameters(about))
        path = self.output / f"{self.next:05d}-s{seed}.png"
        Image.fromarray(image).save(path, pnginfo=info)
        if row:
            image_grid.grid(np.stack(row), len(row)).save(path.with_name(path.stem + "-steps.png"))
        with open(self.output / "samples.jsonl", "a") as file:
            file.write(json.dumps({"file_name": path.name} | about) + "\n")
        self.drawn.append(image)
        self.next += 1

    def grid(self, columns: int) -> Path | None:
        """All pictures on one sheet, small ones enlarged, if they are of one size; where it is."""
        if len(self.drawn) < 2 or len({image.shape for image in self.drawn}) > 1:
            return None
        path, number = self.output / "grid.png", 1
        while path.exists():
            path, number = self.output / f"grid-{number}.png", number + 1
        drawn = np.stack(self.drawn)
        image_grid.grid(drawn, columns, scale=max(1, 96 // drawn.shape[2])).save(path)
        return path


def _parameters(about: dict) -> str:
    """The text that other tools read out of a PNG."""
    negative = f"\nNegative prompt: {about['negative_prompt']}" if about["negative_prompt"] else ""
    return (
        f"{about['prompt'] or ''}{negative}\nSteps: {about['steps']}, Sampler: {about['sampler']}, "
        f"CFG scale: {about['guidance_scale']}, Seed: {about['seed']}, Size: {about['width']}x{about['height']}, "
        f"Model: {about['run']}"
    )
