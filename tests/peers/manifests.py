#!/usr/bin/env python3
"""What deploy/kustomize renders to, held against what a cluster would ask of it.

    tests/peers/manifests.py

- `kubectl kustomize` renders the base and the demo.
- kubernetes-validate --strict knows each object, in the oldest and in the newest version that is meant.
- Each pod is within Pod Security `restricted`, and pods that are not are seen.
- The settings of each sidecar pass `check` with the policy that is mounted beside them.
- The service listens on loopback; Services and NetworkPolicies lead to the sidecar and to nothing else.
- checkov finds nothing but what EXCEPTIONS names.

There is no cluster in this: nobody has admitted, scheduled or started anything.

DPA_SIDECAR names the binary; without it the debug build is made and taken.
Exit codes: 0 all as it should be; 1 a finding; 2 cannot look (it says why).
"""

import copy
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
KUSTOMIZE = ROOT / "deploy/kustomize"
DEMO = KUSTOMIZE / "overlays/demo"
PACKAGES = ["PyYAML==6.0.3", "kubernetes-validate==1.37.0", "checkov==3.3.30"]
# The first with native sidecars by default, and the newest that kubernetes-validate knows.
VERSIONS = ["1.29.0", "1.37.0"]

EXCEPTIONS = {
    "CKV_K8S_11": "no limit of processor time: throttled, a sidecar holds up each request of its service",
    "CKV_K8S_15": "images are pulled if they are not there: their tags are fixed, and a demo loads them by hand",
    "CKV_K8S_43": "no digest: this project publishes no image; docs/deploy.md says to write yours",
}


def skip(why):
    print(f"skipped: {why}", file=sys.stderr)
    sys.exit(2)


def with_packages(name, packages):
    """Goes on in a Python that has these, kept under target/."""
    folder = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "peers" / name
    if pathlib.Path(sys.prefix) == folder.resolve():
        return
    wanted = folder / "packages.txt"
    if not wanted.exists() or wanted.read_text() != "\n".join(packages):
        make = [sys.executable, "-m", "venv", str(folder)]
        install = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", *packages]
        for words in [make, install]:
            done = subprocess.run(words, capture_output=True, text=True)
            if done.returncode != 0:
                skip(f"{' '.join(words)}: {done.stderr.strip().splitlines()[-1:]}")
        wanted.write_text("\n".join(packages))
    python = str(folder.resolve() / "bin/python")
    os.execv(python, [python, *sys.argv])


def binary():
    named = os.environ.get("DPA_SIDECAR")
    if named:
        return str(pathlib.Path(named).resolve())
    subprocess.run(["cargo", "build", "--locked", "--quiet"], cwd=ROOT, check=True)
    return str(pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug/dpa-sidecar")


def rendered(folder):
    """The objects of a folder."""
    import yaml

    if not shutil.which("kubectl"):
        skip("no kubectl")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"kubectl kustomize {folder}: {done.stderr}")
    return list(yaml.safe_load_all(done.stdout))


def of_kind(objects, kind):
    return [it for it in objects if it["kind"] == kind]


def pod_of(objects):
    """The one pod template."""
    (deployment,) = of_kind(objects, "Deployment")
    return deployment["spec"]["template"]


def sidecar_of(pod):
    """The container of the sidecar."""
    (sidecar,) = [it for it in pod["spec"]["initContainers"] if it.get("restartPolicy") == "Always"]
    return sidecar


def mounted(objects, pod, container):
    """Path of each mount -> the files that a ConfigMap puts there, or None for another volume."""
    maps = {it["metadata"]["name"]: it["data"] for it in of_kind(objects, "ConfigMap")}
    volumes = {it["name"]: it for it in pod["spec"]["volumes"]}
    named = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    return {path: maps[it["configMap"]["name"]] if "configMap" in it else None for path, it in named.items()}


# Pod Security `restricted`, as kubernetes.io/docs/concepts/security/pod-security-standards lists it.

SAFE_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}
SAFE_SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
}
SAFE_SELINUX = {None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
SECCOMP, APPARMOR = {"RuntimeDefault", "Localhost"}, {None, "RuntimeDefault", "Localhost"}


def unrestricted(pod):
    """What `restricted` forbids in this pod template, as sentences."""
    spec, wrong = pod["spec"], []
    whole = spec.get("securityContext") or {}
    containers = [it for kind in ["initContainers", "containers", "ephemeralContainers"] for it in spec.get(kind) or []]
    for key in ["hostNetwork", "hostPID", "hostIPC"]:
        if spec.get(key):
            wrong.append(f"{key} is set")
    for volume in spec.get("volumes") or []:
        for kind in set(volume) - {"name"} - SAFE_VOLUMES:
            wrong.append(f"the volume {volume['name']} is a {kind}")
    for sysctl in whole.get("sysctls") or []:
        if sysctl["name"] not in SAFE_SYSCTLS:
            wrong.append(f"the sysctl {sysctl['name']} is set")
    for name in pod["metadata"].get("annotations") or {}:
        if name.startswith("container.apparmor.security.beta.kubernetes.io/"):
            wrong.append(f"AppArmor is set by the annotation {name}")
    if whole.get("supplementalGroups") and 0 in whole["supplementalGroups"]:
        wrong.append("the pod is in group 0")
    for place, own in [("the pod", whole)] + [(it["name"], it.get("securityContext") or {}) for it in containers]:
        if own.get("runAsUser") == 0:
            wrong.append(f"{place} runs as root")
        if own.get("privileged"):
            wrong.append(f"{place} is privileged")
        options = own.get("seLinuxOptions") or {}
        if options.get("type") not in SAFE_SELINUX or options.get("user") or options.get("role"):
            wrong.append(f"{place} has options of SELinux")
        if (own.get("appArmorProfile") or {}).get("type") not in APPARMOR:
            wrong.append(f"{place} is without AppArmor")
        if (own.get("windowsOptions") or {}).get("hostProcess"):
            wrong.append(f"{place} is a process of the host")
    for it in containers:
        own, name = it.get("securityContext") or {}, it["name"]
        if own.get("runAsNonRoot", whole.get("runAsNonRoot")) is not True:
            wrong.append(f"{name} may run as root")
        if (own.get("seccompProfile") or whole.get("seccompProfile") or {}).get("type") not in SECCOMP:
            wrong.append(f"{name} is without seccomp")
        if own.get("allowPrivilegeEscalation") is not False:
            wrong.append(f"{name} may gain privileges")
        if own.get("procMount", "Default") != "Default":
            wrong.append(f"{name} sees all of /proc")
        capabilities = own.get("capabilities") or {}
        if "ALL" not in (capabilities.get("drop") or []):
            wrong.append(f"{name} keeps capabilities")
        if set(capabilities.get("add") or []) - {"NET_BIND_SERVICE"}:
            wrong.append(f"{name} adds capabilities")
        if any(port.get("hostPort") for port in it.get("ports") or []):
            wrong.append(f"{name} has a port of the host")
        for probe in ["startupProbe", "readinessProbe", "livenessProbe"]:
            for kind in ["httpGet", "tcpSocket"]:
                if ((it.get(probe) or {}).get(kind) or {}).get("host"):
                    wrong.append(f"the {probe} of {name} goes to another host")
        for hook in (it.get("lifecycle") or {}).values():
            if any((hook.get(kind) or {}).get("host") for kind in ["httpGet", "tcpSocket"]):
                wrong.append(f"a hook of {name} goes to another host")
    return wrong


# What is changed in a pod that is good, and what has to be seen then.
CHANGES = [
    ("hostNetwork is set", lambda pod: pod["spec"].update(hostNetwork=True)),
    ("the volume log is a hostPath",
     lambda pod: pod["spec"]["volumes"].append({"name": "log", "hostPath": {"path": "/"}})),
    ("the pod runs as root", lambda pod: pod["spec"]["securityContext"].update(runAsUser=0)),
    ("app may run as root", lambda pod: pod["spec"]["securityContext"].pop("runAsNonRoot")),
    ("app is without seccomp", lambda pod: pod["spec"]["securityContext"].pop("seccompProfile")),
    ("dpa-sidecar may run as root", lambda pod: sidecar_of(pod)["securityContext"].update(runAsNonRoot=False)),
    ("dpa-sidecar is without seccomp",
     lambda pod: sidecar_of(pod)["securityContext"].update(seccompProfile={"type": "Unconfined"})),
    ("dpa-sidecar may gain privileges", lambda pod: sidecar_of(pod)["securityContext"].pop("allowPrivilegeEscalation")),
    ("dpa-sidecar keeps capabilities", lambda pod: sidecar_of(pod)["securityContext"].pop("capabilities")),
    ("dpa-sidecar adds capabilities",
     lambda pod: sidecar_of(pod)["securityContext"]["capabilities"].update(add=["NET_ADMIN"])),
    ("dpa-sidecar is privileged", lambda pod: sidecar_of(pod)["securityContext"].update(privileged=True)),
    ("dpa-sidecar has a port of the host", lambda pod: sidecar_of(pod)["ports"][0].update(hostPort=8080)),
    ("the readinessProbe of app goes to another host",
     lambda pod: pod["spec"]["containers"][0]["readinessProbe"]["httpGet"].update(host="192.0.2.1")),
]


def pods(objects):
    pod = pod_of(objects)
    yield from unrestricted(pod)
    for expected, change in CHANGES:
        changed = copy.deepcopy(pod)
        change(changed)
        if expected not in unrestricted(changed):
            yield f"not seen: {expected}"
    (namespace,) = of_kind(objects, "Namespace")
    if namespace["metadata"]["labels"].get("pod-security.kubernetes.io/enforce") != "restricted":
        yield "the namespace does not enforce `restricted`"
    # What `restricted` does not ask for, and we do.
    for it in [sidecar_of(pod), *pod["spec"]["containers"]]:
        if it["securityContext"].get("readOnlyRootFilesystem") is not True:
            yield f"{it['name']} may write to its root"
    if pod["spec"].get("automountServiceAccountToken") is not False:
        yield "the pod gets a token of the cluster"
    if pod["spec"]["initContainers"][0] != sidecar_of(pod):
        yield "another container starts before the sidecar"
    if "preStop" in sidecar_of(pod).get("lifecycle", {}):
        yield "the sidecar has a preStop, which runs beside that of the service"


def settings(objects):
    """`check` of each sidecar, with its files where they are mounted; and what of the settings the rest goes by."""
    import yaml

    pod = pod_of(objects)
    sidecar = sidecar_of(pod)
    place = sidecar["args"][sidecar["args"].index("--config") + 1]
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        for path, files in mounted(objects, pod, sidecar).items():
            for file, text in (files or {}).items():
                (root / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
                (root / path.lstrip("/") / file).write_text(text)
        file = root / place.lstrip("/")
        if not file.exists():
            return [f"{place}: no ConfigMap is mounted there"]
        environment = {**os.environ, **{it["name"]: it["value"] for it in sidecar["env"]}}
        done = subprocess.run([binary(), "check", str(file)], capture_output=True, text=True, env=environment)
        if done.returncode != 0 or done.stdout.count(": ok: ") != 2:
            return [f"check: {done.returncode}\n{done.stdout}{done.stderr}"]
        said = yaml.safe_load(file.read_text())
    return list(reachable(objects, pod, sidecar, said))


def reachable(objects, pod, sidecar, said):
    ports = {int(it["address"].rsplit(":", 1)[1]) for it in said["listeners"]}
    health = int(said["health"]["address"].rsplit(":", 1)[1])
    if {it["containerPort"] for it in sidecar["ports"]} != ports | {health}:
        yield "the ports of the container are not those of the settings"
    for address in [it["address"] for it in said["upstreams"]]:
        if not address.startswith(("127.0.0.1:", "unix:")):
            yield f"the upstream {address} is not in the pod"
    for name, text in mounted(objects, pod, pod["spec"]["containers"][0])["/srv/subscriber-api/conf"].items():
        for line in re.findall(r"^\s*listen\s+(\S+);", text, re.MULTILINE) if name == "nginx.conf" else []:
            if line not in [it["address"] for it in said["upstreams"]]:
                yield f"the service listens on {line}"
    for service in of_kind(objects, "Service"):
        for port in service["spec"]["ports"]:
            if port["targetPort"] not in ports:
                yield f"the Service {service['metadata']['name']} leads to {port['targetPort']}"
    labels = pod["metadata"]["labels"].items()
    incoming = [
        rule
        for policy in of_kind(objects, "NetworkPolicy")
        if "Ingress" in policy["spec"]["policyTypes"]
        and policy["spec"]["podSelector"].get("matchLabels", {}).items() <= labels
        for rule in policy["spec"].get("ingress", [])
    ]
    let_in = {(port.get("protocol"), port.get("port")) for rule in incoming for port in rule.get("ports", [{}])}
    if let_in != {("TCP", port) for port in ports | {health}}:
        yield f"NetworkPolicies let in {sorted(let_in, key=str)}"
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"]:
        if sidecar[probe]["httpGet"]["port"] != health:
            yield f"the {probe} does not ask the health port"
    # What has to fit into the grace period, and into the volume.
    seconds = int(str(said.get("drain_timeout", "25s")).removesuffix("s"))
    held_back = max(it.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
                    for it in pod["spec"]["containers"])
    if held_back + seconds >= pod["spec"]["terminationGracePeriodSeconds"]:
        yield "the grace period is shorter than what has to fit into it"
    log = said["decision_log"]["file"]
    (volume,) = [it for it in pod["spec"]["volumes"] if it["name"] == "dpa-log"]
    if mebibytes(log["rotate_bytes"]) * (log["keep"] + 1) > mebibytes(volume["emptyDir"]["sizeLimit"]):
        yield "the decision log does not fit into its volume"


def mebibytes(size):
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)B?", size).groups()
    return int(number) * {"Mi": 1, "Gi": 1024}[unit]


def known(text, folder):
    """What kubernetes-validate finds."""
    file = folder / "rendered.yaml"
    file.write_text(text)
    program = str(pathlib.Path(sys.prefix) / "bin/kubernetes-validate")
    for version in VERSIONS:
        done = subprocess.run([program, "--strict", "-k", version, str(file)], capture_output=True, text=True)
        if done.returncode != 0:
            yield f"{version}: {done.stdout}{done.stderr}"
    # It has to see a key that nobody knows.
    file.write_text(text.replace("restartPolicy: Always", "restartPolicyy: Always"))
    if subprocess.run([program, "--strict", "-k", VERSIONS[0], str(file)], capture_output=True).returncode == 0:
        yield "not seen: restartPolicyy"


def scanned(text, folder):
    """What checkov finds beyond EXCEPTIONS, and exceptions that are of no use any more."""
    file = folder / "scanned.yaml"
    file.write_text(text)
    # It would ask its maker's service for texts.
    words = [str(pathlib.Path(sys.prefix) / "bin/checkov"), "--framework", "kubernetes", "--file", str(file),
             "--output", "json", "--skip-download", "--soft-fail"]
    done = subprocess.run(words, capture_output=True, text=True)
    try:
        result = json.loads(done.stdout)
    except ValueError:
        raise SystemExit(f"checkov: {done.stdout}{done.stderr}") from None
    found = {}
    for it in result["results"]["failed_checks"]:
        found.setdefault(it["check_id"], f"{it['check_id']} {it['resource']}: {it['check_name']}")
    if result["summary"]["passed"] < 50:
        yield f"checkov looked at too little: {result['summary']}"
    yield from (text for code, text in found.items() if code not in EXCEPTIONS)
    yield from (f"{code} is found no more: take it out of EXCEPTIONS" for code in EXCEPTIONS if code not in found)


def copied():
    """Kustomize reads nothing outside of a folder, so the demo has a policy of its own."""
    if (DEMO / "policy/policy.yaml").read_text() != (ROOT / "config/policy.yaml").read_text():
        yield "overlays/demo/policy/policy.yaml is no copy of config/policy.yaml"


def main():
    with_packages("manifests", PACKAGES)
    import yaml

    rendered(KUSTOMIZE / "base")
    objects = rendered(DEMO)
    text = "---\n".join(yaml.safe_dump(it) for it in objects)
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for what, findings in [
            (f"each object is one of Kubernetes {' and '.join(VERSIONS)}", known(text, folder)),
            ("each pod is within Pod Security `restricted`", pods(objects)),
            ("the settings pass `check`, and only the sidecar is reachable", settings(objects)),
            ("the demo has the sample policy", copied()),
            (f"checkov finds nothing but {', '.join(EXCEPTIONS)}", scanned(text, folder)),
        ]:
            found = list(findings)
            wrong += len(found)
            print(f"{'WRONG' if found else 'ok   '} {what}")
            for line in found:
                print(f"      {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
