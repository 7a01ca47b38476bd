"""What the network policies allow, worked out pod by pod: who may reach whom on which port."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a label selector matches; an empty one matches everything."""
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    for want in selector.get("matchExpressions", []):
        held = labels.get(want["key"])
        matched = {
            "Exists": held is not None,
            "DoesNotExist": held is None,
            "In": held in want.get("values", []),
            "NotIn": held not in want.get("values", []),
        }[want["operator"]]
        if not matched:
            return False
    return True


def policies(objects: list[Any]) -> list[Any]:
    return [item for item in objects if item["kind"] == "NetworkPolicy"]


def covers(policy: Any, pod: Any) -> bool:
    """Whether a policy speaks of a pod."""
    return policy["metadata"]["namespace"] == pod.namespace and selects(policy["spec"]["podSelector"], pod.labels)


def peer_is(policy: Any, peer: Any, pod: Any) -> bool:
    """Whether one `to` or `from` of a policy means a pod. Addresses mean none."""
    if "ipBlock" in peer:
        return False
    names = {"kubernetes.io/metadata.name": pod.namespace}
    near = pod.namespace == policy["metadata"]["namespace"]
    space = selects(peer["namespaceSelector"], names) if "namespaceSelector" in peer else near
    return space and selects(peer.get("podSelector", {}), pod.labels)


def held(port: Any, number: int) -> bool:
    return port["port"] <= number <= port.get("endPort", port["port"])


def rules(policy: Any, way: str) -> Iterator[tuple[Any, Any]]:
    """(peer, port) of every rule of a policy in one direction; each rule must name both."""
    if way.capitalize() in policy["spec"]["policyTypes"]:
        for rule in policy["spec"].get(way, []):
            for peer in rule["to" if way == "egress" else "from"]:
                yield from ((peer, port) for port in rule["ports"])


def allowed(objects: list[Any], way: str, source: Any, target: Any, number: int) -> bool:
    """Whether some policy allows the way out of the source, or into the target."""
    subject, other = (source, target) if way == "egress" else (target, source)
    return any(
        covers(policy, subject) and peer_is(policy, peer, other) and held(port, number)
        for policy in policies(objects)
        for peer, port in rules(policy, way)
    )


def one_way(objects: list[Any], pods: list[Any]) -> list[str]:
    """Arrows that leave one pod of ours and are not let into the other, or the reverse."""
    faults = []
    for source in pods:
        for target in pods:
            for number in sorted(target.ports):
                out, into = (allowed(objects, way, source, target, number) for way in ("egress", "ingress"))
                if out != into:
                    missing = "into" if out else "out"
                    faults.append(f"{source.component} -> {target.component}:{number} has no way {missing}")
    return faults


def unused(objects: list[Any], pods: list[Any], versions: Any) -> list[str]:
    """Rules that no real port answers to, and policies that speak of no pod."""
    faults = []
    known = [
        (item["namespace"], dict([item["pods"].split("=")]), set(item["ports"]))
        for item in versions["outside"] + versions["clients"]
    ]
    for policy in policies(objects):
        name = f"{policy['metadata']['namespace']}/{policy['metadata']['name']}"
        if not any(covers(policy, pod) for pod in pods):
            faults.append(f"{name}: speaks of no pod")
        for way in ("egress", "ingress"):
            for peer, port in rules(policy, way):
                if "ipBlock" in peer:
                    real = port["port"] in versions["addresses"] and port["protocol"] == "TCP"
                    if peer["ipBlock"]["cidr"] == "0.0.0.0/0":
                        real &= port["port"] == 443 and "169.254.0.0/16" in peer["ipBlock"].get("except", [])
                else:
                    near = [pod for pod in pods if peer_is(policy, peer, pod)]
                    far = [ports for space, labels, ports in known if peer_is(policy, peer, _Far(space, labels))]
                    listening = near if way == "egress" else [pod for pod in pods if covers(policy, pod)]
                    numbers = {number for pod in listening for number in pod.ports}
                    numbers |= set().union(*far) if way == "egress" else set()
                    real = bool(near or far) and any(held(port, number) for number in numbers)
                if not real:
                    faults.append(f"{name}: {way} on {port['port']} reaches nothing real: {peer}")
    return faults


class _Far:
    """A pod of somebody else's."""

    def __init__(self, namespace: str, labels: dict[str, str]) -> None:
        self.namespace, self.labels = namespace, labels


def open_pods(objects: list[Any], pods: list[Any]) -> list[str]:
    """Pods that no policy denies everything that is not named."""
    denials = [
        policy
        for policy in policies(objects)
        if set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
        and not policy["spec"].get("ingress")
        and not policy["spec"].get("egress")
    ]
    return [pod.owner for pod in pods if not any(covers(policy, pod) for policy in denials)]


def arrows(objects: list[Any], pods: list[Any], versions: Any) -> set[tuple[str, str, int]]:
    """All (from, to, port) that are allowed, by component; others' pods by their label, addresses as `any address`."""
    found = set()
    for source in pods:
        for target in pods:
            for number in target.ports:
                if allowed(objects, "egress", source, target, number):
                    found.add((source.component, target.component, number))
        for policy in policies(objects):
            for peer, port in rules(policy, "egress") if covers(policy, source) else []:
                if "ipBlock" in peer:
                    found.add((source.component, "addresses", port["port"]))
        for item in versions["outside"]:
            far = _Far(item["namespace"], dict([item["pods"].split("=")]))
            for number in item["ports"]:
                if allowed(objects, "egress", source, far, number):
                    found.add((source.component, item["pods"], number))
    for item in versions["clients"]:
        far = _Far(item["namespace"], dict([item["pods"].split("=")]))
        for target in pods:
            for number in target.ports:
                if allowed(objects, "ingress", far, target, number):
                    found.add((item["pods"], target.component, number))
    return found
