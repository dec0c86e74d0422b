"""A site: one stored tensor of the captured graph. Data only."""

from dataclasses import dataclass

from fsdtrain_dojo.recipe import Role, Rule


@dataclass(frozen=True, kw_only=True)
class Site:
    """One stored tensor; `name` is unique in a run and stays the same when the run is resumed."""

    name: str
    layer: str  # module path
    op: str
    role: Role
    rule: Rule
    # Whether each rank holds its part of the tensor, or of a sum over the batch. All else is the
    # same on every rank, and so must its random bits be, or the ranks' weights would drift apart.
    is_rank_share: bool
