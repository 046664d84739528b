"""check.py DASHBOARD: what Grafana's types do not know of a dashboard, they lose when they read and write it."""
import json
import sys

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard


def lost(before, after, path):
    """The places at which the two differ; what the types add is theirs."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [place for key, value in before.items() for place in lost(value, after.get(key), f"{path}.{key}")]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [place for at, pair in enumerate(zip(before, after)) for place in lost(*pair, f"{path}[{at}]")]
    return [] if before == after else [path]


def main():
    with open(sys.argv[1]) as file:
        dashboard = json.load(file)
    again = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))
    problems = lost(dashboard, again, "dashboard")
    # The check finds what it looks for.
    wrong = json.loads(json.dumps(dashboard))
    wrong["panels"][0]["titel"] = wrong["panels"][0].pop("title")
    assert lost(wrong, json.loads(JSONEncoder().encode(Dashboard.from_json(wrong))), "dashboard"), "a wrong field is not found"
    for problem in problems:
        print("dashboard: Grafana's types do not know", problem, file=sys.stderr)
    if problems:
        sys.exit(1)
    print(f"dashboard: Grafana's types know every field of {len(dashboard['panels'])} panels")


main()
