"""The section on writes off the manifold sets each write's distance from the running model's own states beside what it does."""

from mechdiff import terms
from mechdiff.measures.divergence.words import whose
from mechdiff.measures.off_manifold import findings
from mechdiff.measures.off_manifold.findings import FEWEST_OWN, by_chance
from mechdiff.measures.off_manifold.words import reach
from mechdiff.report.difference import site_name
from mechdiff.report.parts import Run, Section, note, table
from mechdiff.report.phrasing import decimal, nats, share, shown
from mechdiff.shares import ANSWER

TITLE = "Does the running model have activations like those patched in?"
SITES = 12
"""Sites that are shown, the largest effect first."""
HOW = (
    "Each patched-in activation is compared with the running model's own clean ones at that site and at the last prompt token, on prompts of other "
    "parts than its own (Mahalanobis distance, Ledoit-Wolf covariance), and so is each of its own. Limit: the distance that {keeps} keep. Looked at "
    "are patches of one site and of windows of blocks (beyond where any block is), maps at strength 1, steering without controls and swaps of heads "
    "(the result of the output projection), on the test prompts; along answers patches of one site, by the mean distance and norm ratio over an "
    "answer's positions against such means of own activations. A window of w blocks passes the limit by chance up to w times as often as a block; "
    "along answers own means are fewer, and where they are of less than {fewest} prompts (clusters of them) none is called beyond (–). "
    "Not several positions of a prompt, nor the tuned model's activations on other prompts in the tuned model, which are its own (a mean of own "
    "activations lies near their middle by construction). Intervals are over prompts, or clusters of them. It misleads where own activations are "
    "few or of one kind of prompt: the model may have others."
)
DIRECTIONS = {"base<-base": "within the base", "tuned<-tuned": "within the tuned model"}


def off_manifold(run: Run) -> Section:
    """The section; a note with the reason where it was not measured."""
    found = findings.by_edit(run.prompt_rows, run.manifest)
    if found.is_empty():
        said = f"Patched-in activations were not compared with own ones{run.why_not('off_manifold')}."
        return Section(id="off_manifold", title=TITLE, parts=[note(said)])
    own, clusters = found["own"].min(), found["own_clusters"].min()
    assert isinstance(own, int)
    assert isinstance(clusters, int)
    if clusters < FEWEST_OWN:
        return Section(id="off_manifold", title=TITLE, parts=[_edits(run), note(
            f"Own activations on {clusters} prompts (clusters of them) are too few to call any patch beyond them ({FEWEST_OWN} are needed); "
            "distances are in the table."
        )])  # fmt: skip
    how = HOW.format(
        keeps=f"{reach(own, clusters)} ({share(by_chance(clusters), 3)} of activations like them pass it by chance)", fewest=FEWEST_OWN
    )
    return Section(id="off_manifold", title=TITLE, parts=[*_sites(run), _edits(run), note(how)])


def _sites(run: Run) -> list[dict]:
    found = findings.by_site(run.prompt_rows, run.summary, run.manifest)
    lines = [
        [
            row["name"],
            terms.DIRECTIONS[row["direction"]].label,
            share(row["share"]),
            f"{row['beyond']} of {row['writes']}",
            decimal(row["ratio"]),
            decimal(row["far"]),
        ]
        for row in found.with_columns(name=site_name()).head(SITES).iter_rows(named=True)
    ]
    columns = ["site", "direction", "share of D", "beyond own", "norm / own norm", "distance / limit"]
    more = f"; the {SITES} with the largest share of D, of {len(found)}" if len(found) > SITES else ""
    return [table(columns, lines, title=f"The other model's activation, by site (medians over prompts){more}")] if lines else []


def _edits(run: Run) -> dict:
    lines = [_line(_name(row), row) for row in findings.by_edit(run.prompt_rows, run.manifest).iter_rows(named=True)]
    wide = findings.by_window(run.prompt_rows, run.manifest).iter_rows(named=True)
    lines += [_line(f"{terms.CONDITIONS['identity'].label}, windows of {row['width']} blocks", row) for row in wide]
    for one in run.by_answers:
        along = findings.by_edit(one.prompt_rows, one.manifest, ANSWER).iter_rows(named=True)
        lines += [_line(f"{terms.CONDITIONS['identity'].label}, along {whose(one)}", row) for row in along]
    columns = ["written", "direction", "writes", "beyond own", "share", "norm / own norm", "distance / limit"]
    return table(columns, lines, folded="By what was patched in, all sites together (medians over patches)")


def _line(name: str, row: dict) -> list[str]:
    return [
        name,
        terms.DIRECTIONS[row["direction"]].label if row["direction"] in terms.DIRECTIONS else DIRECTIONS[row["direction"]],
        str(row["writes"]),
        "–" if row["beyond"] is None else str(row["beyond"]),
        shown(row["part"], row["low"], row["high"], digits=2),
        decimal(row["ratio"]),
        decimal(row["far"]),
    ]


def _name(row: dict) -> str:
    """An edit's arm with its rank, of subspaces, and its strength."""
    if row["arm"] in terms.CONDITIONS:
        return terms.CONDITIONS[row["arm"]].label
    if row["of"]:
        return "the other model's contribution, one head" if row["of"] == "one" else "the other model's contributions, all heads of a block"
    steered = row["arm"] in ("add", "amplify", "ablate", "interchange")
    rank = f", {row['rank']} dimensions" if steered and row["arm"] != "add" else ""
    return f"{row['arm']}{rank}" + ("" if row["strength"] is None else f" × {nats(row['strength'])}")
