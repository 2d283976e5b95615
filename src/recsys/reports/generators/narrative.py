"""Findings of a generator study in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from recsys.reports.generators.blending import BlendPlan, Budgets
from recsys.reports.generators.figures import Estimate, Figures

AdviceKind = Literal["keep", "unclear", "retire"]
SHOWN = {"keep": "keep", "unclear": "keep for now", "retire": "retire"}


@dataclass(frozen=True)
class Advice:
    """Recommendation for a generator, with the reason."""

    name: str
    verdict: AdviceKind
    why: str


def percent(value: float, signed: bool = False) -> str:
    """Format a share as percent, with as many digits as it needs and a typographic minus sign."""
    if value == 0:
        return "0%"
    digits = 0 if abs(value) >= 0.1 else 1 if abs(value) >= 0.01 or signed else 2
    return f"{100 * value:{'+' if signed else ''}.{digits}f}%".replace("-", "−")


def interval(estimate: Estimate, signed: bool = False) -> str:
    """Format the 95% interval of an estimate, in percent."""
    return f"{percent(estimate.low, signed)} to {percent(estimate.high, signed)}"


def relative(estimate: Estimate, base: Estimate) -> Estimate:
    """Return an estimate in shares of another estimate's value."""
    return Estimate(*(part / max(base.value, 1e-12) for part in estimate))


def num_confirmed(figures: Figures, tolerance: float) -> int:
    """Return how many generators, in the order of the plan, the measured users confirm as dispensable.

    The remaining blends are tested one after the other, up to the first whose recall may be lower by more than the
    tolerance. The order was fixed before and the first failure ends the sequence, so all tests together have the error
    rate of one (fixed-sequence testing: Maurer, Hothorn and Lehmacher 1995).
    """
    bound = -tolerance * figures.everyone.value
    return next((n for n, gain in enumerate(figures.stage_gains) if gain.low < bound), len(figures.stage_gains))


def kept_blend(figures: Figures, plan: BlendPlan, *, tolerance: float) -> tuple[Budgets, Estimate, Estimate]:
    """Return the budgets of the kept generators' blend, its recall, and its gain relative to the full blend."""
    number = num_confirmed(figures, tolerance) - 1
    if number < 0:
        return plan.everyone, figures.everyone, Estimate(0.0, 0.0, 0.0)
    return plan.stages[number], figures.stages[number], relative(figures.stage_gains[number], figures.everyone)


def advise(figures: Figures, plan: BlendPlan, *, tolerance: float) -> list[Advice]:
    """Return the advice for each generator: kept ones first, the most valuable first."""
    confirmed, found = num_confirmed(figures, tolerance), []
    for number, name in enumerate(figures.names):
        is_gone = number in plan.retired[:confirmed]
        needed = figures.alone[number].lost if is_gone else figures.needed[confirmed].get(number)
        if needed is None:
            found.append(Advice(name, "keep", "It is the only remaining generator."))
            continue
        lost = relative(needed, figures.everyone)
        cost = f"Without it the blend {'' if is_gone or not confirmed else 'of the kept generators '}{_loss(lost)}"
        verdict: AdviceKind = "unclear"
        if is_gone:
            verdict = "retire"
            why = f"{cost}: the others have the same hits."
            if not plan.everyone[number]:
                why = "It has no budget in the best blend: the others have its hits, and more."
        elif lost.low > 0:
            verdict = "keep"
            why = f"{cost}, beyond chance. {percent(figures.alone[number].unique.value)} of all hits are unique to it."
        elif number in plan.retired:
            why = f"{cost}. It may be dispensable, but these users cannot rule out a loss above {percent(tolerance)}."
        else:
            why = f"{cost}: not significantly different from zero. The selection kept it."
        found.append(Advice(name, verdict, why))
    order = {"keep": 0, "unclear": 1, "retire": 2}
    value = {g: figures.needed[confirmed].get(g, figures.alone[g].lost).value for g in range(len(found))}
    ranked = sorted(range(len(found)), key=lambda g: (order[found[g].verdict], -value[g]))
    return [found[g] for g in ranked]


def verdicts(figures: Figures, plan: BlendPlan, *, tolerance: float, chosen_on: str) -> list[str]:
    """Return the recommendation in a few sentences, the most important one first."""
    advice = advise(figures, plan, tolerance=tolerance)
    named = {verdict: [item.name for item in advice if item.verdict == verdict] for verdict in SHOWN}
    go, unclear = named["retire"], named["unclear"]
    stay = named["keep"] + unclear
    sentences = [f"Keep {joined(stay)}." + (f" Retire {joined(go)}." if go else " Retire none.")]
    if go:
        _, recall, gain = kept_blend(figures, plan, tolerance=tolerance)
        sentences.append(
            f"The {len(stay)} kept generators have a recall of {percent(recall.value)}, all "
            f"{len(figures.names)} together {percent(figures.everyone.value)}: {_change(gain, tolerance)}."
        )
    if could := [figures.names[g] for g in plan.retired[len(go) :]]:
        gain = relative(figures.stage_gains[len(go)], figures.everyone)
        also = "also " if go else ""
        sentences.append(
            f"{chosen_on[0].upper()}{chosen_on[1:]} {also}selected {joined(could)} as dispensable, in this order. The "
            f"measured users do not confirm it for {could[0]}: {_change(gain, tolerance)}."
        )
    best = max(range(len(figures.names)), key=lambda number: figures.alone[number].recall.value)
    alone = figures.alone[best].recall
    sentences.append(
        f"With {figures.k} candidates, the best blend has a recall of {percent(figures.everyone.value)} "
        f"({interval(figures.everyone)}); {figures.names[best]}, the best single generator, {percent(alone.value)} "
        f"({interval(alone)}); all in equal turns {percent(figures.equal.value)} ({interval(figures.equal)})."
    )
    if (new := figures.new_items) is not None:
        best = max(range(len(figures.names)), key=lambda number: new.recall[number].value)
        share, recall = percent(new.relevant.value), new.recall[best]
        sentences.append(
            f"New items are {share} of the relevant items; {figures.names[best]} finds most of them, "
            f"{percent(recall.value)} ({interval(recall)}), with {percent(new.shown[best].value)} of its candidates."
            if recall.value
            else f"New items are {share} of the relevant items; no generator finds any of them."
        )
    return sentences


def _change(gain: Estimate, tolerance: float) -> str:
    allowed = f"a loss of {percent(tolerance)} was allowed" if tolerance else "no loss was allowed"
    return f"a change of {percent(gain.value, True)} (95% interval {interval(gain, True)}; {allowed})"


def joined(names: Sequence[str]) -> str:
    """Return names as a list in a sentence."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _loss(lost: Estimate) -> str:
    if lost.low == lost.high == 0:
        return "loses nothing"
    found = f"finds {percent(abs(lost.value))} {'less' if lost.value >= 0 else 'more'}"
    return f"{found} (95% interval of the loss {interval(lost, True)})"
