"""Claims about sampling, on a trained text-to-shapes run; nothing is trained."""

import torch

from benchmarks.claims import arms
from benchmarks.claims.arms import Experiment, Kernel, kernels, kid_difference, open_experiment, sample_arm
from benchmarks.claims.claim import Chart, Claim, Effect, Result, Series, Setting, bootstrap, mean_interval
from latentdiff import build, recipe
from latentdiff.evaluation import distances, image_sets
from latentdiff.sampling.pipeline import Pipeline, pipeline_of
from latentdiff.training import checkpoint


def result(experiment: Experiment, effects: list[Effect], charts: list[Chart], note: str = "") -> Result:
    data = f"run {experiment.subject.folder.name}: drawn shapes"
    return Result(data, experiment.protocol, effects, charts, note)


def kid_series(name: str, xs: list, kid: dict[str, Kernel], n: int) -> Series:
    intervals = [bootstrap(kernel, n, 200) for kernel in kid.values()]
    return Series(name, xs, *(list(column) for column in zip(*intervals)))


def mean_series(name: str, xs: list, values: list[torch.Tensor]) -> Series:
    return Series(name, xs, *(list(column) for column in zip(*map(mean_interval, values))))


def ddim_steps(setting: Setting) -> Result:
    experiment, steps, n = open_experiment(setting), [5, 10, 20, 50, 100], setting.count
    sampled = {str(s): sample_arm(experiment, sampler="ddim", steps=s) for s in steps}
    kid = kernels(sampled, experiment)
    early = kid_difference(kid["5"], kid["20"], n)
    late = bootstrap(lambda w: kid["5"](w) - kid["20"](w) - abs(kid["20"](w) - kid["100"](w)), n)
    effects = [Effect("KID with 5 steps minus KID with 20", "> 0", *early),
               Effect("that difference minus the further change up to 100 steps", "> 0", *late)]  # fmt: skip
    correct = mean_series("prompt accuracy", steps, [arm.correct for arm in sampled.values()])
    charts = [Chart("DDIM steps", "KID", [kid_series("KID", steps, kid, n)], log=True),
              Chart("DDIM steps", "prompt accuracy", [correct], log=True)]  # fmt: skip
    return result(
        experiment,
        effects,
        charts,
        "One step is one network evaluation with guidance, so throughput is proportional to 1 / steps.",
    )


def samplers(setting: Setting) -> Result:
    experiment, n = open_experiment(setting), setting.count
    specs = {"DPM-Solver++(2M), 10": ("dpmpp_2m", 10), "DDIM, 10": ("ddim", 10), "DDIM, 50": ("ddim", 50)}
    sampled = {name: sample_arm(experiment, sampler=sampler, steps=steps) for name, (sampler, steps) in specs.items()}
    kid = kernels(sampled, experiment)
    fast, slow, long = kid.values()
    equal_weights = torch.ones(n, dtype=torch.float64)
    margin = 0.1 * abs(long(equal_weights)) + 2 * bootstrap(long, n, 200)[2] - 2 * long(equal_weights)
    effects = [Effect("KID of DDIM minus KID of 2M, 10 steps each", "> 0", *kid_difference(slow, fast, n)),
               Effect("KID of 2M with 10 steps minus KID of DDIM with 50, over the margin of equal quality", "< 1",
                      *(v / margin for v in kid_difference(fast, long, n)))]  # fmt: skip
    return result(experiment, effects, [Chart("sampler", "KID", [kid_series("KID", list(specs), kid, n)])],
                  "Not in the paper, which used only DDIM.")  # fmt: skip


def eta(setting: Setting) -> Result:
    experiment, steps, n = open_experiment(setting), [10, 20, 50], setting.count
    ddim = {str(s): sample_arm(experiment, sampler="ddim", steps=s) for s in steps}
    ddpm = {str(s): sample_arm(experiment, sampler="ddpm", steps=s) for s in steps}
    ddim_kid, ddpm_kid = kernels(ddim, experiment), kernels(ddpm, experiment)
    names = ("DDIM, eta 0", "ancestral, eta 1")
    effects = [Effect("KID of ancestral sampling minus KID of DDIM, 10 steps each", "> 0",
                      *kid_difference(ddpm_kid["10"], ddim_kid["10"], n)),
               Effect("prompt accuracy, ancestral minus DDIM, 10 steps each", "< 0",
                      *mean_interval(ddpm["10"].correct.double() - ddim["10"].correct.double()))]  # fmt: skip
    kids = [kid_series(name, steps, kid, n) for name, kid in zip(names, (ddim_kid, ddpm_kid))]
    correct = [mean_series(name, steps, [arm.correct for arm in sampled.values()])
               for name, sampled in zip(names, (ddim, ddpm))]  # fmt: skip
    charts = [Chart("steps", "KID", kids, log=True), Chart("steps", "prompt accuracy", correct, log=True)]
    return result(
        experiment, effects, charts, "New noise lets later steps correct earlier errors, guided and at 32 x 32."
    )


def guidance(setting: Setting) -> Result:
    experiment, scales, n = open_experiment(setting), [1.0, 1.5, 2.0, 4.0, 8.0], setting.count
    sampled = {f"{s:g}": sample_arm(experiment, guidance_scale=s) for s in scales}
    real, kid = experiment.real.features[:n], kernels(sampled, experiment)
    precision = {name: arms.covered(arm.features, real) for name, arm in sampled.items()}
    recall = {name: arms.covered(real, arm.features) for name, arm in sampled.items()}
    correct = {name: arm.correct.double() for name, arm in sampled.items()}
    best = min(list(kid)[1:], key=lambda name: kid[name](torch.ones(n, dtype=torch.float64)))
    effects = [
        Effect("precision, scale 4 minus 1", "> 0", *mean_interval(precision["4"] - precision["1"])),
        Effect("recall, scale 8 minus 1", "< 0", *mean_interval(recall["8"] - recall["1"])),
        Effect("prompt accuracy, scale 2 minus 1", "> 0", *mean_interval(correct["2"] - correct["1"])),
        Effect(f"KID at scale 8 minus its minimum, at {best}", "> 0", *kid_difference(kid["8"], kid[best], n)),
    ]
    fractions = [
        mean_series(name, scales, list(values.values()))
        for name, values in (("precision", precision), ("recall", recall), ("prompt accuracy", correct))
    ]
    kids = kid_series("KID", scales, kid, n)
    charts = [
        Chart("guidance scale", "fraction", fractions, log=True),
        Chart("guidance scale", "KID", [kids], log=True),
    ]
    return result(experiment, effects, charts)


def text_control(setting: Setting) -> Result:
    experiment = open_experiment(setting)
    arm = sample_arm(experiment)
    shuffled = experiment.captions[2:] + experiment.captions[:2]  # with the same number of objects
    other = arms.correct_prompts(arm.images, shuffled)
    gain = mean_interval(arm.correct.double() - other.double())
    series = mean_series("correct", ["its own caption", "another caption"], [arm.correct, other])
    effects = [Effect("prompt accuracy with its own caption minus with another", "> 0.3", *gain)]
    return result(experiment, effects, [Chart("compared with", "prompt accuracy", [series])])


def ema(setting: Setting) -> Result:
    """Raw and EMA weights of the first and the last checkpoint of the run."""
    experiment, effects, series, n = open_experiment(setting), [], [], setting.count
    folders = checkpoint.list_checkpoints(experiment.subject.folder / "checkpoints")
    kid: dict[str, dict] = {"EMA": {}, "raw": {}}
    for folder in (folders[0], folders[-1]):
        for name, file in (("EMA", "ema"), ("raw", "model")):
            pipeline = with_weights(experiment, checkpoint.read_tensors(folder / f"{file}.safetensors"))
            features = sample_arm(experiment, pipeline).features
            kid[name][int(folder.name[5:])] = Kernel(features, experiment.real.features)
    for step in kid["raw"]:
        effect = kid_difference(kid["raw"][step], kid["EMA"][step], n)
        effects.append(Effect(f"KID of raw minus KID of EMA weights, step {step}", "> 0", *effect))
    for name, by_step in kid.items():
        series.append(kid_series(name, list(by_step), by_step, n))
    return result(
        experiment,
        effects,
        [Chart("step", "KID", series)],
        "The learning rate falls to 0 over the last sixth of the run, and an EMA with a longer horizon lags "
        "behind: here 500 steps, while the learning rate fell within 400. The demo now uses 100 steps.",
    )


def with_weights(experiment: Experiment, tensors: dict) -> Pipeline:
    """The pipeline of the run with other weights."""
    subject = experiment.subject
    model = build.build_diffusion(subject.recipe, subject.autoencoder, subject.pipeline.tokenizer)
    model.load_state_dict(tensors)
    pipeline = pipeline_of(subject.recipe, model, subject.autoencoder)
    return pipeline.eval().requires_grad_(False).to(experiment.world.device)


def memorisation(setting: Setting) -> Result:
    experiment = open_experiment(setting)
    samples, train = sample_arm(experiment).features, experiment.real.features
    data = recipe.open_data(experiment.subject.recipe, "val")
    held_out = image_sets.extract(experiment.extractor, data, len(data), experiment.world).features
    to_train, held_out_to_train = (distances.nearest_neighbors(x, train).distance[:, 0] for x in (samples, held_out))
    copies = distances.nearest_neighbors(samples[:1] * 0 + train[:500] + 0.05 * samples[:500], train).distance[:, 0]

    def ratio(weights: torch.Tensor) -> float:
        resampled = torch.repeat_interleave(to_train, weights.long())
        return (resampled.median() / held_out_to_train.median()).item()

    value = bootstrap(ratio, len(to_train))
    groups = {"samples": to_train, "held-out images": held_out_to_train, "perturbed training images": copies}
    series = Series("median distance", list(groups), [g.median().item() for g in groups.values()],
                    [g.quantile(0.25).item() for g in groups.values()],
                    [g.quantile(0.75).item() for g in groups.values()])  # fmt: skip
    effects = [Effect("distance to the nearest training image, samples over held-out images", "> 0.8", *value)]
    return result(experiment, effects, [Chart("images", "distance to the nearest training image", [series])],
                  "Bars: quartiles. The run was trained on 20,000 scenes; the claim few-images measures small "
                  "training sets.")  # fmt: skip


CLAIMS = [
    Claim("ddim-steps", "More DDIM steps lower FID, with diminishing returns.", "fig. 7", ddim_steps, 25),
    Claim("samplers", "A second-order solver needs a fifth of DDIM's steps.", "after the paper", samplers, 8),
    Claim("eta", "With few steps, deterministic DDIM is better than ancestral sampling.", "sec. 4", eta, 12),
    Claim(
        "guidance", "Guidance trades recall for precision; FID has its minimum in between.", "tables 3, 10", guidance, 8
    ),
    Claim("text-control", "Cross-attention makes images follow their caption.", "sec. 4.3.1", text_control, 2),
    Claim("ema", "EMA weights generate better images than raw weights.", "the release (EMA 0.9999)", ema, 8),
    Claim("memorisation", "Samples are not copies of training images.", "sec. 5, figs. 32 to 34", memorisation, 2),
]
