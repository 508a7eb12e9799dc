"""The other sections of a comparison: weights, maps of states, rank, heads, behaviour."""

FAVOURITES = ("refusal log-probability margin", "choice margin")
