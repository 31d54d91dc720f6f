"""A hospital's own model of a study, made from the released one, and scoring patients with it.

    fits       the candidates: models fitted to some of the hospital's rows
    choose     which of them predicts best rows that it was not fitted to
    artefact   the choice on disk, digest-checked
    keeper     when the node makes it: beside the rounds, once for a release
    patients   rows to score, each read or refused by itself
    explain    what drove a risk
    score      the three together: risk, calibrated risk, drivers, warnings

Nothing of it leaves the hospital (docs/personal.md).
"""
