"""What each stage of a plan does: from a cell, the execution, and the model that runs where one does, to rows and tensors."""

from collections.abc import Callable

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
from mechdiff.models.pair import Model
from mechdiff.study.capture import capture_states, check_itself
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution
from mechdiff.study.experiment import Result

Stage = Callable[[Execution, Cell, Model | None], Result]


STAGES: dict[str, Stage] = {
    "inputs": inputs,
    "weights": weigh,
    "grafting": graft,
    "selfcheck": check_itself,
    "capture": capture_states,
    "divergence": diverge,
    "native": native,
    "similarity": compare_states,
    "texts": texts,
    "patching": patch,
    "crossing": crossing,
    "factorial": cross,
    "fits": fits,
    "transport": patched,
    "closer": closer,
    "rank": ranks,
    "fisher": fisher,
    "rank_curve": rank_curve,
    "steering": steer,
    "steered": steered_prompts,
    "side_effects": side_effects,
    "steered_controls": steered_controls,
    "steered_texts": steered_texts,
    "heads": every_head,
    "head_orders": head_orders,
    "head_sets": head_sets,
    "head_network": head_network,
    "looks": looks,
    "attention": attention,
    "attribution": attribute,
    "behaviour": behave,
    "behaviour_edits": sway,
}
