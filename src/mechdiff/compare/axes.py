"""A comparison's other sections are made here: weights, linear maps, rank, heads, behaviour."""

FAVOURITES = ("refusal log-probability margin", "choice margin")
