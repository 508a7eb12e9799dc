#!/bin/sh
# A table of p-values is corrected within columns, or by the number of its rows, or as a whole: three libraries, three answers.
#
# Packages: numpy 2.4.6, scipy 1.17.1, statsmodels 0.15.0, pingouin 0.7.0.
# Guess: a table of p-values [layer, head] given to a multiple-testing correction is one family, or is refused; a NaN (a cell that
#   could not be tested) is passed over or refused.
# Behaviour: scipy's `false_discovery_control` corrects each column by itself (axis 0). statsmodels' `multipletests` takes the number
#   of rows for the number of tests and puts rows in each other's places, so that a value may come back smaller than it
#   was, or be another cell's (only BH and its relatives refuse a table). pingouin's `multicomp` takes the table as one family. A
#   NaN: scipy raises, pingouin passes over it, statsmodels gives rejections beside corrected values that are all NaN
#   (BH) or loses every rejection (Hommel).
# Hurt: who tests every head of every layer: with scipy about half of the tables in which nothing is there report something; with
#   statsmodels the one head that matters is lost, or another one is named.
# Instead: `p[np.isfinite(p)].ravel()` first; a table of one column or one row is a good test of any such function.
#
# Output seen:
#   numpy 2.4.6, scipy 1.17.1, statsmodels 0.15.0, pingouin 0.7.0
#   way                             .01 .02 / .03 .04     alarms where nothing is there   the one effect found   value below p
#   scipy BH, table                 0.02 0.04 0.03 0.04                   0.465                      1.000             0.000
#   statsmodels Bonferroni, table   0.02 0.04 0.02 0.04                   0.055                      0.005             0.046
#   pingouin Bonferroni, table      0.04 0.08 0.12 0.16                   0.065                      1.000             0.000
#   scipy BH, flat                  0.04 0.04 0.04 0.04                   0.065                      1.000             0.000
#   statsmodels Bonferroni, flat    0.04 0.08 0.12 0.16                   0.065                      1.000             0.000
#   p = .001 .002 .003 .5 NaN     rejected                   corrected
#   statsmodels holm              yes yes yes no no          [0.005 0.008 0.009 1.      nan]
#   pingouin holm                 yes yes yes no no          [0.004 0.006 0.006 0.5     nan]
#   statsmodels fdr_bh            yes yes yes no no          [nan nan nan nan nan]
#   pingouin fdr_bh               yes yes yes no no          [0.004 0.004 0.004 0.5     nan]
#   statsmodels hommel            no no no no no             [nan nan nan nan nan]
#   scipy fdr_bh                  ValueError: `ps` must include only numbers between 0 and 1.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 MPLBACKEND=Agg
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile numpy==2.4.6 scipy==1.17.1 statsmodels==0.15.0 pingouin==0.7.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import sys

import numpy as np
import pingouin
import scipy
import statsmodels
from scipy.stats import false_discovery_control
from statsmodels.stats.multitest import multipletests

print(", ".join(f"{kit.__name__} {kit.__version__}" for kit in (np, scipy, statsmodels, pingouin)))
seen = []
ways = {
    "scipy BH, table": lambda p: false_discovery_control(p),
    "statsmodels Bonferroni, table": lambda p: multipletests(p, method="bonferroni")[1],
    "pingouin Bonferroni, table": lambda p: pingouin.multicomp(p, method="bonf")[1],
    "scipy BH, flat": lambda p: false_discovery_control(p.ravel()).reshape(p.shape),
    "statsmodels Bonferroni, flat": lambda p: multipletests(p.ravel(), method="bonferroni")[1].reshape(p.shape),
}
small = np.array([[0.01, 0.02], [0.03, 0.04]])
rng = np.random.default_rng(0)
nothing = rng.uniform(size=(400, 12, 12))
one = nothing.copy()
one[:, 7, 3] = 1e-6
print("way                             .01 .02 / .03 .04     alarms where nothing is there   the one effect found   value below p")
rates = {}
for name, way in ways.items():
    corrected = " ".join(f"{x:.2f}" for x in way(small).ravel())
    alarms = float(np.mean([(way(table) < 0.05).any() for table in nothing]))
    found = float(np.mean([way(table)[7, 3] < 0.05 for table in one]))
    below = float(np.mean([way(table) < table for table in nothing]))
    rates[name] = alarms, found, below
    print(f"{name:31} {corrected:25} {alarms:17.3f} {found:26.3f} {below:17.3f}")
scipy_table, statsmodels_table, *right = rates.values()
seen += [scipy_table[0] > 0.3, scipy_table[1] == 1, statsmodels_table[1] < 0.9, statsmodels_table[2] > 0.02]
seen += [alarms < 0.1 and found == 1 and below == 0 for alarms, found, below in right]

holed = np.array([0.001, 0.002, 0.003, 0.5, np.nan])
print("p = .001 .002 .003 .5 NaN     rejected                   corrected")
for method in ("holm", "fdr_bh", "hommel"):
    for kit, way in {"statsmodels": multipletests, "pingouin": pingouin.multicomp}.items():
        if (kit, method) == ("pingouin", "hommel"):
            continue
        rejected, corrected = way(holed, method=method)[:2]
        print(f"{kit + ' ' + method:29} {' '.join('yes' if r else 'no' for r in rejected):26} {np.round(corrected, 4)}")
        n = {"statsmodels hommel": 0}.get(f"{kit} {method}", 3)
        seen.append(int(np.sum(rejected)) == n)
seen.append(np.isnan(multipletests(holed, method="fdr_bh")[1]).all())
try:
    false_discovery_control(holed)
    seen.append(False)
except ValueError as error:
    print(f"scipy fdr_bh                  ValueError: {error}")
sys.exit(0 if all(seen) else f"the behaviour has changed: {seen}")
PY
