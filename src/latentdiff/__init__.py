"""Train your own latent diffusion model in plain PyTorch."""

__version__ = "0.1.0"


def load_run(path, device="cpu"):
    """Load a trained run from its folder: a LatentDiffusion, or an Autoencoder if it is a stage-one run.

    path: the run's folder, or its name under LATENTDIFF_RUNS (default "runs"). The weights are the EMA weights.
    """
    from latentdiff.load import load_run  # torch is imported only when a run is loaded

    return load_run(path, device)
