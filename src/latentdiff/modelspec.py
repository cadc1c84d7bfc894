"""What a weights file says about itself: our own keys, and those of ModelSpec, which other tools read.

ModelSpec: github.com/Stability-AI/ModelSpec, keys of the safetensors metadata, all of them text.
"""

import datetime

from latentdiff.config import hash_of
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe, size_of

PREDICTIONS = {"eps": "epsilon", "v": "v", "x0": "sample", "flow": "flow"}  # ours -> ModelSpec's


def about(recipe: AutoencoderRecipe | DiffusionRecipe, step: int, autoencoder_hash: str) -> dict[str, str]:
    """The metadata of a run's weights after `step` steps; autoencoder_hash: Autoencoder.weights_hash()."""
    two = isinstance(recipe, DiffusionRecipe)
    height, width = size_of(recipe)
    facts = {
        "latentdiff.recipe": hash_of(recipe),
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
