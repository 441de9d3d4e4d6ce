#!/usr/bin/env python3
"""What `inject` writes, as others read it.

- Every golden of tests/golden/inject is valid by the schemas of Kubernetes, nothing unknown in it: native sidecars by
  1.33 and 1.37, classic ones by 1.30 and 1.37, those without a pause by 1.27.
- The sidecar's container is one that Pod Security *restricted* admits.
- Without the sidecar again, each manifest has the values that it had, read as YAML 1.1 (PyYAML) and 1.2 (ruamel.yaml);
  so have 400 random documents of text that looks like something else, and what `kubectl kustomize` reads, if it is here.

DPA_SIDECAR names the binary; without it the debug build is made and taken.
Exit codes: 0 all as it should be; 1 a finding; 2 cannot be tried here (it says why).
"""

import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = ["kubernetes-validate==1.37.0", "PyYAML==6.*", "ruamel.yaml==0.18.*"]
# What no schema is there for.
WITHOUT_SCHEMA = {"serving.knative.dev/v1"}


def skip(why):
    print(f"skipped: {why}", file=sys.stderr)
    raise SystemExit(2)


def check(what, fine, more=""):
    if not fine:
        raise SystemExit(f"{what}: {more}")


def binary():
    if named := os.environ.get("DPA_SIDECAR"):
        return named
    subprocess.run(["cargo", "build", "--locked", "--quiet"], cwd=ROOT, check=True)
    return str(pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug/dpa-sidecar")


def objects(documents):
    for document in documents:
        if document is not None:
            yield from document["items"] if document["kind"].endswith("List") else [document]


def versions(name):
    """The versions of Kubernetes that a golden has to be valid for."""
    if name == "classic-old":
        return ["1.27", "1.37"]
    return ["1.30", "1.37"] if name == "classic" else ["1.33", "1.37"]


def template(thing):
    spec = thing.get("spec", {})
    if thing["kind"] == "Pod":
        return spec
    return spec.get("jobTemplate", thing)["spec"].get("template", {}).get("spec", {})


def is_restricted(container):
    """The controls of the profile *restricted* that concern a container."""
    context = container["securityContext"]
    return (
        context["allowPrivilegeEscalation"] is False
        and context["capabilities"] == {"drop": ["ALL"]}
        and context["runAsNonRoot"] is True
        and context["runAsUser"] > 0
        and context["privileged"] is False
        and context["seccompProfile"] == {"type": "RuntimeDefault"}
        and not any("hostPort" in port for port in container["ports"])
    )


def without(program, path):
    done = subprocess.run([program, "inject", "--uninject", path], capture_output=True, text=True)
    check(path, done.returncode == 0, done.stderr)
    return done.stdout


def readers():
    import ruamel.yaml
    import yaml

    def newer(text):
        return [it for it in ruamel.yaml.YAML(typ="safe", pure=True).load_all(text) if it is not None]

    def older(text):
        return [it for it in yaml.safe_load_all(text) if it is not None]

    return [("YAML 1.1", older), ("YAML 1.2", newer)]


def goldens(program):
    import kubernetes_validate
    import yaml

    sources = {it.stem: it for it in (ROOT / "tests/inject").iterdir() if "sidecar" not in it.suffixes[0]}
    sources["kubectl-json"] = sources.pop("kubectl")
    count = 0
    for path in sorted((ROOT / "tests/golden/inject").glob("*.yaml")):
        for thing in objects(yaml.safe_load_all(path.read_text())):
            what = f"{path.name}: {thing['kind']} {thing['metadata'].get('name')}"
            for version in versions(path.stem):
                if thing["apiVersion"] not in WITHOUT_SCHEMA:
                    try:
                        kubernetes_validate.validate(thing, version, strict=True)
                    except kubernetes_validate.ValidationError as error:
                        raise SystemExit(f"{what}, Kubernetes {version}: {error}") from error
                    count += 1
            if "template" in thing.get("spec", {}) or thing["kind"] in ("Pod", "CronJob"):
                pod = template(thing)
                for container in pod.get("containers", []) + (pod.get("initContainers") or []):
                    if container.get("name") == "dpa-sidecar":
                        check(f"{what}: restricted", is_restricted(container), container)
        if source := sources.get(path.stem):
            # Comments are no values, and `%YAML` says what the readers are told already.
            text = source.read_text().replace("%YAML 1.1\n", "")
            for name, read in readers():
                check(f"{source.name} as {name}", read(without(program, str(path))) == read(text), "other values than before")
    check("goldens", count > 40, count)
    print(f"{count} objects valid")


WORDS = """yes No on OFF y n null Null ~ = << 0o7 010 1:30 1e3 1E+3 .inf -.INF .nan 0x1f 1_000 +1 - -- --- ... ? : , [ ] { } # & *
! | > ' " % @ ` 2026-06-15 2026-06-15T10:00:00Z 12:30:45 true FALSE 08 1.10 .5 5. 0.0 -0 1,000 a:b a: :a #a a#b /a \\ \\n é 😀""".split()


# Line breaks to YAML 1.1 and none to 1.2, so written as they are they mean two things; escaped they mean one.
TWO_MEANINGS = ["\u0085", "\u2028", "\ufeff"]


def text(dice):
    parts = [*WORDS, " ", "  ", "\n", "\n\n", "\t", "a", "b c", ": ", " #", "\x07", *TWO_MEANINGS]
    return "".join(dice.choice(parts) for _ in range(dice.choice([0, 1, 1, 1, 2, 3, 6])))


def value(dice, depth):
    kind = dice.randrange(8 if depth else 5)
    if kind < 3:
        return text(dice)
    if kind < 5:
        return dice.choice([0, 1, -7, 1.5, 1.5e300, True, False, None, 10**18])
    if kind < 6:
        return [value(dice, depth - 1) for _ in range(dice.randrange(4))]
    return {text(dice): value(dice, depth - 1) for _ in range(dice.randrange(4))}


def without_two_meanings(value):
    if isinstance(value, str):
        return "".join(c for c in value if c not in TWO_MEANINGS)
    if isinstance(value, dict):
        return {without_two_meanings(key): without_two_meanings(it) for key, it in value.items()}
    return [without_two_meanings(it) for it in value] if isinstance(value, list) else value


def hostile(program, folder):
    import yaml

    dice = random.Random(7)
    documents = [{"apiVersion": "v1", "kind": "Thing", "spec": value(dice, 4)} for _ in range(400)]
    plain = json.loads(json.dumps(documents), object_hook=without_two_meanings)
    forms = {
        "block.yaml": yaml.safe_dump_all(plain, allow_unicode=True),
        "flow.yaml": yaml.safe_dump_all(documents, default_flow_style=True, width=60),
        "as.json": json.dumps({"apiVersion": "v1", "kind": "List", "items": documents}),
    }
    for name, written in forms.items():
        path = folder / name
        path.write_text(written)
        back = without(program, str(path))
        for reader, read in readers():
            # Of JSON, its own reader knows best: others stumble over surrogate pairs.
            found, expected = read(back), [json.loads(written)] if name == "as.json" else read(written)
            # One by one, so that a finding can be read.
            for one, other in zip(objects(found), objects(expected), strict=True):
                check(f"{name} as {reader}", one == other, f"\n{one!r}\ninstead of\n{other!r}")
    print(f"{len(documents)} hostile documents in {len(forms)} forms came back as they were")


def kustomize(program, folder):
    """kubectl's own reader."""
    import ruamel.yaml

    # It writes a lone `=` and `<<` without quotes, which these readers take for something else.
    reader = ruamel.yaml.YAML(typ="safe", pure=True)
    for tag in ["value", "merge"]:
        reader.Constructor.add_constructor(f"tag:yaml.org,2002:{tag}", reader.Constructor.construct_scalar)
    if not shutil.which("kubectl"):
        print("no kubectl: not read by it")
        return
    for name in ["whole-application", "kubectl-json", "by-number"]:
        path = ROOT / f"tests/golden/inject/{name}.yaml"
        place = folder / name
        place.mkdir()
        shutil.copy(path, place / "all.yaml")
        (place / "kustomization.yaml").write_text("resources: [all.yaml]\n")
        done = subprocess.run(["kubectl", "kustomize", str(place)], capture_output=True, text=True)
        check(f"kubectl kustomize of {name}", done.returncode == 0, done.stderr)
        key = lambda it: (it["kind"], it["metadata"].get("namespace", ""), it["metadata"]["name"])
        found, expected = (sorted(objects(reader.load_all(it)), key=key) for it in (done.stdout, path.read_text()))
        for one, other in zip(map(without_nothing, found), map(without_nothing, expected), strict=True):
            different = [key for key in {**one, **other} if one.get(key) != other.get(key)]
            check(f"{name} as kubectl reads it", not different, [(one.get(key), other.get(key)) for key in different])
    print("kubectl reads the same values")


def without_nothing(value):
    """Without keys that have no value: kubectl leaves them out. Keys are text to it."""
    if isinstance(value, dict):
        return {str(key): without_nothing(it) for key, it in value.items() if it is not None}
    return [without_nothing(it) for it in value] if isinstance(value, list) else value


def main():
    try:
        import kubernetes_validate  # noqa: F401
        import ruamel.yaml  # noqa: F401
    except ImportError:
        if os.environ.get("IN_VENV"):
            raise
        with tempfile.TemporaryDirectory() as folder:
            made = subprocess.run([sys.executable, "-m", "venv", folder])
            pip = [f"{folder}/bin/pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES]
            if made.returncode or subprocess.run(pip).returncode:
                skip("cannot install " + ", ".join(PACKAGES))
            again = subprocess.run([f"{folder}/bin/python", __file__], env={**os.environ, "IN_VENV": "1"})
            raise SystemExit(again.returncode)
    program = binary()
    with tempfile.TemporaryDirectory() as folder:
        goldens(program)
        hostile(program, pathlib.Path(folder))
        kustomize(program, pathlib.Path(folder))


if __name__ == "__main__":
    main()
