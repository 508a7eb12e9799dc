"""What each stage of a plan does, and which stages come before it."""

from mechdiff.measures.attribution.compute import attribute
from mechdiff.measures.behaviour.compute import behave
from mechdiff.measures.behaviour.edited import sway
from mechdiff.measures.divergence.compute import diverge, native, texts
from mechdiff.measures.factorial.compute import cross, crossing
from mechdiff.measures.grafting.compute import graft, inputs
from mechdiff.measures.heads.compute import every_head, head_orders, head_sets
from mechdiff.measures.heads.network import attention, head_network, looks
from mechdiff.measures.patching.compute import patch
from mechdiff.measures.rank.compute import fisher, rank_curve, ranks
from mechdiff.measures.similarity.compute import compare_states
from mechdiff.measures.steering.compute import side_effects, steer, steered_controls, steered_prompts, steered_texts
from mechdiff.measures.transport.closer import closer
from mechdiff.measures.transport.compute import fits, patched
from mechdiff.measures.weights.compute import weigh
from mechdiff.study.capture import capture_states, check_itself
from mechdiff.study.experiment import Stage

CLOSER = ("capture", "patching", "similarity")
"""What must be there before the closer layers are known."""

HEADS = ("capture", "heads")

_STAGES = (
    Stage(name="selfcheck", compute=check_itself, needs=()),
    Stage(name="capture", compute=capture_states, needs=("selfcheck@same",)),
    Stage(name="divergence", compute=diverge),
    Stage(name="native", compute=native),
    Stage(name="texts", compute=texts, loads=("tuned", "base")),
    Stage(name="inputs", compute=inputs),
    Stage(name="weights", compute=weigh, needs=("capture", "inputs")),
    Stage(name="grafting", compute=graft),
    Stage(name="similarity", compute=compare_states),
    Stage(name="patching", compute=patch),
    Stage(name="crossing", compute=crossing),
    Stage(name="factorial", compute=cross, needs=("capture", "crossing")),
    Stage(name="fits", compute=fits),
    Stage(name="transport", compute=patched, needs=("capture", "fits", "patching@same")),
    Stage(name="closer", compute=closer, needs=CLOSER),
    Stage(name="rank", compute=ranks),
    Stage(name="fisher", compute=fisher, needs=CLOSER),
    Stage(name="rank_curve", compute=rank_curve, needs=(*CLOSER, "fisher")),
    Stage(name="steering", compute=steer, needs=CLOSER),
    Stage(name="steered", compute=steered_prompts, needs=CLOSER),
    Stage(name="side_effects", compute=side_effects, needs=CLOSER),
    Stage(name="steered_controls", compute=steered_controls, needs=("capture", "side_effects@same")),
    Stage(name="steered_texts", compute=steered_texts, needs=CLOSER, loads=("tuned", "base")),
    Stage(name="heads", compute=every_head),
    Stage(name="head_orders", compute=head_orders, needs=HEADS),
    Stage(name="head_sets", compute=head_sets, needs=(*HEADS, "head_orders@same", "attribution@same")),
    Stage(name="head_network", compute=head_network, needs=(*HEADS, "attribution@same")),
    Stage(name="looks", compute=looks, needs=HEADS),
    Stage(name="attention", compute=attention, needs=(*HEADS, "looks")),
    Stage(name="attribution", compute=attribute, needs=("capture", "attribution/select@same")),
    Stage(name="behaviour", compute=behave),
    Stage(name="behaviour_edits", compute=sway, needs=CLOSER),
)
STAGES = {stage.name: stage for stage in _STAGES}
