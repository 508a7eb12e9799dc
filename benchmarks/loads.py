"""How often are models loaded where only one fits into memory, and how many bytes of weights are read for it?

python benchmarks/loads.py                     the tiny study of every measure (tests/every_measure.py)
python benchmarks/loads.py study.yaml          any study
python benchmarks/loads.py --at 942ae29        as the code of another commit runs it
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from same_rows import ROOT, source

RUN = """
import sys, mechdiff
from mechdiff.study.config import RunOptions

try:
    from mechdiff.models import pair
except ImportError:
    from mechdiff.engine import models as pair  # where it was before the houses

assert mechdiff.__file__.startswith(sys.argv[1]), f"{mechdiff.__file__} was imported, not what lies in {sys.argv[1]}"
loads, load = [], pair.load_net

def counted(source, **how):
    net = load(source, **how)
    loads.append(sum(tensor.nbytes for tensor in (*net.parameters(), *net.buffers())))
    return net

pair.load_net = counted
mechdiff.run(sys.argv[2], out=sys.argv[3], options=RunOptions(device="cpu", memory="one"))
print(f"{len(loads)} loads of a model, {sum(loads) / 1e6:.1f} MB of weights")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("study", nargs="?")
    parser.add_argument("--at", default=".", help="a commit; a dot: the working tree")
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        place = Path(folder)
        src = source(given.at, place / "code")
        study = given.study
        if study is None:
            sys.path.insert(0, str(ROOT / "tests"))
            from every_measure import made

            (place / "study").mkdir()
            study = str(made(place / "study"))
        env = {**os.environ, "PYTHONPATH": str(src)}
        subprocess.run([sys.executable, "-c", RUN, str(src), study, str(place / "run")], check=True, env=env)


if __name__ == "__main__":
    main()
