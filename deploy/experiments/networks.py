"""Prints the tables [model.*] of a job, for another job that starts from the same weights.

    networks.py JOB.toml [TABLE ...]    all tables, or those with these names
"""

import json
import pathlib
import sys
import tomllib


def networks(job, names=()):
    lines = []
    for name, table in job["model"].items():
        if isinstance(table, dict) and (not names or name in names):
            lines.append(f"[model.{name}]")
            # JSON's numbers, strings and lists are TOML.
            lines += [f"{field} = {json.dumps(value)}" for field, value in table.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    print(networks(tomllib.loads(pathlib.Path(sys.argv[1]).read_text()), sys.argv[2:]))
