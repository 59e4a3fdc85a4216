"""How far outputs of logits_reference are from each other, and what logits.py lets pass."""
import dataclasses

import torch

from checking import Failed

ULP = 2.0 ** -23
LIMIT = 2e-5        # largest difference in float32, in units of max(1, standard deviation)


def named(o):
    """(kind, name, tensor) of everything real-valued in one prompt's outputs. Each layer of the residual stream counts by itself."""
    yield from (("hidden", f"layer {i}", x) for i, x in enumerate(o.hidden))
    yield from (("router", f"router of layer {i}", x) for i, x in o.router.items())
    yield from (("weights", f"expert weights of layer {i}", x) for i, x in o.weights.items())
    yield "logits", "logits", o.logits


def distance(got, want):
    """Per kind (largest difference, root of the mean square, where the largest is), in units of max(1, standard deviation of
    the reference)."""
    found = {}
    for p, (a, b) in enumerate(zip(got, want, strict=True)):
        for (kind, name, x), (_, _, y) in zip(named(a), named(b), strict=True):
            d = (x.double() - y.double()) / max(1.0, float(y.std()))
            worst, squares, count, where = found.get(kind, (-1.0, 0.0, 0, ""))
            here = float(d.abs().max())
            if not here <= worst:       # not-a-number is the worst
                worst, where = here, f"{name} of prompt {p}"
            found[kind] = worst, squares + float(d.pow(2).sum()), count + d.numel(), where
    return {kind: (worst, (squares / count) ** 0.5, where) for kind, (worst, squares, count, where) in found.items()}


def routes(got, want):
    """(tokens whose experts differ, tokens) over all layers and prompts."""
    pairs = [(a.experts[i] != b.experts[i]).any(-1) for a, b in zip(got, want) for i in b.experts]
    return int(sum(x.sum() for x in pairs)), sum(len(x) for x in pairs)


def equal(ours, theirs, exact):
    """Fails where something differs by more than 2e-5, or other experts were chosen. transformers' float32 has errors of its own:
    where its distance from float64 makes up most of those 2e-5, three times that distance are allowed (Longshore may have two)."""
    found, own, (flips, tokens) = distance(ours, theirs), distance(theirs, exact), routes(ours, theirs)
    bad = [f"{where} differs by {d:.1e}" for kind, (d, _, where) in found.items() if not d <= max(LIMIT, 3 * own[kind][0])]
    if flips:
        bad.append(f"other experts for {flips} of {tokens} tokens")
    if bad:
        raise Failed("; ".join(bad))
    return ", ".join(f"{kind} {d:.1e}" for kind, (d, _, _) in found.items()) + (f"; {tokens} routes the same" if tokens else "")


def close_to_exact(ours, theirs, exact):
    """Fails where Longshore is further from float64 than twice the distance of transformers' float32 and a last place, by the root
    of the mean square, which does not hang on one unlucky sum; the largest single difference is shown as well."""
    a, b, (flips, _) = distance(ours, exact), distance(theirs, exact), routes(ours, exact)
    said = ", ".join(f"{k} {a[k][1]:.1e} against {b[k][1]:.1e} (largest {a[k][0]:.1e}, {b[k][0]:.1e})" for k in a)
    if flips or not all(a[k][1] <= 2 * b[k][1] + ULP for k in a):
        raise Failed(f"{said}; {flips} routes differ")
    return said


@dataclasses.dataclass
class Rounding:
    """How far a bfloat16 run is from float32."""
    kl: torch.Tensor        # of every token
    same: int               # tokens whose most likely successor is the same
    flips: int              # tokens sent to other experts, over all layers

    @classmethod
    def of(cls, got, want):
        kl, same = [], 0
        for x, y in ((x, y) for a, b in zip(got, want) for x, y in zip(a.logits.split(64), b.logits.split(64))):
            p, q = y.double().log_softmax(-1), x.double().log_softmax(-1)
            kl.append((p.exp() * (p - q)).sum(-1))
            same += int((x.argmax(-1) == y.argmax(-1)).sum())
        return cls(torch.cat(kl), same, routes(got, want)[0])


def not_worse(a, b, experts):
    """Fails where Longshore's bfloat16 (a) is further from float32 than transformers' (b): the mean and the median KL divergence
    per token, and the most likely token. A token sent to another expert costs a thousand times the rest, and whom that befalls is
    chance: with experts, half as much again is allowed for the mean (not for the median, nor for the mean over all models)."""
    mean, median = [(float(f(a.kl)), float(f(b.kl))) for f in (torch.mean, torch.median)]
    said = (f"KL {mean[0]:.2e} against {mean[1]:.2e}, median {median[0]:.2e} against {median[1]:.2e}; "
            f"top-1 {a.same} against {b.same} of {len(a.kl)}" + (f"; routes changed {a.flips} against {b.flips}" if experts else ""))
    if not (mean[0] <= mean[1] * (1.5 if experts else 1) and median[0] <= median[1] and a.same >= b.same):
        raise Failed(said)
    return said
