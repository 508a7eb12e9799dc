"""Both models' next-token distributions behind both templates are crossed."""

from mechdiff.measures.chat_template import formula
from mechdiff.models.pair import Model
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution
from mechdiff.study.experiment import Result


def cross(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of the four pairings; nothing runs here, for captured distributions are enough."""
    key = cell.key
    laws = {
        template[0] + weights[0]: run.states(weights, split, "decision", key["ids"]).logits
        for template, split in key["templates"].items()
        for weights in ("base", "tuned")
    }
    return formula.measure(laws, key["ids"], split=key["split"], n_shared=run.prepared.tokens.n_shared), {}
