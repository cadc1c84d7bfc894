"""Train your own latent diffusion model in plain PyTorch."""

__version__ = "0.1.0"


def load_run(path, device="cpu"):
    """Load a trained run: a Pipeline (diffusion model and autoencoder), or the Autoencoder of a stage-one run.

    Args:
        path: the run's folder, or its name under LATENTDIFF_RUNS (default "runs"). Its EMA weights are loaded.
        device: where the weights are put.
    """
    from latentdiff.sampling.pipeline import load_run  # torch is imported only when a run is loaded

    return load_run(path, device)
