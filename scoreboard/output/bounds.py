"""What a report says of the bounds and of J_ref."""

from __future__ import annotations

from typing import Any

from ...envs.certificates import Certificate
from ...envs.problem import Estimate
from ..evaluation import Reference
from ..plots import name_of


def told(values: dict[str, Any]) -> str:
    """What is known of J_ref, as a list in Markdown; ``values`` as ``Reference.to_json`` gives
    them.
    """
    reference = Reference.from_json(values)
    pooled, best = reference.pooled, reference.best
    parts = [_bound(reference, reference.certificate, "uncontrolled paths")]
    if pooled is not None:
        lenders = ", ".join(name_of(name) for name in pooled.objectives)
        together = f"paths, in equal parts uncontrolled and of {lenders}"
        parts.insert(0, _bound(reference, pooled.certificate, together))
        parts.append(_agreement(pooled.difference, pooled.refutes))
    for closer in (reference.by_start, None if pooled is None else pooled.by_start):
        if closer is not None:
            parts.append(_from_starts(reference, closer))
    limit = reference.certificate.limit
    if limit is not None:
        parts.append(
            f"- The reward is bounded: with probability 95%, for this many uncontrolled paths, no"
            f" more than {limit:.3f} (empirical Bernstein); modes that no path met are covered."
        )
    if any(certificate.certified for certificate in certificates_of(reference)):
        parts.append(
            "- These bounds are estimates: they hold if no mode matters that none of the paths met."
        )
    if reference.optimum is not None:
        parts.append(f"- Exact optimum: {reference.optimum:.4f}, which is J_ref.")
    else:
        parts.append(_reference_value(reference))
    if reference.success is not None and reference.optimum is None:
        parts += _success_at_bound(reference)
    if best is not None:
        reached = f"{best.objective.mean:.3f} (s.e. {best.objective.stderr:.3f})"
        parts.append(f"- Best J reached: {reached}, by {name_of(best.by)}.")
    return "\n".join(parts)


def certificates_of(reference: Reference) -> list[Certificate]:
    """All bounds that were estimated."""
    pooled = reference.pooled
    found = [reference.certificate, reference.by_start]
    found += [] if pooled is None else [pooled.certificate, pooled.by_start]
    return [certificate for certificate in found if certificate is not None]


def _success_at_bound(reference: Reference) -> list[str]:
    found = reference.success_at_bound
    if found is not None:
        return [
            f"- Success at the bound: {found.mean:.1%} (95% interval {found.low:.1%} to"
            f" {found.high:.1%}), by the paths that carry it, weighted as it weighs them."
        ]
    if reference.bounds:  # a record of before
        return []
    return ["- Success at the bound is not known, as no bound stands that would tell it."]


def _bound(reference: Reference, found: Certificate, paths: str) -> str:
    if not found.certified:
        return (
            f"- **Not certified**: only {found.ess:.1f} of {found.n} {paths} carry the bound, too"
            " few to trust it (50 are asked for)."
        )
    text = (
        f"- No policy is worth more than {found.bound:.3f} (95% interval {found.low:.3f} to"
        f" {found.high:.3f}; {found.ess:.0f} of {found.n} {paths},"
        f" {found.ess / found.n:.1%}, carry it)."
    )
    return text + _refutation(reference, found)


def _refutation(reference: Reference, found: Certificate) -> str:
    if not (reference.is_refuted(found) and reference.best is not None):
        return ""
    who, worth = name_of(reference.best.by), reference.best.objective
    return (
        f" **Refuted**: {who} is worth {worth.mean:.3f} (s.e. {worth.stderr:.3f}), more than 3"
        " standard errors above it."
    )


def _agreement(difference: Estimate, refutes: bool) -> str:
    told = f"by {difference.mean:.3f} (s.e. {difference.stderr:.3f})"
    if refutes:
        return (
            "- The bound of the uncontrolled paths alone is **refuted**: with the paths of the"
            f" policies it moves {told}, more than 3 standard errors."
        )
    return f"- The paths of the policies move the bound {told}: the two agree."


def _from_starts(reference: Reference, closer: Certificate) -> str:
    text = (
        f"- From given starts, which no policy chooses, no more than {closer.bound:.3f}"
        f" ({closer.low:.3f} to {closer.high:.3f}; {closer.starts:,} starts, {closer.ess:.0f} of"
        f" {closer.n // closer.starts:,} paths of each carry it)"
    )
    return (
        text
        + ("." if closer.certified else ", **not certified**.")
        + (_refutation(reference, closer) if closer.certified else "")
    )


def _reference_value(reference: Reference) -> str:
    if reference.target is not None:
        return f"- J_ref is at most {reference.target.mean:.3f}, the closest of these that stands."
    if any(certificate.certified for certificate in certificates_of(reference)):
        return "- **No bound stands**: scores are upper ends, against the best J reached."
    return "- J_ref is not known."
