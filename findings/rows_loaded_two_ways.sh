#!/bin/sh
# The same rows become other columns, and other prompts, by the way they are loaded.
#
# Packages: datasets 5.2.0, jinja2 3.1.6 (which chat templates are written in).
# Guess: `Dataset.from_list(rows)` and `load_dataset("json")` of the same rows hold the same; a key that some rows lack is null there.
# Behaviour: `from_list` takes its columns from the first row: a key that the first row lacks is dropped from all rows, without a
#   word. A dict within a row (the arguments of a tool call) gets the keys of all rows, null where it had none, in
#   `from_list`, and keeps its own in JSON: `tojson` in a chat template then writes arguments that nobody gave.
#   JSON keeps the late key and the dicts.
# Hurt: who builds prompts or labels in code for one model and reads them from a file for another: half of the rows have no
#   answer, and base and tuned model are shown two texts. A model fine-tuned on such rows learns to write `null`.
# Instead: give `features=`, write JSON lines and load them, and compare rendered prompts, not rows.
#
# Output seen:
#   datasets 5.2.0, jinja2 3.1.6
#   as written: labels ['no such key', '2', 'no such key']
#       <assistant>weather {"city": "Oslo"}
#       <assistant>sum {"terms": "1+1"}
#   from_list: labels ['no such key', 'no such key', 'no such key']
#       <assistant>weather {"city": "Oslo", "terms": null}
#       <assistant>sum {"city": null, "terms": "1+1"}
#   from_list, last row first: labels [None, '2', None]
#       <assistant>weather {"city": "Oslo", "terms": null}
#       <assistant>sum {"city": null, "terms": "1+1"}
#   load_dataset: labels [None, '2', None]
#       <assistant>weather {"city": "Oslo"}
#       <assistant>sum {"terms": "1+1"}
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile datasets==5.2.0 jinja2==3.1.6
cd "$work"
export HF_HOME="$work/cache"
"$work/venv/bin/python" -W ignore - <<'PY'
import json
import pathlib
import sys

import datasets
import jinja2

datasets.disable_progress_bars()
print(f"datasets {datasets.__version__}, jinja2 {jinja2.__version__}")
template = jinja2.Environment(autoescape=False).from_string(
    "{% for m in messages %}<{{ m.role }}>{% for call in m.tool_calls %}{{ call.name }} {{ call.arguments | tojson }}{% endfor %}{% endfor %}")
calls = [("weather", {"city": "Oslo"}), ("sum", {"terms": "1+1"}), ("weather", {"city": "Rome"})]
rows = [{"messages": [{"role": "assistant", "tool_calls": [{"name": name, "arguments": arguments}]}]} for name, arguments in calls]
rows[1]["label"] = "2"
pathlib.Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
ways = {
    "as written": rows,
    "from_list": datasets.Dataset.from_list(rows),
    "from_list, last row first": datasets.Dataset.from_list([rows[1], rows[0], rows[2]]).select([1, 0, 2]),
    "load_dataset": datasets.load_dataset("json", data_files="rows.jsonl", split="train"),
}
seen = {}
for name, loaded in ways.items():
    texts = [template.render(row) for row in loaded]
    labels = [row.get("label", "no such key") for row in loaded]
    seen[name] = texts, labels
    print(f"{name}: labels {labels}")
    for text in texts[:2]:
        print(f"    {text}")
written, listed, turned, file = seen.values()
same = [listed[1] == ["no such key"] * 3, turned[1] == [None, "2", None], file[1] == [None, "2", None],
        file[0] == written[0], listed[0] != written[0], "null" in listed[0][0], listed[0] == turned[0]]
sys.exit(0 if all(same) else f"the behaviour has changed: {same}")
PY
