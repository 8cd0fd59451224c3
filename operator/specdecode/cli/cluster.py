"""What the commands that look at a cluster share."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

import typer

from specdecode.api.v1alpha1 import SpecDecodePolicySpec, SpecDecodePolicyStatus
from specdecode.cluster.kube import POLICIES, ApiError, Json, Kube, KubeconfigError

T = TypeVar("T")

Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="Namespace of the policy. Default: all.")]
Kubeconfig = Annotated[str | None, typer.Option(help="Path of the kubeconfig. Default: $KUBECONFIG, ~/.kube/config.")]
Context = Annotated[str | None, typer.Option(help="Context of the kubeconfig. Default: the current one.")]


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs one command's work; what the cluster refuses becomes a message and exit code 1, not a traceback."""
    try:
        return asyncio.run(work)
    except ApiError as e:
        hint = ": is the CRD installed, and the kubeconfig the right one?" if e.status == 404 else ""
        raise fail(f"the API server answered {e}{hint}") from e
    except KubeconfigError as e:
        raise fail(f"{e}; name another one with --kubeconfig, and its context with --context") from e
    except OSError as e:
        raise fail(f"the API server cannot be reached: {e}") from e


def fail(message: str) -> typer.Exit:
    """Says what is wrong on stderr; raise what it returns."""
    typer.secho(f"specdecode: {message}", fg=typer.colors.RED, err=True)
    return typer.Exit(1)


async def one(kubeconfig: str | None, context: str | None, namespace: str | None, name: str) -> Json:
    """One policy by name; of several with that name in different namespaces none."""
    found = [p for p in await policies(kubeconfig, context, namespace) if p["metadata"]["name"] == name]
    if len(found) == 1:
        return found[0]
    where = f"in namespace {namespace}" if namespace else "in any namespace"
    raise fail(f"there is no policy {name} {where}" if not found else f"several policies are named {name}: add -n")


async def policies(kubeconfig: str | None, context: str | None, namespace: str | None) -> list[Json]:
    """The policies of a namespace, or of all."""
    async with await Kube.connect(kubeconfig, context) as kube:
        return await kube.list(POLICIES, namespace)


def parsed(policy: Json) -> tuple[SpecDecodePolicySpec, SpecDecodePolicyStatus]:
    """A policy's spec and status."""
    return (
        SpecDecodePolicySpec.model_validate(policy["spec"]),
        SpecDecodePolicyStatus.model_validate(policy.get("status") or {}),
    )
