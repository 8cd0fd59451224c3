"""The Kubernetes API as plain JSON.

Objects are read and written as dicts, never as typed models: a typed read drops the fields that this client's
version does not know, and a write of such a model would delete them from the user's object. The `kubernetes`
package supplies what is tedious and security-relevant: kubeconfig, tokens, TLS and the transport.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from kubernetes.aio import client, config

Json = dict[str, Any]

LOG_TIMEOUT = 10.0
"""Seconds for a container's log: its node may be out of reach."""
FIELD_MANAGER = "specdecode"
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"


class ApiError(Exception):
    """The API server refused a request: `status` is the HTTP code, `reason` Kubernetes' own word for it."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status, self.reason, self.message = status, reason, message


class KubeconfigError(Exception):
    """There is no cluster to talk to: no kubeconfig, or one that cannot be used."""


@dataclass(frozen=True)
class Resource:
    """Where a kind lives in the API, e.g. `Resource("apps/v1", "deployments")`."""

    api_version: str
    plural: str

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """The URL path of the collection or of one object; no namespace means all of them (or a cluster-wide kind)."""
        parts = ["api" if self.api_version == "v1" else "apis", self.api_version]
        if namespace:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [part for part in (name, subresource) if part]
        return "/" + "/".join(parts)


DEPLOYMENTS = Resource("apps/v1", "deployments")
REPLICASETS = Resource("apps/v1", "replicasets")
PODS = Resource("v1", "pods")
POLICIES = Resource("specdecode.dev/v1alpha1", "specdecodepolicies")


class Kube:
    """A connection to one API server. Use it as an async context manager."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api

    @classmethod
    async def connect(cls, kubeconfig: str | None = None, context: str | None = None) -> Self:
        """The cluster that we run in, or else the one that the kubeconfig names (`$KUBECONFIG`, `~/.kube/config`).

        Raises `KubeconfigError`.
        """
        configuration = client.Configuration()
        if kubeconfig is None and context is None:
            try:
                config.load_incluster_config(client_configuration=configuration)
                return cls(client.ApiClient(configuration))
            except config.ConfigException:
                pass  # not in a cluster
        try:
            await config.load_kube_config(kubeconfig, context=context, client_configuration=configuration)
        except Exception as e:  # the package lets whatever a malformed file causes through
            path = kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
            raise KubeconfigError(f"cannot use the kubeconfig {path}: {e}") from e
        return cls(client.ApiClient(configuration))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._api.close()

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str | None = None,
        timeout: float = 30.0,
    ) -> Any:
        headers = {"Accept": "application/json"}
        if content_type:
            headers["Content-Type"] = content_type
        request = await self._api.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        return await self._api.call_api(*request, _request_timeout=timeout)

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str | None = None,
    ) -> Json:
        """One request and its JSON answer. Raises `ApiError` for an HTTP status of 400 and above."""
        response = await self._send(method, path, query, body, content_type)
        raw = await response.read()
        try:
            answer = json.loads(raw) if raw else {}
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            answer = {"message": raw.decode(errors="replace")}
        if response.status >= 400:
            raise ApiError(response.status, answer.get("reason", ""), answer.get("message", ""))
        return dict(answer)

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> Json:
        """One object."""
        return await self.request("GET", resource.path(namespace, name))

    async def find(self, resource: Resource, name: str, namespace: str | None = None) -> Json | None:
        """One object; None where there is none."""
        try:
            return await self.get(resource, name, namespace)
        except ApiError as e:
            if e.status == 404:
                return None
            raise

    async def list(self, resource: Resource, namespace: str | None = None, selector: str = "") -> list[Json]:
        """All objects of a namespace (or of all namespaces) that match a label selector."""
        query = {"labelSelector": selector} if selector else {}
        answer = await self.request("GET", resource.path(namespace), query)
        return list(answer.get("items") or [])

    async def create(self, resource: Resource, body: Json, namespace: str | None = None) -> Json:
        """Creates an object."""
        return await self.request("POST", resource.path(namespace), {"fieldManager": FIELD_MANAGER}, body)

    async def apply(
        self, resource: Resource, body: Json, namespace: str | None = None, manager: str = FIELD_MANAGER
    ) -> Json:
        """Server-side apply, forced: creates the object or makes its named fields what `body` says."""
        query = {"fieldManager": manager, "force": "true"}
        return await self.request("PATCH", resource.path(namespace, body["metadata"]["name"]), query, body, APPLY)

    async def patch(
        self,
        resource: Resource,
        name: str,
        namespace: str | None,
        body: Any,
        content_type: str = MERGE_PATCH,
        subresource: str | None = None,
    ) -> Json:
        """Patches an object or one of its subresources (`status`)."""
        query = {"fieldManager": FIELD_MANAGER}
        return await self.request("PATCH", resource.path(namespace, name, subresource), query, body, content_type)

    async def delete(
        self, resource: Resource, name: str, namespace: str | None = None, grace_seconds: int | None = None
    ) -> None:
        """Deletes an object; one that is not there is no error."""
        query = {} if grace_seconds is None else {"gracePeriodSeconds": str(grace_seconds)}
        try:
            await self.request("DELETE", resource.path(namespace, name), query)
        except ApiError as e:
            if e.status != 404:
                raise

    async def read_log(
        self, pod: str, namespace: str, container: str, lines: int | None, size: int, *, previous: bool = False
    ) -> str:
        """The last lines that a container has written, or all (None), from there on at most `size` bytes; with
        `previous` of its run before.

        Raises `ApiError`, also where the node does not answer in time.
        """
        query = {"container": container, "limitBytes": str(size)}
        if lines is not None:
            query["tailLines"] = str(lines)
        if previous:
            query["previous"] = "true"
        try:
            response = await self._send("GET", PODS.path(namespace, pod, "log"), query, timeout=LOG_TIMEOUT)
            text = (await response.read()).decode(errors="replace")
        except TimeoutError as e:
            raise ApiError(504, "Timeout", f"the log of {pod} did not come within {LOG_TIMEOUT:g} s") from e
        if response.status >= 400:
            raise ApiError(response.status, response.reason or "", text)
        return str(text)

    async def watch(
        self,
        resource: Resource,
        namespace: str | None = None,
        selector: str = "",
        resource_version: str = "",
        seconds: int = 300,
        fields: str = "",
    ) -> AsyncIterator[Json]:
        """Watch events `{"type": …, "object": …}` until the server ends the stream, at the latest after `seconds`."""
        query = {"watch": "true", "timeoutSeconds": str(seconds), "allowWatchBookmarks": "true"}
        if selector:
            query["labelSelector"] = selector
        if fields:
            query["fieldSelector"] = fields
        if resource_version:
            query["resourceVersion"] = resource_version
        response = await self._send("GET", resource.path(namespace), query, timeout=seconds + 30.0)
        try:
            if response.status >= 400:
                raise ApiError(response.status, "Watch", (await response.read()).decode(errors="replace"))
            async for line in response.response.content:
                if line.strip():
                    yield json.loads(line)
        finally:
            response.response.close()
