#!/bin/sh
# Repeating decimals, other bases and small numbers: wrong answers are right and right ones wrong.
#
# Packages: math-verify 0.9.0, latex2sympy2-extended 1.11.0, sympy 1.14.0.
# Guess: a checker of mathematical answers reads the notations of school and contest mathematics, or says that it cannot
#   (`parse` returns an empty list), and equality of two short decimals is exact.
# Behaviour: a repeating decimal loses what stands under its bar, so that 0.(3) and 0.(36) are 0 (0.1(6) is 0.1 times an unknown);
#   the base of a number is dropped, so that 101 in base 2 is 101; "1e-7" is Euler's number minus 7; numbers are
#   compared after rounding to six decimals, so that
#   0.0000001 equals 0.0000002 and 0.333333 is a third while 0.33333 is none. Units are dropped: 5 cm is 5 m.
# Hurt: who scores a fine-tune by it or trains on its reward: a model that answers "0" gains, one that
#   answers 1/3 loses, and "the fine-tune fails at number bases" may be said of the checker.
# Instead: hold parsed references against their own text before scoring, leave out items in these notations or
#   rewrite them (1/3 for 0.(3)), and set `float_rounding` for small quantities.
#
# Output seen:
#   math-verify 0.9.0, latex2sympy2-extended 1.11.0, sympy 1.14.0
#   reference            answer               equal   verdict   the answer as read
#   $\frac{1}{3}$        $0.\overline{3}$     True    False     0   <- wrong
#   $0$                  $0.\overline{3}$     False   True      0   <- wrong
#   $\frac{4}{11}$       $0.\overline{36}$    True    False     0   <- wrong
#   $\frac{1}{6}$        $0.1\overline{6}$    True    False     0.1*bar{6}   <- wrong
#   $5$                  $101_2$              True    False     101   <- wrong
#   $101$                $101_2$              False   True      101   <- wrong
#   $101_3$              $101_2$              False   True      101   <- wrong
#   $0.0000001$          $1e-7$               True    False     -7 + 1*E   <- wrong
#   $e - 7$              $1e-7$               False   True      -7 + 1*E   <- wrong
#   $0.0000001$          $0.0000002$          False   True      2.00000000000000E-7   <- wrong
#   $\frac{1}{3}$        $0.333333$           False   True      0.333333000000000   <- wrong
#   $\frac{1}{3}$        $0.33333$            False   False     0.333330000000000
#   $5\text{ m}$         $5\text{ cm}$        False   True      5   <- wrong
#   $\frac{1}{2}$        $0.5$                True    True      1/2
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile sympy==1.14.0 latex2sympy2-extended==1.11.0 math-verify==0.9.0
cd "$work"
cat > shown.py <<'PY'
import importlib.metadata
import sys

from math_verify import parse, verify

print(", ".join(f"{kit} {importlib.metadata.version(kit)}" for kit in ("math-verify", "latex2sympy2-extended", "sympy")))
cases = [  # reference, answer, are they equal?
    (r"$\frac{1}{3}$", r"$0.\overline{3}$", True),
    ("$0$", r"$0.\overline{3}$", False),
    (r"$\frac{4}{11}$", r"$0.\overline{36}$", True),
    (r"$\frac{1}{6}$", r"$0.1\overline{6}$", True),
    ("$5$", "$101_2$", True),
    ("$101$", "$101_2$", False),
    ("$101_3$", "$101_2$", False),
    ("$0.0000001$", "$1e-7$", True),
    ("$e - 7$", "$1e-7$", False),
    ("$0.0000001$", "$0.0000002$", False),
    (r"$\frac{1}{3}$", "$0.333333$", False),
    (r"$\frac{1}{3}$", "$0.33333$", False),
    (r"$5\text{ m}$", r"$5\text{ cm}$", False),
    (r"$\frac{1}{2}$", "$0.5$", True),
]
verdicts = []
print("reference            answer               equal   verdict   the answer as read")
for reference, answer, equal in cases:
    read = parse(answer)
    verdicts.append(verify(parse(reference), read))
    mark = "" if verdicts[-1] == equal else "   <- wrong"
    print(f"{reference:20} {answer:20} {equal!s:7} {verdicts[-1]!s:9} {read[0] if read else 'nothing'}{mark}")
wrong = [verdict != equal for verdict, (_, _, equal) in zip(verdicts, cases, strict=True)]
sys.exit(0 if wrong == [True] * 11 + [False, True, False] else f"the behaviour has changed: {verdicts}")
PY
"$work/venv/bin/python" -W ignore shown.py
