"""Each measure's rows have a second way, by name."""

from collections.abc import Callable

from mechdiff.audit.distributions import Row
from mechdiff.audit.rerun import Rerun
from mechdiff.measures.attribution.verify import again as attribution_again
from mechdiff.measures.behaviour.verify import again as behaviour_again
from mechdiff.measures.divergence.verify import again
from mechdiff.measures.factorial.verify import again as factorial_again
from mechdiff.measures.grafting.verify import again as grafting_again
from mechdiff.measures.heads.verify import again as heads_again
from mechdiff.measures.patching.verify import again as patching_again
from mechdiff.measures.rank.verify import again as rank_again
from mechdiff.measures.similarity.verify import again as similarity_again
from mechdiff.measures.steering.verify import again as steering_again
from mechdiff.measures.transport.verify import again as transport_again
from mechdiff.measures.weights.verify import again as weights_again

RECOMPUTE: dict[str, Callable[[Rerun, Row], float]] = {
    "divergence": again,
    "weights": weights_again,
    "grafting": grafting_again,
    "similarity": similarity_again,
    "patching": patching_again,
    "factorial": factorial_again,
    "transport": transport_again,
    "rank": rank_again,
    "steering": steering_again,
    "heads": heads_again,
    "attribution": attribution_again,
    "behaviour": behaviour_again,
}
