"""Compare `estimate` with the truth for every architecture of mlx-lm, and write it into the book.

    make sizing

Each architecture's tiny model reads prompts of three lengths, one row and four, with a plain and
with an 8-bit cache. All figures go into docs/data/sizing.json, the worst of each architecture into
a table between two marks in docs/sizing.md. It takes 10 to 20 minutes.
"""

import argparse
import importlib.metadata
import json
import platform
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.engine.architectures import CANNOT, CONFIGS, make_architecture  # noqa: E402
from tests.engine.sweep import STEP, Compared, sweep  # noqa: E402

PAGE = ROOT / "docs" / "sizing.md"
DATA = ROOT / "docs" / "data" / "sizing.json"
BEGIN, END = "<!-- the table begins -->", "<!-- the table ends -->"

#: Predicted and taken, in this order.
Pair = Sequence[int]

#: By architecture, all its prompts.
Found = dict[str, list[dict[str, Any]]]


def figures(compared: Compared) -> dict[str, Any]:
    """One prompt as JSON."""
    case = compared.case
    found: dict[str, Any] = {"tokens": case.tokens, "rows": case.rows, "kv_bits": case.kv_bits}
    if compared.refused is not None:
        found["refused"] = compared.refused
    if compared.refusal is not None:
        found["mlx_lm_raises"] = compared.refusal.partition("\n")[0]
    if compared.ignored:
        found["mlx_lm_ignores_kv_bits"] = True
    if compared.predicted is not None and compared.taken is not None:
        found |= {
            "weights": compared.weights,
            "kv": compared.kv,
            "workspace": compared.workspace,
            "peak": compared.peak,
            "approximate": compared.predicted.approximate,
        }
    return found


def run(names: Iterable[str]) -> Found:
    """All prompts of these architectures."""
    found = {}
    for name in names:
        print(name, file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            found[name] = [figures(each) for each in sweep(make_architecture(Path(folder), name))]
    return found


def worst(pairs: Iterable[Pair]) -> str:
    """The largest difference, in bytes and per cent."""
    predicted, taken = max(pairs, key=lambda pair: abs(pair[0] - pair[1]))
    if predicted == taken:
        return "exact"
    return f"{predicted - taken:+,} B ({100 * (predicted / taken - 1):+.4f} %)"


def span(pairs: Iterable[Pair]) -> str:
    """From the worst under to the worst over, in per cent."""
    errors = [round(100 * (predicted / taken - 1)) for predicted, taken in pairs]
    return f"{min(errors):+} to {max(errors):+} %"


def row(name: str, cases: list[dict[str, Any]]) -> str:
    """An architecture's line of the table."""
    ran = [case for case in cases if "kv" in case]
    packed = [case for case in cases if case["kv_bits"]]
    refused = [case for case in packed if "refused" in case]
    remarks = sorted({case["approximate"] for case in ran if case["approximate"]})
    cells = [
        f"`{name}`",
        worst(case["weights"] for case in ran),
        worst(case["kv"] for case in ran),
        span(case["workspace"] for case in ran),
        span(case["peak"] for case in ran),
        _packing(refused) if refused else "yes",
        "; ".join(remarks),
    ]
    return f"| {' | '.join(cells)} |"


def _packing(refused: list[dict[str, Any]]) -> str:
    if any("mlx_lm_ignores_kv_bits" in case for case in refused):
        return "refused: mlx-lm would leave the cache as it is"
    if any("NYI" in case["mlx_lm_raises"] for case in refused):
        return "refused: mlx-lm has none of its sliding windows"
    return "refused: the model's code cannot read one"


def table(found: Found) -> str:
    """What stands between the marks."""
    ran = {name: [case for case in cases if "kv" in case] for name, cases in found.items()}
    exact = [
        name
        for name, cases in ran.items()
        if all(case[what][0] == case[what][1] for case in cases for what in ("weights", "kv"))
    ]
    share = 100 * len(exact) / len(found)
    lines = [
        f"Of {len(found)} architectures {len(exact)} ({share:.1f} %) are exact in weights and "
        f"cache in all their prompts. {sum(map(len, ran.values())):,} prompts ran.",
        "",
        "| Architecture | Weights | Cache | Workspace | Peak | 8-bit cache | Remark |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(row(name, cases) for name, cases in sorted(found.items())),
        "",
        "Not measured:",
        "",
        *(f"- `{name}`: {reason}." for name, reason in sorted(CANNOT.items())),
    ]
    return "\n".join(lines)


def with_table(page: str, found: Found) -> str:
    """The page with this table between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table(found)}\n\n{END}{after}"


def write_data(found: Found) -> None:
    """All figures, an architecture a line."""
    head = {
        "prefill_step_size": STEP,
        "pairs": "predicted and taken, in bytes",
        "system": platform.platform(terse=True),
        **{name: importlib.metadata.version(name) for name in ("mlx", "mlx-lm")},
    }
    lines = [f"{json.dumps(name)}: {json.dumps(cases)}" for name, cases in sorted(found.items())]
    DATA.parent.mkdir(exist_ok=True)
    begin = json.dumps(head).removesuffix("}")
    DATA.write_text(begin + ', "architectures": {\n' + ",\n".join(lines) + "\n}}\n")


def main() -> None:
    """Run what is asked for, and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="architectures to measure again; else all")
    parser.add_argument("--table", action="store_true", help="only write the table anew")
    options = parser.parse_args()
    found: Found = {}
    if options.names or options.table:
        found = json.loads(DATA.read_text())["architectures"]
    if not options.table:
        found |= run(options.names or sorted(CONFIGS))
        write_data(found)
    PAGE.write_text(with_table(PAGE.read_text(), found))


if __name__ == "__main__":
    main()
