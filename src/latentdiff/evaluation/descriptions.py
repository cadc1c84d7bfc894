"""What the figures are called on a page, and what they mean."""

CARDS = {  # the figures that are told first, those that there are
    "psnr": ("PSNR", "{:.1f} dB"), "lpips": ("LPIPS", "{:.3f}"), "rfid": ("rFID", "{:.2f}"), "fid": ("FID", "{:.2f}"),
    "kid": ("KID", "{:.4f}"), "precision": ("precision", "{:.2f}"), "recall": ("recall", "{:.2f}"),
    "prompt_accuracy": ("prompts right", "{:.0%}"), "clip_score": ("CLIP score", "{:.1f}"),
    "nearest_ratio": ("nearest ratio", "{:.2f}"),
}  # fmt: skip
MEANING = {
    "psnr": "dB, of reconstructions of held-out pictures; more is better",
    "ssim": "structural likeness of reconstructions; 1 is equal",
    "lpips": "perceptual distance of reconstructions; 0 is equal",
    "rfid": "Fréchet distance of reconstructions from their pictures; less is better",
    "latent_std": "of normalised latents, over pictures and posterior; 1 is right",
    "latent_noise_share": "share of the latents' variance that is the posterior's noise",
    "equivariance_turn": "how far the latent is from turning with its picture; 0 is exactly, about 2 not at all",
    "equivariance_half": "the same for halving its size",
    "codebook_usage": "share of codes in use", "codebook_perplexity": "how many codes are in use, evenly counted",
    "fid": "Fréchet distance of drawn from real pictures; less is better",
    "kid": "kernel distance of drawn from real pictures, without bias; less is better",
    "kid_error": "its standard error",
    "precision": "share of drawn pictures that look like a real one",
    "recall": "share of real ones that could be drawn",
    "inception_score": "distinct and varied classes of drawn pictures; more is better",
    "nearest_ratio": "distance to the nearest training picture, drawn over held-out; about 1 unless learned by heart",
    "copies": "share of drawn pictures with one training picture three times nearer than the next",
    "copies_held_out": "the same of held-out pictures", "clip_score": "fit of picture and caption, 0 to 100",
    "prompt_accuracy": "share of prompts with all that was named and nothing else",
    "prompt_accuracy_held_out": "the same where a colour and a kind never met in training",
    "lpips_in_hole": "perceptual distance to the true picture, in the hole alone",
    "psnr_to_truth": "dB, of the drawn against the true picture", "ssim_to_truth": "likeness to the true picture",
    "lpips_to_truth": "perceptual distance to the true picture",
    "images_per_second": "drawn, by all ranks together", "peak_memory_mib": "of the process, or of the device",
}  # fmt: skip
