"""Claims about sampling, on a trained text-to-shapes run; nothing is trained."""

import torch

from benchmarks.claims import arms
from benchmarks.claims.arms import arm, bench, difference, kid
from benchmarks.claims.claim import Chart, Claim, Effect, Result, Series, Setting, bootstrap, mean_interval
from latentdiff import build, recipe
from latentdiff.evaluation import distances, image_sets
from latentdiff.training import checkpoint


def result(b: arms.Bench, effects: list[Effect], charts: list[Chart], note: str = "") -> Result:
    return Result(f"run {b.subject.folder.name}: drawn shapes", b.about, effects, charts, note)


def kid_series(name: str, xs: list, kernels: dict[str, arms.Kernel], n: int) -> Series:
    found = [bootstrap(kernel, n, 200) for kernel in kernels.values()]
    return Series(name, xs, *(list(column) for column in zip(*found)))


def mean_series(name: str, xs: list, values: list[torch.Tensor]) -> Series:
    return Series(name, xs, *(list(column) for column in zip(*map(mean_interval, values))))


def ddim_steps(setting: Setting) -> Result:
    b, steps = bench(setting), [5, 10, 20, 50, 100]
    found = {str(s): arm(b, sampler="ddim", steps=s) for s in steps}
    kernels = kid(found, b)
    early = difference(kernels["5"], kernels["20"], setting.count)
    late = bootstrap(lambda w: kernels["5"](w) - kernels["20"](w) - abs(kernels["20"](w) - kernels["100"](w)),
                     setting.count)  # fmt: skip
    effects = [Effect("KID of 5 steps minus KID of 20", "> 0", *early),
               Effect("that gain minus the further change up to 100 steps", "> 0", *late)]  # fmt: skip
    right = mean_series("prompts right", steps, [a.right for a in found.values()])
    charts = [Chart("DDIM steps", "KID", [kid_series("KID", steps, kernels, setting.count)], log=True),
              Chart("DDIM steps", "prompts right", [right], log=True)]  # fmt: skip
    return result(b, effects, charts, "One step is one evaluation with guidance, so throughput falls as 1 / steps.")


def samplers(setting: Setting) -> Result:
    b = bench(setting)
    names = {"DPM-Solver++(2M), 10": ("dpmpp_2m", 10), "DDIM, 10": ("ddim", 10), "DDIM, 50": ("ddim", 50)}
    found = {name: arm(b, sampler=sampler, steps=steps) for name, (sampler, steps) in names.items()}
    kernels = kid(found, b)
    fast, slow, long = kernels.values()
    whole = torch.ones(setting.count, dtype=torch.float64)
    margin = 0.1 * abs(long(whole)) + 2 * bootstrap(long, setting.count, 200)[2] - 2 * long(whole)
    effects = [Effect("KID of DDIM minus KID of 2M, 10 steps each", "> 0", *difference(slow, fast, setting.count)),
               Effect("KID of 2M with 10 steps minus KID of DDIM with 50, in units of what counts as equal", "< 1",
                      *(v / margin for v in difference(fast, long, setting.count)))]  # fmt: skip
    return result(b, effects, [Chart("sampler", "KID", [kid_series("KID", list(names), kernels, setting.count)])],
                  "Not of the paper, which had DDIM alone: what it would use today.")  # fmt: skip


def eta(setting: Setting) -> Result:
    b, steps = bench(setting), [10, 20, 50]
    plain = {str(s): arm(b, sampler="ddim", steps=s) for s in steps}
    noisy = {str(s): arm(b, sampler="ddpm", steps=s) for s in steps}
    kernels, others = kid(plain, b), kid(noisy, b)
    names = ("DDIM, eta 0", "ancestral, eta 1")
    effects = [Effect("KID of ancestral sampling minus KID of DDIM, 10 steps each", "> 0",
                      *difference(others["10"], kernels["10"], setting.count)),
               Effect("prompts right, ancestral minus DDIM, 10 steps each", "< 0",
                      *mean_interval(noisy["10"].right.double() - plain["10"].right.double()))]  # fmt: skip
    kids = [kid_series(name, steps, k, setting.count) for name, k in zip(names, (kernels, others))]
    right = [mean_series(name, steps, [a.right for a in found.values()]) for name, found in zip(names, (plain, noisy))]
    return result(b, effects, [Chart("steps", "KID", kids, log=True), Chart("steps", "prompts right", right, log=True)],
                  "Fresh noise lets later steps mend what earlier ones got wrong, guided and at 32 x 32.")  # fmt: skip


def guidance(setting: Setting) -> Result:
    b, scales = bench(setting), [1.0, 1.5, 2.0, 4.0, 8.0]
    found = {f"{s:g}": arm(b, guidance_scale=s) for s in scales}
    real, kernels = b.real.features[: setting.count], kid(found, b)
    precise = {name: arms.covered(a.seen, real) for name, a in found.items()}
    recalled = {name: arms.covered(real, a.seen) for name, a in found.items()}
    right = {name: a.right.double() for name, a in found.items()}
    best = min(list(kernels)[1:], key=lambda name: kernels[name](torch.ones(setting.count, dtype=torch.float64)))
    effects = [
        Effect("precision, scale 4 minus 1", "> 0", *mean_interval(precise["4"] - precise["1"])),
        Effect("recall, scale 8 minus 1", "< 0", *mean_interval(recalled["8"] - recalled["1"])),
        Effect("prompts right, scale 2 minus 1", "> 0", *mean_interval(right["2"] - right["1"])),
        Effect(f"KID at scale 8 minus its least, at {best}", "> 0",
               *difference(kernels["8"], kernels[best], setting.count)),
    ]  # fmt: skip
    shares = [mean_series(name, scales, list(values.values()))
              for name, values in (("precision", precise), ("recall", recalled), ("prompts right", right))]  # fmt: skip
    kids = kid_series("KID", scales, kernels, setting.count)
    charts = [Chart("guidance scale", "share", shares, log=True), Chart("guidance scale", "KID", [kids], log=True)]
    return result(b, effects, charts)


def text_control(setting: Setting) -> Result:
    b = bench(setting)
    drawn = arm(b)
    shifted = b.captions[2:] + b.captions[:2]  # as many objects are asked for
    other = arms.right(drawn.drawn, shifted)
    gain = mean_interval(drawn.right.double() - other.double())
    series = mean_series("right", ["its own caption", "another's caption"], [drawn.right, other])
    effects = [Effect("right by its own caption minus right by another's", "> 0.3", *gain)]
    return result(b, effects, [Chart("read against", "prompts right", [series])])


def ema(setting: Setting) -> Result:
    """Raw and averaged weights of the earliest and the last checkpoint that the run kept."""
    b, effects, series = bench(setting), [], []
    folders = checkpoint.list_checkpoints(b.subject.folder / "checkpoints")
    kernels: dict[str, dict] = {"averaged": {}, "raw": {}}
    for folder in (folders[0], folders[-1]):
        for name, file in (("averaged", "ema"), ("raw", "model")):
            model = with_weights(b, checkpoint.read_tensors(folder / f"{file}.safetensors"))
            kernels[name][int(folder.name[5:])] = arms.Kernel(arm(b, model).seen, b.real.features)
    for step in kernels["raw"]:
        effect = difference(kernels["raw"][step], kernels["averaged"][step], setting.count)
        effects.append(Effect(f"KID of raw minus KID of averaged weights, step {step}", "> 0", *effect))
    for name, found in kernels.items():
        series.append(kid_series(name, list(found), found, setting.count))
    return result(b, effects, [Chart("step", "KID", series)],
                  "The rate falls to 0 over the last sixth of the run, and an average that reaches further back lags: "
                  "this run's, of 500 steps, where the rate fell within 400. The demo averages 100 since.")  # fmt: skip


def with_weights(b: arms.Bench, tensors: dict) -> torch.nn.Module:
    """The run's model with other weights."""
    subject = b.subject
    model = build.build_diffusion(subject.recipe, subject.autoencoder, subject.model.tokenizer)
    model.load_state_dict(tensors)
    model.autoencoder, model.tokenizer, model.size = subject.autoencoder, subject.model.tokenizer, subject.model.size
    return model.eval().requires_grad_(False).to(b.world.device)


def memorisation(setting: Setting) -> Result:
    b = bench(setting)
    drawn, train = arm(b).seen, b.real.features
    data = recipe.open_data(b.subject.recipe, "val")
    held_out = image_sets.extract(b.extractor, data, len(data), b.world).features
    ours, theirs = (distances.nearest(x, train).distance[:, 0] for x in (drawn, held_out))
    copies = distances.nearest(drawn[:1] * 0 + train[:500] + 0.05 * drawn[:500], train).distance[:, 0]

    def ratio(weights: torch.Tensor) -> float:
        ordered = torch.repeat_interleave(ours, weights.long())
        return (ordered.median() / theirs.median()).item()

    value = bootstrap(ratio, len(ours))
    groups = {"drawn": ours, "held out": theirs, "training pictures, slightly changed": copies}
    series = Series("median distance", list(groups), [g.median().item() for g in groups.values()],
                    [g.quantile(0.25).item() for g in groups.values()],
                    [g.quantile(0.75).item() for g in groups.values()])  # fmt: skip
    effects = [Effect("distance to the nearest training picture, drawn over held-out", "> 0.8", *value)]
    return result(b, effects, [Chart("pictures", "distance to the nearest training picture", [series])],
                  "Bars reach from quartile to quartile. The run learned from 20,000 scenes; what becomes of a few "
                  "needs training of its own.")  # fmt: skip


CLAIMS = [
    Claim("ddim-steps", "More DDIM steps lower FID, less and less.", "fig. 7", ddim_steps, 25),
    Claim("samplers", "A second-order solver needs a fifth of DDIM's steps.", "after the paper", samplers, 8),
    Claim("eta", "With few steps, deterministic DDIM is better than ancestral sampling.", "sec. 4", eta, 12),
    Claim("guidance", "Guidance trades recall for precision; FID is least in between.", "tables 3, 10", guidance, 8),
    Claim("text-control", "Cross-attention makes pictures follow their caption.", "sec. 4.3.1", text_control, 2),
    Claim("ema", "Averaged weights draw better than raw ones.", "the release (EMA 0.9999)", ema, 8),
    Claim("memorisation", "Samples are not copies of training pictures.", "sec. 5, figs. 32 to 34", memorisation, 2),
]
