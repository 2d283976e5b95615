"""What the figures say, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from recsys.funnel.blending import Plan
from recsys.funnel.figures import Estimate, Figures

Verdict = Literal["keep", "unclear", "retire"]
SHOWN = {"keep": "keep", "unclear": "keep for now", "retire": "retire"}


@dataclass(frozen=True)
class Advice:
    """What to do with a generator, and why."""

    name: str
    verdict: Verdict
    why: str


def percent(value: float, signed: bool = False) -> str:
    """A share of one as percent, with as many digits as it needs; a loss has a minus sign that is one."""
    digits = 0 if abs(value) >= 0.1 else 1
    return f"{100 * value:{'+' if signed else ''}.{digits}f}%".replace("-", "−")


def interval(estimate: Estimate, signed: bool = False) -> str:
    """Its 95% interval, in percent."""
    return f"{percent(estimate.low, signed)} to {percent(estimate.high, signed)}"


def relative(estimate: Estimate, base: Estimate) -> Estimate:
    """An estimate in shares of another's value."""
    return Estimate(*(part / max(base.value, 1e-12) for part in estimate))


def is_confirmed(figures: Figures, tolerance: float) -> bool:
    """Whether the users measured agree that the blend of those that stay loses no more than the tolerance."""
    return figures.kept_gain.low >= -tolerance * figures.everyone.value


def advise(figures: Figures, plan: Plan, tolerance: float) -> list[Advice]:
    """What to do with each generator, those that stay first, the most valuable first."""
    confirmed, found = is_confirmed(figures, tolerance), []
    for number, name in enumerate(figures.names):
        lost = relative(figures.alone[number].lost, figures.everyone)
        cost = f"{_loss(lost.value)} (95% interval {interval(lost)})"
        unique = figures.alone[number].unique.value
        if number in plan.retired and confirmed:
            verdict: Verdict = "retire"
            why = f"Without it the blend {cost}: the others find nearly all that it finds."
            if not plan.everyone[number]:
                why = "The best blend gives it no place: the others find what it finds, and more."
        elif number in plan.retired:
            verdict = "unclear"
            why = (
                f"Could go by the users that chose, but the users measured cannot rule out a loss above "
                f"{percent(tolerance)}: ask more users."
            )
        elif lost.low > 0:
            verdict = "keep"
            why = f"Without it the blend {cost}, beyond chance. {percent(unique)} of all hits are its alone."
        else:
            verdict = "unclear"
            why = f"Without it the blend {cost}: too close to zero to tell. It was chosen to stay."
        found.append(Advice(name, verdict, why))
    order = {"keep": 0, "unclear": 1, "retire": 2}
    value = {name: -alone.lost.value for name, alone in zip(figures.names, figures.alone, strict=True)}
    return sorted(found, key=lambda advice: (order[advice.verdict], value[advice.name]))


def verdicts(figures: Figures, plan: Plan, tolerance: float, chosen_on: str) -> list[str]:
    """The recommendation in a few sentences, the most important one first."""
    advice = advise(figures, plan, tolerance)
    named = {verdict: [a.name for a in advice if a.verdict == verdict] for verdict in SHOWN}
    stay, go = named["keep"] + named["unclear"], named["retire"]
    gain = relative(figures.kept_gain, figures.everyone)
    change = (
        f"a change of {percent(gain.value, True)} (95% interval {interval(gain, True)}; up to {percent(tolerance)} "
        "was allowed)"
    )
    first = f"Keep {joined(stay)}." + (f" Retire {joined(go)}." if go else " Retire none.")
    sentences = [first]
    if go:
        sentences.append(
            f"The {len(stay)} that stay find {percent(figures.kept.value)} of what users go on to engage with, all "
            f"{len(figures.names)} together {percent(figures.everyone.value)}: {change}."
        )
    elif plan.retired:
        could = joined([figures.names[number] for number in plan.retired])
        sentences.append(
            f"{could} looked dispensable to {chosen_on}, but the users measured cannot confirm it: {change}."
        )
    best = max(range(len(figures.names)), key=lambda number: figures.alone[number].recall.value)
    alone = figures.alone[best].recall
    sentences.append(
        f"With {figures.k} candidates, the best blend of all finds {percent(figures.everyone.value)} "
        f"({interval(figures.everyone)}); {figures.names[best]}, the best alone, {percent(alone.value)} "
        f"({interval(alone)}); all in equal turns {percent(figures.equal.value)} ({interval(figures.equal)})."
    )
    return sentences


def joined(names: Sequence[str]) -> str:
    """Names as a sentence lists them."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _loss(share: float) -> str:
    return f"finds {percent(abs(share))} {'less' if share >= 0 else 'more'}"
