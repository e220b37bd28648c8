"""Which round's model is the result: chosen on validation scans, never on test scans."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from common.errors import AnswerError
from common.evaluation.of_site import Evaluation, ValidationResult

Evaluations = Mapping[str, Evaluation]
Judge = Callable[[Evaluations], ValidationResult]


@dataclass(frozen=True)
class Judged:
    """What the evaluations of one round say, as far as they can be used.

    Parameters
    ----------
    merged : ValidationResult or None
        None where nobody tells anything that can be used.
    evaluations : dict of str to Evaluation
        Those that it is made of, by site.
    refused : dict of str to str
        Why each of the others is left out.
    undefined : frozenset of str
        Of the refused, the sites whose own loss is no number.
    disagree : bool
        Whether the sites tell what cannot be put together, and none has most on its side.
    """

    merged: ValidationResult | None
    evaluations: dict[str, Evaluation]
    refused: dict[str, str] = field(default_factory=dict)
    undefined: frozenset[str] = frozenset()
    disagree: bool = False

    @property
    def is_finite(self) -> bool:
        """Whether the sites give a loss that is a number."""
        return self.merged is not None and math.isfinite(self.merged.loss)


def judge_usable(judge: Judge, evaluations: Evaluations) -> Judged:
    """Put together what can be, and leave out the sites that stand in the way.

    A site is left out if `judge` refuses what it tells, if it judges by other means than most
    sites (its ``words`` differ), or if its own loss is no number while others' are. Where all
    sites' losses are no numbers, that is the result.

    Parameters
    ----------
    judge : callable
        The task's, of some sites' evaluations.
    evaluations : mapping of str to Evaluation
        By site, of sites that tell something.
    """
    usable, refused = dict(evaluations), {}
    if odd := _odd_words(usable):
        refused = dict.fromkeys(sorted(odd), "it has judged by other means than other sites")
        usable = {site: one for site, one in usable.items() if site not in odd}
    disagree = bool(refused) and not usable
    while usable:
        try:
            merged = judge(usable)
        except AnswerError as error:
            refused[error.site] = str(error)
            del usable[error.site]
            continue
        except Exception as error:  # what may be anything at all raises anything at all
            alone = {site: _alone(judge, site, one) for site, one in usable.items()}
            found = {site: what for site, what in alone.items() if isinstance(what, str)}
            if not found:  # each by itself is sound
                disagree, found = True, dict.fromkeys(usable, f"{type(error).__name__}: {error}")
            refused |= found
            usable = {site: one for site, one in usable.items() if site not in refused}
            continue
        if math.isfinite(merged.loss):
            return Judged(merged, usable, refused)
        finite = {site: one for site, one in usable.items() if _is_finite(judge, site, one)}
        undefined = frozenset(usable.keys() - finite.keys())
        if not finite or not undefined:
            return Judged(merged, usable, refused, undefined)
        refused |= dict.fromkeys(sorted(undefined), "its loss is no number")
        return Judged(judge(finite), finite, refused, undefined)
    return Judged(None, {}, refused, disagree=disagree)


def _odd_words(evaluations: Evaluations) -> set[str]:
    """Return the sites whose words differ from most sites'; all of them where none has most."""
    groups: dict[frozenset[tuple[str, str]], set[str]] = {}
    for site, one in evaluations.items():
        groups.setdefault(frozenset(one.words.items()), set()).add(site)
    if len(groups) < 2:
        return set()
    most = max(groups.values(), key=len)
    return set(evaluations) - (most if 2 * len(most) > len(evaluations) else set())


def _alone(judge: Judge, site: str, evaluation: Evaluation) -> ValidationResult | str:
    try:
        return judge({site: evaluation})
    except Exception as error:  # whatever it is, it is of what this site tells
        return f"{type(error).__name__}: {error}"


def _is_finite(judge: Judge, site: str, evaluation: Evaluation) -> bool:
    found = _alone(judge, site, evaluation)
    return isinstance(found, ValidationResult) and math.isfinite(found.loss)


def is_better(judge: Judge, new: Judged, old: Judged | None) -> bool:
    """Tell whether a round's model is better than the best so far.

    Not always the same sites report a loss, and a loss of other sites is not comparable. So a round
    is compared with the best so far by the sites that reported in both; where no site did, the
    earlier stays. A site whose loss was no number in one of the two and is one in the other speaks
    for the latter, unless another site speaks for the former.

    Parameters
    ----------
    judge : callable
        The task's, of some sites' evaluations.
    new : Judged
    old : Judged, optional
        Of the best round so far, where there is one.
    """
    if not new.is_finite:
        return False
    if old is None:
        return True
    recovered = bool(new.evaluations.keys() & old.undefined)
    lost = bool(old.evaluations.keys() & new.undefined)
    if recovered != lost:
        return recovered
    common = [site for site in new.evaluations if site in old.evaluations]
    if not common:
        return False
    # Where moments came from all sites in one round only, both are judged without them.
    alike = new.merged.measure == old.merged.measure
    now, before = (_loss(judge, one, common, moments=alike) for one in (new, old))
    return now < before


def _loss(judge: Judge, judged: Judged, sites: list[str], *, moments: bool) -> float:
    if moments and len(sites) == len(judged.evaluations):
        return judged.merged.loss
    chosen = {site: judged.evaluations[site] for site in sites}
    if not moments:
        chosen = {site: replace(one, statistics={}) for site, one in chosen.items()}
    return judge(chosen).loss


def due(round_number: int, every: int, rounds: int) -> bool:
    """Tell whether a round is validated: every so many, and the last."""
    return round_number % every == 0 or round_number == rounds
