"""The section on templates sets each model behind both chat templates, and splits what they differ by into the template's part and the weights'."""

from mechdiff.measures.chat_template import findings, words
from mechdiff.measures.chat_template.findings import EFFECTS
from mechdiff.report import spoken
from mechdiff.report.parts import Run, Section, note, table
from mechdiff.report.phrasing import shown

TITLE = "Is it the chat template or the weights?"
NAMES = {"template_effect": "the template", "weights_effect": "the weights", "interaction": "both, beyond the sum of each alone"}
SCORES = {"nats": "KL, nats", "linear_nats": "linear score, nats"}
HOW = (
    "Each prompt is printed with either model's chat template, and read by either model. In nats of KL the two parts sum to D of each model after "
    "its own template; in the linear score to KL(tuned ‖ base) + KL(base ‖ tuned), and there changes that merely add have nothing beyond their sum. "
    "It misleads where a model was never trained on the other's template: what it says after it was meant by nobody."
)


def chat_template(run: Run) -> Section:
    """The section; a note with the reason where templates and weights were not crossed."""
    if findings.split(run.rows, "nats") is None and not findings.estimates(run.summary, "kl_tuned_nats"):
        return Section(id="chat_template", title=TITLE, parts=[note(words.why_not(run))])
    return Section(id="chat_template", title=TITLE, parts=[_parts(run), _square(run), note(HOW)])


def _parts(run: Run) -> dict:
    """What template, weights and both do, in nats and as a share of the whole."""
    found = {score: findings.split(run.rows, score) for score in SCORES}
    lines = []
    for name in EFFECTS:
        line = [NAMES[name]]
        for score, one in found.items():
            mean = findings.estimates(run.summary, f"{name}_{score}").get(None)
            line.append("–" if mean is None else shown(mean["mean"], mean["ci_low"], mean["ci_high"], mean["n"]))
            share = one.shares[name] if one else None
            line.append("–" if share is None else shown(share.mean, share.low, share.high, digits=2))
        lines.append([*line, spoken.in_words(found["linear_nats"].p) if name == "interaction" and found["linear_nats"] else ""])
    columns = [column for said in SCORES.values() for column in (said, "of the whole")]
    return table(["what the tuned one brings", *columns, ""], lines, title="What is the template's, and what the weights'")


def _square(run: Run) -> dict:
    """The four runs, and the four sides of their square."""
    runs = findings.estimates(run.summary, "kl_tuned_nats")
    sides = {name: findings.estimates(run.summary, f"kl_{name}_nats") for name in ("template", "weights")}

    def cell(one: dict | None) -> str:
        return "–" if one is None else shown(one["mean"], one["ci_low"], one["ci_high"], one["n"])

    lines = [
        [
            f"the {side}'s template",
            *(cell(runs.get(side[0] + weights[0])) for weights in ("base", "tuned")),
            cell(sides["weights"].get(side)),
        ]
        for side in ("base", "tuned")
    ]
    lines.append(["KL(tuned's ‖ base's template)", *(cell(sides["template"].get(side)) for side in ("base", "tuned")), ""])
    title = (
        "KL of each pairing from the tuned model with its own template, in nats; at the edges, what one change does where the other is held"
    )
    return table(["", "the base reads", "the tuned model reads", "KL(tuned ‖ base)"], lines, title=title)
