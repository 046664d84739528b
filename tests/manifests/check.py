"""check.py BINARY ROOT RENDERED...: are the manifests what Kubernetes takes, and do they say what the program does?"""
import pathlib
import re
import subprocess
import sys
import tempfile

import kubernetes_validate
import yaml

VERSIONS = ["1.31", "1.34", "1.37"]
problems = []


def program(binary, container):
    """The container's arguments, as the program itself takes them: nothing is done, only parsed or planned."""
    args = list(container["args"])
    if args[0] in ("install", "uninstall"):
        # The paths are the pod's; what counts is that the program knows each argument.
        args = [a if not a.startswith("/") else "/nonexistent" for a in args] + ["--help"]
    else:
        args.append("--help")
    run = subprocess.run([binary, *args], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if run.returncode != 0:
        problems.append(f"{container['name']}: {' '.join(args)}: {run.stderr.strip()}")
    # clap prints help before it looks at what comes before it.
    known = set(re.findall(r"(--[a-z-]+)", run.stdout))
    probe = container.get("readinessProbe", {}).get("exec", {}).get("command", [])
    if probe and probe[0] != "/bpfman-hook":
        problems.append(f"{container['name']}: the image has no program {probe[0]}")
    if container["args"][0] == "nri" and "--no-connect" not in container["args"] and probe[1:] != ["nri", "--check"]:
        problems.append(f"{container['name']}: no probe asks whether the plugin is connected")
    for arg in container["args"] + [arg for arg in probe[1:] if arg.startswith("--")]:
        if arg.startswith("--") and arg not in known:
            problems.append(f"{container['name']}: the program does not know {arg}")


def capabilities(root):
    """What the hook keeps is the most that anything of ours needs."""
    text = (root / "src/hooks/stage.rs").read_text()
    found = set(re.findall(r"Capability::CAP_([A-Z_]+)", text))
    assert len(found) >= 10, found
    return found


def check_daemonset(binary, root, overlay, document):
    spec = document["spec"]["template"]["spec"]
    volumes = {v["name"]: v for v in spec["volumes"]}
    if not spec.get("hostPID"):
        problems.append("hostPID: LMDB's locks know pids of the node")
    if spec.get("automountServiceAccountToken") is not False:
        problems.append("automountServiceAccountToken is not off")
    for container in spec["initContainers"] + spec["containers"]:
        name, context = container["name"], container["securityContext"]
        if container["image"] == "bpfman-hook" and overlay in ("quickstart", "remove"):
            problems.append(f"{name}: the image is not named")
        # CRI-O starts no pod while a plugin connects and a container is being stopped.
        if overlay == "crio" and ("--containerd" in container["args"] or name == "plugin" and "--no-connect" not in container["args"]):
            problems.append(f"{name}: it connects to CRI-O, or installs for containerd")
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        if name == "install" and not {"policy", "registries"} <= mounts:
            problems.append("the installer does not get policy and registries")
        program(binary, container)
        if context.get("privileged") or context.get("allowPrivilegeEscalation") is not False:
            problems.append(f"{name} may gain privileges")
        if not context.get("readOnlyRootFilesystem") or context["capabilities"]["drop"] != ["ALL"]:
            problems.append(f"{name} has more than it needs")
        too_many = set(context["capabilities"].get("add", [])) - capabilities(root)
        if too_many:
            problems.append(f"{name} has capabilities that the hook itself does without: {sorted(too_many)}")
        if name == "metrics" and (context.get("runAsUser") == 0 or "add" in context["capabilities"]):
            problems.append("metrics has rights")
        if name == "metrics" and ([m["mountPath"] for m in container["volumeMounts"]] != ["/run/bpfman-hook/export"]
                                  or context.get("runAsGroup") != 0):
            problems.append("metrics cannot read what runs leave for it, or sees more")
        for mount in container["volumeMounts"]:
            path = volumes[mount["name"]].get("hostPath", {}).get("path")
            # Processes on both sides name files by path.
            if path not in (None, "/", mount["mountPath"]):
                problems.append(f"{name}: {path} of the node is at {mount['mountPath']}")


def check_quick_starts(binary, root):
    """The manifests of the quick starts: what Kubernetes takes, with requests that the program understands."""
    manifests = 0
    for page in sorted((root / "docs/quickstart").glob("*.md")):
        for block in re.findall(r"^```yaml\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
            document = yaml.safe_load(block)
            manifests += 1
            for version in VERSIONS:
                try:
                    kubernetes_validate.validate(document, version, strict=True)
                except kubernetes_validate.ValidationError as error:
                    problems.append(f"{page.name}: {document['kind']}, Kubernetes {version}: {error}")
            pod = document["spec"].get("template", document)
            asked = [f"--annotation={key}={value}" for key, value in pod["metadata"]["annotations"].items()]
            with tempfile.TemporaryDirectory() as host:
                run = subprocess.run([binary, "--root", host, "policy", "explain", "--engine", "containerd", *asked],
                                     capture_output=True, text=True, stdin=subprocess.DEVNULL)
            if not re.search("^program ", run.stdout, re.MULTILINE) or re.search("^refused +annotation", run.stdout, re.MULTILINE):
                problems.append(f"{page.name}: {run.stdout}{run.stderr}")
    assert manifests >= 2, manifests
    return manifests


def check_admission(root, document):
    """The sample names annotations that exist."""
    known = set(re.findall(r'Self::[A-Za-z]+, "([a-z-]+)"', (root / "src/model/annotations/keys.rs").read_text()))
    assert len(known) > 10, known
    named = set(re.findall(r"hook\.bpfman\.io/([a-z-]+)", str([v["expression"] for v in document["spec"]["validations"]])))
    # The label of a namespace.
    named.discard("allowed")
    if not named or not named <= known:
        problems.append(f"the admission policy names {sorted(named - known)}, which are no annotations")


def main():
    binary, root, rendered = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3:]
    assert len(rendered) >= 5, rendered
    daemonsets = objects = policies = 0
    for path in rendered:
        for document in yaml.safe_load_all(pathlib.Path(path).read_text()):
            for version in VERSIONS:
                try:
                    kubernetes_validate.validate(document, version, strict=True)
                except kubernetes_validate.ValidationError as error:
                    problems.append(f"{path}: {document['kind']}, Kubernetes {version}: {error}")
            objects += 1
            if document["kind"] == "DaemonSet":
                daemonsets += 1
                check_daemonset(binary, root, pathlib.Path(path).stem, document)
            if document["kind"] == "ValidatingAdmissionPolicy":
                policies += 1
                check_admission(root, document)
    # The sample of an admission policy is the only overlay without one.
    assert (daemonsets, policies) == (len(rendered) - 1, 1), (daemonsets, policies, rendered)
    objects += check_quick_starts(binary, root)
    for problem in problems:
        print("manifests:", problem, file=sys.stderr)
    if problems:
        sys.exit(1)
    print(f"manifests: {objects} objects of {len(rendered)} overlays and of the quick starts fit Kubernetes {', '.join(VERSIONS)} and the program")


main()
